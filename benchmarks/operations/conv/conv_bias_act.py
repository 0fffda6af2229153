"""Convolution with a bias, a residual and an activation behind it: torch's takes a pass over memory for each."""

from __future__ import annotations

from benchmarks.known import TINY, Gap, Story
from benchmarks.operation import Case, gpu_case
from benchmarks.operations.conv._convs import INFERENCE, TRAINED, both_layouts, conv, operation, points
from pyflash.auto.conv import WITH_NORM

RELU, ADDED = {"activation": "relu"}, {"activation": "relu", "has_residual": True}
CASES = (
    *both_layouts("8x64x56 to 64 k3 relu", conv(8, 64, 56, 64, 3, **RELU), TRAINED, quick=True,
                  model="ResNet-50, stage 1, batch norm folded"),
    *both_layouts("8x64x56 to 256 k1 residual relu", conv(8, 64, 56, 256, 1, **ADDED), TRAINED,
                  model="ResNet-50, the end of a block, batch norm folded"),
    *both_layouts("8x256x14 to 256 k3 residual relu", conv(8, 256, 14, 256, 3, **ADDED), TRAINED,
                  model="ResNet-18, the end of a block, batch norm folded"),
    *both_layouts("8x144x56 depthwise k3 relu6", conv(8, 144, 56, 144, 3, groups=144, activation="relu6"), TRAINED,
                  model="MobileNetV2, a depthwise layer, batch norm folded"),
    Case("4x80x3000 to 384 k3 gelu", conv(4, 80, 3000, 384, 3, n=1, activation="gelu"), TRAINED, model="whisper-tiny, its first"),
    *both_layouts("8x128x16 to 256 k4 s2 silu", conv(8, 128, 16, 256, 4, stride=2, padding=1, activation="silu"), TRAINED,
                  model="a discriminator without norms"),
    Case("tiny 64x1x8 to 6 k5 relu", conv(64, 1, 8, 6, 5, **RELU), INFERENCE, quick=True, model="LeNet on digits"),
)  # fmt: skip

STORY = Story(
    limit="FLOPs of the convolution; what is behind it is done before the result leaves the registers.",
    elsewhere="torch adds the bias in oneDNN, and takes a pass over memory for the residual and one for the activation;"
    " torch.compile makes one pass of these two.",
    gaps=(TINY, Gap("", "`auto` takes torch's convolution until a table says that ours is faster")),
)

BOTH, LAST = ("forward", "backward"), {"channels_last": True}
OPERATION = operation(
    "conv_bias_act",
    cases=CASES,
    gpu=(
        gpu_case("64x256x14 to 256 k3 residual relu channels_last", conv(64, 256, 14, 256, 3, **ADDED, **LAST),
                 conv(1, 9, 6, 8, 3, **ADDED, **LAST), *BOTH),
        gpu_case("64x144x56 depthwise k3 relu6", conv(64, 144, 56, 144, 3, groups=144, activation="relu6"),
                 conv(1, 5, 9, 5, 3, groups=5, activation="relu6"), *BOTH),
    ),
)  # fmt: skip

POINTS = points(WITH_NORM)
