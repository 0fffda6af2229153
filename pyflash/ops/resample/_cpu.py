"""Tables and dense tensors to the native module. bindings/resample.cpp reads the tuple field by field, in this order."""

import torch

from pyflash import _cpu
from pyflash.ops.core.layouts import dense
from pyflash.ops.core.native import DTYPES
from pyflash.ops.core.workspace import take_workspace
from pyflash.ops.resample import plans
from pyflash.ops.resample.tables import identity, product

SHORT, SMALL = 64, 4096  # elements of a row, and of a plane
FEW = 16  # taps
MANY = 32  # planes, over which what a kernel makes of a longer table is shared


def _with_small_planes_as_rows(outer, tables, inner):
    """A row takes as long as some vectors, whatever is in it: of short ones all that are in a plane are taken as one. On a
    Zen 5 16x16 places to 32x32 then take half the time."""
    depth, height, width = tables
    row = width.size_out * inner
    is_small = outer >= MANY and inner < _cpu.RESAMPLE_FOLD and 0 < row <= SHORT and 1 < height.size_out <= SMALL // row
    if not is_small or height.taps * width.taps > FEW:
        return tables
    return depth, identity(1), product(height, width)


def _resample(x, plan, y):
    outer, tables, inner, fill = plan
    tables = _with_small_planes_as_rows(outer, tables, inner)
    if not y.numel():
        return
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
    x = dense(x, arguments[-1])  # whoever calls the operator: x is read as it would lie then
    _resample(x, plans.interpolation(x, *arguments), y)


def pad(x, *arguments):
    *arguments, y = arguments
    x = dense(x, arguments[-1])  # whoever calls the operator: x is read as it would lie then
    _resample(x, plans.padding(x, *arguments), y)
