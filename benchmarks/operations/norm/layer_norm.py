"""LayerNorm alone, and with the residual added in the same pass over memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks import peers
from benchmarks.known import AMX, TINY, TWICE, ZEN_4, Gap, Story
from benchmarks.operation import Case, Operation, gpu_case


@dataclass(frozen=True)
class Shape:
    rows: int
    cols: int
    residual: bool = False


CASES = (
    Case("4096x1024", Shape(4096, 1024), ("forward", "backward"), model="BERT large, 8 x 512 tokens"),
    Case("4096x256", Shape(4096, 256), ("forward", "backward", "double-backward"), quick=True,
         model="the demo, 16 x 256 tokens"),
    Case("residual 4096x1024", Shape(4096, 1024, True), ("forward", "training"), quick=True,
         model="BERT large, from memory"),
    Case("residual 256x1024", Shape(256, 1024, True), ("forward", "training", "double-backward"),
         quick=True, model="BERT large, in cache"),
    Case("tiny 8x16", Shape(8, 16), ("forward",), quick=True),
)  # fmt: skip

GPU = tuple(
    gpu_case(f"{'residual ' * residual}{rows}x{cols}", Shape(rows, cols, residual), Shape(20, small, residual), *modes)
    for rows, cols, small in ((32768, 1024, 96), (16384, 768, 77), (8192, 4096, 300), (1024, 32768, 5000))
    for residual, modes in ((False, ("forward", "backward")), (True, ("forward",)))
)


def inputs(case: Case) -> tuple[torch.Tensor, ...]:
    rows, cols = case.shape.rows, case.shape.cols
    added = (torch.randn(rows, cols),) if case.shape.residual else ()
    return torch.randn(rows, cols), *added, torch.randn(cols), torch.randn(cols)


def torchs(case: Case):
    cols = (case.shape.cols,)
    if not case.shape.residual:
        return lambda x, weight, bias: F.layer_norm(x, cols, weight, bias)

    def add_then_norm(x, residual, weight, bias):
        summed = x + residual
        return F.layer_norm(summed, cols, weight, bias), summed

    return add_then_norm


def ours(case: Case):
    import pyflash.functional as PF

    cols = (case.shape.cols,)
    if not case.shape.residual:
        return lambda x, weight, bias: PF.layer_norm(x, cols, weight, bias)
    return lambda x, residual, weight, bias: PF.add_layer_norm(x, residual, cols, weight, bias, 1e-5)


def bytes_(case: Case, mode: str) -> float:
    forward = 4 if case.shape.residual else 2  # x, residual, sum, y
    backward = 4 if case.shape.residual else 3  # dy, x, dx; dsum
    tensors = {"forward": forward, "backward": backward, "training": forward + backward}[mode]
    return tensors * case.shape.rows * case.shape.cols * case.itemsize


STORY = Story(
    limit="Memory: x and y once, with a residual x, r, y and the sum once.",
    elsewhere="torch's kernel alone is at the limit out of cache; the separate sum is what fusing saves.",
    gaps=(
        TWICE,
        TINY,
        Gap(
            "256x1024",
            "in cache the kernel takes about 40 us; Python and the outputs' allocation are the rest",
            families=ZEN_4 + AMX,
        ),
        Gap(
            "",
            "the sums over rows for the weight's and bias's gradients; where the C library puts the output, in or out of cache",
        ),
    ),
)

OPERATION = Operation(
    name="layer_norm",
    cases=CASES,
    inputs=inputs,
    torch=torchs,
    pyflash=ours,
    flops=lambda case, mode: 0.0,
    bytes=bytes_,
    peers=peers.LAYER_NORM,
    gpu=GPU,
)
