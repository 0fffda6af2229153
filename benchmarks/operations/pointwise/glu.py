"""GLU: the first half of a tensor times the sigmoid of the second."""

from __future__ import annotations

import torch.nn.functional as F

from benchmarks.known import TORCHS, WAS_TWICE, Story
from benchmarks.operation import Case, Operation, gpu_case, in_rows
from benchmarks.operations.pointwise._gates import BOTH, Shape, bytes_, exps, inputs

CASES = (
    Case("4096x512", Shape(4096, 512, "sigmoid", True), BOTH, quick=True, model="Conformer's convolution, 4096 frames"),
    Case("2048x2816", Shape(2048, 2816, "sigmoid", True), (*BOTH, "double-backward"), model="T5 large's width"),
)

GPU = (
    gpu_case("16384x4096", Shape(16384, 4096, "sigmoid", True), Shape(9, 70, "sigmoid", True), "forward", "backward"),
)


def ours(case: Case):
    from pyflash import functional

    return functional.glu


STORY = Story(
    limit="Memory: two reads and one write a result, and an exponential.",
    elsewhere="torch has one kernel for the forward, which memory bounds as it does ours, and three passes for the backward.",
    gaps=(
        WAS_TWICE,
        TORCHS,
    ),
)

OPERATION = Operation(
    name="glu",
    cases=CASES,
    inputs=inputs,
    torch=lambda case: F.glu,
    pyflash=ours,
    flops=lambda case, mode: 0.0,
    bytes=bytes_,
    exps=exps,
    gpu=GPU,
)

POINTS = {"glu": lambda kind, sizes: (OPERATION, Shape(*in_rows(*sizes), "sigmoid", packed=True))}
