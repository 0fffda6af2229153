"""What the files of norms share: rows that are normalised, alone and with the residual added in the same pass over memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks.operation import Case, Operation, gpu_case


@dataclass(frozen=True)
class Shape:
    rows: int
    cols: int
    residual: bool = False


def gpu_cases(*sizes: tuple[int, int, int]) -> tuple[Case, ...]:
    """sizes: (rows, columns, columns in the interpreter)."""
    return tuple(
        gpu_case(
            f"{'residual ' * residual}{rows}x{cols}", Shape(rows, cols, residual), Shape(20, small, residual), *modes
        )
        for rows, cols, small in sizes
        for residual, modes in ((False, ("forward", "backward")), (True, ("forward",)))
    )


def terms(case: Case) -> int:
    """Of a mean the columns, of a weight's gradient the rows."""
    return max(case.shape.rows, case.shape.cols)


def bytes_(case: Case, mode: str) -> float:
    forward = 4 if case.shape.residual else 2  # x, residual, sum, y
    backward = 4 if case.shape.residual else 3  # dy, x, dx; dsum
    tensors = {"forward": forward, "backward": backward, "training": forward + backward}[mode]
    return tensors * case.shape.rows * case.shape.cols * case.itemsize


def operation(name: str, *, parameters: int, eps: float, **declared) -> Operation:
    """A norm of torch.nn.functional that takes so many parameters, and ours of the same name and of add_<name>."""

    def inputs(case: Case) -> tuple[torch.Tensor, ...]:
        rows, cols = case.shape.rows, case.shape.cols
        added = (torch.randn(rows, cols),) if case.shape.residual else ()
        return torch.randn(rows, cols), *added, *(torch.randn(cols) for _ in range(parameters))

    def torchs(case: Case):
        norm, cols = getattr(F, name), (case.shape.cols,)
        if not case.shape.residual:
            return lambda x, *weights: norm(x, cols, *weights, eps)

        def add_then_norm(x, residual, *weights):
            summed = x + residual
            return norm(summed, cols, *weights, eps), summed

        return add_then_norm

    def ours(case: Case):
        from pyflash import functional

        cols = (case.shape.cols,)
        if not case.shape.residual:
            norm = getattr(functional, name)
            return lambda x, *weights: norm(x, cols, *weights, eps)
        add_norm = getattr(functional, f"add_{name}")
        return lambda x, residual, *weights: add_norm(x, residual, cols, *weights, eps)

    return Operation(
        name=name, inputs=inputs, torch=torchs, pyflash=ours, flops=lambda case, mode: 0.0, bytes=bytes_, terms=terms, **declared
    )  # fmt: skip


def points(operation: Operation) -> dict:
    """Alone and with a residual, of the walk of `python -m benchmarks auto`."""
    return {
        f"{'add_' * residual}{operation.name}": lambda kind, sizes, r=residual: (operation, Shape(*sizes, r))
        for residual in (False, True)
    }
