"""RMSNorm alone, and with the residual added in the same pass over memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

import pyflash.functional as PF
from benchmarks.known import TINY, TWICE, Story
from benchmarks.operation import Case, Operation, gpu_case


@dataclass(frozen=True)
class Shape:
    rows: int
    cols: int
    residual: bool = False


CASES = (
    Case("2048x4096", Shape(2048, 4096), ("forward", "backward"), model="Llama 2 7B, 2048 tokens"),
    Case("2048x1024", Shape(2048, 1024), ("forward", "backward", "double-backward"), quick=True,
         model="T5 large, 4 x 512 tokens"),
    Case("residual 2048x4096", Shape(2048, 4096, True), ("forward", "training"),
         model="Llama 2 7B, from memory"),
    Case("residual 256x1024", Shape(256, 1024, True), ("forward", "training", "double-backward"),
         quick=True, model="T5 large, in cache"),
    Case("tiny 8x16", Shape(8, 16), ("forward",), quick=True),
)  # fmt: skip

GPU = tuple(
    gpu_case(f"{'residual ' * residual}{rows}x{cols}", Shape(rows, cols, residual), Shape(20, small, residual), *modes)
    for rows, cols, small in ((16384, 2048, 96), (8192, 4096, 300), (1024, 32768, 5000))
    for residual, modes in ((False, ("forward", "backward")), (True, ("forward",)))
)


def inputs(case: Case) -> tuple[torch.Tensor, ...]:
    rows, cols = case.shape.rows, case.shape.cols
    added = (torch.randn(rows, cols),) if case.shape.residual else ()
    return torch.randn(rows, cols), *added, torch.randn(cols)


def torchs(case: Case):
    cols = (case.shape.cols,)
    if not case.shape.residual:
        return lambda x, weight: F.rms_norm(x, cols, weight, 1e-6)

    def add_then_norm(x, residual, weight):
        summed = x + residual
        return F.rms_norm(summed, cols, weight, 1e-6), summed

    return add_then_norm


def ours(case: Case):
    cols = (case.shape.cols,)
    if not case.shape.residual:
        return lambda x, weight: PF.rms_norm(x, cols, weight, 1e-6)
    return lambda x, residual, weight: PF.add_rms_norm(x, residual, cols, weight, 1e-6)


def bytes_(case: Case, mode: str) -> float:
    forward = 4 if case.shape.residual else 2  # x, residual, sum, y
    backward = 4 if case.shape.residual else 3  # dy, x, dx; dsum
    tensors = {"forward": forward, "backward": backward, "training": forward + backward}[mode]
    return tensors * case.shape.rows * case.shape.cols * case.itemsize


STORY = Story(
    limit="Memory: x and y once, with a residual x, r, y and the sum once.",
    elsewhere="torch computes it from six elementwise operations and a reduction on a CPU; torch.compile fuses them.",
    gaps=(TWICE, TINY),
)

OPERATION = Operation(
    name="rms_norm",
    cases=CASES,
    inputs=inputs,
    torch=torchs,
    pyflash=ours,
    flops=lambda case, mode: 0.0,
    bytes=bytes_,
    gpu=GPU,
)
