"""Sums and counts; bindings/statistics.cpp reads the tuple field by field, in this order."""

import torch

from pyflash import _cpu
from pyflash.ops.core.native import DTYPES
from pyflash.ops.core.workspace import take_workspace


def tensor_stats(x, outer, groups, inner, low, high, moments):
    workspace = take_workspace(8 * moments.numel() * _cpu.tensor_stats_parts(outer, groups, inner), "statistics")
    problem = (
        x.data_ptr(), moments.data_ptr(), outer, groups, inner, low, high, workspace.data_ptr(), DTYPES[x.dtype],
    )  # fmt: skip
    _cpu.tensor_stats(problem, torch.get_num_threads())
