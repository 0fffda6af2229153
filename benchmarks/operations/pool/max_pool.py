"""Max pooling, with its gradient by indices."""

from __future__ import annotations

from benchmarks.known import TINY, TORCHS, Story, fresh, turned
from benchmarks.operation import Case, gpu_case
from benchmarks.operations.pool._pools import Shape, operation, points

BOTH = ("forward", "training")


def pool(*shape: int, kernel: int, stride: int, padding: int = 0, channels_last: bool = False) -> Shape:
    return Shape(shape, "max_pool{}d", (kernel, stride, padding), channels_last)


STEM = {"kernel": 3, "stride": 2, "padding": 1}
CASES = (
    Case("8x64x112x112 k3 s2", pool(8, 64, 112, 112, **STEM), (*BOTH, "backward"), model="ResNet-50's stem"),
    Case("8x64x112x112 k3 s2 channels_last", pool(8, 64, 112, 112, **STEM, channels_last=True), (*BOTH, "backward"),
         model="ResNet-50's stem"),
    Case("8x64x224x224 k2 s2", pool(8, 64, 224, 224, kernel=2, stride=2), BOTH, model="VGG-16, its first"),
    Case("8x64x224x224 k2 s2 channels_last", pool(8, 64, 224, 224, kernel=2, stride=2, channels_last=True), BOTH,
         model="VGG-16, its first"),
    Case("8x512x14x14 k2 s2", pool(8, 512, 14, 14, kernel=2, stride=2), BOTH, quick=True,
         model="VGG-16, its last"),
    Case("8x192x28x28 k3 s1", pool(8, 192, 28, 28, kernel=3, stride=1, padding=1), BOTH, model="GoogLeNet, Inception 3a"),
    Case("8x256x4096 k2 s2", pool(8, 256, 4096, kernel=2, stride=2), BOTH, model="a convolutional encoder of sound"),
    Case("2x64x16x56x56 k3 s2", pool(2, 64, 16, 56, 56, **STEM), BOTH, model="R3D-18, clips of 16 frames"),
    Case("tiny 1x8x8x8 k2 s2", pool(1, 8, 8, 8, kernel=2, stride=2), ("forward",), quick=True),
)  # fmt: skip

STORY = Story(
    limit="Memory: the input once, the output once; the gradients likewise, and the indices, 4 bytes of each output.",
    elsewhere="torch's NCHW kernel takes a window at a time, its channels_last kernel a vector of channels; both keep"
    " indices of 8 bytes whenever a gradient may be asked for, in two and three dimensions always.",
    gaps=(
        TINY,
        TORCHS,
        *turned("channels_last"),
        fresh("8x256x4096", "training"),
        fresh("224x224", "training"),
    ),
)

OPERATION = operation(
    "max_pool",
    cases=CASES,
    gpu=(
        gpu_case("64x64x112x112 k3 s2", pool(64, 64, 112, 112, **STEM), pool(1, 2, 9, 20, **STEM), "forward", "backward"),
        gpu_case("64x64x112x112 k3 s2 channels_last", pool(64, 64, 112, 112, **STEM, channels_last=True),
                 pool(1, 20, 9, 9, **STEM, channels_last=True), "forward", "backward"),
    ),
)  # fmt: skip

POINTS = points(*(f"{kind}max_pool{n}d" for kind in ("", "adaptive_") for n in (1, 2, 3)))
