"""Padding of images: before the convolutions of generators, which mirror, and of all others, which add zeros."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F

from benchmarks.known import TINY, TORCHS, WAS_TWICE, Story, fresh, turned
from benchmarks.operation import Case, Operation, gpu_case
from benchmarks.operations.resample._images import bytes_, inputs


@dataclass(frozen=True)
class Shape:
    sizes: tuple[int, ...]
    pads: tuple[int, ...]
    mode: str = "constant"
    channels_last: bool = False

    @property
    def result(self) -> tuple[int, ...]:
        sizes = [*self.sizes]
        for i, (before, after) in enumerate(zip(self.pads[::2], self.pads[1::2]), 1):
            sizes[-i] += before + after
        return tuple(sizes)


BOTH = ("forward", "backward")
CYCLE_GAN = (4, 64, 256, 256), (3, 3, 3, 3), "reflect"
RESNET = (8, 64, 112, 112), (1, 1, 1, 1), "constant"
CASES = (
    Case("reflect 3 4x64x256x256", Shape(*CYCLE_GAN), BOTH, model="CycleGAN's first and last layer",
         quick=True),
    Case("reflect 3 4x64x256x256 channels_last", Shape(*CYCLE_GAN, True), BOTH, model="CycleGAN's first and last layer"),
    Case("reflect 1 4x256x64x64", Shape((4, 256, 64, 64), (1, 1, 1, 1), "reflect"), BOTH, model="CycleGAN's residual blocks"),
    Case("constant 1 8x64x112x112", Shape(*RESNET), BOTH, model="before a strided pooling", quick=True),
    Case("constant 1 8x64x112x112 channels_last", Shape(*RESNET, True), BOTH, model="before a strided pooling"),
    Case("constant channels 32x64x16x16", Shape((32, 64, 16, 16), (0, 0, 0, 0, 32, 32)), BOTH, model="ResNet's shortcut A"),
    Case("replicate 1 1x32x32x64x64", Shape((1, 32, 32, 64, 64), (1,) * 6, "replicate"), BOTH, model="a video decoder"),
    Case("circular 3 4x64x128x128", Shape((4, 64, 128, 128), (3, 3, 3, 3), "circular"), BOTH, model="weather on a globe"),
    Case("tiny 1x1x4x4", Shape((1, 1, 4, 4), (1, 1, 1, 1)), ("forward",), quick=True),
)  # fmt: skip

GPU = tuple(
    gpu_case(f"{shape.mode}{' channels_last' * shape.channels_last}", shape, small, *BOTH, dtype=dtype)
    for shape, small in (
        (Shape((32, 64, 256, 256), (3, 3, 3, 3), "reflect"), Shape((1, 2, 7, 9), (3, 3, 3, 3), "reflect")),
        (Shape((64, 64, 256, 256), (1, 1, 1, 1), "constant", True), Shape((1, 3, 5, 7), (1, 1, 1, 1), "constant", True)),
    )
    for dtype in ("bfloat16", "float32")
)  # fmt: skip


def ours(case: Case):
    from pyflash.functional import pad

    return lambda x: pad(x, case.shape.pads, case.shape.mode)


STORY = Story(
    limit="Memory: the image once and the padded one once.",
    elsewhere="torch fills with zeros and copies the image over them; the other modes take an element at a time.",
    gaps=(
        WAS_TWICE,
        TINY,
        TORCHS,
        *turned("channels_last"),
        fresh("reflect 3", also="; and rows begin at any address, so that every other vector crosses a line"),
    ),
)

OPERATION = Operation(
    name="pad",
    cases=CASES,
    inputs=inputs,
    torch=lambda case: lambda x: F.pad(x, case.shape.pads, case.shape.mode),
    pyflash=ours,
    flops=lambda case, mode: 0.0,
    bytes=bytes_,
    gpu=GPU,
)

POINTS = {"pad": lambda kind, sizes: (OPERATION, Shape((1, sizes[0] >> 10, 30, 30), (1, 1, 1, 1)))}
