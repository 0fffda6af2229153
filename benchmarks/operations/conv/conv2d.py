"""Convolution of images, at the layers of networks that are known by them."""

from __future__ import annotations

from benchmarks.known import TINY, Gap, Story
from benchmarks.operation import Case, gpu_case
from benchmarks.operations.conv._convs import INFERENCE, TRAINED, both_layouts, conv, operation, points

CASES = (
    *both_layouts("8x3x224 to 64 k7 s2", conv(8, 3, 224, 64, 7, stride=2), TRAINED, model="ResNet-50's stem"),
    *both_layouts("8x64x56 to 256 k1", conv(8, 64, 56, 256, 1, has_bias=False), TRAINED, model="ResNet-50, stage 1"),
    *both_layouts("8x64x56 to 64 k3", conv(8, 64, 56, 64, 3, has_bias=False), TRAINED, quick=True,
                  model="ResNet-50, stage 1"),
    *both_layouts("8x128x28 to 128 k3", conv(8, 128, 28, 128, 3, has_bias=False), TRAINED, model="ResNet-50, stage 2"),
    *both_layouts("8x256x14 to 256 k3", conv(8, 256, 14, 256, 3, has_bias=False), TRAINED, model="ResNet-50, stage 3"),
    *both_layouts("8x512x7 to 512 k3", conv(8, 512, 7, 512, 3, has_bias=False), TRAINED, model="ResNet-50, stage 4"),
    *both_layouts("8x128x56 to 128 k3 s2", conv(8, 128, 56, 128, 3, stride=2, has_bias=False), TRAINED,
                  model="ResNet-50, into stage 2"),
    *both_layouts("8x256x56 to 512 k1 s2", conv(8, 256, 56, 512, 1, stride=2, has_bias=False), TRAINED,
                  model="ResNet-50, downsampling past stage 2"),
    *both_layouts("1x256x14 to 256 k3", conv(1, 256, 14, 256, 3, has_bias=False), INFERENCE,
                  model="ResNet-50, stage 3, one image"),
    *both_layouts("8x256x14 to 256 k3 g32", conv(8, 256, 14, 256, 3, groups=32, has_bias=False), TRAINED,
                  model="ResNeXt-50, stage 3"),
    *both_layouts("8x3x224 to 96 k4 s4", conv(8, 3, 224, 96, 4, stride=4, padding=0), TRAINED,
                  model="ConvNeXt-T, patchify"),
    *both_layouts("8x96x56 depthwise k7", conv(8, 96, 56, 96, 7, groups=96), TRAINED, quick=True,
                  model="ConvNeXt-T, stage 1"),
    *both_layouts("8x384x14 depthwise k7", conv(8, 384, 14, 384, 7, groups=384), TRAINED, model="ConvNeXt-T, stage 3"),
    *both_layouts("8x96x56 to 192 k2 s2", conv(8, 96, 56, 192, 2, stride=2, padding=0), TRAINED,
                  model="ConvNeXt-T, into stage 2"),
    *both_layouts("8x24x56 to 144 k1", conv(8, 24, 56, 144, 1, has_bias=False), TRAINED,
                  model="MobileNetV2, an expansion"),
    *both_layouts("8x144x56 depthwise k3", conv(8, 144, 56, 144, 3, groups=144, has_bias=False), TRAINED,
                  model="MobileNetV2, a depthwise layer"),
    *both_layouts("8x144x56 depthwise k3 s2", conv(8, 144, 56, 144, 3, groups=144, stride=2, has_bias=False), TRAINED,
                  model="MobileNetV2, a depthwise layer of stride 2"),
    *both_layouts("8x144x56 to 24 k1", conv(8, 144, 56, 24, 1, has_bias=False), TRAINED,
                  model="MobileNetV2, a projection"),
    *both_layouts("8x3x64 to 64 k4 s2", conv(8, 3, 64, 64, 4, stride=2, padding=1, has_bias=False), TRAINED,
                  model="DCGAN's discriminator, its first"),
    *both_layouts("8x128x16 to 256 k4 s2", conv(8, 128, 16, 256, 4, stride=2, padding=1, has_bias=False),
                  (*TRAINED, "double-backward"), model="DCGAN's discriminator, its third"),
    *both_layouts("1x64x256 to 64 k3", conv(1, 64, 256, 64, 3), TRAINED, model="U-Net, its first level"),
    *both_layouts("1x1024x32 to 512 k3", conv(1, 1024, 32, 512, 3), INFERENCE, model="U-Net, its way up"),
    *both_layouts("1x256x33 to 256 k3 d6", conv(1, 256, 33, 256, 3, dilation=6, padding=6), INFERENCE,
                  model="DeepLab's pyramid of dilations"),
    Case("8x64x56 to 64 k3", conv(8, 64, 56, 64, 3, has_bias=False), TRAINED, dtype="bfloat16",
         model="ResNet-50, stage 1"),
    Case("tiny 64x1x8 to 6 k5", conv(64, 1, 8, 6, 5), TRAINED, quick=True, model="LeNet on digits, its first"),
    Case("tiny 64x6x4 to 16 k3", conv(64, 6, 4, 16, 3), TRAINED, model="LeNet on digits, its second"),
)  # fmt: skip

