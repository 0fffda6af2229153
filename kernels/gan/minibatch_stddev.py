"""The minibatch's deviation as more channels, and its derivatives.

x is [group, groups, rows, shares, n] in memory; a row of the result has what the row of x has, and behind it `extra` numbers
for each share. A program takes BLOCK elements of a share, of all samples of a group: once for their mean, and again, from the
cache, for what depends on it. What is summed over a share is added up by the programs that write it.
"""

import torch
import triton
import triton.language as tl

from pyflash.kernels import launch
from pyflash.kernels.primitives import INTERPRETED, acc_of, cast, scalar


@triton.jit
def _elements(groups, group, rows, shares, n, extra, HAS_ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """(share of a group, mask, offsets in x and in the result of sample 0, what is between samples in both)."""
    blocks = tl.cdiv(rows * n, BLOCK)
    of = tl.program_id(0) // blocks
    e = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    first = (of // shares).to(tl.int64) * rows
    x_row, y_row = shares * n, shares * (n + extra)
    if HAS_ROWS:
        row, j = e // n, e % n
        x, y = (first + row) * x_row + j, (first + row) * y_row + j
    else:
        x, y = first * x_row + e, first * y_row + e
    stride = scalar(groups, tl.int64) * rows  # an argument of 1 is a constant
    return of, e < rows * n, x + of % shares * n, y + of % shares * n, stride * x_row, stride * y_row


@triton.jit
def _mean_and_deviation(x_ptr, mask, stride, group, eps, ACC: tl.constexpr):
    """Of each element over its samples, the variance without Bessel's correction."""
    zero = x_ptr.to(tl.int64) * 0
    mean = zero.to(ACC)
    for g in range(group):
        mean += cast(tl.load(x_ptr + g * stride, mask=mask, other=0.0), ACC)
    mean = mean / group
    square = zero.to(ACC)
    for g in range(group):
        d = cast(tl.load(x_ptr + g * stride, mask=mask, other=0.0), ACC) - mean
        square += d * d
    return mean, tl.sqrt(square / group + scalar(eps, ACC))


@launch.cached
@triton.jit
def _minibatch_stddev_fwd(
    x_ptr, y_ptr, sums_ptr, groups, group, rows, shares, n, extra, eps: "fp64", HAS_ROWS: tl.constexpr,  # noqa: F821
    ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    _, mask, x, y, x_stride, y_stride = _elements(groups, group, rows, shares, n, extra, HAS_ROWS, BLOCK)
    x_ptr, y_ptr = x_ptr + x, y_ptr + y
    _, deviation = _mean_and_deviation(x_ptr, mask, x_stride, group, eps, ACC)
    tl.store(sums_ptr + tl.program_id(0), tl.sum(tl.where(mask, deviation, 0.0), 0))
    for g in range(group):
        tl.store(y_ptr + g * y_stride, tl.load(x_ptr + g * x_stride, mask=mask, other=0.0), mask=mask)


@launch.cached
@triton.jit
def _minibatch_stddev_bwd(
    dy_ptr, x_ptr, factors_ptr, dx_ptr, groups, group, rows, shares, n, extra, eps: "fp64",  # noqa: F821
    HAS_ROWS: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dx = dy + factor (x - mean) / deviation."""
    of, mask, x, y, x_stride, y_stride = _elements(groups, group, rows, shares, n, extra, HAS_ROWS, BLOCK)
    x_ptr, dx_ptr, dy_ptr = x_ptr + x, dx_ptr + x, dy_ptr + y
    mean, deviation = _mean_and_deviation(x_ptr, mask, x_stride, group, eps, ACC)
    slope = tl.load(factors_ptr + of) / deviation
    for g in range(group):
        d = cast(tl.load(x_ptr + g * x_stride, mask=mask, other=0.0), ACC) - mean
        dx = cast(tl.load(dy_ptr + g * y_stride, mask=mask, other=0.0), ACC) + slope * d
        tl.store(dx_ptr + g * x_stride, cast(dx, dx_ptr.dtype.element_ty), mask=mask)


@launch.cached
@triton.jit
def _minibatch_stddev_bwd_bwd(
    v_ptr, x_ptr, factors_ptr, ddy_ptr, dx_ptr, sums_ptr, groups, group, rows, shares, n, extra, eps: "fp64",  # noqa: F821
    HAS_ROWS: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dx = factor / deviation (v - mean of v - (x - mean) (mean of v (x - mean)) / deviation^2)."""
    of, mask, x, y, x_stride, y_stride = _elements(groups, group, rows, shares, n, extra, HAS_ROWS, BLOCK)
    x_ptr, v_ptr, dx_ptr, ddy_ptr = x_ptr + x, v_ptr + x, dx_ptr + x, ddy_ptr + y
    mean, deviation = _mean_and_deviation(x_ptr, mask, x_stride, group, eps, ACC)
    mean_v, dot = mean * 0, mean * 0
    for g in range(group):
        v = cast(tl.load(v_ptr + g * x_stride, mask=mask, other=0.0), ACC)
        mean_v += v
        dot += v * (cast(tl.load(x_ptr + g * x_stride, mask=mask, other=0.0), ACC) - mean)
    tl.store(sums_ptr + tl.program_id(0), tl.sum(tl.where(mask, dot / deviation, 0.0), 0))
    mean_v = mean_v / group
    slope, back = tl.load(factors_ptr + of) / deviation, dot / group / (deviation * deviation)
    for g in range(group):
        d = cast(tl.load(x_ptr + g * x_stride, mask=mask, other=0.0), ACC) - mean
        v = tl.load(v_ptr + g * x_stride, mask=mask, other=0.0)
        tl.store(ddy_ptr + g * y_stride, v, mask=mask)
        dx = slope * ((cast(v, ACC) - mean_v) - d * back)
        tl.store(dx_ptr + g * x_stride, cast(dx, dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _more(groups, rows, shares, n, extra, sample, of, i):
    """Offsets of numbers i behind the rows of a sample, of a share of its group."""
    row = (scalar(sample, tl.int64) * groups + of // shares) * rows + i // extra
    return row * (shares * (n + extra)) + shares * n + of % shares * extra + i % extra


@launch.cached
@triton.jit
def _minibatch_stddev_factors(
    dy_ptr, factors_ptr, groups, group, rows, shares, n, extra, count: "fp64", ACC: tl.constexpr,  # noqa: F821
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The sum of a share's gradients over `count`."""
    of = tl.program_id(0)
    sums = tl.zeros([BLOCK], ACC)
    for sample in range(group):
        for first in range(0, rows * extra, BLOCK):
            i = first + tl.arange(0, BLOCK)
            at = _more(groups, rows, shares, n, extra, sample, of, i)
            sums += cast(tl.load(dy_ptr + at, mask=i < rows * extra, other=0.0), ACC)
    tl.store(factors_ptr + of, tl.sum(sums, 0) / scalar(count, ACC))


@launch.cached
@triton.jit
def _minibatch_stddev_spread(
    sums_ptr, y_ptr, blocks, groups, group, rows, shares, n, extra, count: "fp64", ACC: tl.constexpr,  # noqa: F821
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The sum of what `blocks` programs found of a share, over `count`, to one sample's places."""
    of, sample = tl.program_id(0) // group, tl.program_id(0) % group
    sums = tl.zeros([BLOCK], ACC)
    for first in range(0, blocks, BLOCK):
        i = first + tl.arange(0, BLOCK)
        sums += tl.load(sums_ptr + of.to(tl.int64) * blocks + i, mask=i < blocks, other=0.0)
    value = cast(tl.sum(sums, 0) / scalar(count, ACC), y_ptr.dtype.element_ty)
    for first in range(0, rows * extra, BLOCK):
        i = first + tl.arange(0, BLOCK)
        at = _more(groups, rows, shares, n, extra, sample, of, i)
        tl.store(y_ptr + at, value, mask=i < rows * extra)


class _Launch:
    """The launches of one call: how x is cut, and what is summed in between."""

    def __init__(self, x, layout, eps):
        most = 4096 if INTERPRETED.value else 1024
        self.elements = layout.rows * layout.n
        self.block = min(launch.power_of_two(self.elements), most)
        self.blocks = launch.cdiv(self.elements, self.block)
        self.places = min(launch.power_of_two(layout.rows * layout.extra), most)
        self.layout, self.eps, self.of, self.acc = layout, eps, layout.groups * layout.shares, acc_of(x)
        self.like = x

    def sums(self, count):
        dtype = torch.float64 if self.like.dtype == torch.float64 else torch.float32
        return torch.empty(count, dtype=dtype, device=self.like.device)

    def factors(self, dy):
        factors, count = self.sums(self.of), float(self.elements * self.layout.group)
        _minibatch_stddev_factors[(self.of,)](dy, factors, *self.layout, count, ACC=self.acc, BLOCK=self.places)
        return factors

    def run(self, kernel, *tensors):
        kernel[(self.of * self.blocks,)](
            *tensors, *self.layout, self.eps, HAS_ROWS=self.layout.rows > 1, ACC=self.acc, BLOCK=self.block
        )

    def spread(self, sums, count, y):
        _minibatch_stddev_spread[(self.of * self.layout.group,)](
            sums, y, self.blocks, *self.layout, float(count), ACC=self.acc, BLOCK=self.places
        )


def minibatch_stddev_fwd(x, layout, eps, y):
    """Fill y from x, both dense; layout is ops/gan/minibatch_stddev.py's."""
    call = _Launch(x, layout, eps)
    sums = call.sums(call.of * call.blocks)
    call.run(_minibatch_stddev_fwd, x, y, sums)
    call.spread(sums, call.elements, y)


def minibatch_stddev_bwd(dy, x, layout, eps, dx):
    """Fill dx, like x."""
    call = _Launch(x, layout, eps)
    call.run(_minibatch_stddev_bwd, dy, x, call.factors(dy), dx)


def minibatch_stddev_bwd_bwd(v, dy, x, layout, eps, ddy, dx):
    """Fill ddy, like dy, and dx, like x: their gradients for v, that of the backward's dx."""
    call = _Launch(x, layout, eps)
    sums = call.sums(call.of * call.blocks)
    call.run(_minibatch_stddev_bwd_bwd, v, x, call.factors(dy), ddy, dx, sums)
    call.spread(sums, call.elements * layout.group, ddy)
