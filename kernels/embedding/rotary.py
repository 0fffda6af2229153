"""Rotary position embedding: pairs of elements turned by an angle that depends on the position. Su et al. 2021,
arXiv:2104.09864, eq. 34. The backward is the same kernel with the opposite angle."""

import triton
import triton.language as tl

from pyflash.kernels import launch, tuning
from pyflash.kernels.primitives import acc_of, cast
from pyflash.kernels.strided import strided


@triton.jit
def _row_of(x, at0, at1, at2):
    """Where the rows of a tensor begin."""
    return x.ptr + (at0 * x.strides[0] + at1 * x.strides[1] + at2 * x.strides[2])[:, None]


@launch.cached
@triton.jit
def _rotary(
    x, cos, sin, y, rows, heads, length, half, dim, INTERLEAVED: tl.constexpr, INVERSE: tl.constexpr, ACC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """BLOCK_M rows of x and y [batch, heads, length, dim], in blocks of BLOCK_N pairs; cos and sin [batch, heads, length,
    half], whose strides may be 0. rows: batch * heads * length."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = (row < rows)[:, None]
    at0, at1, at2 = row // length // heads, row // length % heads, row % length
    x_rows, y_rows = _row_of(x, at0, at1, at2), _row_of(y, at0, at1, at2)
    cos_rows, sin_rows = _row_of(cos, at0, at1, at2), _row_of(sin, at0, at1, at2)
    for first in range(0, half, BLOCK_N):
        pair = first + tl.arange(0, BLOCK_N)[None, :]
        mask = mask_m & (pair < half)
        one = pair * 2 if INTERLEAVED else pair
        other = one + (1 if INTERLEAVED else half)
        c = tl.load(cos_rows + pair, mask=mask, other=0.0)
        s = tl.load(sin_rows + pair, mask=mask, other=0.0)
        a = cast(tl.load(x_rows + one, mask=mask, other=0.0), ACC)
        b = cast(tl.load(x_rows + other, mask=mask, other=0.0), ACC)
        if INVERSE:
            s = -s
        tl.store(y_rows + one, cast(a * c - b * s, y.ptr.dtype.element_ty), mask=mask)
        tl.store(y_rows + other, cast(b * c + a * s, y.ptr.dtype.element_ty), mask=mask)
    for first in range(2 * half, dim, BLOCK_N):
        offs = first + tl.arange(0, BLOCK_N)[None, :]
        mask = mask_m & (offs < dim)
        tl.store(y_rows + offs, tl.load(x_rows + offs, mask=mask), mask=mask)


def rotary(x, cos, sin, interleaved, inverse, y):
    """Fill y.

    Args:
        x, y: [batch, heads, length, dim], last dimension adjacent.
        cos, sin: [batch or 1, length, half], float32 (float64 for float64), last dimension adjacent.
        interleaved: a pair is two neighbours; otherwise the elements i and i + half.
        inverse: turn by the opposite angle.
    """
    batch, heads, length, dim = x.shape
    half = cos.shape[-1]
    if x.numel() == 0:
        return
    cos, sin = (t.unsqueeze(1).expand(batch, heads, length, half) for t in (cos, sin))
    block = tuning.embedding_block(max(half, 1))
    _rotary[(launch.cdiv(batch * heads * length, block["BLOCK_M"]),)](
        strided(x), strided(cos), strided(sin), strided(y), batch * heads * length, heads, length, half, dim,
        INTERLEAVED=interleaved, INVERSE=inverse, ACC=acc_of(x), **block,
    )  # fmt: skip
