"""Convolution of volumes: clips and scans."""

from __future__ import annotations

from functools import partial

from benchmarks.known import TINY, Gap, Story
from benchmarks.operation import Case, gpu_case
from benchmarks.operations.conv._convs import INFERENCE, TRAINED, both_layouts, conv, operation

volume = partial(conv, n=3)
CASES = (
    *both_layouts("1x64x8x28x28 to 64 k3", volume(1, 64, (8, 28, 28), 64, 3, has_bias=False), TRAINED,
                  model="R3D-18, a small clip"),
    *both_layouts("1x32x32x32x32 to 64 k3", volume(1, 32, 32, 64, 3), TRAINED, model="3D U-Net, a small scan"),
    Case("tiny 1x4x6x6x6 to 4 k3", volume(1, 4, 6, 4, 3), INFERENCE, quick=True),
)  # fmt: skip

STORY = Story(
    limit="FLOPs.",
    elsewhere="oneDNN, as of images; float64 and float16 are multiplied one image at a time.",
    gaps=(TINY, Gap("", "oneDNN's dense kernels are near the peak; `auto` takes torch's until a table says otherwise")),
)

OPERATION = operation(
    "conv3d",
    cases=CASES,
    gpu=(
        gpu_case("4x64x16x56x56 to 64 k3 channels_last", volume(4, 64, (16, 56, 56), 64, 3, channels_last=True),
                 volume(1, 5, 4, 7, 3, channels_last=True), "forward", "backward"),
    ),
)  # fmt: skip
