"""The minibatch's deviation as one more channel, which shows a discriminator how alike its samples are. Karras et al. 2018,
arXiv:1710.10196, section 3; in groups, as StyleGAN2 has it (Karras et al. 2020, arXiv:1912.04958)."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch

from pyflash.auto.minima import minima
from pyflash.ops.core.autograd import Function, apply, leaf, vjp
from pyflash.ops.core.backends import IN_KERNELS, Operation
from pyflash.ops.core.checks import NOT_PLAIN, expect_tensors, is_plain
from pyflash.ops.core.choice import choose
from pyflash.ops.core.dtypes import FLOATS, acc_dtype
from pyflash.ops.core.layouts import CHANNELS_LAST, dense, empty, is_channels_last
from pyflash.ops.core.registry import Op

EPS = 1e-8  # of StyleGAN2, under the root

OPERATION = Operation(
    "minibatch_stddev",
    dtypes={"cpu": FLOATS, "triton": FLOATS},
    rules=minima("minibatch_stddev", inference=0, training=0),
    sizes="(elements, are gradients needed)",
    second_derivative=IN_KERNELS,
)


class Layout(NamedTuple):
    """How kernels see x: [group, groups, rows, shares, n] in memory, and the result: behind each row so many more numbers,
    `extra` for each share. Channels first, a sample is a row."""

    groups: int
    group: int
    rows: int
    shares: int
    n: int
    extra: int


def layout_of(x: torch.Tensor, group: int, num_channels: int, channels_last: bool) -> Layout:
    batch, channels, *sizes = x.shape
    positions, of_share = prod(sizes), channels // num_channels
    if channels_last:
        return Layout(batch // group, group, positions, num_channels, of_share, 1)
    return Layout(batch // group, group, 1, num_channels, of_share * positions, positions)


def _composed(x, group, num_channels, channels_last):
    batch, channels, *positions = x.shape
    parts = x.view(group, batch // group, num_channels, channels // num_channels, *positions).to(acc_dtype(x.dtype))
    variance = (parts - parts.mean(0)).square().mean(0)  # torch.var along the first dimension takes ten times as long
    of_group = (variance + EPS).sqrt().flatten(2).mean(2)  # [groups, num_channels]
    added = of_group.to(x.dtype).view(-1, num_channels, *(1,) * len(positions)).repeat(group, 1, *positions)
    if not channels_last:
        return torch.cat([x, added], 1)
    layout = CHANNELS_LAST[x.dim()]
    return torch.cat([x, added.contiguous(memory_format=layout)], 1).contiguous(memory_format=layout)


def _gradient(dy, x, *form):
    return vjp(lambda x: _composed(x, *form), (leaf(x),), (dy,))[0]


def _second(v, dy, x, *form):
    return vjp(lambda dy, x: _gradient(dy, x, *form), (leaf(dy), leaf(x)), (v,))


def _with_more(like, x, num_channels, channels_last):
    return empty(like, (x.shape[0], x.shape[1] + num_channels, *x.shape[2:]), channels_last)


# x and the result are dense, as channels_last says; `group` samples are a group, num_channels of the result are deviations.
_fwd = Op(
    "minibatch_stddev_fwd(Tensor x, int group, int num_channels, bool channels_last, str backend) -> Tensor",
    outputs=lambda x, _, num_channels, channels_last: (_with_more(x, x, num_channels, channels_last),),
    reference=lambda *args: (_composed(*args),),
    differentiable=True,
    triton="pyflash.ops.gan._triton:minibatch_stddev_fwd",
    cpu="pyflash.ops.gan._cpu:minibatch_stddev_fwd",
)
_bwd = Op(
    "minibatch_stddev_bwd(Tensor dy, Tensor x, int group, int num_channels, bool channels_last, str backend) -> Tensor",
    outputs=lambda dy, x, *form: (empty(x, x.shape, form[-1]),),
    reference=lambda *args: (_gradient(*args),),
    triton="pyflash.ops.gan._triton:minibatch_stddev_bwd",
    cpu="pyflash.ops.gan._cpu:minibatch_stddev_bwd",
)
# The gradients of dy and x for v, the one of dx.
_bwd_bwd = Op(
    "minibatch_stddev_bwd_bwd(Tensor v, Tensor dy, Tensor x, int group, int num_channels, bool channels_last, str backend)"
    " -> (Tensor ddy, Tensor dx)",
    outputs=lambda v, dy, x, _, num_channels, channels_last: (
        _with_more(x, x, num_channels, channels_last),
        empty(x, x.shape, channels_last),
    ),
    reference=_second,
    triton="pyflash.ops.gan._triton:minibatch_stddev_bwd_bwd",
    cpu="pyflash.ops.gan._cpu:minibatch_stddev_bwd_bwd",
)


class _MinibatchStddev(Function):
    @staticmethod
    def forward(x, group, num_channels, channels_last, backend):
        return _fwd(x, group, num_channels, channels_last, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, *ctx.rest = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        return apply(_Gradient, dense(dy, ctx.rest[-2]), x, *ctx.rest), *(None,) * 4


class _Gradient(Function):
    @staticmethod
    def forward(dy, x, group, num_channels, channels_last, backend):
        return _bwd(dy, x, group, num_channels, channels_last, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        dy, x, *ctx.rest = inputs
        ctx.save_for_backward(dy, x)

    @staticmethod
    def backward(ctx, v):
        return *apply(_Second, dense(v, ctx.rest[-2]), *ctx.saved_tensors, *ctx.rest), *(None,) * 4


class _Second(Function):
    """Whose derivative is torch's."""

    @staticmethod
    def forward(v, dy, x, group, num_channels, channels_last, backend):
        return _bwd_bwd(v, dy, x, group, num_channels, channels_last, backend)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        *tensors, group, num_channels, channels_last, _ = inputs
        ctx.form = group, num_channels, channels_last
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, *grads):
        return *vjp(lambda *tensors: _second(*tensors, *ctx.form), ctx.saved_tensors, grads), *(None,) * 4


