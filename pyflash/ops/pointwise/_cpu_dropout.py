"""Dropout over dense memory."""

import torch

from pyflash import _cpu
from pyflash.ops.core.native import DTYPES


def dropout(x, seed, p, y):
    _cpu.dropout(
        x.data_ptr(), seed.data_ptr(), y.data_ptr(), x.numel(),
        min(int(p * 2**32), 2**32 - 1), 1 / (1 - p) if p < 1 else 0.0, DTYPES[x.dtype], torch.get_num_threads(),
    )  # fmt: skip
