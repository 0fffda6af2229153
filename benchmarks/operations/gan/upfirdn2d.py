"""StyleGAN's upsampling, downsampling and blur: between the layers of generator and discriminator, and of their images."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from benchmarks.known import TINY, TORCHS, Story, fresh, turned
from benchmarks.operation import Case, Operation, gpu_case
from benchmarks.operations.gan._filters import PASSES, laid_out, on_device


@dataclass(frozen=True)
class Shape:
    sizes: tuple[int, int, int, int]
    kind: str  # "up" and "down" by 2, or "filter"
    taps: int = 4
    channels_last: bool = False

    @property
    def result(self) -> tuple[int, ...]:
        return (*self.sizes[:2], *(int(n * {"up": 2, "down": 0.5, "filter": 1}[self.kind]) for n in self.sizes[2:]))


BOTH = ("forward", "backward")
STYLEGAN2 = "StyleGAN2's generator and discriminator"


def case(kind: str, channels: int, size: int, batch: int = 4, channels_last=False, quick=False, **also) -> Case:
    """By the larger of the two pictures. A backward is the forward of the opposite kind, so that a few tell of all."""
    small = size // 2 if kind == "up" else size
    name = f"{kind} {batch}x{channels}x{size}{' channels_last' * channels_last}"
    modes = BOTH if quick else ("forward",)
    return Case(
        name, Shape((batch, channels, small, small), kind, channels_last=channels_last), modes, quick=quick, **also
    )


CASES = (
    case("up", 512, 32, model=STYLEGAN2),
    case("up", 256, 128, model=STYLEGAN2, quick=True),
    case("up", 64, 256, model=STYLEGAN2),
    case("up", 3, 512, model="StyleGAN2's image, from layer to layer", quick=True),
    case("down", 512, 32, model=STYLEGAN2),
    case("down", 256, 128, model=STYLEGAN2, quick=True),
    case("down", 64, 256, model=STYLEGAN2),
    case("down", 3, 512, model="StyleGAN2's augmentation", quick=True),
    case("filter", 512, 32, model=STYLEGAN2),
    case("filter", 256, 128, model=STYLEGAN2, quick=True),
    case("filter", 32, 512, batch=1, model=STYLEGAN2),
    case("up", 256, 128, channels_last=True, model=STYLEGAN2, quick=True),
    case("down", 256, 128, channels_last=True, model=STYLEGAN2, quick=True),
    case("filter", 256, 128, channels_last=True, model=STYLEGAN2),
    Case("up 12 taps 4x128x128", Shape((4, 128, 64, 64), "up", 12), BOTH, model="StyleGAN3's filter"),
    Case("tiny up 1x1x8", Shape((1, 1, 4, 4), "up"), ("forward",), quick=True),
)  # fmt: skip

GPU = tuple(
    gpu_case(f"{kind}{' channels_last' * last}", Shape((32, 128, n, n), kind, 4, last), Shape((1, 3, 6, 8), kind, 4, last),
             *BOTH, dtype=dtype)
    for kind, n, last in (("up", 64, False), ("down", 128, False), ("filter", 128, True))
    for dtype in ("bfloat16", "float32")
)  # fmt: skip


def of(case: Case, impl: str | None):
    from pyflash import functional

    name = {"up": "upsample2d", "down": "downsample2d", "filter": "filter2d"}[case.shape.kind]
    function, taps = getattr(functional, name), case.shape.taps
    return lambda x: function(x, on_device(taps, x.device), impl=impl)


def flops(case: Case, mode: str) -> float:
    """A product of a row and a column: each way of the taps that meet places."""
    each = 2 * case.shape.taps / (2 if case.shape.kind == "up" else 1)
    return PASSES[mode] * 2 * each * prod(case.shape.result)


def bytes_(case: Case, mode: str) -> float:
    return PASSES[mode] * (prod(case.shape.sizes) + prod(case.shape.result)) * case.itemsize


def inputs(case: Case) -> tuple[torch.Tensor]:
    return (laid_out(case.shape.sizes, case.shape.channels_last),)


STORY = Story(
    limit="Memory: the smaller picture once and the larger one once.",
    elsewhere="PyTorch's operations write zeros between the places, copy that into what is padded, and convolve all of it.",
    gaps=(
        TINY,
        TORCHS,
        *turned("channels_last"),
        fresh("up"),
        fresh("filter"),
    ),
)

OPERATION = Operation(
    name="upfirdn2d",
    cases=CASES,
    inputs=inputs,
    torch=lambda case: of(case, "ref"),
    pyflash=lambda case: of(case, None),
    flops=flops,
    bytes=bytes_,
    gpu=GPU,
)

# To so many elements.
POINTS = {"upfirdn2d": lambda kind, sizes: (OPERATION, Shape((1, sizes[0] >> 10, 16, 16), "up"))}
