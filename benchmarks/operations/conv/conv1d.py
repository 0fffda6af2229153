"""Convolution of rows: sound, and other sequences."""

from __future__ import annotations

from functools import partial

from benchmarks.known import TINY, Gap, Story
from benchmarks.operation import Case, gpu_case
from benchmarks.operations.conv._convs import INFERENCE, TRAINED, conv, operation

row = partial(conv, n=1)
CASES = (
    Case("8x64x4096 to 128 k2 d1", row(8, 64, 4096, 128, 2, padding=0), TRAINED, quick=True, model="WaveNet, first of a stack"),
    Case("8x64x4607 to 128 k2 d512", row(8, 64, 4607, 128, 2, padding=0, dilation=512), TRAINED,
         model="WaveNet, last of a stack"),
    Case("8x64x4096 to 128 k1", row(8, 64, 4096, 128, 1), TRAINED, model="WaveNet, to the residual and the skips"),
    Case("8x64x2048 to 64 k3 d4", row(8, 64, 2048, 64, 3, padding=4, dilation=4), TRAINED, model="a temporal network (TCN)"),
    Case("4x80x3000 to 384 k3", row(4, 80, 3000, 384, 3), TRAINED, model="whisper-tiny, its first"),
    Case("4x384x3000 to 384 k3 s2", row(4, 384, 3000, 384, 3, stride=2), TRAINED, model="whisper-tiny, its second"),
    Case("1x512x3199 to 512 k3 s2", row(1, 512, 3199, 512, 3, stride=2, padding=0), INFERENCE,
         model="wav2vec 2.0, its third, one second"),
    Case("8x256x512 depthwise k31", row(8, 256, 512, 256, 31, groups=256), TRAINED, model="Conformer"),
    Case("8x768x1024 depthwise k4", row(8, 768, 1024, 768, 4, padding=3, groups=768), TRAINED, model="Mamba-130m, its filter"),
    Case("tiny 1x8x16 to 8 k3", row(1, 8, 16, 8, 3), INFERENCE, quick=True),
)  # fmt: skip

STORY = Story(
    limit="FLOPs where many channels meet; memory for depthwise ones.",
    elsewhere="torch calls the kernels of images, with one row each: oneDNN's blocked layout is copied to and from.",
    gaps=(TINY, Gap("", "oneDNN's dense kernels are near the peak; `auto` takes torch's until a table says otherwise")),
)

BOTH = ("forward", "backward")
OPERATION = operation(
    "conv1d",
    cases=CASES,
    gpu=(
        gpu_case("32x384x3000 to 384 k3 s2", row(32, 384, 3000, 384, 3, stride=2), row(1, 9, 21, 8, 3, stride=2), *BOTH),
        gpu_case("32x64x16384 to 128 k2 d512", row(32, 64, 16384, 128, 2, padding=0, dilation=512),
                 row(1, 7, 21, 9, 2, padding=0, dilation=5), *BOTH),
        gpu_case("32x768x2048 depthwise k4", row(32, 768, 2048, 768, 4, padding=3, groups=768),
                 row(1, 5, 21, 5, 4, padding=3, groups=5), *BOTH),
    ),
)  # fmt: skip
