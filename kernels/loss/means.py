"""Means of terms of one tensor or of two together, their gradients, and the gradients of these.

A program has CHUNK elements of one of the tensors, which are read as they lie in memory. Sums of chunks go to a second launch,
in float64; tensors of a chunk each need only one launch.
"""

import math

import torch
import triton
import triton.language as tl

from pyflash.kernels import launch
from pyflash.kernels.loss import terms
from pyflash.kernels.primitives import INTERPRETED, acc_dtype, cast

BLOCK = 16384 if INTERPRETED.value else 1024
CHUNK = 16384


@triton.jit
def _sum(x_ptr, dd_ptr, first, n, TERM: tl.constexpr, SECOND: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """Of f(x), or of dd f'(x), over the elements first, first + 1, ... of a chunk, in float64."""
    ACC: tl.constexpr = acc_dtype(x_ptr.dtype.element_ty)
    sums = tl.zeros([BLOCK], ACC)
    for start in range(0, CHUNK, BLOCK):
        i = first + start + tl.arange(0, BLOCK)
        x = cast(tl.load(x_ptr + i, mask=i < n, other=0.0), ACC)
        if SECOND:
            term = terms.first(x, cast(tl.load(dd_ptr + i, mask=i < n, other=0.0), ACC), TERM)
        else:
            term = terms.value(x, TERM)
        sums += tl.where(i < n, term, 0.0)
    return tl.sum(sums).to(tl.float64)


@triton.jit
def _scaled(sum, scale):
    """The scale of a part that is not there is 0, that of an empty one NaN."""
    return tl.where(scale == 0, 0.0, sum * scale)


@launch.cached
@triton.jit
def _chunk_sums(
    x_ptr, ddx_ptr, z_ptr, ddz_ptr, sums_ptr, x_n, z_n, X_TERM: tl.constexpr, Z_TERM: tl.constexpr,
    SECOND: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    chunk = tl.program_id(0).to(tl.int64)
    x_chunks = tl.cdiv(x_n, CHUNK)
    if chunk < x_chunks:
        sum = _sum(x_ptr, ddx_ptr, chunk * CHUNK, x_n, X_TERM, SECOND, CHUNK, BLOCK)
    else:
        sum = _sum(z_ptr, ddz_ptr, (chunk - x_chunks) * CHUNK, z_n, Z_TERM, SECOND, CHUNK, BLOCK)
    tl.store(sums_ptr + chunk, sum)


@triton.jit
def _sum_of_chunks(sums_ptr, first, last, BLOCK: tl.constexpr):
    sums = tl.zeros([BLOCK], tl.float64)
    for start in range(first, last, BLOCK):
        i = start + tl.arange(0, BLOCK)
        sums += tl.load(sums_ptr + i, mask=i < last, other=0.0)
    return tl.sum(sums)


@launch.cached
@triton.jit
def _finish(
    sums_ptr, y_ptr, x_chunks, chunks, x_scale: "fp64", z_scale: "fp64", BLOCK: tl.constexpr  # noqa: F821
):  # fmt: skip
    x_sum = _sum_of_chunks(sums_ptr, 0, x_chunks, BLOCK)
    z_sum = _sum_of_chunks(sums_ptr, x_chunks, chunks, BLOCK)
    y = _scaled(x_sum, x_scale) + _scaled(z_sum, z_scale)
    tl.store(y_ptr, cast(y.to(acc_dtype(y_ptr.dtype.element_ty)), y_ptr.dtype.element_ty))


@launch.cached
@triton.jit
def _small_mean(
    x_ptr, ddx_ptr, z_ptr, ddz_ptr, y_ptr, x_n, z_n, x_scale: "fp64", z_scale: "fp64",  # noqa: F821
    X_TERM: tl.constexpr, Z_TERM: tl.constexpr, SECOND: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    y = _scaled(_sum(x_ptr, ddx_ptr, 0, x_n, X_TERM, SECOND, CHUNK, BLOCK), x_scale)
    y += _scaled(_sum(z_ptr, ddz_ptr, 0, z_n, Z_TERM, SECOND, CHUNK, BLOCK), z_scale)
    tl.store(y_ptr, cast(y.to(acc_dtype(y_ptr.dtype.element_ty)), y_ptr.dtype.element_ty))


@triton.jit
def _gradient(
    dy_ptr, x_ptr, dd_ptr, to_ptr, first, n, scale, TERM: tl.constexpr, SECOND: tl.constexpr, BLOCK: tl.constexpr
):
    ACC: tl.constexpr = acc_dtype(x_ptr.dtype.element_ty)
    i = first + tl.arange(0, BLOCK)
    x = cast(tl.load(x_ptr + i, mask=i < n, other=0.0), ACC)
    dy = cast(tl.load(dy_ptr), acc_dtype(dy_ptr.dtype.element_ty))
    g = (dy.to(tl.float64) * scale).to(ACC)
    if SECOND:
        to = terms.second(x, g * cast(tl.load(dd_ptr + i, mask=i < n, other=0.0), ACC), TERM)
    else:
        to = terms.first(x, g, TERM)
    tl.store(to_ptr + i, cast(to, to_ptr.dtype.element_ty), mask=i < n)


@launch.cached
@triton.jit
def _gradients(
    dy_ptr, x_ptr, ddx_ptr, dx_ptr, z_ptr, ddz_ptr, dz_ptr, x_n, z_n, x_scale: "fp64", z_scale: "fp64",  # noqa: F821
    X_TERM: tl.constexpr, Z_TERM: tl.constexpr, SECOND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0).to(tl.int64)
    x_blocks = tl.cdiv(x_n, BLOCK)
    if block < x_blocks:
        _gradient(dy_ptr, x_ptr, ddx_ptr, dx_ptr, block * BLOCK, x_n, x_scale, X_TERM, SECOND, BLOCK)
    else:
        _gradient(dy_ptr, z_ptr, ddz_ptr, dz_ptr, (block - x_blocks) * BLOCK, z_n, z_scale, Z_TERM, SECOND, BLOCK)


class _Parts:
    """What the launches take of x and z, of which one may be missing."""

    def __init__(self, x, z, x_term, z_term):
        self.x, self.z = (z, z) if x is None else (x, x if z is None else z)
        self.sizes = tuple(0 if t is None else t.numel() for t in (x, z))
        self.scales = tuple(0.0 if t is None else 1 / (t.numel() or math.nan) for t in (x, z))
        self.terms = dict(X_TERM=x_term, Z_TERM=z_term or x_term)

    def mean(self, y, ddx=None, ddz=None):
        """Fill y, one number, with the mean, or with the second derivative's share of dy."""
        second = ddx is not None or ddz is not None
        settings = dict(self.terms, SECOND=second, CHUNK=CHUNK, BLOCK=BLOCK)
        tensors = self.x, self.x if ddx is None else ddx, self.z, self.z if ddz is None else ddz
        x_chunks, z_chunks = (launch.cdiv(n, CHUNK) for n in self.sizes)
        if x_chunks <= 1 and z_chunks <= 1:
            _small_mean[(1,)](*tensors, y, *self.sizes, *self.scales, **settings)
            return
        sums = torch.empty(x_chunks + z_chunks, dtype=torch.float64, device=y.device)
        _chunk_sums[(x_chunks + z_chunks,)](*tensors, sums, *self.sizes, **settings)
        _finish[(1,)](sums, y, x_chunks, x_chunks + z_chunks, *self.scales, BLOCK=BLOCK)

    def gradients(self, dy, dx, dz, ddx=None, ddz=None):
        second = ddx is not None or ddz is not None
        blocks = sum(launch.cdiv(n, BLOCK) for n in self.sizes)
        if blocks:
            _gradients[(blocks,)](
                dy, self.x, self.x if ddx is None else ddx, dx, self.z, self.z if ddz is None else ddz, dz,
                *self.sizes, *self.scales, **self.terms, SECOND=second, BLOCK=BLOCK,
            )  # fmt: skip


def mean_terms_fwd(x, z, x_term, z_term, dtype, y):
    """Fill y, one number. x and z, or None, dense."""
    _Parts(x, z, x_term, z_term).mean(y)


def mean_terms_bwd(dy, x, z, x_term, z_term, need_dx, need_dz, dx, dz):
    """Fill dx, like x, and dz, like z, where they are needed."""
    if need_dx or need_dz:
        _Parts(x if need_dx else None, z if need_dz else None, x_term, z_term).gradients(dy, dx, dz)


def mean_terms_second(dy, ddx, ddz, x, z, x_term, z_term, ddy, dx, dz):
    """Fill ddy, one number, and dx and dz where ddx and ddz are."""
    parts = _Parts(None if ddx is None else x, None if ddz is None else z, x_term, z_term)
    parts.mean(ddy, ddx, ddz)
    parts.gradients(dy, dx, dz, ddx, ddz)
