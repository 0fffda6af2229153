"""The matrix of attention weights, dropout(softmax(scores(q k^T))), forward and a deterministic backward.

For callers who ask to see it. Writing the matrix is most of the work, so the scores are computed twice rather than
kept: once for the row's maximum and sum, once for the weights. Likewise the backward never reads the weights: what it
needs of them comes from lse, in float32. No program writes another's element, and nothing but the inputs and outputs
has a size of [L, S].

Shapes, all strides free:
    q [batch, heads, L, E]; k [batch, kv_heads, S, E]; weights, dweights [batch, heads, L, S]; lse
    [batch, heads, L] float32.
"""

import triton
import triton.language as tl

from pyflash.kernels import launch, tuning
from pyflash.kernels.attention import tile
from pyflash.kernels.attention.mask_gradient import mask_config, mask_gradient
from pyflash.kernels.attention.options import Options
from pyflash.kernels.primitives import cast, dot
from pyflash.kernels.strided import load_tile, rows_of, store_tile, strided, tile_from


@triton.jit
def _score_keys(
    q, k, offs_m, offs_n, scores, head, HEAD_DIM: tl.constexpr, PRECISION: tl.constexpr, BOUNDED: tl.constexpr
):
    """The scores [BLOCK_M, BLOCK_N] of the rows q [BLOCK_M, BLOCK_D] and the keys at offs_n."""
    limit = None
    if BOUNDED:
        limit = head.seqlen_k
    keys = load_tile(k, offs_n, limit, tl.arange(0, q.shape[1]), HEAD_DIM)  # [BLOCK_N, BLOCK_D]
    qk = tile.row_products(q, keys, PRECISION)  # [BLOCK_M, BLOCK_N]
    score, _ = tile.score_tile(qk, offs_m[:, None], offs_n[None, :], scores, head, BOUNDED)
    return score


@triton.jit
def _fold(
    row_max, row_sum, q, k, scores, head, offs_m, start, stop, HEAD_DIM: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr, BOUNDED: tl.constexpr,
):  # fmt: skip
    """The running maximum and sum [BLOCK_M] of one tile of rows q [BLOCK_M, BLOCK_D], with the keys [start, stop)."""
    for first_col in range(start, stop, BLOCK_N):
        offs_n = tile_from(first_col, BLOCK_N)
        score = _score_keys(q, k, offs_m, offs_n, scores, head, HEAD_DIM, PRECISION, BOUNDED)
        _, _, row_max, row_sum = tile.running_softmax(score, row_max, row_sum, scores, BOUNDED)
    return row_max, row_sum


@triton.jit
def _write(
    weights, shift, inverse, q, k, scores, dropout, head, first_row, start, stop, HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr, PRECISION: tl.constexpr, BOUNDED: tl.constexpr,
):  # fmt: skip
    """The weights of the keys [start, stop): exp2(score - shift) inverse; shift, inverse: [BLOCK_M]."""
    BLOCK_M: tl.constexpr = q.shape[0]
    offs_m = tile_from(first_row, BLOCK_M)
    limit = None
    if BOUNDED:
        limit = head.seqlen_k
    for first_col in range(start, stop, BLOCK_N):
        offs_n = tile_from(first_col, BLOCK_N)
        score = _score_keys(q, k, offs_m, offs_n, scores, head, HEAD_DIM, PRECISION, BOUNDED)
        p = tl.exp2(tile.exponent(score, shift[:, None], scores)) * inverse[:, None]
        if dropout is not None:
            keep = tile.keep_of(dropout, head, first_row, first_col, BLOCK_M, BLOCK_N)
            p *= tl.where(keep, dropout.scale, 0.0)  # NaN stays
        store_tile(weights, p, offs_m, head.seqlen_q, offs_n, limit)


@triton.jit
def _write_unseen(weights, inverse, head, offs_m, start, stop, BLOCK_N: tl.constexpr):
    """Zeros for the keys [start, stop), which no row of the tile sees; NaN in a row that is NaN, as its softmax is."""
    unseen = tl.broadcast_to((inverse * 0.0)[:, None], [inverse.shape[0], BLOCK_N])
    for first_col in range(start, stop, BLOCK_N):
        offs_n = tile_from(first_col, BLOCK_N)
        store_tile(weights, unseen, offs_m, head.seqlen_q, offs_n, head.seqlen_k)


