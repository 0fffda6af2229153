"""Adaptive instance norm, as StyleGAN has it after every convolution, and style transfer once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks.known import TORCHS, WAS_TWICE, Story
from benchmarks.operation import Case, Operation, gpu_case
from benchmarks.operations.norm._channels import LAYOUTS

BOTH = ("forward", "training")


@dataclass(frozen=True)
class Shape:
    images: tuple[int, int, int, int]
    layout: str = "NCHW"


def inputs(case: Case) -> tuple[torch.Tensor, ...]:
    images = case.shape.images
    x = torch.randn(images).contiguous(memory_format=LAYOUTS[case.shape.layout])
    return x, torch.randn(images[:2]), torch.randn(images[:2])


def bytes_(case: Case, mode: str) -> float:
    """x and y once; in the backward dy, x and dx."""
    tensors = {"forward": 2, "backward": 3, "training": 5}[mode]
    return tensors * torch.Size(case.shape.images).numel() * case.itemsize


def torchs(case: Case):
    return lambda x, scale, shift: F.instance_norm(x) * scale[..., None, None] + shift[..., None, None]


def ours(case: Case):
    from pyflash import functional

    return functional.adaptive_instance_norm


CASES = (
    Case("4x512x16x16", Shape((4, 512, 16, 16)), (*BOTH, "backward"), quick=True, model="StyleGAN at 16 x 16"),
    Case("4x512x16x16 NHWC", Shape((4, 512, 16, 16), "NHWC"), BOTH, model="StyleGAN at 16 x 16"),
    Case("4x128x128x128", Shape((4, 128, 128, 128)), BOTH, model="StyleGAN at 128 x 128"),
    Case("4x512x64x64", Shape((4, 512, 64, 64)), BOTH, model="AdaIN style transfer, VGG's relu4_1 of 512 x 512"),
    Case("2x16x8x8", Shape((2, 16, 8, 8)), ("double-backward",), model="a penalty of a small generator"),
)

STORY = Story(
    limit="Memory: x and y once; the backward reads dy and x and writes dx.",
    elsewhere="torch's instance norm, and two passes for the style.",
    gaps=(WAS_TWICE, TORCHS),
)

OPERATION = Operation(
    name="adaptive_instance_norm",
    inputs=inputs,
    torch=torchs,
    pyflash=ours,
    flops=lambda case, mode: 0.0,
    bytes=bytes_,
    cases=CASES,
    gpu=tuple(
        gpu_case(layout, Shape((16, 128, 128, 128), layout), Shape((2, 20, 5, 4), layout), "forward", "backward")
        for layout in LAYOUTS
    ),
)

# (places, channels) of a batch of 8.
POINTS = {
    "adaptive_instance_norm": lambda kind, sizes: (OPERATION, Shape((8, sizes[1] // 8, sizes[0] // 8, 8))),
}
