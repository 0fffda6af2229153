"""Resampling over three axes: a place of the output is the weighted sum of the places of the input that the axes' tables
list. Interpolation, padding, and their gradients, which have the tables transposed: no place is written to twice.

A program computes a tile of rows and columns of the output: what depends on the row is worked out once a row, what depends
on the column once for all rows of the tile. Tables are a few KB, and stay in the first cache.
"""

import functools
from math import prod
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from pyflash.kernels import launch, tuning
from pyflash.kernels.primitives import acc_of, cast

_FUSED_TAPS = 16  # of an element, over all axes; more are summed axis by axis


@triton.jit
def _entries(first_ptr, place, mask):
    """(first entry, number of entries) of each place."""
    first = tl.load(first_ptr + place, mask=mask, other=0)
    return first, tl.load(first_ptr + place + 1, mask=mask, other=0) - first


@triton.jit
def _entry(index_ptr, weight_ptr, entry, mask, ACC: tl.constexpr):
    """(place, weight) of each entry."""
    place = tl.load(index_ptr + entry, mask=mask, other=0).to(tl.int64)
    if weight_ptr is None:
        weight = tl.full(entry.shape, 1.0, ACC)
    else:
        weight = tl.load(weight_ptr + entry, mask=mask, other=0.0).to(ACC)
    return place, weight