@launch.cached
@triton.jit(do_not_specialize=tile.SIZES)
def _attention_weights_fwd(
    q, k, weights, lse, low, scores, dropout, heads, seqlen_q, seqlen_k, tiles, GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """weights and lse of one tile of BLOCK_M rows of one head.

    q: Strided [batch, heads, seqlen_q, HEAD_DIM]; k: [batch, heads / GROUP, seqlen_k, HEAD_DIM]; weights:
    [batch, heads, seqlen_q, seqlen_k]; lse, low: one number a row.
    """
    first_row, batch, h, zero, seqlen_q, _, seqlen_k = tile.row_tile(
        None, None, heads, seqlen_q, seqlen_k, tiles, BLOCK_M
    )
    head = tile.enter_head(scores, batch, h, heads, seqlen_q, seqlen_k)
    k = rows_of(k, batch, h // GROUP, zero)
    weights = rows_of(weights, batch, h, zero)

    offs_m = tile_from(first_row, BLOCK_M)
    queries = load_tile(rows_of(q, batch, h, zero), offs_m, seqlen_q, tl.arange(0, BLOCK_D), HEAD_DIM)  # [M, D]
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    edges = tile.key_range(first_row, BLOCK_M, scores, head, BLOCK_N)
    for part in tl.static_range(3):
        if part > 0 or scores.left is not None:
            row_max, row_sum = _fold(
                row_max, row_sum, queries, k, scores, head, offs_m, edges[part], edges[part + 1], HEAD_DIM, BLOCK_N,
                PRECISION, BOUNDED=part != 1,
            )  # fmt: skip

    empty = row_sum == 0
    row_sum = tl.where(empty, 1.0, row_sum)
    lse = rows_of(lse, batch, h, zero)
    if low is not None:
        low = rows_of(low, batch, h, zero)
    tile.store_lse(lse, low, row_max, row_sum, empty, scores, offs_m, seqlen_q)
    shift = tl.where(empty, 0.0, row_max)
    inverse = 1 / row_sum
    for part in tl.static_range(3):
        if part > 0 or scores.left is not None:
            _write(
                weights, shift, inverse, queries, k, scores, dropout, head, first_row, edges[part], edges[part + 1],
                HEAD_DIM, BLOCK_N, PRECISION, BOUNDED=part != 1,
            )  # fmt: skip
    if scores.left is not None:
        _write_unseen(weights, inverse, head, offs_m, zero, tl.minimum(edges[0], seqlen_k), BLOCK_N)
    if scores.left is not None or scores.right is not None:
        after = tl.maximum((edges[3] + BLOCK_N - 1) // BLOCK_N * BLOCK_N, edges[0])
        _write_unseen(weights, inverse, head, offs_m, after, seqlen_k, BLOCK_N)


@triton.jit
def _row_tile_backward(
    q, dweights, lse, low, delta, k, scores, dropout, head, first_row, first_col, HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr, PRECISION: tl.constexpr, BOUNDED: tl.constexpr,
):  # fmt: skip
    """(d score, d q.k [BLOCK_M, BLOCK_N], keys [BLOCK_N, BLOCK_D]) of a tile of rows and the keys from first_col on."""
    BLOCK_M: tl.constexpr = q.shape[0]
    offs_m = tile_from(first_row, BLOCK_M)
    offs_n = tile_from(first_col, BLOCK_N)
    limit = None
    if BOUNDED:
        limit = head.seqlen_k
    keys = load_tile(k, offs_n, limit, tl.arange(0, q.shape[1]), HEAD_DIM)  # [BLOCK_N, BLOCK_D]
    dp = cast(load_tile(dweights, offs_m, head.seqlen_q, offs_n, limit), tl.float32)  # [BLOCK_M, BLOCK_N]
    keep = None
    if dropout is not None:
        keep = tile.keep_of(dropout, head, first_row, first_col, BLOCK_M, BLOCK_N)
    _, dscore, dqk = tile.softmax_backward(
        tile.row_products(q, keys, PRECISION), dp, lse[:, None], low[:, None], delta[:, None], keep, offs_m[:, None],
        offs_n[None, :], scores, dropout, head, BOUNDED,
    )  # fmt: skip
    return dscore, dqk, keys


@triton.jit
def _accumulate_delta(
    delta, q, dweights, lse, low, k, scores, dropout, head, first_row, start, stop, HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr, PRECISION: tl.constexpr, BOUNDED: tl.constexpr,
):  # fmt: skip
    """delta [BLOCK_M] + the sum over the keys [start, stop) of p dp."""
    zero = tl.zeros_like(delta)
    for first_col in range(start, stop, BLOCK_N):
        products, _, _ = _row_tile_backward(
            q, dweights, lse, low, zero, k, scores, dropout, head, first_row, first_col, HEAD_DIM, BLOCK_N,
            PRECISION, BOUNDED,
        )  # fmt: skip
        delta += tl.sum(products, 1)
    return delta


@triton.jit
def _accumulate_dq(
    acc, q, dweights, lse, low, delta, k, scores, dropout, head, first_row, start, stop, HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr, PRECISION: tl.constexpr, BOUNDED: tl.constexpr,
):  # fmt: skip
    """acc [BLOCK_M, BLOCK_D] + the sum over the keys [start, stop) of dqk k."""
    for first_col in range(start, stop, BLOCK_N):
        _, dqk, keys = _row_tile_backward(
            q, dweights, lse, low, delta, k, scores, dropout, head, first_row, first_col, HEAD_DIM, BLOCK_N, PRECISION,
            BOUNDED,
        )  # fmt: skip
        acc = dot(cast(dqk, keys.dtype), keys, acc, PRECISION)  # [BLOCK_M, BLOCK_D]
    return acc


@launch.cached
@triton.jit(do_not_specialize=tile.SIZES)
def _attention_weights_bwd_dq(
    q, k, dweights, lse, low, terms, dq, scores, dropout, scale, heads, seqlen_q, seqlen_k, tiles, GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dq of one tile of BLOCK_M rows, and terms for the kernels that follow; delta is sum(weights * dweights).

    q, dq: Strided [batch, heads, seqlen_q, HEAD_DIM]; k: [batch, heads / GROUP, seqlen_k, HEAD_DIM]; dweights:
    [batch, heads, seqlen_q, seqlen_k]; lse, low: one number a row; terms: RowTerms, written.

    The sum takes p as computed here: exact also where weights are stored in a half type, and a product costs less than
    reading another matrix.
    """
    first_row, batch, h, zero, seqlen_q, _, seqlen_k = tile.row_tile(
        None, None, heads, seqlen_q, seqlen_k, tiles, BLOCK_M
    )
    head = tile.enter_head(scores, batch, h, heads, seqlen_q, seqlen_k)
    k = rows_of(k, batch, h // GROUP, zero)
    dweights = rows_of(dweights, batch, h, zero)

    offs_m = tile_from(first_row, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D)
    queries = load_tile(rows_of(q, batch, h, zero), offs_m, seqlen_q, offs_d, HEAD_DIM)  # [BLOCK_M, BLOCK_D]
    lse = rows_of(lse, batch, h, zero)
    if low is not None:
        low = rows_of(low, batch, h, zero)
    lse_m, low_m = tile.load_lse(lse, low, offs_m, seqlen_q, scores)
    edges = tile.key_range(first_row, BLOCK_M, scores, head, BLOCK_N)
    delta_m = tl.zeros([BLOCK_M], tl.float32)
    for part in tl.static_range(3):
        if part > 0 or scores.left is not None:
            delta_m = _accumulate_delta(
                delta_m, queries, dweights, lse_m, low_m, k, scores, dropout, head, first_row, edges[part],
                edges[part + 1], HEAD_DIM, BLOCK_N, PRECISION, BOUNDED=part != 1,
            )  # fmt: skip
    tile.store_row_terms(terms, batch, h, zero, offs_m, lse_m, low_m, delta_m, scores)

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for part in tl.static_range(3):
        if part > 0 or scores.left is not None:
            acc = _accumulate_dq(
                acc, queries, dweights, lse_m, low_m, delta_m, k, scores, dropout, head, first_row, edges[part],
                edges[part + 1], HEAD_DIM, BLOCK_N, PRECISION, BOUNDED=part != 1,
            )  # fmt: skip
    store_tile(rows_of(dq, batch, h, zero), acc * scale, offs_m, seqlen_q, offs_d, HEAD_DIM)


@triton.jit
def _accumulate_dk(
    acc, keys, q, dweights, terms, scores, dropout, batch, kv_head, heads, seqlen_q, seqlen_k, first_col, start, stop,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, PRECISION: tl.constexpr,
    BOUNDED: tl.constexpr,
):  # fmt: skip
    """acc [BLOCK_N, BLOCK_D] + the sum over the rows [start, stop) of every query head that shares the keys.

    Tiles are [keys, rows], so that dqk^T is a left operand as it is.
    """
    BLOCK_N: tl.constexpr = keys.shape[0]
    offs_n = tile_from(first_col, BLOCK_N)
    offs_d = tl.arange(0, keys.shape[1])
    zero = batch * 0
    tiles = tl.maximum(stop - start + BLOCK_M - 1, 0) // BLOCK_M
    # Not tiles itself: from a division by it the compiler concludes that it is not zero. The pipeline moves the loop's
    # first loads in front of the loop, and they were then made also where there are no tiles: after the end of a tensor.
    divisor = tl.maximum(tiles, 1)
    for i in range(GROUP * tiles):
        h = kv_head * GROUP + i // divisor
        first_row = start + i % divisor * BLOCK_M
        head = tile.enter_head(scores, batch, h, heads, seqlen_q, seqlen_k)
        limit_m = None
        limit_n = None
        if BOUNDED:
            limit_m = seqlen_q
            limit_n = seqlen_k
        offs_m = tile_from(first_row, BLOCK_M)
        queries = load_tile(rows_of(q, batch, h, zero), offs_m, limit_m, offs_d, HEAD_DIM)  # [BLOCK_M, BLOCK_D]
        dp = cast(load_tile(rows_of(dweights, batch, h, zero), offs_m, limit_m, offs_n, limit_n), tl.float32)
        lse_m, low_m, delta_m = tile.load_row_terms(terms, batch, h, zero, offs_m, scores)  # [BLOCK_M] each
        keep = None
        if dropout is not None:
            keep = tl.trans(tile.keep_of(dropout, head, first_row, first_col, BLOCK_M, BLOCK_N))
        _, _, dqk = tile.softmax_backward(
            tile.row_products(keys, queries, PRECISION), tl.trans(dp), lse_m[None, :], low_m[None, :], delta_m[None, :],
            keep, offs_m[None, :], offs_n[:, None], scores, dropout, head, BOUNDED,
        )  # fmt: skip
        acc = dot(cast(dqk, queries.dtype), queries, acc, PRECISION)  # [BLOCK_N, BLOCK_D]
    return acc


@launch.cached
@triton.jit(do_not_specialize=tile.SIZES)
def _attention_weights_bwd_dk(
    q, k, dweights, terms, dk, scores, dropout, scale, heads, seqlen_q, seqlen_k, tiles, GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dk of one tile of BLOCK_N keys, summed over the query heads that share it.

    q: Strided [batch, heads, seqlen_q, HEAD_DIM]; k, dk: [batch, heads / GROUP, seqlen_k, HEAD_DIM]; dweights:
    [batch, heads, seqlen_q, seqlen_k]; terms: RowTerms of the rows.
    """
    first_col, batch, kv_head, zero, seqlen_q, _, seqlen_k = tile.key_tile(
        None, None, heads // GROUP, seqlen_q, seqlen_k, tiles, BLOCK_N
    )

    offs_n = tile_from(first_col, BLOCK_N)
    offs_d = tl.arange(0, BLOCK_D)
    keys = load_tile(rows_of(k, batch, kv_head, zero), offs_n, seqlen_k, offs_d, HEAD_DIM)  # [BLOCK_N, BLOCK_D]
    acc = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    head = tile.enter_head(scores, batch, kv_head * GROUP, heads, seqlen_q, seqlen_k)
    edges = tile.row_range(first_col, BLOCK_N, scores, head, BLOCK_M)
    for part in tl.static_range(3):
        if part > 0 or scores.right is not None:
            acc = _accumulate_dk(
                acc, keys, q, dweights, terms, scores, dropout, batch, kv_head, heads, seqlen_q, seqlen_k, first_col,
                edges[part], edges[part + 1], GROUP, HEAD_DIM, BLOCK_M, PRECISION, BOUNDED=part != 1,
            )  # fmt: skip
    store_tile(rows_of(dk, batch, kv_head, zero), acc * scale, offs_n, seqlen_k, offs_d, HEAD_DIM)


def attention_weights_fwd(q, k, attn_mask, seed, *scalars_and_outputs):
    """Fill weights and lse.

    Args:
        q, k, attn_mask, seed, scalars: as attention_fwd takes them; the same seed drops the same weights there.
        weights: every element is written; a row that sees nothing is 0.
        lse: as attention_fwd fills it, before dropout.
    """
    *scalars, weights, lse = scalars_and_outputs
    options = Options(*scalars)
    batch, heads, seqlen_q, head_dim = q.shape
    scores = tile.make_scores(options, attn_mask, None, q, k)
    dropout = tile.make_dropout(seed, options)
    config = tuning.attention_weights_fwd(tuning.arch(q.device), q.dtype, head_dim, tile.has_extras(scores, dropout))
    tiles = triton.cdiv(seqlen_q, config["BLOCK_M"])
    if tiles * batch * heads == 0:
        return
    _attention_weights_fwd[(tiles * heads * batch,)](
        strided(q), strided(k), strided(weights), *tile.lse_parts(lse), scores, dropout, heads, seqlen_q, k.shape[2],
        tiles, **tile.head_arguments(q, k), **config,
    )  # fmt: skip


def attention_weights_bwd(dweights, q, k, weights, lse, attn_mask, seed, *scalars_and_outputs):
    """Fill dq, dk and, if need_dmask, dmask: the mask's gradient, summed over each dimension where dmask has size 1.

    After seed come the fields of Options, need_dmask, dq, dk and dmask. weights is not read: see
    _attention_weights_bwd_dq.
    """
    *scalars, need_dmask, dq, dk, dmask = scalars_and_outputs
    options = Options(*scalars)
    if q.shape[1] == 0:
        dk.zero_()
        dmask.zero_()
        return
    batch, heads, seqlen_q, head_dim = q.shape
    kv_heads, seqlen_k = k.shape[1:3]
    scores = tile.make_scores(options, attn_mask, None, q, k)
    dropout = tile.make_dropout(seed, options)
    shape_class = tuning.arch(q.device), q.dtype, head_dim, tile.has_extras(scores, dropout)
    by_rows, by_keys = tuning.attention_weights_bwd_dq(*shape_class), tuning.attention_weights_bwd_dk(*shape_class)
    by_tiles = mask_config(q, k)
    pad = max(config["BLOCK_M"] for config in (by_rows, by_keys, by_tiles))
    terms = tile.make_row_terms(q, scores, False, pad)
    tiles = launch.cdiv(seqlen_q, pad) * (pad // by_rows["BLOCK_M"])
    if tiles * batch * heads:
        _attention_weights_bwd_dq[(tiles * heads * batch,)](
            strided(q), strided(k), strided(dweights), *tile.lse_parts(lse), terms, strided(dq), scores, dropout,
            options.scale, heads, seqlen_q, seqlen_k, tiles, **tile.head_arguments(q, k), **by_rows,
        )  # fmt: skip
    tiles = launch.cdiv(seqlen_k, by_keys["BLOCK_N"])
    if tiles * batch * kv_heads:
        _attention_weights_bwd_dk[(tiles * kv_heads * batch,)](
            strided(q), strided(k), strided(dweights), terms, strided(dk), scores, dropout, options.scale, heads,
            seqlen_q, seqlen_k, tiles, **tile.head_arguments(q, k), **by_keys,
        )  # fmt: skip
    if need_dmask and dmask.numel():
        mask_gradient(dweights, q, k, None, terms, scores, dropout, dmask)
