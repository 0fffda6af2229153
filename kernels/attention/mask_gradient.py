"""The gradient of a mask that is added to the scores: of attention with its values, and of the matrix of weights alone.

Each program sums, in order, the tiles of the scores that share its elements of a broadcast mask, so that the result is
deterministic.
"""

import triton
import triton.language as tl

from pyflash.kernels import launch, tuning
from pyflash.kernels.attention import tile
from pyflash.kernels.primitives import cast
from pyflash.kernels.strided import load_tile, rows_of, store_tile, strided, tile_from


@launch.cached
@triton.jit(do_not_specialize=tile.SIZES)
def _attention_bwd_dmask(
    q, k, v, dout, terms, dmask, scores, dropout, heads, seqlen_q, seqlen_k, own, shared, GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SUM_ROWS: tl.constexpr,
    SUM_KEYS: tl.constexpr,
):  # fmt: skip
    """The gradient of an additive mask, one program per tile [BLOCK_M, BLOCK_N] of it.

    q: Strided [batch, heads, seqlen_q, HEAD_DIM]; k, v: [batch, heads / GROUP, seqlen_k, ...]; dout: like out, or
    without v [batch, heads, seqlen_q, seqlen_k], the gradient of the weights; terms: RowTerms; dmask: 1 where summed.

    own and shared are four factors of the tiles of the scores: (heads, row tiles, key tiles, batch). Own ones
    belong to distinct programs, and a program walks those that share its elements of a broadcast mask in order, so the
    sum is deterministic and needs no workspace.
    """
    pid = tl.program_id(0)
    own_key = pid % own[2]
    own_row = pid // own[2] % own[1]
    own_head = pid // own[2] // own[1] % own[0]
    own_batch = pid // own[2] // own[1] // own[0]
    zero = pid * 0
    offs_d = tl.arange(0, BLOCK_D)
    offs_v = tl.arange(0, BLOCK_V)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for i in range(shared[3] * shared[2] * shared[1] * shared[0]):
        first_col = (own_key + i % shared[2]) * BLOCK_N
        first_row = (own_row + i // shared[2] % shared[1]) * BLOCK_M
        h = own_head + i // shared[2] // shared[1] % shared[0]
        batch = own_batch + i // shared[2] // shared[1] // shared[0]
        head = tile.enter_head(scores, batch, h, heads, seqlen_q, seqlen_k)
        offs_m = tile_from(first_row, BLOCK_M)
        offs_n = tile_from(first_col, BLOCK_N)
        queries = load_tile(rows_of(q, batch, h, zero), offs_m, seqlen_q, offs_d, HEAD_DIM)  # [BLOCK_M, BLOCK_D]
        if v is None:
            dp = cast(load_tile(rows_of(dout, batch, h, zero), offs_m, seqlen_q, offs_n, seqlen_k), tl.float32)
        else:
            douts = load_tile(rows_of(dout, batch, h, zero), offs_m, seqlen_q, offs_v, VALUE_DIM)  # [BLOCK_M, BLOCK_V]
        keys = load_tile(rows_of(k, batch, h // GROUP, zero), offs_n, seqlen_k, offs_d, HEAD_DIM)  # [BLOCK_N, BLOCK_D]
        if v is not None:
            values = load_tile(
                rows_of(v, batch, h // GROUP, zero), offs_n, seqlen_k, offs_v, VALUE_DIM
            )  # [BLOCK_N, BLOCK_V]
        lse_m, low_m, delta_m = tile.load_row_terms(terms, batch, h, zero, offs_m, scores)  # [BLOCK_M] each
        qk = tile.row_products(queries, keys, PRECISION)  # [BLOCK_M, BLOCK_N]
        if v is not None:
            dp = tile.row_products(douts, values, PRECISION)  # [BLOCK_M, BLOCK_N]
        keep = None
        if dropout is not None:
            keep = tile.keep_of(dropout, head, first_row, first_col, BLOCK_M, BLOCK_N)
        _, dscore, _ = tile.softmax_backward(
            qk, dp, lse_m[:, None], low_m[:, None], delta_m[:, None], keep, offs_m[:, None], offs_n[None, :], scores,
            dropout, head, BOUNDED=True,
        )  # fmt: skip
        acc += dscore

    rows = seqlen_q
    cols = seqlen_k
    if SUM_ROWS:
        acc = tl.broadcast_to(tl.sum(acc, 0, keep_dims=True), [BLOCK_M, BLOCK_N])
        rows = 1
    if SUM_KEYS:
        acc = tl.broadcast_to(tl.sum(acc, 1, keep_dims=True), [BLOCK_M, BLOCK_N])
        cols = 1
    offs_m = own_row * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = own_key * BLOCK_N + tl.arange(0, BLOCK_N)
    store_tile(rows_of(dmask, own_batch, own_head, zero), acc, offs_m, rows, offs_n, cols)


def mask_config(q, v):
    return tuning.attention_bwd_dq(tuning.arch(q.device), q.dtype, max(q.shape[3], v.shape[3]), has_extras=True)


def mask_gradient(dout, q, k, v, terms, scores, dropout, dmask):
    """Fill dmask; v is None where dout is the gradient of the weights."""
    batch, heads, seqlen_q, _ = q.shape
    seqlen_k = k.shape[2]
    like_values = k if v is None else v
    config = mask_config(q, like_values)
    tiles = heads, launch.cdiv(seqlen_q, config["BLOCK_M"]), launch.cdiv(seqlen_k, config["BLOCK_N"]), batch
    summed = [dmask.shape[i] == 1 for i in (1, 2, 3, 0)]
    own = [1 if s else n for s, n in zip(summed, tiles, strict=True)]
    shared = [n if s else 1 for s, n in zip(summed, tiles, strict=True)]
    _attention_bwd_dmask[(own[0] * own[1] * own[2] * own[3],)](
        strided(q), strided(k), strided(v), strided(dout), terms, strided(dmask), scores, dropout, heads, seqlen_q,
        seqlen_k, tuple(own), tuple(shared), **tile.common_arguments(q, k, like_values), **config,
        SUM_ROWS=summed[1], SUM_KEYS=summed[2],
    )  # fmt: skip
