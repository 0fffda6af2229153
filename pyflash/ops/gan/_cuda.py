"""Filters and dense tensors to the CUDA C++ kernels. bindings/gan.h reads the tuples field by field, in this order."""

import torch

from pyflash.ops.core._cuda import DTYPES, address, launch, native
from pyflash.ops.core.dtypes import acc_dtype
from pyflash.ops.core.layouts import dense
from pyflash.ops.gan import filters, passes

_FUSED_TAPS = 16  # that a result meets; a separable filter with more goes along one axis after the other


def _between(x, f, of: filters.Pass):
    """Where the first of two passes leaves its numbers, or None where one pass does."""
    meets = [-(-n // up) for n, up in zip(filters.taps(f), of.up)]
    if f.dim() == 2 or meets[0] * meets[1] <= _FUSED_TAPS:
        return None
    return torch.empty(*x.shape[:3], of.size[1], dtype=acc_dtype(x.dtype), device=x.device)


def upfirdn2d(x, f, size, up, down, pad, flip, gain, channels_last, y):
    if passes.is_done(x, y):
        return
    x, f = dense(x, channels_last), f.contiguous()
    of = filters.Pass(size, up, down, pad, flip, gain)
    between = _between(x, f, of)
    problem = (
        x.data_ptr(), y.data_ptr(), f.data_ptr(), *filters.fields(f, of, x.shape[2:]), *passes.places(x, channels_last),
        address(between), DTYPES[x.dtype],
    )  # fmt: skip
    launch(native.upfirdn2d, problem, x)
