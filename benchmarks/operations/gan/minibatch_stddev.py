"""The minibatch's deviation: one more channel of a discriminator's last feature maps."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from benchmarks.known import TINY, TORCHS, Story
from benchmarks.operation import Case, Operation, gpu_case
from benchmarks.operations.gan._filters import laid_out

BOTH = ("forward", "training")
GROUP = 4


@dataclass(frozen=True)
class Shape:
    sizes: tuple[int, int, int, int]
    channels_last: bool = False

    @property
    def result(self) -> tuple[int, ...]:
        return (self.sizes[0], self.sizes[1] + 1, *self.sizes[2:])


STYLEGAN2 = "StyleGAN2's discriminator"
CASES = (
    Case("8x512x4", Shape((8, 512, 4, 4)), (*BOTH, "double-backward"), model=STYLEGAN2, quick=True),
    Case("32x512x4", Shape((32, 512, 4, 4)), BOTH, model=STYLEGAN2),
    Case("32x512x4 channels_last", Shape((32, 512, 4, 4), channels_last=True), BOTH, model=STYLEGAN2, quick=True),
    Case("16x256x16", Shape((16, 256, 16, 16)), BOTH, model="a discriminator's earlier feature maps"),
    Case("tiny 4x8x2", Shape((4, 8, 2, 2)), ("forward",), quick=True),
)

GPU = tuple(
    gpu_case(f"256x512x16{' channels_last' * last}", Shape((256, 512, 16, 16), last), Shape((8, 6, 3, 2), last), *BOTH)
    for last in (False, True)
)


def inputs(case: Case) -> tuple[torch.Tensor]:
    return (laid_out(case.shape.sizes, case.shape.channels_last),)


def in_torch(case: Case):
    """As StyleGAN2's networks have it."""

    def call(x):
        _, channels, height, width = x.shape
        y = x.reshape(GROUP, -1, channels, height, width)
        y = ((y - y.mean(0)).square().mean(0) + 1e-8).sqrt().mean((1, 2, 3)).reshape(-1, 1, 1, 1)
        return torch.cat([x, y.repeat(GROUP, 1, height, width)], 1)

    return call


def ours(case: Case):
    from pyflash.functional import minibatch_stddev

    return lambda x: minibatch_stddev(x, GROUP)


def bytes_(case: Case, mode: str) -> float:
    """x and y; x, dy and dx."""
    x, y = prod(case.shape.sizes), prod(case.shape.result)
    return {"forward": x + y, "backward": 2 * x + y, "training": 3 * x + 2 * y}[mode] * case.itemsize


STORY = Story(
    limit="Memory: x once, and the result, a channel more, once.",
    elsewhere="With torch it is eight operations, of which four are over all of x, and a concatenation.",
    gaps=(TINY, TORCHS),
)

OPERATION = Operation(
    name="minibatch_stddev",
    cases=CASES,
    inputs=inputs,
    torch=in_torch,
    pyflash=ours,
    flops=lambda case, mode: 0.0,
    bytes=bytes_,
    gpu=GPU,
)

# Of so many elements.
POINTS = {"minibatch_stddev": lambda kind, sizes: (OPERATION, Shape((8, sizes[0] >> 7, 4, 4)))}
