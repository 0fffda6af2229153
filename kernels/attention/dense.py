"""Fused attention: out = softmax(scores(q k^T)) v without the [L, S] matrix, forward and a deterministic backward.

A program owns one tile of rows (or keys, for dK and dV) and walks the tiles it meets; no two programs write the same
element, so no atomics. Tiles that a window or the end of the keys cuts take a loop of their own with the comparisons.
Masks, windows, ALiBi, softcap and dropout are fields of two structs (tile.py); absent ones compile to nothing. A mask's
own gradient is in mask_gradient.py.

Shapes, all strides free:
    q, out [batch, heads, L, ...]; k, v [batch, kv_heads, S, ...]; lse [batch, heads, L] float32.
    A packed batch has batch stride 0, and cu_seqlens say where a sequence starts.
Source: Dao 2023, arXiv:2307.08691.
"""

import triton
import triton.language as tl

from pyflash.kernels import launch, tuning
from pyflash.kernels.attention import tile
from pyflash.kernels.attention.decode import decode
from pyflash.kernels.attention.mask_gradient import mask_gradient
from pyflash.kernels.attention.options import Options
from pyflash.kernels.primitives import cast, dot
from pyflash.kernels.strided import load_rows, load_tile, rows_of, store_tile, strided, tile_from


@triton.jit
def _attend(
    acc, row_max, row_sum, q, k, v, scores, dropout, head, first_row, start, stop,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
    BOUNDED: tl.constexpr,
):  # fmt: skip
    """Fold the keys [start, stop) into the running softmax of one tile of rows.

    acc: [BLOCK_M, BLOCK_V]; row_max, row_sum: [BLOCK_M]; q: [BLOCK_M, BLOCK_D]; k, v: Strided, from a head's first key.
    """
    BLOCK_M: tl.constexpr = q.shape[0]
    offs_d = tl.arange(0, q.shape[1])
    offs_v = tl.arange(0, acc.shape[1])
    rows = first_row + tl.arange(0, BLOCK_M)[:, None]
    limit = None
    if BOUNDED:
        limit = head.seqlen_k
    for first_col in range(start, stop, BLOCK_N):
        offs_n = tile_from(first_col, BLOCK_N)
        keys = load_tile(k, offs_n, limit, offs_d, HEAD_DIM)  # [BLOCK_N, BLOCK_D]
        qk = tile.row_products(q, keys, PRECISION)  # [BLOCK_M, BLOCK_N]
        score, _ = tile.score_tile(qk, rows, offs_n[None, :], scores, head, BOUNDED)
        p, alpha, row_max, row_sum = tile.running_softmax(score, row_max, row_sum, scores, BOUNDED)
        if dropout is not None:  # after the sum: the softmax is of all the keys
            p = tl.where(tile.keep_of(dropout, head, first_row, first_col, BLOCK_M, BLOCK_N), p, 0.0)
        values = load_tile(v, offs_n, limit, offs_v, VALUE_DIM)  # [BLOCK_N, BLOCK_V]
        acc = dot(cast(p, values.dtype), values, acc * alpha[:, None], PRECISION)  # [BLOCK_M, BLOCK_V]
    return acc, row_max, row_sum


