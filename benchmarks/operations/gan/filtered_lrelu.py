"""StyleGAN3's activation: bias, upsampling, leaky ReLU and downsampling."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from benchmarks.known import TINY, TORCHS, Story, turned
from benchmarks.operation import Case, Operation, gpu_case
from benchmarks.operations.gan._filters import laid_out, on_device


@dataclass(frozen=True)
class Shape:
    """A picture that keeps its size, or becomes `up / down` times as large."""

    sizes: tuple[int, int, int, int]
    up: int = 2
    down: int = 2
    channels_last: bool = False

    @property
    def taps(self) -> tuple[int, int]:
        return 6 * self.up, 6 * self.down

    @property
    def padding(self) -> tuple[int, int, int, int]:
        total = sum(self.taps) - 1 - self.down  # so that the result has size * up / down places
        before = (total + 1) // 2
        return before, total - before, before, total - before

    @property
    def middle(self) -> int:
        """Elements of the upsampled picture."""
        return prod(self.sizes[:2]) * prod(
            n * self.up + sum(self.padding[:2]) - self.taps[0] + 1 for n in self.sizes[2:]
        )

    @property
    def result(self) -> tuple[int, ...]:
        return (*self.sizes[:2], *(n * self.up // self.down for n in self.sizes[2:]))


BOTH = ("forward", "backward")
STYLEGAN3 = "StyleGAN3-T, 256 pixels"
CASES = (
    Case("4x512x36", Shape((4, 512, 36, 36)), BOTH, model=STYLEGAN3, quick=True),
    Case("4x512x36 up 4", Shape((4, 512, 36, 36), up=4), BOTH, model=STYLEGAN3),
    Case("2x256x84", Shape((2, 256, 84, 84)), BOTH, model=STYLEGAN3),
    Case("1x128x148", Shape((1, 128, 148, 148)), (*BOTH, "double-backward"), model=STYLEGAN3, quick=True),
    Case("1x64x276", Shape((1, 64, 276, 276)), BOTH, model=STYLEGAN3),
    Case("1x128x148 channels_last", Shape((1, 128, 148, 148), channels_last=True), BOTH, model=STYLEGAN3, quick=True),
    Case("tiny 1x1x4", Shape((1, 1, 4, 4)), ("forward",), quick=True),
)  # fmt: skip

GPU = tuple(
    gpu_case(f"up 2 down 2{' channels_last' * last}", Shape((16, 128, 148, 148), channels_last=last),
             Shape((1, 2, 5, 6), channels_last=last), *BOTH, dtype=dtype)
    for last in (False, True)
    for dtype in ("bfloat16", "float32")
)  # fmt: skip


def inputs(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    return laid_out(case.shape.sizes, case.shape.channels_last), torch.randn(case.shape.sizes[1])


def of(case: Case, impl: str | None):
    from pyflash.functional import filtered_lrelu

    shape = case.shape
    form = dict(up=shape.up, down=shape.down, padding=shape.padding, clamp=256.0, impl=impl)

    def call(x, b):
        fu, fd = (on_device(n, x.device) for n in shape.taps)
        return filtered_lrelu(x, fu, fd, b, **form)

    return call


def flops(case: Case, mode: str) -> float:
    """Each way 6 taps to a place of the middle, and those of the downsampling to one of the result; the backward makes the
    middle again, and its own."""
    shape = case.shape
    middle, result = 2 * 2 * 6 * shape.middle, 2 * 2 * shape.taps[1] * prod(shape.result)
    back = 2 * middle + 2 * 2 * shape.taps[0] * prod(shape.sizes)
    return {"forward": middle + result, "backward": back, "training": middle + result + back}[mode]


def bytes_(case: Case, mode: str) -> float:
    """x and y; x, dy and dx."""
    x, y = prod(case.shape.sizes), prod(case.shape.result)
    return {"forward": x + y, "backward": 2 * x + y, "training": 3 * x + 2 * y}[mode] * case.itemsize


STORY = Story(
    limit="Arithmetic: some 50 operations to a place of the upsampled picture, of which there are four to each of x's.",
    elsewhere="PyTorch's operations write the upsampled picture, four times as large and more, several times.",
    gaps=(TINY, TORCHS, *turned("channels_last")),
)

OPERATION = Operation(
    name="filtered_lrelu",
    cases=CASES,
    inputs=inputs,
    torch=lambda case: of(case, "ref"),
    pyflash=lambda case: of(case, None),
    flops=flops,
    bytes=bytes_,
    gpu=GPU,
)

# So many of the upsampled picture, and what is around.
POINTS = {"filtered_lrelu": lambda kind, sizes: (OPERATION, Shape((1, sizes[0] >> 10, 11, 11)))}
