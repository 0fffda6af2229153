"""Dropout over dense memory; bindings/pointwise.cpp reads the tuple field by field, in this order."""

import torch

from pyflash import _cpu
from pyflash.kernels.dropout import affine, by_channel, keep_scale, threshold
from pyflash.ops.core.dtypes import acc_dtype
from pyflash.ops.core.native import DTYPES
from pyflash.ops.core.workspace import take_workspace


def dropout(x, seed, p, y):
    problem = (
        x.data_ptr(), seed.data_ptr(), y.data_ptr(), x.numel(), threshold(p), keep_scale(p), DTYPES[x.dtype]
    )  # fmt: skip
    _cpu.dropout(problem, torch.get_num_threads())


def dropout_form(x, seed, p, is_alpha, by_feature, has_shift, y):
    batch, channels, inner, is_channels_last = by_channel(x)
    factors = None
    if by_feature:
        factors = take_workspace(batch * channels * acc_dtype(x.dtype).itemsize, "dropout")
    problem = (
        x.data_ptr(), seed.data_ptr(), y.data_ptr(), 0 if factors is None else factors.data_ptr(), batch, channels, inner,
        is_channels_last, threshold(p), *affine(p, is_alpha, has_shift), DTYPES[x.dtype],
    )  # fmt: skip
    _cpu.dropout_form(problem, torch.get_num_threads())
