"""PReLU, whose slope is a parameter: one, or one a channel, over images in both layouts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks.known import TORCHS, TWICE, Story, fresh, turned
from benchmarks.operation import ROW, Case, Operation, gpu_case, in_rows


@dataclass(frozen=True)
class Shape:
    sizes: tuple[int, ...]
    slopes: int = 1
    channels_last: bool = False

    @property
    def numel(self) -> int:
        return torch.Size(self.sizes).numel()


BOTH = ("forward", "training")
IMAGES = (16, 64, 112, 112)

CASES = (
    Case("16x64x112x112", Shape(IMAGES, 64), BOTH, model="the first stage of a face recognition ResNet"),
    Case("16x64x112x112 channels last", Shape(IMAGES, 64, True), BOTH, model="the same"),
    Case("16x64x56x56", Shape((16, 64, 56, 56), 64), (*BOTH, "double-backward"), quick=True, model="its second stage"),
    Case("16x64x96x96 one slope", Shape((16, 64, 96, 96)), BOTH, quick=True, model="SRGAN's generator"),
)

GPU = (
    gpu_case("32x64x112x112", Shape((32, 64, 112, 112), 64), Shape((2, 5, 7, 9), 5), "forward", "backward"),
    gpu_case(
        "32x64x112x112 channels last",
        Shape((32, 64, 112, 112), 64, True), Shape((2, 5, 7, 9), 5, True), "forward", "backward",
    ),
    gpu_case("64M one slope", Shape((16384, 4096)), Shape((30, 100)), "forward", "backward", dtype="float32"),
)  # fmt: skip


def inputs(case: Case) -> tuple[torch.Tensor, ...]:
    x = torch.randn(case.shape.sizes)
    if case.shape.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    return x, torch.rand(case.shape.slopes)


def ours(case: Case):
    from pyflash import functional

    return functional.prelu


def bytes_(case: Case, mode: str) -> float:
    tensors = {"forward": 2, "backward": 3, "training": 5}[mode]  # x, y; dy, x, dx
    return tensors * case.shape.numel * case.itemsize


STORY = Story(
    limit="Memory: one read and one write an element, and in the backward two reads and one write.",
    elsewhere="torch writes what each element adds to the slope's gradient, and sums that afterwards; its forward is a copy's time.",
    gaps=(
        TWICE,
        TORCHS,
        *turned("channels last"),
        fresh("112x112"),
        fresh("96x96"),
    ),
)

OPERATION = Operation(
    name="prelu",
    cases=CASES,
    inputs=inputs,
    torch=lambda case: F.prelu,
    pyflash=ours,
    flops=lambda case, mode: 0.0,
    bytes=bytes_,
    gpu=GPU,
)

POINTS = {"prelu": lambda kind, sizes: (OPERATION, Shape(in_rows(*sizes), ROW))}
