"""Local response normalisation and its backward: y = x / s^beta, s = k + scale * sum of the squares of a window of channels.

A program takes a block of elements as they lie in memory, and reads their windows, which its neighbours have in a cache.
The backward has a pass of its own for what every element gives to the windows that have it. Source: Krizhevsky et al. 2012,
section 3.3.
"""

import torch
import triton
import triton.language as tl

from pyflash.kernels import launch
from pyflash.kernels.primitives import INTERPRETED, acc_of, cast, scalar

BLOCK = 16384 if INTERPRETED.value else 1024


@triton.jit
def _root(x):
    if x.dtype == tl.float64:
        y = tl.sqrt(x)
    else:
        y = tl.sqrt_rn(x)
    return y


@triton.jit
def _power(s, beta, QUARTERS: tl.constexpr):
    """s^beta of s >= 0; a power that is no quarter in float64, for the digits that its logarithm has before the point."""
    if QUARTERS == 4:
        y = s
    elif QUARTERS > 0:
        root = _root(s)
        y = root
        if QUARTERS == 1:
            y = _root(root)
        elif QUARTERS == 3:
            y = root * _root(root)
    else:
        y = tl.exp2(tl.log2(s.to(tl.float64)) * beta).to(s.dtype)
    return y


@triton.jit
def _elements(count, channels, step, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """(elements, are they there, their channels)."""
    start = tl.program_id(0).to(tl.int64) * BLOCK if WIDE else tl.program_id(0) * BLOCK
    offs = start + tl.arange(0, BLOCK)
    return offs, offs < count, offs // step % channels


@triton.jit
def _scale(x_ptr, offs, mask, channel, channels, step, before, after, scale: "fp64", k: "fp64", ACC: tl.constexpr):  # noqa: F821
    """s of each element."""
    sum = tl.zeros(offs.shape, ACC)
    for t in range(-before, after + 1):
        inside = mask & (channel + t >= 0) & (channel + t < channels)
        x = cast(tl.load(x_ptr + offs + t * step, mask=inside, other=0.0), ACC)
        sum += x * x
    return sum * scalar(scale, ACC) + scalar(k, ACC)


@launch.cached
@triton.jit
def _local_response_fwd(
    x_ptr, dy_ptr, y_ptr, shares_ptr, count, channels, step, before, after, scale: "fp64", beta: "fp64", k: "fp64",  # noqa: F821
    QUARTERS: tl.constexpr, ACC: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y; or with dy_ptr, for the backward, dy x / s^(beta + 1) in shares."""
    offs, mask, channel = _elements(count, channels, step, WIDE, BLOCK)
    s = _scale(x_ptr, offs, mask, channel, channels, step, before, after, scale, k, ACC)
    x = cast(tl.load(x_ptr + offs, mask=mask, other=0.0), ACC)
    y = x / _power(s, beta, QUARTERS)
    if dy_ptr is None:
        tl.store(y_ptr + offs, cast(y, y_ptr.dtype.element_ty), mask=mask)
    else:
        tl.store(shares_ptr + offs, y * cast(tl.load(dy_ptr + offs, mask=mask, other=0.0), ACC) / s, mask=mask)


@launch.cached
@triton.jit
def _local_response_bwd(
    dy_ptr, x_ptr, shares_ptr, dx_ptr, count, channels, step, before, after, scale: "fp64", beta: "fp64", k: "fp64",  # noqa: F821
    QUARTERS: tl.constexpr, ACC: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    offs, mask, channel = _elements(count, channels, step, WIDE, BLOCK)
    s = _scale(x_ptr, offs, mask, channel, channels, step, before, after, scale, k, ACC)
    sum = tl.zeros([BLOCK], ACC)
    for t in range(-after, before + 1):  # the windows that have this channel
        inside = mask & (channel + t >= 0) & (channel + t < channels)
        sum += tl.load(shares_ptr + offs + t * step, mask=inside, other=0.0)
    x = cast(tl.load(x_ptr + offs, mask=mask, other=0.0), ACC)
    dy = cast(tl.load(dy_ptr + offs, mask=mask, other=0.0), ACC)
    dx = dy / _power(s, beta, QUARTERS) - x * scalar(2 * scale * beta, ACC) * sum
    tl.store(dx_ptr + offs, cast(dx, dx_ptr.dtype.element_ty), mask=mask)


def _launch(kernel, x, size, alpha, beta, k, *tensors):
    """Over all elements of x [batch, channels, positions], dense in this order or with the channels adjacent."""
    count, channels = x.numel(), x.shape[1]
    step = 1 if x.stride(1) == 1 and channels > 1 else x.shape[2]
    before, after = min(size // 2, channels - 1), min((size - 1) // 2, channels - 1)
    quarters = int(beta * 4) if beta * 4 in (1, 2, 3, 4) else 0
    kernel[(launch.cdiv(count, BLOCK),)](
        *tensors, count, channels, step, before, after, alpha / size, beta, k, QUARTERS=quarters, ACC=acc_of(x),
        WIDE=count >= 1 << 31, BLOCK=BLOCK,
    )  # fmt: skip


def local_response_norm_fwd(x, size, alpha, beta, k, y):
    """Fill y, like x [batch, channels, positions]; the window of channel c is from c - size // 2 to c + (size - 1) // 2."""
    if x.numel():
        _launch(_local_response_fwd, x, size, alpha, beta, k, x, None, y, None)


def local_response_norm_bwd(dy, x, size, alpha, beta, k, dx):
    """Fill dx, which lies in memory as x does."""
    if x.numel():
        dy = launch.in_order(dy, x.stride(1) == 1 and x.shape[1] > 1)
        shares = torch.empty_like(x, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
        _launch(_local_response_fwd, x, size, alpha, beta, k, x, dy, None, shares)
        _launch(_local_response_bwd, x, size, alpha, beta, k, dy, x, shares, dx)
