"""Linear on the CPU core.

The weight is packed in every call, a panel at a time, in the cache of the core that multiplies it. Packed copies kept
between calls were measured against it: one that is proven current by reading all of the weight is slower, or as fast, at
any number of rows, and takes as much memory as the weight.
"""

from __future__ import annotations

import torch

from pyflash import _cpu
from pyflash.ops.core.native import DTYPES
from pyflash.ops.core.workspace import take_workspace
from pyflash.ops.pointwise._cpu_activation import ACTIVATION_IDS, activation_bwd


def _problem(x, weight, bias, y, preact=None, activation=("", 0.0, 0.0)):
    """bindings/linear.cpp reads the tuples field by field, in this order. The workspace, third, is held until the call."""
    (m, k), n, dtype, threads = x.shape, weight.shape[0], DTYPES[x.dtype], torch.get_num_threads()
    (x_row, x_column), (weight_row, weight_column) = x.stride(), weight.stride()
    shape = x_row, x_column, weight_row, weight_column, m, n, k, dtype
    workspace = take_workspace(_cpu.linear_sizes(shape, threads))
    name, first, second = activation
    problem = (
        x.data_ptr(), x_row, x_column, weight.data_ptr(), weight_row, weight_column,
        0 if bias is None else bias.data_ptr(), bias.stride(0) if bias is not None and bias.dim() == 2 else 0,
        y.data_ptr(), 0 if preact is None else preact.data_ptr(), workspace.data_ptr(), m, n, k,
        ACTIVATION_IDS[name], first, second, dtype,
    )  # fmt: skip
    return problem, threads, workspace


def linear_fwd(x, weight, bias, activation, first, second, save_preact, y, preact):
    problem, threads, _held = _problem(x, weight, bias, y, preact if save_preact else None, (activation, first, second))
    _cpu.linear_fwd(problem, threads)


def matmul(a, b, c):
    linear_fwd(a, b.t(), None, "", 0.0, 0.0, False, c, None)


def add_product(a, b, c, is_first):
    """c = a b where is_first, else c += a b; c of the accumulation type, contiguous."""
    problem, threads, _held = _problem(a, b.t(), None if is_first else c, c)
    _cpu.linear_sums(problem, threads)


def linear_bwd(
    dy, x, weight, saved, activation, first, second, need_dx, need_dweight, need_dbias, dx, dweight, dbias
):  # fmt: skip
    dz = dy
    if activation:
        dz = take_workspace(dy.numel() * dy.element_size(), "dz")[: dy.numel() * dy.element_size()].view(dy.dtype)
        dz = dz.view(dy.shape)
        activation_bwd(dy.contiguous(), saved, activation, first, second, dz)
    if need_dx:
        matmul(dz, weight, dx)
    if need_dweight:
        matmul(dz.t(), x, dweight)
    if need_dbias:
        torch.sum(dz, 0, out=dbias)
