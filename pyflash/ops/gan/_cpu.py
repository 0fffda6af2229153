"""Filters and dense tensors to the native module. bindings/gan.h and gan.cpp read the tuples field by field, in this order."""

import torch

from pyflash import _cpu
from pyflash.ops.core.layouts import dense
from pyflash.ops.core.native import DTYPES
from pyflash.ops.core.workspace import take_workspace
from pyflash.ops.gan import filters, passes
from pyflash.ops.gan.minibatch_stddev import EPS, layout_of

_PLACE = 0  # of a workspace whose size is asked for


def _filter(f, of: filters.Pass, size):
    return f.data_ptr(), *filters.fields(f, of, size)


def _launch(name, *fields, dtype):
    threads, dtype = torch.get_num_threads(), DTYPES[dtype]
    size = getattr(_cpu, f"{name}_workspace")((*fields, _PLACE, dtype), threads)
    workspace = take_workspace(size, "gan")
    getattr(_cpu, name)((*fields, workspace.data_ptr(), dtype), threads)


def upfirdn2d(x, f, size, up, down, pad, flip, gain, channels_last, y):
    if passes.is_done(x, y):
        return
    x, f = dense(x, channels_last), f.contiguous()
    of = filters.Pass(size, up, down, pad, flip, gain)
    fields = _filter(f, of, x.shape[2:])
    _launch("upfirdn2d", x.data_ptr(), y.data_ptr(), *fields, *passes.places(x, channels_last), dtype=x.dtype)


def filtered_lrelu(x, fu, fd, b, v, *form):
    *form, channels_last, y = form
    if passes.is_done(x, y):
        return
    x, v = dense(x, channels_last), None if v is None else dense(v, channels_last)
    fu, fd, b = fu.contiguous(), fd.contiguous(), None if b is None else b.contiguous()
    up, of_v, down, numbers = passes.of(x, fu, fd, v, *form)
    fields = _filter(*up, x.shape[2:])
    of_v = fields if of_v is None else _filter(*of_v, v.shape[2:])
    addresses = (0 if t is None else t.data_ptr() for t in (x, b, v, y))
    _launch(
        "filtered_lrelu", *addresses, *fields, *of_v, *_filter(*down, up[1].size), *passes.places(x, channels_last), x.shape[1],
        *numbers, dtype=x.dtype,
    )  # fmt: skip


def _minibatch_stddev(x, v, dy, group, num_channels, channels_last, y, dx):
    x, v, dy = (None if t is None else dense(t, channels_last) for t in (x, v, dy))
    addresses = (0 if t is None else t.data_ptr() for t in (x, v, dy, y, dx))
    layout = layout_of(x, group, num_channels, channels_last)
    _launch("minibatch_stddev", *addresses, *layout, EPS, dtype=x.dtype)


def minibatch_stddev_fwd(x, group, num_channels, channels_last, y):
    _minibatch_stddev(x, None, None, group, num_channels, channels_last, y, None)


def minibatch_stddev_bwd(dy, x, group, num_channels, channels_last, dx):
    _minibatch_stddev(x, None, dy, group, num_channels, channels_last, None, dx)


def minibatch_stddev_bwd_bwd(v, dy, x, group, num_channels, channels_last, ddy, dx):
    _minibatch_stddev(x, v, dy, group, num_channels, channels_last, ddy, dx)
