"""Losses of rows of two or three tensors; bindings/row_loss.cpp reads the tuples field by field, in this order."""

import torch

from pyflash import _cpu
from pyflash.ops.core.native import DTYPES
from pyflash.ops.core.workspace import take_workspace

_KINDS = {name: number for number, name in enumerate(_cpu.ROW_LOSSES)}


def _problem(tensors, target, loss, margin, eps, power, is_swapped, reduction, dtype):
    """The fields of a RowLoss."""
    first = tensors[0]
    return (
        *(0 if t is None else t.data_ptr() for t in tensors), *(0 if t is None else t.stride(0) for t in tensors),
        0 if target is None else target.data_ptr(), *first.shape, _KINDS[loss], margin, eps, power == 2, is_swapped,
        reduction != "none", DTYPES[first.dtype], DTYPES[dtype],
    )  # fmt: skip


def row_loss_fwd(a, b, c, target, loss, margin, eps, power, is_swapped, reduction, divisor, dtype, y, sums):
    chunks = take_workspace(8 * _cpu.row_loss_chunks(*a.shape), "row_loss")
    problem = _problem((a, b, c), target, loss, margin, eps, power, is_swapped, reduction, dtype)
    _cpu.row_loss_fwd((*problem, y.data_ptr(), sums.data_ptr(), chunks.data_ptr(), divisor), torch.get_num_threads())


def row_loss_bwd(
    dloss,
    a,
    b,
    c,
    target,
    sums,
    loss,
    margin,
    eps,
    power,
    is_swapped,
    reduction,
    divisor,
    need_a,
    need_b,
    need_c,
    *gradients,
):
    problem = _problem((a, b, c), target, loss, margin, eps, power, is_swapped, reduction, dloss.dtype)
    wanted = (g.data_ptr() if need else 0 for g, need in zip(gradients, (need_a, need_b, need_c)))
    _cpu.row_loss_bwd((*problem, dloss.data_ptr(), sums.data_ptr(), divisor, *wanted), torch.get_num_threads())
