"""Sums, means and maxima over bags of a table's rows, without the rows in between; and the gradient of a sum's factors. The
table's gradient is embedding.py's, with a row of dy for each bag. Indices and bounds that do not fit are clamped.
"""

import triton
import triton.language as tl

from pyflash.kernels import launch, tuning
from pyflash.kernels.embedding.embedding import sum_rows
from pyflash.kernels.primitives import acc_of, cast


@triton.jit
def _bag_of(bounds_ptr, bag, n):
    """(first place, place after the last)."""
    start = tl.minimum(tl.maximum(tl.load(bounds_ptr + bag), 0), n)
    return start, tl.minimum(tl.maximum(tl.load(bounds_ptr + bag + 1), start), n)


@triton.jit
def _row_at(indices_ptr, place, rows):
    """(index, the row that it stands for)."""
    index = tl.load(indices_ptr + place).to(tl.int64)
    return index, tl.minimum(tl.maximum(index, 0), rows - 1)


@launch.cached
@triton.jit(do_not_specialize=["n"])
def _bag_fwd(
    weight_ptr, indices_ptr, bounds_ptr, per_sample_ptr, y_ptr, counts_ptr, winners_ptr, weight_row_stride, n, rows, cols,
    padding, MODE: tl.constexpr, ACC: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """y and winners of one bag, BLOCK_N columns, and its count."""
    bag = tl.program_id(0).to(tl.int64)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < cols
    start, end = _bag_of(bounds_ptr, bag, n)
    total = tl.zeros([BLOCK_N], ACC)
    winner = tl.full([BLOCK_N], -1, tl.int64)
    count = start * 0
    for place in range(start, end):
        index, row = _row_at(indices_ptr, place, rows)
        is_counted = index != padding
        x = cast(tl.load(weight_ptr + row * weight_row_stride + offs_n, mask=mask_n, other=0.0), ACC)
        if MODE == "max":
            wins = is_counted & ((count == 0) | (x > total))
            total = tl.where(wins, x, total)
            winner = tl.where(wins, place, winner)
        else:
            if per_sample_ptr is not None:
                x *= cast(tl.load(per_sample_ptr + place), ACC)
            total += tl.where(is_counted, x, 0.0)
        count += is_counted.to(tl.int64)
    if MODE == "mean":
        total /= tl.maximum(count, 1).to(ACC)
    tl.store(y_ptr + bag * cols + offs_n, cast(total, y_ptr.dtype.element_ty), mask=mask_n)
    if MODE == "max":
        tl.store(winners_ptr + bag * cols + offs_n, winner, mask=mask_n)
    tl.store(counts_ptr + bag, count)


@launch.cached
@triton.jit(do_not_specialize=["n"])
def _bag_dots(
    dy_ptr, weight_ptr, indices_ptr, bounds_ptr, dper_sample_ptr, dy_row_stride, weight_row_stride, n, rows, cols, padding,
    ACC: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dper_sample of one bag's places."""
    bag = tl.program_id(0).to(tl.int64)
    start, end = _bag_of(bounds_ptr, bag, n)
    for place in range(start, end):
        index, row = _row_at(indices_ptr, place, rows)
        total = tl.zeros([BLOCK_N], ACC)
        for first in range(0, cols, BLOCK_N):
            offs_n = first + tl.arange(0, BLOCK_N)
            dy = cast(tl.load(dy_ptr + bag * dy_row_stride + offs_n, mask=offs_n < cols, other=0.0), ACC)
            x = cast(tl.load(weight_ptr + row * weight_row_stride + offs_n, mask=offs_n < cols, other=0.0), ACC)
            total += dy * x
        dot = tl.where(index != padding, tl.sum(total, 0), 0.0)
        tl.store(dper_sample_ptr + place, cast(dot, dper_sample_ptr.dtype.element_ty))


def embedding_bag_fwd(weight, indices, bounds, per_sample, mode, padding_idx, y, counts, winners):
    """Fill y [bags, cols], counts [bags] and, of a maximum, winners [bags, cols].

    Args:
        weight: [rows, cols], any row stride, columns adjacent; indices: [n], int32 or int64.
        bounds: int64 [bags + 1]; per_sample: [n] or None.
        mode: "sum", "mean" or "max"; padding_idx: a row that is left out; -1: none.
    """
    bags, cols = y.shape
    if y.numel() == 0 or indices.numel() == 0 or weight.shape[0] == 0:
        y.zero_(), counts.zero_(), winners.fill_(-1)
        return
    block_n = tuning.embedding_block(cols)["BLOCK_N"]
    _bag_fwd[(bags, launch.cdiv(cols, block_n))](
        weight, indices, bounds, per_sample, y, counts, winners, weight.stride(0), indices.shape[0], weight.shape[0], cols,
        padding_idx, MODE=mode, ACC=acc_of(weight), BLOCK_N=block_n,
    )  # fmt: skip


def embedding_bag_bwd(
    dy, indices, bounds, per_sample, counts, winners, rows, mode, padding_idx, scale_grad_by_freq, dweight
):  # fmt: skip
    """Fill dweight [rows, cols]; dy: [bags, cols], any row stride, columns adjacent; counts and winners the forward's."""
    counts, winners = counts if mode == "mean" else None, winners if mode == "max" else None
    sum_rows(dy, indices, rows, padding_idx, scale_grad_by_freq, bounds, per_sample, counts, winners, dweight)


def embedding_bag_dots(dy, weight, indices, bounds, padding_idx, dper_sample):
    """Fill dper_sample [n]; 0 where a place is in no bag."""
    dper_sample.zero_()
    if dy.numel() == 0 or weight.shape[0] == 0:
        return
    _bag_dots[(dy.shape[0],)](
        dy, weight, indices, bounds, dper_sample, dy.stride(0), weight.stride(0), indices.shape[0], *weight.shape,
        padding_idx, ACC=acc_of(dy), BLOCK_N=tuning.embedding_block(weight.shape[1])["BLOCK_N"],
    )  # fmt: skip
