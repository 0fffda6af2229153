"""Cross entropy over one dimension of any scores, and its second half, nll_loss; bindings/cross_entropy.cpp reads the tuples field by field, in this order."""

import torch

from pyflash import _cpu
from pyflash.kernels.grouped import grouped
from pyflash.ops.core.native import DTYPES
from pyflash.ops.core.workspace import take_workspace

_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}  # csrc/common/cross_entropy.h


def _address(t):
    return 0 if t is None else t.data_ptr()


def _problem(x, targets, probabilities, weight, ignore_index, smoothing, reduction, loss):
    """The fields of a CrossEntropy; x as `grouped` has it."""
    return (
        x.data_ptr(), _address(targets), _address(probabilities), _address(weight), *x.shape, x.stride(0), x.stride(1),
        ignore_index, smoothing, _REDUCTIONS[reduction], DTYPES[x.dtype], DTYPES[loss.dtype],
    )  # fmt: skip


def cross_entropy_fwd(x, targets, probabilities, weight, *options):
    *options, _, loss, tops, logs, total = options
    x = grouped(x, 1)
    chunks = take_workspace(16 * _cpu.cross_entropy_chunks(*x.shape), "cross_entropy")
    problem = _problem(x, targets, probabilities, weight, *options, loss)
    pointers = loss.data_ptr(), tops.data_ptr(), logs.data_ptr(), total.data_ptr(), chunks.data_ptr()
    _cpu.cross_entropy_fwd(problem + pointers, torch.get_num_threads())


def cross_entropy_bwd(dloss, x, targets, probabilities, weight, tops, logs, total, *options):
    *options, need_dx, need_dprobabilities, dx, dprobabilities = options
    x = grouped(x, 1)  # held until the call: it may be a copy
    problem = _problem(x, targets, probabilities, weight, *options, dloss)
    wanted = dx.data_ptr() if need_dx else 0, dprobabilities.data_ptr() if need_dprobabilities else 0
    pointers = dloss.data_ptr(), tops.data_ptr(), logs.data_ptr(), total.data_ptr(), *wanted
    _cpu.cross_entropy_bwd(problem + pointers, torch.get_num_threads())


def nll_loss_fwd(x, targets, weight, ignore_index, reduction, dtype, loss, total):
    x = grouped(x, 1)
    chunks = take_workspace(16 * _cpu.nll_loss_chunks(x.shape[0], x.shape[2]), "cross_entropy")
    problem = _problem(x, targets, None, weight, ignore_index, 0.0, reduction, loss)
    _cpu.nll_loss_fwd((*problem, loss.data_ptr(), 0, 0, total.data_ptr(), chunks.data_ptr()), torch.get_num_threads())


def nll_loss_bwd(dloss, shape, targets, weight, total, ignore_index, reduction, dtype, dx):
    problem = _problem(grouped(dx, 1), targets, None, weight, ignore_index, 0.0, reduction, dloss)
    _cpu.nll_loss_bwd((*problem, dloss.data_ptr(), 0, 0, total.data_ptr(), dx.data_ptr(), 0), torch.get_num_threads())
