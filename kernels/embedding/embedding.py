"""Rows of a table looked up by index, the gradient of the table, and rows scaled down to a norm.

The gradient is summed row by row over the places that looked it up, sorted by row (sort.py): no atomics, one order of the
sum. Indices that are no rows are taken for the nearest one.
"""

import triton
import triton.language as tl

from pyflash.kernels import launch, tuning
from pyflash.kernels.embedding.sort import bags_of_places, bounds_of_rows, sort_by_row
from pyflash.kernels.primitives import acc_of, cast, scalar


@launch.cached
@triton.jit(do_not_specialize=["n"])
def _gather(
    weight_ptr, indices_ptr, y_ptr, weight_row_stride, n, rows, cols, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """y [n, cols] of BLOCK_M places, BLOCK_N columns."""
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (offs_m < n)[:, None] & (offs_n < cols)[None, :]
    index = tl.load(indices_ptr + offs_m, mask=offs_m < n, other=0).to(tl.int64)
    row = tl.minimum(tl.maximum(index, 0), rows - 1)
    x = tl.load(weight_ptr + row[:, None] * weight_row_stride + offs_n[None, :], mask=mask)
    tl.store(y_ptr + offs_m[:, None] * cols + offs_n[None, :], x, mask=mask)


@launch.cached
@triton.jit(do_not_specialize=["n"])
def _sum_rows(
    dy_ptr, first_ptr, last_ptr, places_ptr, dweight_ptr, bags_ptr, per_sample_ptr, counts_ptr, winners_ptr,
    dy_row_stride, cols, SCALE: tl.constexpr, ACC: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dweight of one row, BLOCK_N columns; its places are read BLOCK_K at a time. With bags_ptr a place stands for its
    bag's row of dy: times per_sample, over the bag's count, or where it is the winner."""
    row = tl.program_id(0).to(tl.int64)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < cols
    first, last = tl.load(first_ptr + row), tl.load(last_ptr + row)
    total = tl.zeros([BLOCK_N], ACC)
    for start in range(first, last, BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K)
        mask_k = offs_k < last
        mask = mask_k[:, None] & mask_n[None, :]
        place = tl.load(places_ptr + offs_k, mask=mask_k, other=0)
        of_row = place
        if bags_ptr is not None:
            of_row = tl.load(bags_ptr + place, mask=mask_k, other=0)
        dy = cast(tl.load(dy_ptr + of_row[:, None] * dy_row_stride + offs_n[None, :], mask=mask, other=0.0), ACC)
        if per_sample_ptr is not None:
            dy *= cast(tl.load(per_sample_ptr + place, mask=mask_k, other=0.0), ACC)[:, None]
        if counts_ptr is not None:
            dy /= tl.load(counts_ptr + of_row, mask=mask_k, other=1).to(ACC)[:, None]
        if winners_ptr is not None:
            winner = tl.load(winners_ptr + of_row[:, None] * cols + offs_n[None, :], mask=mask, other=-1)
            dy = tl.where(winner == place[:, None], dy, 0.0)
        total += tl.sum(dy, 0)  # of [BLOCK_K, BLOCK_N]
    if SCALE:
        total /= tl.maximum(last - first, 1).to(ACC)
    tl.store(dweight_ptr + row * cols + offs_n, cast(total, dweight_ptr.dtype.element_ty), mask=mask_n)


@triton.jit
def _power(x, exponent):
    """x ** exponent of what is positive; 1 of 0."""
    return tl.exp2(tl.log2(tl.where(x == 0, 1.0, x)) * exponent)


@launch.cached
@triton.jit
def _renormalise(
    weight_ptr, indices_ptr, y_ptr, weight_row_stride, rows, cols, max_norm: "fp64", norm_type: "fp64",  # noqa: F821
    KIND: tl.constexpr, ACC: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """y of one place: twice over its row, for the norm and for what it gives."""
    place = tl.program_id(0).to(tl.int64)
    index = tl.load(indices_ptr + place).to(tl.int64)
    row_ptr = weight_ptr + tl.minimum(tl.maximum(index, 0), rows - 1) * weight_row_stride
    norm = tl.full([BLOCK_N], float("inf") if KIND == "least" else 0.0, ACC)
    for first in range(0, cols, BLOCK_N):
        offs_n = first + tl.arange(0, BLOCK_N)
        x = tl.abs(cast(tl.load(row_ptr + offs_n, mask=offs_n < cols, other=0.0), ACC))
        if KIND == "square":
            norm += x * x
        elif KIND == "sum":
            norm += x
        elif KIND == "count":
            norm += (x != 0).to(ACC)
        elif KIND == "most":
            norm = tl.where((x > norm) | (x != x), x, norm)
        elif KIND == "least":
            norm = tl.where(((x < norm) | (x != x)) & (offs_n < cols), x, norm)
        else:
            of_zero = tl.where((norm_type < 0) & (offs_n < cols), float("inf"), 0.0).to(ACC)
            norm += tl.where(x == 0, of_zero, _power(x, scalar(norm_type, ACC)))
    if KIND == "most":
        norm = tl.where(tl.max((norm != norm).to(tl.int32), 0) > 0, float("nan"), tl.max(norm, 0))
    elif KIND == "least":
        norm = tl.where(tl.max((norm != norm).to(tl.int32), 0) > 0, float("nan"), tl.min(norm, 0))
    else:
        norm = tl.sum(norm, 0)
    if KIND == "square":
        norm = tl.sqrt(norm)
    elif KIND == "power":
        norm = tl.where(norm == 0, 0.0, _power(norm, 1 / scalar(norm_type, ACC)))
    norm = norm.to(tl.float64)
    scale = tl.where(norm > max_norm, max_norm / (norm + 1e-7), 1.0).to(ACC)  # torch's constant
    for first in range(0, cols, BLOCK_N):
        offs_n = first + tl.arange(0, BLOCK_N)
        x = tl.load(row_ptr + offs_n, mask=offs_n < cols, other=0.0)
        scaled = cast(cast(x, ACC) * scale, y_ptr.dtype.element_ty)
        tl.store(y_ptr + place * cols + offs_n, tl.where(scale == 1.0, x, scaled), mask=offs_n < cols)


def embedding_fwd(weight, indices, y):
    """Fill y [n, cols] with weight[indices].

    Args:
        weight: [rows, cols], any row stride, columns adjacent.
        indices: [n], int32 or int64, contiguous.
    """
    n, cols = y.shape
    if n * cols * weight.shape[0] == 0:
        return
    block = tuning.embedding_block(cols)
    grid = launch.cdiv(n, block["BLOCK_M"]), launch.cdiv(cols, block["BLOCK_N"])
    _gather[grid](weight, indices, y, weight.stride(0), n, weight.shape[0], cols, **block)


def embedding_bwd(dy, indices, num_embeddings, padding_idx, scale_grad_by_freq, dweight):
    """Fill dweight [num_embeddings, cols].

    Args:
        dy: [n, cols], any row stride, columns adjacent; indices as in embedding_fwd.
        padding_idx: a row that gets no gradient; -1: none.
        scale_grad_by_freq: means instead of sums.
    """
    sum_rows(dy, indices, num_embeddings, padding_idx, scale_grad_by_freq, None, None, None, None, dweight)


def sum_rows(dy, indices, rows, padding_idx, scale_grad_by_freq, bounds, per_sample, counts, winners, dweight):
    """As embedding_bwd; with bounds [bags + 1] dy has a row a bag, see _sum_rows."""
    n, cols = indices.shape[0], dweight.shape[1]
    if dweight.numel() == 0:
        return
    if n == 0 or (bounds is not None and bounds.shape[0] == 1):
        dweight.zero_()
        return
    keys, places = sort_by_row(indices, rows, padding_idx, None if bounds is None else bounds[-1:])
    first, last = bounds_of_rows(keys, rows)
    bags = None if bounds is None else bags_of_places(bounds, n)
    block_n = tuning.embedding_block(cols)["BLOCK_N"]
    _sum_rows[(rows, launch.cdiv(cols, block_n))](
        dy, first, last, places, dweight, bags, per_sample, counts, winners, dy.stride(0), cols,
        SCALE=scale_grad_by_freq, ACC=acc_of(dy), BLOCK_K=max(1, min(16, 4096 // block_n)), BLOCK_N=block_n,
        num_warps=1 if block_n <= 128 else 4,
    )  # fmt: skip


_KINDS = {2.0: "square", 1.0: "sum", 0.0: "count", float("inf"): "most", float("-inf"): "least"}


def embedding_renorm(weight, indices, max_norm, norm_type, y):
    """Fill y with weight[indices], rows of a larger norm scaled down to max_norm; arguments as embedding_fwd's."""
    n, cols = y.shape
    if n * cols * weight.shape[0] == 0:
        return
    kind = _KINDS.get(norm_type, "power")
    _renormalise[(n,)](
        weight, indices, y, weight.stride(0), weight.shape[0], cols, max_norm, norm_type, KIND=kind,
        ACC=acc_of(weight), BLOCK_N=tuning.embedding_block(cols)["BLOCK_N"],
    )  # fmt: skip
