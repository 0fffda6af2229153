"""Sums over all elements of a channel: a part of them a program, then the parts. In memory element e of a dense tensor belongs
to channel e // inner % channels."""

import triton
import triton.language as tl

from pyflash.kernels import launch, tuning
from pyflash.kernels.primitives import acc_of, cast


@triton.jit
def offsets(first, offs_c, channels, inner, BLOCK_R: tl.constexpr):
    """(places in memory, numbers) of elements `first` and following of each channel: [BLOCK_C, BLOCK_R] and [1, BLOCK_R]."""
    offs_r = (first + tl.arange(0, BLOCK_R).to(tl.int64))[None, :]
    return (offs_r // inner * channels + offs_c[:, None]) * inner + offs_r % inner, offs_r


@launch.cached
@triton.jit(do_not_specialize=["count"])
def _sum_elements(
    x_ptr, partial_ptr, channels, inner, count, ACC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr
):  # fmt: skip
    """This program's share [programs, channels] of the sums of x; `count` elements a channel."""
    part = tl.program_id(1).to(tl.int64)
    parts = tl.num_programs(1)
    offs_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = offs_c < channels
    sums = tl.zeros([BLOCK_C, BLOCK_R], ACC)
    for first in range(part * BLOCK_R, count, parts * BLOCK_R):
        offs, offs_r = offsets(first, offs_c, channels, inner, BLOCK_R)
        sums += cast(tl.load(x_ptr + offs, mask=mask_c[:, None] & (offs_r < count), other=0.0), ACC)
    tl.store(partial_ptr + part * channels + offs_c, tl.sum(sums, 1), mask=mask_c)


@launch.cached
@triton.jit
def _sum_parts(partial_ptr, sums_ptr, parts, channels, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """sums = partial.sum(0), [parts, channels]."""
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < channels
    acc = tl.zeros([BLOCK_M, BLOCK_N], partial_ptr.dtype.element_ty)
    for first in range(0, parts, BLOCK_M):
        offs_m = (first + tl.arange(0, BLOCK_M)).to(tl.int64)
        mask = (offs_m < parts)[:, None] & mask_n[None, :]
        acc += tl.load(partial_ptr + offs_m[:, None] * channels + offs_n[None, :], mask=mask, other=0.0)
    tl.store(sums_ptr + offs_n, tl.sum(acc, 0), mask=mask_n)


def shares(x, channels, inner, sums):
    """(grid, tile, partial [parts, channels], elements a channel) of a kernel that goes over x once and sums."""
    count = x.numel() // channels
    tile, parts = tuning.channel_tile(tuning.arch(x.device), channels, inner, count)
    return (launch.cdiv(channels, tile["BLOCK_C"]), parts), tile, sums.new_empty(parts, channels), count


def sum_parts(partial, sums):
    parts, channels = partial.shape
    _sum_parts[(launch.cdiv(channels, 32),)](partial, sums, parts, channels, BLOCK_M=32, BLOCK_N=32)


def sum_by_channel(x, channels, inner, sums):
    """Fill sums [channels], float32 or float64, in which x is summed; deterministic."""
    if x.numel() == 0:
        sums.zero_()
        return
    grid, tile, partial, count = shares(x, channels, inner, sums)
    _sum_elements[grid](x, partial, channels, inner, count, ACC=acc_of(sums), **tile)
    sum_parts(partial, sums)
