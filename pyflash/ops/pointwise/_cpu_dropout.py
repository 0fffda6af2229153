"""Dropout over dense memory."""

import torch

from pyflash import _cpu
from pyflash.kernels.dropout import keep_scale, threshold
from pyflash.ops.core.native import DTYPES


def dropout(x, seed, p, y):
    _cpu.dropout(
        x.data_ptr(), seed.data_ptr(), y.data_ptr(), x.numel(),
        threshold(p), keep_scale(p), DTYPES[x.dtype], torch.get_num_threads(),
    )  # fmt: skip
