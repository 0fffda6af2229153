"""Dropout over dense memory; bindings/pointwise.cpp reads the tuple field by field, in this order."""

import torch

from pyflash import _cpu
from pyflash.kernels.dropout import keep_scale, threshold
from pyflash.ops.core.native import DTYPES


def dropout(x, seed, p, y):
    problem = (
        x.data_ptr(), seed.data_ptr(), y.data_ptr(), x.numel(), threshold(p), keep_scale(p), DTYPES[x.dtype]
    )  # fmt: skip
    _cpu.dropout(problem, torch.get_num_threads())
