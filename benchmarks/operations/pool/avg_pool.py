"""Average pooling, over fixed windows and over as many as are asked for."""

from __future__ import annotations

from benchmarks.known import TINY, TORCHS, Story, fresh, turned
from benchmarks.operation import Case, gpu_case
from benchmarks.operations.pool._pools import Shape, operation, points

BOTH = ("forward", "training")


def fixed(*shape: int, kernel: int, stride: int, channels_last: bool = False) -> Shape:
    return Shape(shape, "avg_pool{}d", (kernel, stride), channels_last)


def adaptive(*shape: int, size: int, channels_last: bool = False) -> Shape:
    return Shape(shape, "adaptive_avg_pool{}d", (size,), channels_last)


CASES = (
    Case("8x128x56x56 k2 s2", fixed(8, 128, 56, 56, kernel=2, stride=2), BOTH, model="DenseNet-121's first transition"),
    Case("8x128x56x56 k2 s2 channels_last", fixed(8, 128, 56, 56, kernel=2, stride=2, channels_last=True), BOTH,
         model="DenseNet-121's first transition"),
    Case("global 32x2048x7x7", adaptive(32, 2048, 7, 7, size=1), (*BOTH, "double-backward"), quick=True,
         model="ResNet-50's head"),
    Case("global 32x2048x7x7 channels_last", adaptive(32, 2048, 7, 7, size=1, channels_last=True), BOTH,
         model="ResNet-50's head"),
    Case("adaptive 32x256x6x6 to 6x6", adaptive(32, 256, 6, 6, size=6), BOTH, model="AlexNet, on its own size"),
    Case("adaptive 32x256x13x13 to 6x6", adaptive(32, 256, 13, 13, size=6), BOTH, model="AlexNet, on larger images"),
    Case("8x256x4096 k2 s2", fixed(8, 256, 4096, kernel=2, stride=2), BOTH, model="a convolutional encoder of sound"),
    Case("2x64x16x56x56 k2 s2", fixed(2, 64, 16, 56, 56, kernel=2, stride=2), BOTH, model="a 3D DenseNet's transition"),
    Case("tiny 1x8x8x8 k2 s2", fixed(1, 8, 8, 8, kernel=2, stride=2), ("forward",), quick=True),
)  # fmt: skip

STORY = Story(
    limit="Memory: the input once, the output once; the gradients likewise.",
    elsewhere="torch's NCHW kernel takes a window at a time, its channels_last kernel a vector of channels; its global mean"
    " is a reduction. In three dimensions it has no half types on a CPU.",
    gaps=(
        TINY,
        TORCHS,
        *turned("channels_last"),
        fresh("8x256x4096", "training"),
    ),
)

OPERATION = operation(
    "avg_pool",
    cases=CASES,
    gpu=(
        gpu_case("64x128x56x56 k2 s2", fixed(64, 128, 56, 56, kernel=2, stride=2), fixed(1, 2, 9, 20, kernel=2, stride=2),
                 "forward", "backward"),
        gpu_case("global 256x2048x7x7", adaptive(256, 2048, 7, 7, size=1), adaptive(2, 9, 7, 7, size=1), "forward",
                 "backward"),
        gpu_case("adaptive 64x256x13x13 to 6x6 channels_last", adaptive(64, 256, 13, 13, size=6, channels_last=True),
                 adaptive(1, 9, 13, 13, size=6, channels_last=True), "forward", "backward"),
    ),
)  # fmt: skip

POINTS = points(*(f"avg_pool{n}d" for n in (1, 2, 3)))