@launch.cached
@triton.jit(do_not_specialize=tile.SIZES)
def _attention_fwd(
    q, k, v, out, lse, low, cu_seqlens_q_ptr, cu_seqlens_k_ptr, scores, dropout, heads, seqlen_q, seqlen_k, tiles,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out and lse of one tile of BLOCK_M rows of one head.

    q, out: Strided [batch, heads, seqlen_q, ...]; k, v: [batch, heads / GROUP, seqlen_k, ...]; lse, low: one number a
    row. HEAD_DIM, VALUE_DIM: None where they fill BLOCK_D, BLOCK_V.
    """
    first_row, batch, h, q_start, seqlen_q, k_start, seqlen_k = tile.row_tile(
        cu_seqlens_q_ptr, cu_seqlens_k_ptr, heads, seqlen_q, seqlen_k, tiles, BLOCK_M
    )
    if first_row >= seqlen_q:
        return
    head = tile.enter_head(scores, batch, h, heads, seqlen_q, seqlen_k)
    k = rows_of(k, batch, h // GROUP, k_start)
    v = rows_of(v, batch, h // GROUP, k_start)

    offs_m = tile_from(first_row, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D)
    offs_v = tl.arange(0, BLOCK_V)
    queries = load_tile(rows_of(q, batch, h, q_start), offs_m, seqlen_q, offs_d, HEAD_DIM)  # [BLOCK_M, BLOCK_D]
    acc = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    edges = tile.key_range(first_row, BLOCK_M, scores, head, BLOCK_N)
    for part in tl.static_range(3):
        if part > 0 or scores.left is not None:
            acc, row_max, row_sum = _attend(
                acc, row_max, row_sum, queries, k, v, scores, dropout, head, first_row, edges[part], edges[part + 1],
                HEAD_DIM, VALUE_DIM, BLOCK_N, PRECISION, BOUNDED=part != 1,
            )  # fmt: skip

    empty = row_sum == 0
    row_sum = tl.where(empty, 1.0, row_sum)
    inverse = 1 / row_sum
    if dropout is not None:
        inverse *= dropout.scale
    store_tile(rows_of(out, batch, h, q_start), acc * inverse[:, None], offs_m, seqlen_q, offs_v, VALUE_DIM)
    lse = rows_of(lse, batch, h, q_start)
    if low is not None:
        low = rows_of(low, batch, h, q_start)
    tile.store_lse(lse, low, row_max, row_sum, empty, scores, offs_m, seqlen_q)


@triton.jit
def _accumulate_dq(
    acc, q, dout, lse, low, delta, k, v, scores, dropout, head, first_row, start, stop,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
    BOUNDED: tl.constexpr,
):  # fmt: skip
    """acc + the sum over the keys [start, stop) of dqk k.

    acc, q: [BLOCK_M, BLOCK_D]; dout: [BLOCK_M, BLOCK_V]; lse, low, delta: [BLOCK_M].
    """
    BLOCK_M: tl.constexpr = q.shape[0]
    offs_d = tl.arange(0, q.shape[1])
    offs_v = tl.arange(0, dout.shape[1])
    rows = first_row + tl.arange(0, BLOCK_M)[:, None]
    limit = None
    if BOUNDED:
        limit = head.seqlen_k
    for first_col in range(start, stop, BLOCK_N):
        offs_n = tile_from(first_col, BLOCK_N)
        keys = load_tile(k, offs_n, limit, offs_d, HEAD_DIM)  # [BLOCK_N, BLOCK_D]
        values = load_tile(v, offs_n, limit, offs_v, VALUE_DIM)  # [BLOCK_N, BLOCK_V]
        qk = tile.row_products(q, keys, PRECISION)  # [BLOCK_M, BLOCK_N]
        dp = tile.row_products(dout, values, PRECISION)  # [BLOCK_M, BLOCK_N]
        keep = None
        if dropout is not None:
            keep = tile.keep_of(dropout, head, first_row, first_col, BLOCK_M, BLOCK_N)
        _, _, dqk = tile.softmax_backward(
            qk, dp, lse[:, None], low[:, None], delta[:, None], keep, rows, offs_n[None, :], scores, dropout, head,
            BOUNDED,
        )  # fmt: skip
        acc = dot(cast(dqk, keys.dtype), keys, acc, PRECISION)  # [BLOCK_M, BLOCK_D]
    return acc


@launch.cached
@triton.jit(do_not_specialize=tile.SIZES)
def _attention_bwd_dq(
    q, k, v, out, dout, lse, low, dlse, terms, dq, cu_seqlens_q_ptr, cu_seqlens_k_ptr, scores, dropout, scale, heads,
    seqlen_q, seqlen_k, tiles, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, PRECISION: tl.constexpr, PAD: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dq of one tile of BLOCK_M rows, and terms for the kernels that follow: up to whole tiles of PAD rows.

    q, dq: Strided [batch, heads, seqlen_q, HEAD_DIM]; out, dout: [batch, heads, seqlen_q, VALUE_DIM]; k, v:
    [batch, heads / GROUP, seqlen_k, ...]; lse, low, dlse: one number a row; terms: RowTerms, written.
    """
    first_row, batch, h, q_start, seqlen_q, k_start, seqlen_k = tile.row_tile(
        cu_seqlens_q_ptr, cu_seqlens_k_ptr, heads, seqlen_q, seqlen_k, tiles, BLOCK_M
    )
    if first_row >= tl.cdiv(seqlen_q, PAD) * PAD:
        return
    head = tile.enter_head(scores, batch, h, heads, seqlen_q, seqlen_k)
    k = rows_of(k, batch, h // GROUP, k_start)
    v = rows_of(v, batch, h // GROUP, k_start)

    offs_m = tile_from(first_row, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D)
    offs_v = tl.arange(0, BLOCK_V)
    queries = load_tile(rows_of(q, batch, h, q_start), offs_m, seqlen_q, offs_d, HEAD_DIM)  # [BLOCK_M, BLOCK_D]
    outputs = load_tile(rows_of(out, batch, h, q_start), offs_m, seqlen_q, offs_v, VALUE_DIM)  # [BLOCK_M, BLOCK_V]
    douts = load_tile(rows_of(dout, batch, h, q_start), offs_m, seqlen_q, offs_v, VALUE_DIM)  # [BLOCK_M, BLOCK_V]
    lse = rows_of(lse, batch, h, q_start)
    if low is not None:
        low = rows_of(low, batch, h, q_start)
    lse_m, low_m = tile.load_lse(lse, low, offs_m, seqlen_q, scores)  # [BLOCK_M] each
    delta_m = tl.sum(outputs.to(tl.float32) * douts.to(tl.float32), 1)
    if dlse is not None:
        delta_m -= load_rows(rows_of(dlse, batch, h, q_start), offs_m, seqlen_q, 0.0)
    delta_m = tl.where(lse_m == float("inf"), 0.0, delta_m)  # the gradient of lse = -inf may be anything
    padded = tile.first_padded_row(cu_seqlens_q_ptr, batch, q_start, PAD)
    tile.store_row_terms(terms, batch, h, padded, offs_m, lse_m, low_m, delta_m, scores)

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    edges = tile.key_range(first_row, BLOCK_M, scores, head, BLOCK_N)
    for part in tl.static_range(3):
        if part > 0 or scores.left is not None:
            acc = _accumulate_dq(
                acc, queries, douts, lse_m, low_m, delta_m, k, v, scores, dropout, head, first_row, edges[part],
                edges[part + 1], HEAD_DIM, VALUE_DIM, BLOCK_N, PRECISION, BOUNDED=part != 1,
            )  # fmt: skip
    store_tile(rows_of(dq, batch, h, q_start), acc * scale, offs_m, seqlen_q, offs_d, HEAD_DIM)


@triton.jit
def _accumulate_dkdv(
    acc_k, acc_v, keys, values, q, dout, terms, scores, dropout, batch, kv_head, heads, q_start, padded, seqlen_q,
    seqlen_k, first_col, start, stop, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, PRECISION: tl.constexpr, BOUNDED: tl.constexpr,
):  # fmt: skip
    """acc_k, acc_v + sums over the rows [start, stop) of every query head that shares the keys, in one loop.

    acc_k, keys: [BLOCK_N, BLOCK_D]; acc_v, values: [BLOCK_N, BLOCK_V]. Tiles are [keys, rows], so that p^T and dqk^T
    are left operands as they are.
    """
    BLOCK_N: tl.constexpr = keys.shape[0]
    offs_d = tl.arange(0, keys.shape[1])
    offs_v = tl.arange(0, values.shape[1])
    cols = first_col + tl.arange(0, BLOCK_N)[:, None]
    tiles = tl.maximum(stop - start + BLOCK_M - 1, 0) // BLOCK_M
    # Not tiles itself: from a division by it the compiler concludes that it is not zero. The pipeline moves the loop's
    # first loads in front of the loop, and they were then made also where there are no tiles: after the end of a tensor.
    divisor = tl.maximum(tiles, 1)
    for i in range(GROUP * tiles):
        h = kv_head * GROUP + i // divisor
        first_row = start + i % divisor * BLOCK_M
        head = tile.enter_head(scores, batch, h, heads, seqlen_q, seqlen_k)
        limit = None
        if BOUNDED:
            limit = seqlen_q
        offs_m = tile_from(first_row, BLOCK_M)
        queries = load_tile(rows_of(q, batch, h, q_start), offs_m, limit, offs_d, HEAD_DIM)  # [BLOCK_M, BLOCK_D]
        douts = load_tile(rows_of(dout, batch, h, q_start), offs_m, limit, offs_v, VALUE_DIM)  # [BLOCK_M, BLOCK_V]
        lse_m, low_m, delta_m = tile.load_row_terms(terms, batch, h, padded, offs_m, scores)  # [BLOCK_M] each
        qk = tile.row_products(keys, queries, PRECISION)  # [BLOCK_N, BLOCK_M]
        dp = tile.row_products(values, douts, PRECISION)  # [BLOCK_N, BLOCK_M]
        keep = None
        if dropout is not None:
            keep = tl.trans(tile.keep_of(dropout, head, first_row, first_col, BLOCK_M, BLOCK_N))
        p, _, dqk = tile.softmax_backward(
            qk, dp, lse_m[None, :], low_m[None, :], delta_m[None, :], keep, offs_m[None, :], cols, scores, dropout,
            head, BOUNDED,
        )  # fmt: skip
        acc_v = dot(cast(p, douts.dtype), douts, acc_v, PRECISION)  # [BLOCK_N, BLOCK_V]
        acc_k = dot(cast(dqk, queries.dtype), queries, acc_k, PRECISION)  # [BLOCK_N, BLOCK_D]
    return acc_k, acc_v


@launch.cached
@triton.jit(do_not_specialize=tile.SIZES)
def _attention_bwd_dkdv(
    q, k, v, dout, terms, dk, dv, cu_seqlens_q_ptr, cu_seqlens_k_ptr, scores, dropout, scale, heads, seqlen_q, seqlen_k,
    tiles, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr, PRECISION: tl.constexpr, PAD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dk and dv of one tile of BLOCK_N keys, summed over the query heads that share it.

    q: Strided [batch, heads, seqlen_q, HEAD_DIM]; dout: [batch, heads, seqlen_q, VALUE_DIM]; k, dk, v, dv:
    [batch, heads / GROUP, seqlen_k, ...]; terms: RowTerms of the rows.
    """
    first_col, batch, kv_head, q_start, seqlen_q, k_start, seqlen_k = tile.key_tile(
        cu_seqlens_q_ptr, cu_seqlens_k_ptr, heads // GROUP, seqlen_q, seqlen_k, tiles, BLOCK_N
    )
    if first_col >= seqlen_k:
        return

    padded = tile.first_padded_row(cu_seqlens_q_ptr, batch, q_start, PAD)
    offs_n = tile_from(first_col, BLOCK_N)
    offs_d = tl.arange(0, BLOCK_D)
    offs_v = tl.arange(0, BLOCK_V)
    keys = load_tile(rows_of(k, batch, kv_head, k_start), offs_n, seqlen_k, offs_d, HEAD_DIM)  # [BLOCK_N, BLOCK_D]
    values = load_tile(rows_of(v, batch, kv_head, k_start), offs_n, seqlen_k, offs_v, VALUE_DIM)  # [BLOCK_N, BLOCK_V]
    acc_k = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    acc_v = tl.zeros([BLOCK_N, BLOCK_V], tl.float32)
    head = tile.enter_head(scores, batch, kv_head * GROUP, heads, seqlen_q, seqlen_k)
    edges = tile.row_range(first_col, BLOCK_N, scores, head, BLOCK_M)
    is_plain: tl.constexpr = scores.mask is None and dropout is None
    if is_plain and (scores.left is not None or scores.right is not None or cu_seqlens_q_ptr is not None):
        # One loop, every tile with the comparisons: Triton 3.6 compiles three to code whose products wait one by one.
        # With a mask or dropout it is the other way round.
        acc_k, acc_v = _accumulate_dkdv(
            acc_k, acc_v, keys, values, q, dout, terms, scores, dropout, batch, kv_head, heads, q_start, padded,
            seqlen_q, seqlen_k, first_col, edges[0], edges[3], GROUP, HEAD_DIM, VALUE_DIM, BLOCK_M, PRECISION,
            BOUNDED=True,
        )  # fmt: skip
    else:
        for part in tl.static_range(3):
            if part > 0 or scores.right is not None:
                acc_k, acc_v = _accumulate_dkdv(
                    acc_k, acc_v, keys, values, q, dout, terms, scores, dropout, batch, kv_head, heads, q_start, padded,
                    seqlen_q, seqlen_k, first_col, edges[part], edges[part + 1], GROUP, HEAD_DIM, VALUE_DIM, BLOCK_M,
                    PRECISION, BOUNDED=part != 1,
                )  # fmt: skip
    store_tile(rows_of(dk, batch, kv_head, k_start), acc_k * scale, offs_n, seqlen_k, offs_d, HEAD_DIM)
    store_tile(rows_of(dv, batch, kv_head, k_start), acc_v, offs_n, seqlen_k, offs_v, VALUE_DIM)


def attention_fwd(q, k, v, attn_mask, alibi_slopes, seed, *scalars_and_outputs):
    """Fill out and lse.

    Args:
        q: [batch, heads, L, E]; k: [batch, kv_heads, S, E]; v: [batch, kv_heads, S, Ev]; E, Ev <= 256, any strides.
        attn_mask: bool (True attends) or floating (added), expanded to [batch, heads, L, S]; or None.
        alibi_slopes: [heads] or [batch, heads]; or None.
        seed: int64, one element; read only if dropout_p > 0.
        scalars: the fields of Options.
        out: [batch, heads, L, Ev].
        lse: [batch, heads, L], float32, natural logarithm; -inf for a row that sees nothing, whose out is 0. With a
            floating mask [2, batch, heads, L]: that, and what its rounding left out.
    """
    *scalars, out, lse = scalars_and_outputs
    options = Options(*scalars)
    scores = tile.make_scores(options, attn_mask, alibi_slopes, q, k)
    if (
        attn_mask is None
        and options.dropout_p == 0
        and tuning.attention_splits_keys(tuning.arch(q.device), q.shape, k.shape)
    ):
        return decode(q, k, v, None, scores, out, lse, k.shape[2])
    _forward(q, k, v, None, None, q.shape[2], scores, tile.make_dropout(seed, options), out, lse)


def attention_bwd(
    dout, dlse, q, k, v, out, lse, attn_mask, alibi_slopes, seed, *scalars_and_outputs
):  # fmt: skip
    """Fill dq, dk, dv and, if need_dmask, dmask: the mask's gradient, summed over each dimension where dmask has size
    1.

    After seed come the fields of Options, need_dmask, dq, dk, dv and dmask.
    """
    *scalars, need_dmask, dq, dk, dv, dmask = scalars_and_outputs
    options = Options(*scalars)
    if q.shape[1] == 0:  # nobody reads the keys, and there is no group of heads to divide by
        for gradient in (dk, dv, dmask):
            gradient.zero_()
        return
    scores = tile.make_scores(options, attn_mask, alibi_slopes, q, k)
    dropout = tile.make_dropout(seed, options)
    sizes = q.shape[2], k.shape[2]
    terms = _backward(dout, dlse, q, k, v, out, lse, None, None, *sizes, scores, dropout, options.scale, dq, dk, dv)
    if need_dmask and dmask.numel():
        mask_gradient(dout, q, k, v, terms, scores, dropout, dmask)


def attention_varlen_fwd(
    q, k, v, cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed, max_seqlen_q, max_seqlen_k, *scalars_and_outputs
):  # fmt: skip
    """attention_fwd over sequences packed one after another.

    Args:
        q, out: [total_q, heads, ...]; k, v: [total_k, kv_heads, ...]; lse: [heads, total_q].
        cu_seqlens_q, cu_seqlens_k: int32 [batch + 1], first token of each sequence; never read on the host, and
            clamped to the tokens there are. Tokens of no sequence get out = 0, lse = -inf.
        max_seqlen_q: at least the longest sequence; rows beyond it are not computed.
        scalars: the fields of Options, as its of_sequences gives them.
    """
    *scalars, out, lse = scalars_and_outputs
    options = Options.from_sequences(*scalars)
    out.zero_()
    lse.fill_(float("-inf"))
    q, k, v, out, lse = (_unpacked(x, cu_seqlens_q) for x in (q, k, v, out, lse.t()))
    scores = tile.make_scores(options, None, alibi_slopes, q, k)
    _forward(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, scores, tile.make_dropout(seed, options), out, lse)


def attention_varlen_bwd(
    dout, dlse, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed, max_seqlen_q, max_seqlen_k,
    *scalars_and_outputs
):  # fmt: skip
    """attention_bwd over packed sequences; tokens of no sequence get zero gradients."""
    *scalars, dq, dk, dv = scalars_and_outputs
    options = Options.from_sequences(*scalars)
    for gradient in (dq, dk, dv):
        gradient.zero_()
    if q.shape[1] == 0:
        return
    dlse = None if dlse is None else _unpacked(dlse.t(), cu_seqlens_q)
    q, k, v, out, dout, lse, dq, dk, dv = (
        _unpacked(x, cu_seqlens_q) for x in (q, k, v, out, dout, lse.t(), dq, dk, dv)
    )
    scores = tile.make_scores(options, None, alibi_slopes, q, k)
    dropout = tile.make_dropout(seed, options)
    sizes = max_seqlen_q, max_seqlen_k
    _backward(
        dout, dlse, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, *sizes, scores, dropout, options.scale, dq, dk, dv
    )


def _unpacked(x, cu_seqlens):
    """[tokens, heads, ...] seen as [batch, heads, tokens, ...] with batch stride 0."""
    x = x.transpose(0, 1)
    return x.expand(cu_seqlens.numel() - 1, *x.shape)


def _forward(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, scores, dropout, out, lse):
    batch, heads, seqlen_q, _ = q.shape
    width = max(q.shape[3], v.shape[3])
    config = tuning.attention_fwd(tuning.arch(q.device), q.dtype, width, tile.has_extras(scores, dropout))
    tiles = launch.cdiv(max_seqlen_q, config["BLOCK_M"])
    if tiles * batch * heads == 0:
        return
    _attention_fwd[(tiles * heads * batch,)](
        strided(q), strided(k), strided(v), strided(out), *tile.lse_parts(lse), cu_seqlens_q, cu_seqlens_k, scores,
        dropout, heads, seqlen_q, k.shape[2], tiles, **tile.common_arguments(q, k, v), **config,
    )  # fmt: skip


def _backward(
    dout, dlse, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, scores, dropout, scale,
    dq, dk, dv,
):  # fmt: skip
    """Fill dq, dk, dv; return the rows' terms."""
    batch, heads, seqlen_q, _ = q.shape
    kv_heads, seqlen_k = k.shape[1:3]
    shape_class = tuning.arch(q.device), q.dtype, max(q.shape[3], v.shape[3]), tile.has_extras(scores, dropout)
    by_rows, by_keys = tuning.attention_bwd_dq(*shape_class), tuning.attention_bwd_dkdv(*shape_class)
    constants = dict(tile.common_arguments(q, k, v), PAD=max(by_rows["BLOCK_M"], by_keys["BLOCK_M"]))
    terms = tile.make_row_terms(q, scores, cu_seqlens_q is not None, constants["PAD"])
    tiles = launch.cdiv(max_seqlen_q, constants["PAD"]) * (constants["PAD"] // by_rows["BLOCK_M"])
    if tiles * batch * heads:
        _attention_bwd_dq[(tiles * heads * batch,)](
            strided(q), strided(k), strided(v), strided(out), strided(dout), *tile.lse_parts(lse), strided(dlse), terms,
            strided(dq), cu_seqlens_q, cu_seqlens_k, scores, dropout, scale, heads, seqlen_q, seqlen_k, tiles,
            **constants, **by_rows,
        )  # fmt: skip
    tiles = launch.cdiv(max_seqlen_k, by_keys["BLOCK_N"])
    if tiles * batch * kv_heads:
        _attention_bwd_dkdv[(tiles * kv_heads * batch,)](
            strided(q), strided(k), strided(v), strided(dout), terms, strided(dk), strided(dv), cu_seqlens_q,
            cu_seqlens_k, scores, dropout, scale, heads, seqlen_q, seqlen_k, tiles, **constants, **by_keys,
        )  # fmt: skip
    return terms
