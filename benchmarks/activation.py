"""Activations: one read, one write, and whatever the polynomial costs between them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.operation import Case, Operation, gpu_case
from pyflash.activations import ACTIVATIONS


@dataclass(frozen=True)
class Shape:
    name: str  # a row of the activation table
    rows: int
    cols: int

    @property
    def numel(self) -> int:
        return self.rows * self.cols


BOTH = ("forward", "backward")


def every(label: str, rows: int, cols: int, modes=BOTH, **settings) -> tuple[Case, ...]:
    return tuple(Case(f"{name} {label}", Shape(name, rows, cols), modes, **settings) for name in ACTIVATIONS)


CASES = (
    *every("4096x3072", 4096, 3072, model="GPT-2 feed-forward, 4096 tokens"),
    *every("small 64x3072", 64, 3072, model="GPT-2 feed-forward, 64 tokens", quick=True),
    *every("256x1024", 256, 1024, ("double-backward",), model="a critic under a gradient penalty"),
    Case("relu tiny 8x16", Shape("relu", 8, 16), ("forward",), quick=True),
    Case("gelu tiny 8x16", Shape("gelu", 8, 16), ("forward",), quick=True),
)

# Bound by bandwidth, by instructions, and by both.
GPU = tuple(
    gpu_case(f"{name} 64M", Shape(name, 16384, 4096), Shape(name, 30, 100), "forward", "backward", dtype=dtype)
    for dtype in ("bfloat16", "float32")
    for name in ("relu", "gelu", "silu", "tanh")
)


def inputs(case: Case) -> tuple[torch.Tensor]:
    return (torch.randn(case.shape.rows, case.shape.cols),)


def ours(case: Case):
    from pyflash import functional

    name = case.shape.name
    if name == "gelu_tanh":
        return partial(functional.gelu, approximate="tanh")
    return getattr(functional, name)


def bytes_(case: Case, mode: str) -> float:
    tensors = {"forward": 2, "backward": 3, "training": 5}[mode]  # x, y; dy, x or y, dx
    return tensors * case.shape.numel * case.itemsize


def exps(case: Case, mode: str) -> float:
    """As many as the table's formula has to have, however often it writes them: none of relu and of erf, one of the rest."""
    row = ACTIVATIONS[case.shape.name]
    formulas = {"forward": [row.forward], "backward": [row.backward], "training": [row.forward, row.backward]}[mode]
    with_exp = sum(
        any(f"{name}(" in formula for name in ("exp", "sigmoid", "tanh", "normal_pdf")) for formula in formulas
    )
    return with_exp * case.shape.numel


OPERATION = Operation(
    name="activation",
    cases=CASES,
    inputs=inputs,
    torch=lambda case: ACTIVATIONS[case.shape.name].reference,
    pyflash=ours,
    flops=lambda case, mode: 0.0,
    bytes=bytes_,
    exps=exps,
    gpu=GPU,
)
