"""Vectors over their norm: embeddings of contrastive learning, and descriptors of pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks.known import TINY, TWICE, Story
from benchmarks.operation import Case, Operation, gpu_case

BOTH = ("forward", "training")


@dataclass(frozen=True)
class Shape:
    input: tuple[int, ...]
    p: float = 2.0
    dim: int = 1


def inputs(case: Case) -> tuple[torch.Tensor, ...]:
    return (torch.randn(case.shape.input),)


def bytes_(case: Case, mode: str) -> float:
    """x and y once; backward x, dy and dx."""
    tensors = {"forward": 2, "backward": 3, "training": 5}[mode]
    return tensors * torch.Size(case.shape.input).numel() * case.itemsize


def torchs(case: Case):
    return lambda x: F.normalize(x, case.shape.p, case.shape.dim)


def ours(case: Case):
    from pyflash import functional

    return lambda x: functional.normalize(x, case.shape.p, case.shape.dim)


CASES = (
    Case("32768x512", Shape((32768, 512)), (*BOTH, "backward"), model="CLIP ViT-B/32's embeddings, a batch of its training"),
    Case("4096x128", Shape((4096, 128)), BOTH, quick=True, model="SimCLR's projections, two views of 2048"),
    Case("8x256x60x80", Shape((8, 256, 60, 80)), (*BOTH, "backward"), model="SuperPoint's descriptors, 480 x 640"),
    Case("4096x128 p1", Shape((4096, 128), 1.0), BOTH, model="shares of histograms"),
    Case("20x40", Shape((20, 40)), ("double-backward",), model="a penalty of a small critic"),
    Case("tiny 8x16", Shape((8, 16)), ("forward",), quick=True),
)  # fmt: skip

STORY = Story(
    limit="Memory: x and y once; the backward reads x and dy and writes dx.",
    elsewhere="torch takes the norm, clamps it and divides; its backward is ten operations, of which six are over all of x.",
    gaps=(TWICE, TINY),
)

OPERATION = Operation(
    name="normalize",
    inputs=inputs,
    torch=torchs,
    pyflash=ours,
    flops=lambda case, mode: 0.0,
    bytes=bytes_,
    terms=lambda case: case.shape.input[case.shape.dim],
    cases=CASES,
    gpu=(
        gpu_case("131072x512", Shape((131072, 512)), Shape((20, 40)), "forward", "backward"),
        gpu_case("64x256x60x80", Shape((64, 256, 60, 80)), Shape((2, 20, 3, 5)), "forward", "backward"),
    ),
)  # fmt: skip

POINTS = {"normalize": lambda kind, sizes: (OPERATION, Shape(sizes))}
