"""Transposed convolution of images, at the layers of generators and of decoders."""

from __future__ import annotations

from benchmarks.known import TINY, Gap, Story
from benchmarks.operation import Case, gpu_case
from benchmarks.operations.conv._convs import INFERENCE, TRAINED, both_layouts, operation, points, transposed

DOUBLED = {"stride": 2, "padding": 1, "has_bias": False}
CASES = (
    *both_layouts("8x100x1 to 512 k4", transposed(8, 100, 1, 512, 4, has_bias=False), TRAINED, model="DCGAN's generator, its first"),
    *both_layouts("8x512x4 to 256 k4 s2", transposed(8, 512, 4, 256, 4, **DOUBLED), TRAINED, model="DCGAN's generator, its second"),
    *both_layouts("8x128x16 to 64 k4 s2", transposed(8, 128, 16, 64, 4, **DOUBLED), (*TRAINED, "double-backward"), quick=True,
                  model="DCGAN's generator, its fourth"),
    *both_layouts("8x64x32 to 3 k4 s2", transposed(8, 64, 32, 3, 4, **DOUBLED), TRAINED, model="DCGAN's generator, its last"),
    *both_layouts("1x1024x32 to 512 k2 s2", transposed(1, 1024, 32, 512, 2, stride=2), TRAINED, model="U-Net, its first way up"),
    *both_layouts("1x128x128 to 64 k2 s2", transposed(1, 128, 128, 64, 2, stride=2), TRAINED, model="U-Net, its last way up"),
    *both_layouts("8x64x28 to 32 k3 s2", transposed(8, 64, 28, 32, 3, stride=2, padding=1, output_padding=1), TRAINED,
                  model="a convolutional autoencoder"),
    Case("4x256x200 to 128 k16 s8", transposed(4, 256, 200, 128, 16, n=1, stride=8, padding=4), TRAINED,
         model="HiFi-GAN, its second"),
    Case("tiny 1x8x4 to 8 k4 s2", transposed(1, 8, 4, 8, 4, **DOUBLED), INFERENCE, quick=True),
)  # fmt: skip

STORY = Story(
    limit="FLOPs: a kernel of 4 and a stride of 2 meet a place of the result four times.",
    elsewhere="oneDNN computes it as the gradient of a convolution in its input, in its blocked layout.",
    gaps=(TINY, Gap("", "oneDNN's kernels are near the peak; `auto` takes torch's until a table says otherwise")),
)

BOTH, LAST = ("forward", "backward"), {"channels_last": True}
OPERATION = operation(
    "conv_transpose",
    cases=CASES,
    gpu=(
        gpu_case("64x512x8 to 256 k4 s2 channels_last", transposed(64, 512, 8, 256, 4, **DOUBLED, **LAST),
                 transposed(1, 9, 4, 7, 4, **DOUBLED, **LAST), *BOTH),
        gpu_case("64x128x32 to 64 k2 s2", transposed(64, 128, 32, 64, 2, stride=2), transposed(1, 9, 4, 7, 2, stride=2), *BOTH),
        gpu_case("16x256x200 to 128 k16 s8", transposed(16, 256, 200, 128, 16, n=1, stride=8, padding=4),
                 transposed(1, 5, 6, 4, 16, n=1, stride=8, padding=4), *BOTH),
    ),
)  # fmt: skip

POINTS = points("conv_transpose")
