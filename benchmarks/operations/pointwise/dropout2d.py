"""Dropout of whole channels: a number drawn for each, and one pass over the images, in both layouts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks.check import SEED, Bound, Wrong
from benchmarks.known import TORCHS, Story
from benchmarks.operation import Case, Operation, gpu_case
from benchmarks.operations.pointwise.dropout import expect_share


@dataclass(frozen=True)
class Shape:
    batch: int
    channels: int
    side: int
    channels_last: bool = False
    p: float = 0.1


CASES = (
    Case("32x256x28x28", Shape(32, 256, 28), ("forward", "training"), quick=True, model="ResNet-50's second stage"),
    Case(
        "32x256x28x28 channels last",
        Shape(32, 256, 28, True),
        ("forward", "training"),
        model="ResNet-50's second stage",
    ),
)

GPU = (
    gpu_case("256x256x28x28", Shape(256, 256, 28), Shape(4, 60, 5), "forward", "backward"),
    gpu_case("256x256x28x28 channels last", Shape(256, 256, 28, True), Shape(4, 60, 5, True), "forward"),
)


def truth(case: Case, bound: Bound):
    torch.manual_seed(SEED)
    with torch.no_grad():
        kept = (bound() != 0).flatten(2)
    if not torch.equal(kept.any(2), kept.all(2)):
        raise Wrong("keeps a part of a channel")
    expect_share(kept.all(2), case.shape.p)
    return lambda x: x * kept.view(x.shape) / (1 - case.shape.p)


def inputs(case: Case) -> tuple[torch.Tensor]:
    shape = case.shape
    x = torch.randn(shape.batch, shape.channels, shape.side, shape.side)
    x = torch.where(x == 0, 1.0, x)  # so that a zero in the output is a dropped element
    return (x.to(memory_format=torch.channels_last) if shape.channels_last else x,)


def torchs(case: Case):
    return lambda x: F.dropout2d(x, case.shape.p, True)


def ours(case: Case):
    from pyflash.functional import dropout2d

    return lambda x: dropout2d(x, case.shape.p, True)


def bytes_(case: Case, mode: str) -> float:
    elements = case.shape.batch * case.shape.channels * case.shape.side**2
    return {"forward": 2, "backward": 2, "training": 4}[mode] * elements * case.itemsize


STORY = Story(
    limit="Memory: x and y once.",
    elsewhere="torch draws a mask of the channels, divides it, and multiplies with broadcasting.",
    gaps=(TORCHS,),
)

OPERATION = Operation(
    name="dropout2d",
    cases=CASES,
    inputs=inputs,
    torch=torchs,
    pyflash=ours,
    flops=lambda case, mode: 0.0,
    bytes=bytes_,
    truth=truth,
    gpu=GPU,
)

POINTS = {"dropout2d": lambda kind, sizes: (OPERATION, Shape(8, sizes[0] >> 11, 16))}  # channels of 256 elements each
