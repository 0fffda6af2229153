"""Pixel norm: latent vectors of a mapping network, and the feature maps of a progressively grown generator."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.known import TINY, TORCHS, TWICE, Story
from benchmarks.operation import Case, Operation, gpu_case
from benchmarks.operations.norm._channels import LAYOUTS

BOTH = ("forward", "training")


@dataclass(frozen=True)
class Shape:
    input: tuple[int, ...]
    layout: str = "NCHW"


def inputs(case: Case) -> tuple[torch.Tensor, ...]:
    x = torch.randn(case.shape.input)
    return (x.contiguous(memory_format=LAYOUTS[case.shape.layout]) if x.dim() == 4 else x,)


def bytes_(case: Case, mode: str) -> float:
    """x and y once; backward x, dy and dx."""
    tensors = {"forward": 2, "backward": 3, "training": 5}[mode]
    return tensors * torch.Size(case.shape.input).numel() * case.itemsize


def ours(case: Case):
    from pyflash import functional

    return functional.pixel_norm


CASES = (
    Case("32x512", Shape((32, 512)), BOTH, quick=True, model="StyleGAN2's latent vectors, a batch"),
    Case("4096x512", Shape((4096, 512)), BOTH, model="StyleGAN2's latent vectors, for the mean of the mapping network"),
    Case("4x512x32x32", Shape((4, 512, 32, 32)), (*BOTH, "backward"), model="a progressively grown GAN at 32 x 32"),
    Case("4x512x32x32 NHWC", Shape((4, 512, 32, 32), "NHWC"), BOTH, model="a progressively grown GAN at 32 x 32"),
    Case("4x64x256x256", Shape((4, 64, 256, 256)), BOTH, model="a progressively grown GAN at 256 x 256"),
    Case("20x40", Shape((20, 40)), ("double-backward",), model="a penalty of a small generator"),
    Case("tiny 8x16", Shape((8, 16)), ("forward",)),
)

STORY = Story(
    limit="Memory: x and y once; the backward reads x and dy and writes dx.",
    elsewhere="With torch it is five operations, of which three are over all of x, and more in the backward.",
    gaps=(TWICE, TORCHS, TINY),
)

OPERATION = Operation(
    name="pixel_norm",
    inputs=inputs,
    torch=lambda case: lambda x: x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt(),
    pyflash=ours,
    flops=lambda case, mode: 0.0,
    bytes=bytes_,
    cases=CASES,
    gpu=(
        gpu_case("131072x512", Shape((131072, 512)), Shape((20, 40)), "forward", "backward"),
        gpu_case("16x256x128x128", Shape((16, 256, 128, 128)), Shape((2, 20, 3, 5)), "forward", "backward"),
    ),
)

POINTS = {"pixel_norm": lambda kind, sizes: (OPERATION, Shape(sizes))}
