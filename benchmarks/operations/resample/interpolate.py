"""Interpolation of images: in generators, in segmentation, before a vision transformer."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F

from benchmarks.known import CPUS, TINY, TORCHS, WAS_TWICE, Gap, Story, fresh
from benchmarks.operation import Case, Operation, gpu_case
from benchmarks.operations.resample._images import bytes_, inputs


@dataclass(frozen=True)
class Shape:
    sizes: tuple[int, ...]
    out: tuple[int, ...]  # of the dimensions that are resized
    mode: str
    channels_last: bool = False
    antialias: bool = False

    @property
    def result(self) -> tuple[int, ...]:
        return (*self.sizes[:2], *self.out)


BOTH = ("forward", "backward")
DECODER = (8, 64, 64, 64), (128, 128), "bilinear"
CLASSES = (4, 21, 128, 128), (512, 512), "bilinear"
UNET = (2, 320, 32, 32), (64, 64), "nearest"
CASES = (
    Case("bilinear x2 8x64x64x64", Shape(*DECODER), (*BOTH, "double-backward"), model="a U-Net's decoder", quick=True),
    Case("bilinear x2 8x64x64x64 channels_last", Shape(*DECODER, True), BOTH, model="a U-Net's decoder"),
    Case("bilinear x4 4x21x128x128", Shape(*CLASSES), BOTH, model="DeepLab's head, 21 classes", quick=True),
    Case("bilinear x4 4x21x128x128 channels_last", Shape(*CLASSES, True), BOTH, model="DeepLab's head, 21 classes"),
    Case("nearest x2 2x320x32x32", Shape(*UNET), BOTH, model="Stable Diffusion's U-Net", quick=True),
    Case("nearest x2 2x320x32x32 channels_last", Shape(*UNET, True), BOTH, model="Stable Diffusion's U-Net", quick=True),
    Case("nearest x2 16x512x4x4", Shape((16, 512, 4, 4), (8, 8), "nearest"), BOTH, model="a generator's first layer"),
    Case("bicubic antialias 8x3x512x512", Shape((8, 3, 512, 512), (224, 224), "bicubic", antialias=True), BOTH,
         model="ViT's preprocessing"),
    Case("bicubic 1x768x14x14", Shape((1, 768, 14, 14), (24, 24), "bicubic"), BOTH, model="ViT's positions, larger"),
    Case("trilinear x2 1x16x32x32x32", Shape((1, 16, 32, 32, 32), (64, 64, 64), "trilinear"), BOTH, model="a 3D U-Net"),
    Case("tiny 1x1x4x4", Shape((1, 1, 4, 4), (8, 8), "bilinear"), ("forward",), quick=True),
)  # fmt: skip

GPU = tuple(
    gpu_case(f"{shape.mode}{' channels_last' * shape.channels_last}", shape, small, *BOTH, dtype=dtype)
    for shape, small in (
        (Shape((32, 64, 256, 256), (512, 512), "bilinear"), Shape((1, 2, 5, 7), (10, 14), "bilinear")),
        (Shape((32, 64, 256, 256), (512, 512), "nearest", True), Shape((1, 3, 5, 7), (10, 14), "nearest", True)),
        (Shape((64, 3, 512, 512), (224, 224), "bicubic", False, True), Shape((1, 2, 20, 30), (9, 11), "bicubic", False, True)),
    )
    for dtype in ("bfloat16", "float32")
    if not (shape.antialias and dtype == "bfloat16")  # which torch's filter has not
)  # fmt: skip


def arguments(case: Case) -> dict:
    return {"size": case.shape.out, "mode": case.shape.mode, "antialias": case.shape.antialias}


def ours(case: Case):
    from pyflash.functional import interpolate

    return lambda x: interpolate(x, **arguments(case))


STORY = Story(
    limit="Memory: the smaller image once and the larger one once.",
    elsewhere="torch computes index and weights of each element where images are not channels last, one element at a time.",
    gaps=(
        WAS_TWICE,
        TINY,
        TORCHS,
        Gap("antialias", "ten taps of a row each way, whose lanes are gathered one by one", families=CPUS),
        Gap("14x14", "a row is less than a vector long", families=CPUS),
        Gap("4x4", "a row is half a vector long", families=CPUS),
        fresh("bilinear x2", "forward"),
        fresh("bilinear x4", "forward"),
    ),
)

OPERATION = Operation(
    name="interpolate",
    cases=CASES,
    inputs=inputs,
    torch=lambda case: lambda x: F.interpolate(x, **arguments(case)),
    pyflash=ours,
    flops=lambda case, mode: 0.0,
    bytes=bytes_,
    gpu=GPU,
)


def _point(kind, sizes):
    """To so many elements, twice as long on each side."""
    mode = "nearest" if kind.startswith("nearest") else "bilinear"
    return OPERATION, Shape((1, sizes[0] >> 10, 16, 16), (32, 32), mode, kind.endswith("channels_last"))


POINTS = {"interpolate": _point}
