"""Softmax over one dimension of any tensor; bindings/softmax.h reads the tuples field by field, in this order."""

from pyflash.kernels.grouped import grouped
from pyflash.kernels.softmax.layout import KINDS
from pyflash.ops.core._cuda import DTYPES, launch, native

NO_WORKSPACE = 0  # registers hold what the CPU's threads keep there


def softmax_fwd(x, dim, kind, dtype, y):
    x = grouped(x, dim)
    problem = (
        x.data_ptr(), y.data_ptr(), NO_WORKSPACE, *x.shape, x.stride(0), x.stride(1), KINDS[kind],
        DTYPES[x.dtype], DTYPES[y.dtype],
    )  # fmt: skip
    launch(native.softmax_fwd, problem, x)


def softmax_bwd(dy, y, dim, kind, dtype, dx):
    dy, y = grouped(dy, dim), grouped(y, dim)
    problem = (
        dy.data_ptr(), y.data_ptr(), dx.data_ptr(), NO_WORKSPACE, *dy.shape, dy.stride(0), dy.stride(1),
        y.stride(0), y.stride(1), KINDS[kind], DTYPES[y.dtype], DTYPES[dx.dtype],
    )  # fmt: skip
    launch(native.softmax_bwd, problem, dx)