@launch.cached
@triton.jit
def _resample(
    x_ptr, y_ptr, first0_ptr, index0_ptr, weight0_ptr, first1_ptr, index1_ptr, weight1_ptr, first2_ptr, index2_ptr,
    weight2_ptr, rows, in0, in1, in2, out0, out1, out2, inner, TAPS0: tl.constexpr, TAPS1: tl.constexpr,
    TAPS2: tl.constexpr, FILL: tl.constexpr, ACC: tl.constexpr, IS_LARGE: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """y [outer, out0, out1, out2, inner] from x [outer, in0, in1, in2, inner]; a row has out2 * inner elements. IS_LARGE: one
    of them passes 2^31."""
    pid = tl.program_id(0)
    blocks = tl.cdiv(out2 * inner, BLOCK_C)
    first_row = pid // blocks
    if IS_LARGE:  # divisions of 64 bits take several times as long
        first_row = first_row.to(tl.int64)
    row = first_row * BLOCK_R + tl.arange(0, BLOCK_R)
    mask_r = row < rows
    place1 = row % out1
    place0 = row // out1 % out0
    outer = (row // out1 // out0).to(tl.int64)
    first0, count0 = _entries(first0_ptr, place0, mask_r)
    first1, count1 = _entries(first1_ptr, place1, mask_r)
    column = pid % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = column < out2 * inner
    first2, count2 = _entries(first2_ptr, column // inner, mask_c)
    acc = tl.zeros([BLOCK_R, BLOCK_C], ACC)
    for tap2 in range(TAPS2):
        mask2 = mask_c & (tap2 < count2)
        from2, weight2 = _entry(index2_ptr, weight2_ptr, first2 + tap2, mask2, ACC)
        at2 = from2 * inner + column % inner
        for tap0 in range(TAPS0):
            mask0 = mask_r & (tap0 < count0)
            from0, weight0 = _entry(index0_ptr, weight0_ptr, first0 + tap0, mask0, ACC)
            for tap1 in range(TAPS1):
                mask1 = mask0 & (tap1 < count1)
                from1, weight1 = _entry(index1_ptr, weight1_ptr, first1 + tap1, mask1, ACC)
                x_rows = x_ptr + ((outer * in0 + from0) * in1 + from1) * (in2 * inner)
                mask = mask1[:, None] & mask2[None, :]
                x = cast(tl.load(x_rows[:, None] + at2[None, :], mask=mask, other=0.0), ACC)  # [BLOCK_R, BLOCK_C]
                term = (weight0 * weight1)[:, None] * weight2[None, :] * x
                acc = tl.where(tap0 + tap1 + tap2 == 0, term, acc + term)  # 0 + -0 would be 0
    is_empty = ((count0 == 0) | (count1 == 0))[:, None] | (count2 == 0)[None, :]
    acc = tl.where(is_empty, FILL, acc)
    y_ptrs = y_ptr + row.to(tl.int64)[:, None] * (out2 * inner) + column[None, :]
    tl.store(y_ptrs, cast(acc, y_ptr.dtype.element_ty), mask=mask_r[:, None] & mask_c[None, :])


_hosts = {}  # addresses of tables -> what is copied of them, and the tables, so that no other gets their addresses


def _on_device(tables, device):
    """(first, index, weight or None) of each table, on the device. From memory that is pinned, and kept, so that the copy
    can be part of a CUDA graph; none is kept on the device, where a graph's memory would be lent to it."""
    key = tuple(t.addresses for t in tables)
    host = _hosts.get(key)
    if host is None:
        _hosts[key] = host = _packed(tables, device.type == "cuda" and torch.cuda.is_available()), tables
    (whole, weights, pieces), _ = host
    whole = whole.to(device, non_blocking=True)
    weights = None if weights is None else weights.to(device, non_blocking=True)
    found = []
    for first, index, weight in pieces:
        found += whole[slice(*first)], whole[slice(*index)], None if weight is None else weights[slice(*weight)]
    return found


def _packed(tables, is_pinned):
    """Whole numbers and weights of all tables in one tensor each, and where in them each table's lie."""
    parts, pieces = ([], []), []
    ends = [0, 0]

    def add(tensor, which):
        if tensor is None:
            return None
        begin, length = ends[which], len(tensor)
        ends[which] += -(-length // 4) * 4  # at a multiple of 16 bytes, whatever the sizes
        parts[which].append(torch.nn.functional.pad(tensor, (0, ends[which] - begin - length)))
        return begin, begin + length

    for table in tables:
        pieces.append((add(table.first, 0), add(table.index, 0), add(table.weight, 1)))
    whole, weights = (torch.cat(part) if part else None for part in parts)
    if is_pinned:
        whole, weights = whole.pin_memory(), None if weights is None else weights.pin_memory()
    return whole, weights, pieces


class _One(NamedTuple):
    """The table of an axis that is not there."""

    first: torch.Tensor
    index: torch.Tensor
    addresses: tuple
    weight: None = None
    size_in: int = 1
    size_out: int = 1
    taps: int = 1


@functools.cache
def _one():
    first, index = (torch.tensor(v, dtype=torch.int32, device="cpu") for v in ([0, 1], [0]))
    return _One(first, index, (first.data_ptr(), index.data_ptr(), 0))


def _launch(x, y, tables, outer, inner, fill, acc):
    sizes_in, sizes_out, taps = zip(*((t.size_in, t.size_out, t.taps) for t in tables))
    numel, read = (outer * inner * prod(sizes) for sizes in (sizes_out, sizes_in))
    # Loops over few taps are unrolled, so that all loads are under way at once; longer ones share kernels.
    taps = [n if n <= 4 else triton.next_power_of_2(n) for n in taps]
    columns = sizes_out[2] * inner
    block = tuning.resample_block(columns)
    grid = (launch.cdiv(numel // columns, block["BLOCK_R"]) * launch.cdiv(columns, block["BLOCK_C"]),)
    _resample[grid](
        x, y, *_on_device(tables, x.device), numel // columns, *sizes_in, *sizes_out, inner, TAPS0=taps[0], TAPS1=taps[1],
        TAPS2=taps[2], FILL=fill, ACC=acc, IS_LARGE=max(numel, read) >= 1 << 31, **block,
    )  # fmt: skip


def resample(x, outer, tables, inner, fill, y):
    """Fill y [outer, size_out of three axes, inner] from x [outer, size_in of them, inner].

    Args:
        x, y: dense, in memory in that order.
        tables: of the three axes; each has `first`, `index`, `weight`, `size_in`, `size_out`, `taps` and `addresses`, as
            ops/resample/tables.py makes it.
        fill: what a place without entries is; 0 where one may have several.
    """
    if not y.numel():
        return
    if not x.numel():
        y.fill_(fill)
        return
    acc = acc_of(x)
    if tables[0].taps * tables[1].taps * tables[2].taps <= _FUSED_TAPS:
        return _launch(x, y, tables, outer, inner, fill, acc)
    axes = [axis for axis in (2, 1, 0) if tables[axis].taps > 1 or tables[axis].size_in != tables[axis].size_out]
    sizes = [t.size_in for t in tables]
    for axis in axes:  # one after another: fewer taps in all
        before, after = prod(sizes[:axis]), prod(sizes[axis + 1 :])
        sizes[axis] = tables[axis].size_out
        out = (
            y
            if axis == axes[-1]
            else torch.empty(
                outer * prod(sizes) * inner,
                dtype=torch.float64 if acc is tl.float64 else torch.float32,
                device=x.device,
            )
        )
        _launch(x, out, (_one(), _one(), tables[axis]), outer * before, after * inner, fill, acc)
        x = out
