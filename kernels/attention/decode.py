"""Attention of a few queries over many keys: the keys are split among programs, the parts then combined.

The query heads that share a key head are packed into the rows of one tile, so the cache is read once for all of them.
Each part is a softmax of its own; the combination weights its out by exp2(lse - total). Both steps are deterministic.
Source: Dao et al. 2023, "Flash-Decoding for long-context inference".
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from pyflash.kernels import launch, tuning
from pyflash.kernels.attention.options import Options
from pyflash.kernels.attention.tile import (
    Head,
    common_arguments,
    make_scores,
    row_products,
    running_softmax,
    score_tile,
)
from pyflash.kernels.primitives import LN2, cast, dot
from pyflash.kernels.strided import load_tile, rows_of, strided, tile_from


class Pages(NamedTuple):
    """Where the blocks of each cache lie in the pools that k and v are."""

    ptr: object  # [batch, max_blocks]
    max_blocks: int
    block_size: int
    num_blocks: int


@triton.jit
def _load_keys(x, pages, batch, offs_n, limit_n, offs_d, limit_d):
    """load_tile of keys or values, wherever they lie."""
    if pages is None:
        tile = load_tile(x, offs_n, limit_n, offs_d, limit_d)
    else:
        page = offs_n // pages.block_size
        table = pages.ptr + batch.to(tl.int64) * pages.max_blocks
        block = tl.load(table + page, mask=offs_n < limit_n, other=0).to(tl.int64)
        block = tl.minimum(tl.maximum(block, 0), pages.num_blocks - 1)  # never outside of the pool, whatever it is
        row = (offs_n - page * pages.block_size).to(tl.int64)
        ptrs = (
            x.ptr + (block * x.strides[0] + row * x.strides[2])[:, None] + offs_d.to(tl.int64)[None, :] * x.strides[3]
        )
        mask = offs_n[:, None] < limit_n
        if limit_d is not None:
            mask = mask & (offs_d[None, :] < limit_d)
        tile = tl.load(ptrs, mask=mask, other=0.0)
    return tile


@launch.cached
@triton.jit(do_not_specialize=["queries_len", "keys_len", "tiles", "splits", "split_len"])
def _decode_split(
    q, k, v, part_out_ptr, part_lse_ptr, cache_seqlens_ptr, pages, scores, kv_heads, queries_len, keys_len, tiles, splits,
    split_len, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Parts [batch, heads, queries_len, splits, ...], lse in log2 units, over keys [split, split + 1) * split_len.

    q: Strided [batch, kv_heads * GROUP, queries_len, ...]; k, v: Strided [batch, kv_heads, keys_len, ...], or with Pages
    [num_blocks, kv_heads, block_size, ...]; out's parts have BLOCK_V columns. A program folds one part of one tile of
    BLOCK_M rows.
    """
    pid = tl.program_id(0)
    split = pid % splits
    tile = pid // splits % tiles
    kv_head = pid // splits // tiles % kv_heads
    batch = pid // splits // tiles // kv_heads
    length = keys_len
    if cache_seqlens_ptr is not None:
        length = tl.minimum(tl.maximum(tl.load(cache_seqlens_ptr + batch).to(tl.int32), 0), keys_len)
    diagonal = scores.diagonal
    if scores.diagonal is None:  # the last query stands at the last key
        diagonal = length - queries_len

    member = tile * BLOCK_M + tl.arange(0, BLOCK_M)  # over (query head of the group, query)
    inside = member < GROUP * queries_len
    row = member % queries_len
    h = kv_head * GROUP + member // queries_len
    slope = batch * 0
    if scores.slopes is not None:
        offs = batch * scores.slopes.strides[0] + h * scores.slopes.strides[1]
        slope = tl.load(scores.slopes.ptr + offs, mask=inside, other=0.0).to(tl.float32)[:, None]
    head = Head(kv_head, batch * 0, slope, diagonal, queries_len, length)

    offs_d = tl.arange(0, BLOCK_D)
    offs_v = tl.arange(0, BLOCK_V)
    q_mask = inside[:, None]
    if HEAD_DIM is not None:
        q_mask = q_mask & (offs_d[None, :] < HEAD_DIM)
    offs = batch.to(tl.int64) * q.strides[0] + h.to(tl.int64) * q.strides[1] + row.to(tl.int64) * q.strides[2]
    queries = tl.load(q.ptr + offs[:, None] + offs_d.to(tl.int64)[None, :] * q.strides[3], mask=q_mask, other=0.0)
    # queries: [BLOCK_M, BLOCK_D]
    k = rows_of(k, batch if pages is None else batch * 0, kv_head, batch * 0)
    v = rows_of(v, batch if pages is None else batch * 0, kv_head, batch * 0)

    start = split * split_len
    stop = tl.minimum(start + split_len, length)
    if scores.left is not None:  # the first query sees furthest back
        start = tl.maximum(start, tl.maximum(diagonal - scores.left, 0) // BLOCK_N * BLOCK_N)
    if scores.right is not None:
        stop = tl.minimum(stop, queries_len + diagonal + scores.right)
    acc = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    for first_col in range(start, stop, BLOCK_N):
        offs_n = tile_from(first_col, BLOCK_N)
        keys = _load_keys(k, pages, batch, offs_n, length, offs_d, HEAD_DIM)  # [BLOCK_N, BLOCK_D]
        qk = row_products(queries, keys, PRECISION)  # [BLOCK_M, BLOCK_N]
        score, _ = score_tile(qk, row[:, None], offs_n[None, :], scores, head, BOUNDED=True)
        p, alpha, row_max, row_sum = running_softmax(score, row_max, row_sum, scores, MAYBE_EMPTY=True)
        values = _load_keys(v, pages, batch, offs_n, length, offs_v, VALUE_DIM)  # [BLOCK_N, BLOCK_V]
        acc = dot(cast(p, values.dtype), values, acc * alpha[:, None], PRECISION)  # [BLOCK_M, BLOCK_V]

    empty = row_sum == 0
    row_sum = tl.where(empty, 1.0, row_sum)
    part = ((batch.to(tl.int64) * kv_heads * GROUP + h) * queries_len + row) * splits + split
    tl.store(part_lse_ptr + part, tl.where(empty, float("-inf"), row_max + tl.log2(row_sum)), mask=inside)
    offs = part[:, None] * BLOCK_V + offs_v[None, :]
    tl.store(part_out_ptr + offs, acc * (1 / row_sum)[:, None], mask=inside[:, None])


@launch.cached
@triton.jit(do_not_specialize=["queries_len", "splits"])
def _decode_combine(
    part_out_ptr, part_lse_ptr, out, lse, heads, queries_len, splits, VALUE_DIM: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One query's out [VALUE_DIM] and lse from its parts [splits, BLOCK_V]."""
    pid = tl.program_id(0)
    row = pid % queries_len
    h = pid // queries_len % heads
    batch = pid // queries_len // heads
    first = pid.to(tl.int64) * splits
    offs_s = tl.arange(0, BLOCK_S)
    offs_v = tl.arange(0, BLOCK_V)
    part_lse = tl.load(part_lse_ptr + first + offs_s, mask=offs_s < splits, other=float("-inf"))  # [BLOCK_S]
    largest = tl.max(part_lse, 0)
    largest = tl.where(largest == float("-inf"), 0.0, largest)
    total = largest + tl.log2(tl.sum(tl.exp2(part_lse - largest), 0))
    acc = tl.zeros([BLOCK_V], tl.float32)
    for split in range(splits):
        one_lse = tl.load(part_lse_ptr + first + split)
        if one_lse != float("-inf"):  # NaN too: the part of a query that is not a number
            acc += tl.exp2(one_lse - total) * tl.load(part_out_ptr + (first + split) * BLOCK_V + offs_v)
    mask = offs_v >= 0
    if VALUE_DIM is not None:
        mask = offs_v < VALUE_DIM
    out = rows_of(out, batch, h, row)
    tl.store(out.ptr + offs_v.to(tl.int64) * out.strides[3], cast(acc, out.ptr.dtype.element_ty), mask=mask)
    lse = rows_of(lse, batch, h, row)
    tl.store(lse.ptr, total * LN2)


def attention_decode(q, k_cache, v_cache, cache_seqlens, block_table, alibi_slopes, *scalars_and_outputs):
    """Fill out and lse.

    Args:
        q: [batch, heads, few, E]; the last query stands at the last key of its cache.
        k_cache, v_cache: [batch, kv_heads, max_len, ...], any strides.
        cache_seqlens: int32 [batch], keys in use; never read on the host, clamped to max_len.
        block_table: integers [batch, max_blocks], adjacent, or None; with it the caches are pools of blocks [num_blocks,
            kv_heads, block_size, ...]. Likewise clamped.
        scalars: the fields of Options, as its of_caches gives them; window_right = 0 is causal.
        out: [batch, heads, few, Ev]; lse: [batch, heads, few], float32, natural logarithm.
    """
    *scalars, out, lse = scalars_and_outputs
    pages, keys_len = None, k_cache.shape[2]
    if block_table is not None:
        pages = Pages(block_table, block_table.shape[1], keys_len, k_cache.shape[0])
        keys_len = keys_len * pages.max_blocks if pages.num_blocks else 0
    scores = make_scores(Options.from_caches(*scalars), None, alibi_slopes, q, k_cache, keys_len)
    decode(q, k_cache, v_cache, cache_seqlens, scores, out, lse, keys_len, pages)


def decode(q, k, v, cache_seqlens, scores, out, lse, keys_len, pages=None):
    """attention_decode with the scores made; scores.mask is None."""
    batch, heads, queries_len, _ = q.shape
    kv_heads = k.shape[1]
    if out.numel() == 0 and lse.numel() == 0:
        return
    arch = tuning.arch(q.device)
    common = common_arguments(q, k, v)
    config = tuning.attention_decode(arch, q.dtype, max(q.shape[3], v.shape[3]), common["GROUP"] * queries_len)
    tiles = triton.cdiv(common["GROUP"] * queries_len, config["BLOCK_M"])
    splits, split_len = tuning.decode_splits(arch, batch * kv_heads * tiles, keys_len, config["BLOCK_N"])
    part_out = q.new_empty(batch, heads, queries_len, splits, common["BLOCK_V"], dtype=torch.float32)
    part_lse = q.new_empty(batch, heads, queries_len, splits, dtype=torch.float32)
    _decode_split[(splits * tiles * kv_heads * batch,)](
        strided(q), strided(k), strided(v), part_out, part_lse, cache_seqlens, pages, scores, kv_heads, queries_len, keys_len,
        tiles, splits, split_len, **common, **config,
    )  # fmt: skip
    _decode_combine[(batch * heads * queries_len,)](
        part_out, part_lse, strided(out), strided(lse), heads, queries_len, splits, common["VALUE_DIM"],
        common["BLOCK_V"], BLOCK_S=triton.next_power_of_2(splits), num_warps=1,
    )  # fmt: skip
