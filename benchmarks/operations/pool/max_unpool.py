"""Max unpooling, which puts the elements of a max pooling back, and its gradient."""

from __future__ import annotations

from benchmarks.known import TINY, Story
from benchmarks.operation import Case, gpu_case
from benchmarks.operations.pool._pools import Shape, operation, points

BOTH = ("forward", "training")


def unpool(*shape: int, channels_last: bool = False) -> Shape:
    """To this shape, of windows of 2 that do not overlap."""
    return Shape(shape, "max_unpool{}d", (2,), channels_last)


CASES = (
    Case("4x64x360x480 k2", unpool(4, 64, 360, 480), (*BOTH, "backward"), model="SegNet, its last, on CamVid"),
    Case("4x64x360x480 k2 channels_last", unpool(4, 64, 360, 480, channels_last=True), (*BOTH, "backward"),
         model="SegNet, its last, on CamVid"),
    Case("4x512x44x60 k2", unpool(4, 512, 44, 60), BOTH, quick=True, model="SegNet, its second"),
    Case("8x256x4096 k2", unpool(8, 256, 4096), BOTH, model="a convolutional decoder of sound"),
    Case("2x64x16x56x56 k2", unpool(2, 64, 16, 56, 56), BOTH, model="a decoder of volumes"),
    Case("tiny 1x8x8x8 k2", unpool(1, 8, 8, 8), ("forward",), quick=True),
)  # fmt: skip

STORY = Story(
    limit="Memory: the input and its indices, 8 bytes each, once, the output once; backward the indices, and of the output's"
    " gradient every line of memory.",
    elsewhere="torch fills the output with zeros first, and then writes to it an element at a time, on every thread.",
    gaps=(TINY,),
)

OPERATION = operation(
    "max_unpool",
    cases=CASES,
    gpu=(
        gpu_case("32x64x360x480 k2", unpool(32, 64, 360, 480), unpool(1, 2, 10, 20), "forward", "backward"),
        gpu_case("32x64x360x480 k2 channels_last", unpool(32, 64, 360, 480, channels_last=True),
                 unpool(1, 20, 10, 10, channels_last=True), "forward", "backward"),
    ),
)  # fmt: skip

POINTS = points("max_unpool2d")
