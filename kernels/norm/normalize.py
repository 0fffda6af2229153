"""Vectors over their norm, or over the root of their mean square and eps (KIND "mean"), and the backward of it.

Of x [outer, n, inner] a program takes BLOCK_J vectors that lie side by side, and BLOCK_I of their elements at a time: twice
over all of them, for the norm and for what it divides. With inner 1 the elements of a vector are adjacent, and a program
has one.
"""

import triton
import triton.language as tl

from pyflash.kernels import launch
from pyflash.kernels.primitives import INTERPRETED, acc_of, cast, scalar


@triton.jit
def _largest(x, axis: tl.constexpr):
    """The largest magnitude; a NaN is."""
    has_nan = tl.max((x != x).to(tl.int32), axis) > 0
    return tl.where(has_nan, float("nan"), tl.max(tl.where(x != x, 0.0, x), axis))


@triton.jit
def _tile(ptr, first, n, inner, j, BLOCK_I: tl.constexpr, ACC: tl.constexpr):
    """Elements first, first + 1, ... of the vectors j, [BLOCK_I, BLOCK_J]; 0 where there are none."""
    i = first + tl.arange(0, BLOCK_I)
    mask = (i < n)[:, None] & (j < inner)[None, :]
    return cast(tl.load(ptr + i[:, None] * inner + j[None, :], mask=mask, other=0.0), ACC)


@triton.jit
def _put(ptr, value, first, n, inner, j, BLOCK_I: tl.constexpr):
    i = first + tl.arange(0, BLOCK_I)
    mask = (i < n)[:, None] & (j < inner)[None, :]
    tl.store(ptr + i[:, None] * inner + j[None, :], cast(value, ptr.dtype.element_ty), mask=mask)


@triton.jit
def _part(x, norm, KIND: tl.constexpr):
    """An element's part in the norm's derivative: x, its sign, or its sign where it is one of the largest."""
    sign = tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0)).to(x.dtype)
    if KIND == "two" or KIND == "mean":
        y = x
    elif KIND == "one":
        y = sign
    else:
        y = tl.where(tl.abs(x) == norm[None, :], sign, 0.0)
    return y


@triton.jit
def _vectors(n, inner, BLOCK_J: tl.constexpr):
    """(offset of this program's matrix, its vectors there, their norms' places)."""
    blocks = tl.cdiv(inner, BLOCK_J)
    outer = (tl.program_id(0) // blocks).to(tl.int64)
    j = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_J + tl.arange(0, BLOCK_J)
    return outer * n * inner, j, outer * inner + j


@launch.cached
@triton.jit
def _normalize_fwd(
    x_ptr, y_ptr, norm_ptr, n, inner, eps: "fp64", KIND: tl.constexpr, ACC: tl.constexpr,  # noqa: F821
    BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    offset, j, of_norm = _vectors(n, inner, BLOCK_J)
    sum = tl.zeros([BLOCK_I, BLOCK_J], ACC)
    for first in range(0, n, BLOCK_I):
        x = _tile(x_ptr + offset, first, n, inner, j, BLOCK_I, ACC)
        if KIND == "two" or KIND == "mean":
            sum += x * x
        elif KIND == "one":
            sum += tl.abs(x)
        else:
            sum = tl.where((tl.abs(x) > sum) | (x != x), tl.abs(x), sum)
    if KIND == "most":
        norm = _largest(sum, 0)
    else:
        norm = tl.sum(sum, 0)
    least = scalar(eps, ACC)
    if KIND == "two":
        norm = tl.sqrt(norm)
    elif KIND == "mean":
        norm = tl.sqrt(norm / n + least)
        least = scalar(0.0, ACC)
    tl.store(norm_ptr + of_norm, norm, mask=j < inner)
    divisor = tl.where(norm < least, least, norm)  # NaN stays
    for first in range(0, n, BLOCK_I):
        x = _tile(x_ptr + offset, first, n, inner, j, BLOCK_I, ACC)
        _put(y_ptr + offset, x / divisor[None, :], first, n, inner, j, BLOCK_I)


@launch.cached
@triton.jit
def _normalize_bwd(
    dy_ptr, x_ptr, norm_ptr, dx_ptr, n, inner, eps: "fp64", KIND: tl.constexpr, ACC: tl.constexpr,  # noqa: F821
    BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    offset, j, of_norm = _vectors(n, inner, BLOCK_J)
    norm = tl.load(norm_ptr + of_norm, mask=j < inner, other=1.0)
    dots = tl.zeros([BLOCK_I, BLOCK_J], ACC)
    largest = tl.zeros([BLOCK_I, BLOCK_J], ACC)
    for first in range(0, n, BLOCK_I):
        x = _tile(x_ptr + offset, first, n, inner, j, BLOCK_I, ACC)
        dots += _tile(dy_ptr + offset, first, n, inner, j, BLOCK_I, ACC) * x
        if KIND == "most":
            largest += tl.abs(_part(x, norm, KIND))
    least = scalar(0.0 if KIND == "mean" else eps, ACC)
    divisor = tl.where(norm < least, least, norm)
    factor = tl.sum(dots, 0) / divisor
    if KIND == "two":
        factor = factor / tl.where(norm == 0, 1.0, norm)
    elif KIND == "mean":
        factor = factor / norm / n
    elif KIND == "most":
        factor = factor / tl.maximum(tl.sum(largest, 0), 1.0)
    factor = tl.where(norm < least, 0.0, factor)  # then the norm is not what was divided by
    for first in range(0, n, BLOCK_I):
        x = _tile(x_ptr + offset, first, n, inner, j, BLOCK_I, ACC)
        dy = _tile(dy_ptr + offset, first, n, inner, j, BLOCK_I, ACC)
        dx = (dy - _part(x, norm, KIND) * factor[None, :]) / divisor[None, :]
        _put(dx_ptr + offset, dx, first, n, inner, j, BLOCK_I)


def _launch(kernel, x, kind, eps, *tensors):
    outer, n, inner = x.shape
    if not x.numel():
        return
    most = 16384 if INTERPRETED.value else 2048
    block_j = min(triton.next_power_of_2(inner), 128 if INTERPRETED.value else 64)
    block_i = min(triton.next_power_of_2(n), most // block_j)
    kernel[(outer * launch.cdiv(inner, block_j),)](
        *tensors, n, inner, eps, KIND=kind, ACC=acc_of(x), BLOCK_I=block_i, BLOCK_J=block_j,
    )  # fmt: skip


def normalize_fwd(x, kind, eps, y, norm):
    """Fill y, like x [outer, n, inner], contiguous, and norm [outer, inner] of its vectors of n elements."""
    _launch(_normalize_fwd, x, kind, eps, x, y, norm)


def normalize_bwd(dy, x, norm, kind, eps, dx):
    """Fill dx, like x."""
    _launch(_normalize_bwd, x, kind, eps, dy, x, norm, dx)
