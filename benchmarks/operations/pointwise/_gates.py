"""What the files of gated activations share."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.operation import Case

BOTH = ("forward", "training")


@dataclass(frozen=True)
class Shape:
    """rows x cols of the result."""

    rows: int
    cols: int
    activation: str = "silu"
    packed: bool = False  # gate and value side by side in one tensor

    @property
    def numel(self) -> int:
        return self.rows * self.cols


def inputs(case: Case) -> tuple[torch.Tensor, ...]:
    rows, cols = case.shape.rows, case.shape.cols
    if case.shape.packed:
        return (torch.randn(rows, 2 * cols),)
    return torch.randn(rows, cols), torch.randn(rows, cols)


def bytes_(case: Case, mode: str) -> float:
    tensors = {"forward": 3, "backward": 5, "training": 8}[mode]  # gate, value, y; dy, gate, value, dgate, dvalue
    return tensors * case.shape.numel * case.itemsize


def exps(case: Case, mode: str) -> float:
    """One a value of the activation, one of its derivative: relu has none."""
    each = {"forward": 1, "backward": 1, "training": 2}[mode]
    return 0.0 if case.shape.activation == "relu" else each * case.shape.numel
