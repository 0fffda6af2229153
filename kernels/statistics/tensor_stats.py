"""Sums and counts over the elements of a tensor, for each of its groups.

A program has a tile of elements of some groups, and writes the sums of its chunk; a second launch adds the chunks up, in order.
Where groups are columns the tile is wide, where they lie in runs it is long: either way neighbours are read together.
"""

import torch
import triton
import triton.language as tl

from pyflash.kernels import launch
from pyflash.kernels.primitives import INTERPRETED, acc_dtype, cast, scalar

MOMENTS = 5  # of a group: sum, squares, zeros, outside, not_finite
CHUNK = 16384  # elements of a group, at most, that one program adds up
LONG, WIDE = ((4096, 1), (256, 64)) if INTERPRETED.value else ((1024, 1), (32, 32))  # (elements of a group, groups)


@launch.cached
@triton.jit
def _chunk_stats(
    x_ptr, sums_ptr, of_group, groups, inner, low: "fp64", high: "fp64",  # noqa: F821
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = acc_dtype(x_ptr.dtype.element_ty)
    chunk = tl.program_id(0).to(tl.int64)
    g = tl.program_id(1).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    low, high = scalar(low, ACC), scalar(high, ACC)
    sum = tl.zeros([GROUPS], tl.float64)
    squares = tl.zeros([GROUPS], tl.float64)
    zeros = tl.zeros([GROUPS], tl.int64)
    outside = tl.zeros([GROUPS], tl.int64)
    not_finite = tl.zeros([GROUPS], tl.int64)
    for start in range(0, CHUNK, BLOCK):
        i = chunk * CHUNK + start + tl.arange(0, BLOCK).to(tl.int64)
        place = (i // inner * groups * inner + i % inner)[:, None] + g[None, :] * inner
        is_there = (i < of_group)[:, None] & (g < groups)[None, :]
        x = cast(tl.load(x_ptr + place, mask=is_there, other=1.0), ACC)
        is_finite = x - x == 0
        # the square of a float32 below 1e-22 is 0 in float32, and gradients that vanish are below
        wide = tl.where(is_there & is_finite, x, 0.0).to(tl.float64)
        sum += tl.sum(wide, 0)
        squares += tl.sum(wide * wide, 0)
        zeros += tl.sum((is_there & (x == 0)).to(tl.int64), 0)
        outside += tl.sum((is_there & ((x <= low) | (x >= high))).to(tl.int64), 0)
        not_finite += tl.sum((is_there & (is_finite == 0)).to(tl.int64), 0)
    to = sums_ptr + (chunk * groups + g) * 5
    tl.store(to, sum, mask=g < groups)
    tl.store(to + 1, squares, mask=g < groups)
    tl.store(to + 2, zeros.to(tl.float64), mask=g < groups)
    tl.store(to + 3, outside.to(tl.float64), mask=g < groups)
    tl.store(to + 4, not_finite.to(tl.float64), mask=g < groups)


@launch.cached
@triton.jit
def _sum_of_chunks(sums_ptr, moments_ptr, n, chunks, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], tl.float64)
    for chunk in range(chunks):
        sums += tl.load(sums_ptr + chunk * n.to(tl.int64) + i, mask=i < n, other=0.0)
    tl.store(moments_ptr + i, sums, mask=i < n)


def tensor_stats(x, outer, groups, inner, low, high, moments):
    """Fill moments [groups, MOMENTS], float64. x dense, in memory [outer, groups, inner]."""
    of_group, n = outer * inner, groups * MOMENTS
    if not n:
        return
    block, wide = WIDE if inner == 1 and groups > 1 else LONG
    chunks = max(launch.cdiv(of_group, CHUNK), 1)
    sums = moments if chunks == 1 else torch.empty(chunks * n, dtype=torch.float64, device=x.device)
    _chunk_stats[(chunks, launch.cdiv(groups, wide))](
        x, sums, of_group, groups, max(inner, 1), float(low), float(high), CHUNK=CHUNK, BLOCK=block, GROUPS=wide
    )
    if chunks > 1:
        size = min(256, launch.power_of_two(n))
        _sum_of_chunks[(launch.cdiv(n, size),)](sums, moments, n, chunks, BLOCK=size)
