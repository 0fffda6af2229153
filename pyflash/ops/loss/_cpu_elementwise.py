"""Losses of the table, element by element; bindings/elementwise_loss.cpp reads the tuples field by field, in this order."""

import torch

from pyflash import _cpu
from pyflash.kernels.periods import period_of
from pyflash.losses import LOSSES
from pyflash.ops.core.native import DTYPES
from pyflash.ops.core.workspace import take_workspace

_ROWS = {name: number for number, name in enumerate(LOSSES)}  # csrc/common/losses.inc
_NONE = 0, 1, 1, 0


def _factors(t, shape):
    """The fields of Factors."""
    return _NONE if t is None else (t.data_ptr(), *period_of(t.shape, shape), DTYPES[t.dtype])


def _problem(x, target, weight, pos_weight, loss, parameter, reduction, dtype):
    """The fields of an ElementwiseLoss."""
    return (
        x.data_ptr(), target.data_ptr(), *_factors(weight, x.shape), *_factors(pos_weight, x.shape), x.numel(),
        _ROWS[loss], parameter, reduction != "none", DTYPES[x.dtype], DTYPES[dtype],
    )  # fmt: skip


def elementwise_loss_fwd(x, target, weight, pos_weight, loss, parameter, reduction, divisor, dtype, y, total):
    chunks = take_workspace(16 * _cpu.elementwise_loss_chunks(x.numel()), "elementwise_loss")
    problem = _problem(x, target, weight, pos_weight, loss, parameter, reduction, dtype)
    results = y.data_ptr(), total.data_ptr(), chunks.data_ptr(), reduction == "weighted", divisor
    _cpu.elementwise_loss_fwd(problem + results, torch.get_num_threads())


def elementwise_loss_bwd(
    dloss, x, target, weight, pos_weight, total, loss, parameter, reduction, need_dx, need_dtarget, dx, dtarget
):
    problem = _problem(x, target, weight, pos_weight, loss, parameter, reduction, dloss.dtype)
    wanted = dx.data_ptr() if need_dx else 0, dtarget.data_ptr() if need_dtarget else 0
    _cpu.elementwise_loss_bwd((*problem, dloss.data_ptr(), total.data_ptr(), *wanted), torch.get_num_threads())