def minibatch_stddev(x: torch.Tensor, group_size: int | None = 4, num_channels: int = 1) -> torch.Tensor:
    """x with num_channels more channels: the standard deviations over the samples of a group, sqrt(var + 1e-8), averaged over
    the positions and a share of the channels.

    Args:
        x: [batch, channels, ...]; floating-point. A group is every (batch / group_size)-th sample. A channels_last x gives a
            channels_last result.
        group_size: samples in a group; None, or more than there are: all of the batch.
        num_channels: so many shares, each of channels / num_channels neighbours.
    Returns:
        [batch, channels + num_channels, ...], of x's type.
    Raises:
        ValueError: the batch is no multiple of group_size, or the channels of num_channels, or these are below 1.
        RuntimeError: no floating-point numbers.
    Numerics: deviations in float32 (float64 for float64), without Bessel's correction, added up in the same order whatever the
        number of threads. First and second derivatives are kernels; a third goes through torch operations.
    """
    expect_tensors("minibatch_stddev", x=x)
    if not x.is_floating_point():
        raise RuntimeError(f"pyflash.minibatch_stddev: x is {x.dtype}, expected a floating-point tensor")
    if x.dim() < 2:
        raise ValueError(f"pyflash.minibatch_stddev: x has shape {tuple(x.shape)}, expected [batch, channels, ...]")
    batch, channels, *positions = x.shape
    for name, value in (("group_size", 1 if group_size is None else group_size), ("num_channels", num_channels)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"pyflash.minibatch_stddev: {name} is {value!r}, expected an int from 1 on")
    group = batch if group_size is None else min(group_size, batch)
    if group and batch % group:
        raise ValueError(
            f"pyflash.minibatch_stddev: a batch of {batch} is no multiple of group_size {group}; drop the last samples, or"
            " choose another"
        )
    if channels % num_channels:
        raise ValueError(
            f"pyflash.minibatch_stddev: {channels} channels are no multiple of num_channels {num_channels}"
        )
    if not batch:
        return torch.cat([x, x.new_empty(0, num_channels, *positions)], 1)
    channels_last = is_channels_last(x)
    refused = NOT_PLAIN if not is_plain(x) else "" if x.numel() else "there is nothing of which to take a deviation"
    backend = choose(OPERATION, x, size=(x.numel(), torch.is_grad_enabled() and x.requires_grad), refused=refused)
    x = dense(x, channels_last)
    if backend is None:
        return _composed(x, group, num_channels, channels_last)
    return apply(_MinibatchStddev, x, group, num_channels, channels_last, backend)
