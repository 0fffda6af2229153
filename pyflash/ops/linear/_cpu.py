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


def _run(x, weight, bias, activation, first, second, y, preact):
    (m, k), n, dtype, threads = x.shape, weight.shape[0], DTYPES[x.dtype], torch.get_num_threads()
    workspace = take_workspace(_cpu.linear_sizes(m, n, k, x.stride(1), weight.stride(1), dtype, threads))
    _cpu.linear_fwd(
        x.data_ptr(), *x.stride(), weight.data_ptr(), *weight.stride(),
        0 if bias is None else bias.data_ptr(), bias.stride(0) if bias is not None and bias.dim() == 2 else 0,
        y.data_ptr(), 0 if preact is None else preact.data_ptr(), workspace.data_ptr(), m, n, k,
        ACTIVATION_IDS[activation], first, second, dtype, threads,
    )  # fmt: skip


def linear_fwd(x, weight, bias, activation, first, second, save_preact, y, preact):
    _run(x, weight, bias, activation, first, second, y, preact if save_preact else None)


def matmul(a, b, c):
    _run(a, b.t(), None, "", 0.0, 0.0, c, None)


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