STORY = Story(
    limit="FLOPs where many channels meet; memory for one channel to one (depthwise) and few inputs (pointwise).",
    elsewhere="oneDNN: 85 to 90% of the peak in its own blocked layout, into which torch's NCHW is copied at every layer and"
    " back; depthwise and small channels are its weak side.",
    gaps=(TINY, Gap("", "oneDNN's dense kernels are near the peak; `auto` takes torch's until a table says otherwise")),
)

BOTH, LAST = ("forward", "backward"), {"channels_last": True}
OPERATION = operation(
    "conv2d",
    cases=CASES,
    gpu=(
        gpu_case("64x256x14 to 256 k3 channels_last", conv(64, 256, 14, 256, 3, **LAST), conv(2, 17, 6, 19, 3, **LAST), *BOTH),
        gpu_case("64x64x56 to 256 k1 channels_last", conv(64, 64, 56, 256, 1, **LAST), conv(2, 17, 6, 19, 1, **LAST), *BOTH),
        gpu_case("64x3x224 to 64 k7 s2", conv(64, 3, 224, 64, 7, stride=2), conv(1, 3, 11, 5, 7, stride=2), *BOTH),
        gpu_case("64x128x56 to 128 k3 s2 channels_last", conv(64, 128, 56, 128, 3, stride=2, **LAST),
                 conv(1, 9, 9, 8, 3, stride=2, **LAST), *BOTH),
        gpu_case("64x384x14 depthwise k7 channels_last", conv(64, 384, 14, 384, 7, groups=384, **LAST),
                 conv(1, 9, 9, 9, 7, groups=9, **LAST), *BOTH),
        gpu_case("64x144x56 depthwise k3 s2", conv(64, 144, 56, 144, 3, groups=144, stride=2),
                 conv(1, 5, 9, 5, 3, groups=5, stride=2), *BOTH),
        gpu_case("64x256x14 to 256 k3 g32 channels_last", conv(64, 256, 14, 256, 3, groups=32, **LAST),
                 conv(1, 8, 6, 8, 3, groups=2, **LAST), *BOTH),
        gpu_case("64x256x14 to 256 k3", conv(64, 256, 14, 256, 3), conv(1, 9, 6, 8, 3), *BOTH, dtype="float32"),
        gpu_case("64x256x14 to 256 k3 channels_last", conv(64, 256, 14, 256, 3, **LAST), conv(1, 9, 6, 8, 3, **LAST),
                 *BOTH, dtype="float16"),
    ),
)  # fmt: skip

POINTS = points("conv")
