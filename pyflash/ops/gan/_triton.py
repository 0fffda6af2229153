"""Filters and dense tensors to the Triton kernels."""

from pyflash.kernels.gan import filtered_lrelu as lrelu
from pyflash.kernels.gan import minibatch_stddev as stddev
from pyflash.kernels.gan import upfirdn2d as kernels
from pyflash.ops.core.layouts import dense
from pyflash.ops.gan import passes
from pyflash.ops.gan.filters import Pass
from pyflash.ops.gan.minibatch_stddev import EPS, layout_of


def upfirdn2d(x, f, size, up, down, pad, flip, gain, channels_last, y):
    if passes.is_done(x, y):
        return
    of = Pass(tuple(size), tuple(up), tuple(down), tuple(pad), flip, gain)
    x = dense(x, channels_last)
    kernels.upfirdn2d(x, f.contiguous(), of, *passes.places(x, channels_last), x.shape[2:], y)


def filtered_lrelu(x, fu, fd, b, v, *form):
    *form, channels_last, y = form
    if passes.is_done(x, y):
        return
    x, v = dense(x, channels_last), None if v is None else dense(v, channels_last)
    fu, fd, b = fu.contiguous(), fd.contiguous(), None if b is None else b.contiguous()
    up, of_v, down, numbers = passes.of(x, fu, fd, v, *form)
    lrelu.filtered_lrelu(
        x, up, b, v, of_v, down, numbers, *passes.places(x, channels_last), x.shape[1], x.shape[2:],
        None if v is None else v.shape[2:], y,
    )  # fmt: skip


def minibatch_stddev_fwd(x, *form):
    *form, y = form
    x = dense(x, form[-1])
    stddev.minibatch_stddev_fwd(x, layout_of(x, *form), EPS, y)


def minibatch_stddev_bwd(dy, x, *form):
    *form, dx = form
    dy, x = dense(dy, form[-1]), dense(x, form[-1])
    stddev.minibatch_stddev_bwd(dy, x, layout_of(x, *form), EPS, dx)


def minibatch_stddev_bwd_bwd(v, dy, x, *form):
    *form, ddy, dx = form
    v, dy, x = (dense(t, form[-1]) for t in (v, dy, x))
    stddev.minibatch_stddev_bwd_bwd(v, dy, x, layout_of(x, *form), EPS, ddy, dx)
