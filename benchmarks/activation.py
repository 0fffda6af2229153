"""Activations: one read, one write, and whatever the polynomial costs between them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.operation import Case, Operation

TINY = {"pyflash": 2.0, "pyflash:cpu": 12.0}  # microseconds over torch's own time


@dataclass(frozen=True)
class Shape:
    name: str
    rows: int
    cols: int
    arguments: tuple[tuple[str, object], ...] = ()

    @property
    def numel(self) -> int:
        return self.rows * self.cols


GELU_TANH = (("approximate", "tanh"),)
BOTH = {"forward": None, "backward": None}


def of_every_kind(label: str, rows: int, cols: int, **settings) -> tuple[Case, ...]:
    kinds = [("relu", ()), ("gelu", ()), ("gelu", GELU_TANH), ("silu", ()), ("tanh", ()), ("sigmoid", ())]
    return tuple(
        Case(f"{name}{' tanh' if arguments else ''} {label}", Shape(name, rows, cols, arguments), BOTH, **settings)
        for name, arguments in kinds
    )


CASES = (
    *of_every_kind("4096x3072", 4096, 3072, model="GPT-2 feed-forward, 4096 tokens"),
    *of_every_kind("64x3072", 64, 3072, model="GPT-2 feed-forward, 64 tokens", quick=True),
    Case("relu tiny 8x16", Shape("relu", 8, 16), {"forward": None}, quick=True, extra_us=TINY),
    Case("gelu tiny 8x16", Shape("gelu", 8, 16), {"forward": None}, quick=True, extra_us=TINY),
)


def inputs(case: Case) -> tuple[torch.Tensor]:
    return (torch.randn(case.shape.rows, case.shape.cols),)


def build(functional, case: Case):
    function = getattr(functional, case.shape.name, None) or getattr(torch, case.shape.name)
    return partial(function, **dict(case.shape.arguments)) if case.shape.arguments else function


def ours(case: Case):
    from pyflash import functional

    getattr(functional, case.shape.name)  # a missing one is a missing row, not torch's
    return build(functional, case)


def bytes_(case: Case, mode: str) -> float:
    tensors = {"forward": 2, "backward": 3, "training": 5}[mode]  # x, y; dy, x or y, dx
    return tensors * case.shape.numel * case.itemsize


OPERATION = Operation(
    name="activation",
    cases=CASES,
    inputs=inputs,
    torch=partial(build, F),
    pyflash=ours,
    flops=lambda case, mode: 0.0,
    bytes=bytes_,
)
