"""Max unpooling and its gradient. Of equal indices the last one wins, whichever program comes first: every element claims
its place with an atomic maximum over positions, and a second pass over the output takes what the winner has.
"""

import math

import torch
import triton
import triton.language as tl

from pyflash.kernels import launch
from pyflash.kernels.pool.windows import POOL_BLOCK, elements


@triton.jit
def _plane_of(offs, per_plane, inner):
    """(outer, place in the plane, channel) of elements of [outer, per_plane, inner]."""
    pixel = offs // inner
    return pixel // per_plane, pixel % per_plane, offs % inner


@launch.cached
@triton.jit
def _claim(indices_ptr, winners_ptr, inputs, outputs, inner, count, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    offs = elements(WIDE, BLOCK)
    mask = offs < count
    outer, place, channel = _plane_of(offs, inputs, inner)
    index = tl.load(indices_ptr + offs, mask=mask, other=-1)
    mask = (index >= 0) & (index < outputs)
    at = (outer * outputs + index) * inner + channel
    tl.atomic_max(winners_ptr + at, place.to(winners_ptr.dtype.element_ty), mask=mask, sem="relaxed")


@launch.cached
@triton.jit
def _max_unpool_fwd(x_ptr, winners_ptr, y_ptr, inputs, outputs, inner, count, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    offs = elements(WIDE, BLOCK)
    mask = offs < count
    outer, _, channel = _plane_of(offs, outputs, inner)
    winner = tl.load(winners_ptr + offs, mask=mask, other=-1)
    x = tl.load(x_ptr + (outer * inputs + winner) * inner + channel, mask=winner >= 0, other=0.0)
    tl.store(y_ptr + offs, x, mask=mask)


@launch.cached
@triton.jit
def _max_unpool_bwd(
    dy_ptr, indices_ptr, dx_ptr, inputs, outputs, inner, count, WIDE: tl.constexpr, BLOCK: tl.constexpr
):
    offs = elements(WIDE, BLOCK)
    mask = offs < count
    outer, _, channel = _plane_of(offs, inputs, inner)
    index = tl.load(indices_ptr + offs, mask=mask, other=-1)
    inside = (index >= 0) & (index < outputs)
    dy = tl.load(dy_ptr + (outer * outputs + index) * inner + channel, mask=inside, other=0.0)
    tl.store(dx_ptr + offs, dy, mask=mask)


def _run(kernel, count, *args):
    wide = max(t.numel() for t in args if isinstance(t, torch.Tensor)) >= 1 << 31
    kernel[(launch.cdiv(count, POOL_BLOCK),)](*args, count, WIDE=wide, BLOCK=POOL_BLOCK)


def _planes(shape, other, n, channels_last):
    """(elements of an input plane, of an output plane, channels between them in memory)."""
    return math.prod(shape[-n:]), math.prod(other[-n:]), shape[-n - 1] if channels_last else 1


def max_unpool_fwd(x, indices, size, channels_last, y):
    """Fill y [.., *size] with zeros and, where an index of its plane says so, the last such element of x; all laid out in
    memory alike. Indices out of range are passed over."""
    if y.numel() == 0:
        return
    planes = _planes(x.shape, y.shape, len(size), channels_last)
    positions = torch.int32 if planes[0] < 1 << 31 else torch.int64
    winners = torch.full((y.numel(),), -1, dtype=positions, device=y.device)
    if x.numel():
        _run(_claim, x.numel(), indices, winners, *planes)
    _run(_max_unpool_fwd, y.numel(), x, winners, y, *planes)


def max_unpool_bwd(dy, indices, n, channels_last, dx):
    """Fill dx, like indices, with dy at these places; 0 at those that are none."""
    if dx.numel():
        _run(_max_unpool_bwd, dx.numel(), dy, indices, dx, *_planes(dx.shape, dy.shape, n, channels_last))
