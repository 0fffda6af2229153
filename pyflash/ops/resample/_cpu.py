"""Tables and dense tensors to the native module. bindings/resample.cpp reads the tuple field by field, in this order."""

import torch

from pyflash import _cpu
from pyflash.ops.core.native import DTYPES
from pyflash.ops.core.workspace import take_workspace
from pyflash.ops.resample import plans


def _resample(x, plan, y):
    outer, tables, inner, fill = plan
    if not x.numel():
        y.fill_(fill)
        return
    threads, width = torch.get_num_threads(), tables[-1]
    itemsize = 8 if x.dtype == torch.float64 else 4
    size = _cpu.resample_workspace(width.size_in, width.size_out, width.taps, inner, itemsize, threads)
    workspace = take_workspace(size, "resample")
    axes = [field for t in tables for field in (*t.addresses, t.size_in, t.size_out, t.taps)]
    problem = x.data_ptr(), y.data_ptr(), *axes, outer, inner, fill, workspace.data_ptr(), DTYPES[x.dtype]
    _cpu.resample(problem, threads)


def interpolate(x, *arguments):
    *arguments, y = arguments
    _resample(x, plans.interpolation(x, *arguments), y)


def pad(x, *arguments):
    *arguments, y = arguments
    _resample(x, plans.padding(x, *arguments), y)
