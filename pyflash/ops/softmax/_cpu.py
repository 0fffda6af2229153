"""Softmax over one dimension of any tensor. bindings/softmax.h reads the tuples field by field, in this order."""

import torch

from pyflash import _cpu
from pyflash.kernels.grouped import grouped
from pyflash.kernels.softmax.layout import KINDS
from pyflash.ops.core.native import DTYPES
from pyflash.ops.core.workspace import take_workspace


def softmax_fwd(x, dim, kind, dtype, y):
    threads = torch.get_num_threads()
    x, workspace = grouped(x, dim), take_workspace(threads * _cpu.SOFTMAX_WORKSPACE, "softmax")
    problem = (
        x.data_ptr(), y.data_ptr(), workspace.data_ptr(), *x.shape, x.stride(0), x.stride(1), KINDS[kind],
        DTYPES[x.dtype], DTYPES[y.dtype],
    )  # fmt: skip
    _cpu.softmax_fwd(problem, threads)


def softmax_bwd(dy, y, dim, kind, dtype, dx):
    threads = torch.get_num_threads()
    dy, y = grouped(dy, dim), grouped(y, dim)
    workspace = take_workspace(threads * _cpu.SOFTMAX_WORKSPACE, "softmax")
    problem = (
        dy.data_ptr(), y.data_ptr(), dx.data_ptr(), workspace.data_ptr(), *dy.shape, dy.stride(0), dy.stride(1),
        y.stride(0), y.stride(1), KINDS[kind], DTYPES[y.dtype], DTYPES[dx.dtype],
    )  # fmt: skip
    _cpu.softmax_bwd(problem, threads)
