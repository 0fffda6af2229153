"""What the attention kernels share: how a tile of products becomes scores, and which tiles a tile meets.

Softmax is exp2 of scores times a unit. Where a float mask is added, whose values may be -1e9, scores and their maximum
are subtracted first and multiplied then; the logarithm of the sum, which vanishes beside such a maximum, is kept in a
second number a row, lse's low part. Everywhere else both are one FMA, and lse is one number in log2 units.

In a packed batch each program sees one sequence, starting at its first token; a dense batch is the case where every
sequence fills its row.

M rows of q meet N keys in a tile. What is called lse, low, delta, row_max, row_sum holds one number a row: [M], or
[M, 1] and [1, M] where it meets a tile.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from pyflash.kernels import launch, philox, primitives, tuning
from pyflash.kernels.dropout import keep_scale, threshold
from pyflash.kernels.strided import Strided, load_rows, rows_of, store_rows, strided

# Sizes that change from call to call must not compile a kernel each.
SIZES = ["seqlen_q", "seqlen_k", "tiles"]

_LOG2E = 1.4426950408889634


class Scores(NamedTuple):
    """From q.k to a score. A field that is None compiles to nothing."""

    scale: float | None  # multiplies q.k first; with softcap it is scale / softcap
    softcap: float | None  # multiplies tanh
    unit: float  # multiplies what the above give: log2(e), and a plain scale
    left: int | None  # keys visible before and after the diagonal; None is all of them
    right: int | None
    diagonal: int | None  # row i stands at key i + diagonal; None aligns the last row with the last key
    mask: object  # Strided [batch, heads, L, S]; bool: True attends; else added
    adds_mask: int | None  # 1: a float mask; then what is kept of a row is in the scores' unit, else in log2 units
    slopes: object  # Strided [batch, heads]; ALiBi


class Dropout(NamedTuple):
    seed_ptr: object  # int64, one element
    drop_below: int
    scale: float


class RowTerms(NamedTuple):
    """What the backward needs of each row, one number each and padded to whole tiles: with a comparison in it, such a
    load moves four bytes a thread. Strided [batch, heads, rows] float32; of a packed batch see `first_padded_row`."""

    lse: object  # in the row's unit; +inf for rows that see nothing or do not exist: their probabilities are zero
    low: object  # what lse's rounding left out, in log2 units; None if there is no float mask
    delta: object  # sum(out * dout) - dlse


class Head(NamedTuple):
    """What a program knows of the head it is in."""

    index: int  # batch * heads + head, which numbers the dropout masks
    mask_ptr: object
    slope: object
    diagonal: int
    seqlen_q: int
    seqlen_k: int


def make_scores(options, attn_mask, alibi_slopes, q, k, keys_len=None):
    """Scores from the Options of a call; windows are cut to what the sequences can reach, so that they fit 32 bits."""
    _, scale, softcap, window_left, window_right, diagonal = options
    reach = q.shape[2] + (k.shape[2] if keys_len is None else keys_len) + abs(diagonal or 0)
    left, right = (min(side, reach) if side >= 0 else None for side in (window_left, window_right))
    plain = scale > 0 and not softcap and attn_mask is None and alibi_slopes is None
    return Scores(
        scale=None if plain else scale / softcap if softcap else scale,
        softcap=softcap if softcap else None,
        unit=scale * _LOG2E if plain else _LOG2E,
        left=left,
        right=right,
        diagonal=diagonal,
        mask=strided(attn_mask),
        adds_mask=None if attn_mask is None or attn_mask.dtype == torch.bool else 1,
        slopes=None if alibi_slopes is None else Strided(alibi_slopes, (0, *alibi_slopes.stride())[-2:]),
    )


def make_dropout(seed, options):
    """Dropout from the Options of a call; None where nothing is dropped."""
    p = options.dropout_p
    return Dropout(seed, threshold(p), keep_scale(p)) if p > 0 else None


def make_row_terms(q, scores, has_sequences, pad):
    """RowTerms to be filled, for tiles of at most `pad` rows; has_sequences: q is a packed batch, seen by cu_seqlens."""
    batch, heads, rows, _ = q.shape
    rows = launch.cdiv(rows, pad) * pad + (batch * pad if has_sequences else 0)
    fields = 3 if scores.adds_mask else 2
    terms = torch.empty((fields, 1 if has_sequences else batch, heads, rows), dtype=torch.float32, device=q.device)
    if has_sequences:  # rows after the caller's max_seqlen_q are written by nobody
        terms[0].fill_(float("inf"))
        terms[1].zero_()
    lse, delta, *low = map(strided, terms.expand(fields, batch, heads, rows))
    return RowTerms(lse, low[0] if low else None, delta)


def head_arguments(q, k):
    """What every kernel is compiled for. A dimension that fills its block is None: it needs no comparison."""
    head_dim = q.shape[3]
    block_d = tuning.feature_block(head_dim)
    return dict(
        GROUP=q.shape[1] // k.shape[1],
        HEAD_DIM=None if head_dim == block_d else head_dim,
        BLOCK_D=block_d,
        PRECISION=tuning.input_precision(),
    )


def common_arguments(q, k, v):
    """head_arguments, and the same of the values."""
    value_dim = v.shape[3]
    block_v = tuning.feature_block(value_dim)
    return dict(head_arguments(q, k), VALUE_DIM=None if value_dim == block_v else value_dim, BLOCK_V=block_v)


def has_extras(scores, dropout):
    """Does a tile carry more than its products, so that it must be smaller to stay in registers?"""
    return dropout is not None or scores.mask is not None or scores.slopes is not None or scores.softcap is not None


@triton.jit
def sequence(cu_seqlens_ptr, batch, tokens):
    """(first token, length) of one sequence; offsets of a packed batch never lead outside its tokens."""
    if cu_seqlens_ptr is None:
        start = batch * 0
        length = tokens
    else:
        start = tl.minimum(tl.maximum(tl.load(cu_seqlens_ptr + batch).to(tl.int32), 0), tokens)
        stop = tl.minimum(tl.maximum(tl.load(cu_seqlens_ptr + batch + 1).to(tl.int32), start), tokens)
        length = stop - start
    return start, length


@triton.jit
def row_tile(cu_seqlens_q_ptr, cu_seqlens_k_ptr, heads, seqlen_q, seqlen_k, tiles, BLOCK_M: tl.constexpr):
    """(first row, batch, head, first token and length of its queries, the same of its keys): a program's tile of rows. The
    longest causal rows come first. Without cu_seqlens_ptr every sequence has the given length."""
    pid = tl.program_id(0)
    batch = pid // tiles // heads
    q_start, seqlen_q = sequence(cu_seqlens_q_ptr, batch, seqlen_q)
    k_start, seqlen_k = sequence(cu_seqlens_k_ptr, batch, seqlen_k)
    return (tiles - 1 - pid % tiles) * BLOCK_M, batch, pid // tiles % heads, q_start, seqlen_q, k_start, seqlen_k


@triton.jit
def key_tile(cu_seqlens_q_ptr, cu_seqlens_k_ptr, kv_heads, seqlen_q, seqlen_k, tiles, BLOCK_N: tl.constexpr):
    """row_tile for a tile of keys: the first keys, which the most causal rows see, come first."""
    pid = tl.program_id(0)
    batch = pid // tiles // kv_heads
    q_start, seqlen_q = sequence(cu_seqlens_q_ptr, batch, seqlen_q)
    k_start, seqlen_k = sequence(cu_seqlens_k_ptr, batch, seqlen_k)
    return pid % tiles * BLOCK_N, batch, pid // tiles % kv_heads, q_start, seqlen_q, k_start, seqlen_k


@triton.jit
def enter_head(scores, batch, head, heads, seqlen_q, seqlen_k):
    """The Head of one query head: its numbers, and where its mask begins."""
    diagonal = scores.diagonal
    if scores.diagonal is None:
        diagonal = seqlen_k - seqlen_q
    mask_ptr = batch * 0  # in place of what there is not: Triton 3.6 cannot return a variable that is None
    slope = batch * 0
    if scores.mask is not None:
        mask_ptr = rows_of(scores.mask, batch, head, batch * 0).ptr
    if scores.slopes is not None:
        slope = tl.load(scores.slopes.ptr + batch * scores.slopes.strides[0] + head * scores.slopes.strides[1])
        slope = slope.to(tl.float32)
    return Head(batch * heads + head, mask_ptr, slope, diagonal, seqlen_q, seqlen_k)


@triton.jit
def first_padded_row(cu_seqlens_ptr, batch, start, PAD: tl.constexpr):
    """Where the rows of a sequence begin in RowTerms: at a multiple of PAD, a tile's room after each sequence."""
    if cu_seqlens_ptr is not None:
        start = start // PAD * PAD + batch * PAD
    return start


@triton.jit
def store_row_terms(terms, batch, head, start, offs_m, lse, low, delta, scores):
    """lse, low, delta [M] into RowTerms: whole tiles, rows that do not exist included."""
    offs = offs_m.to(tl.int64)
    tl.store(rows_of(terms.lse, batch, head, start).ptr + offs, lse)
    if scores.adds_mask is not None:
        tl.store(rows_of(terms.low, batch, head, start).ptr + offs, low)
    tl.store(rows_of(terms.delta, batch, head, start).ptr + offs, delta)


@triton.jit
def load_row_terms(terms, batch, head, start, offs_m, scores):
    """(lse, low, delta) of a tile of rows, [M] each; without a low part the second is anything."""
    offs = offs_m.to(tl.int64)
    lse = tl.load(rows_of(terms.lse, batch, head, start).ptr + offs)
    low = lse
    if scores.adds_mask is not None:
        low = tl.load(rows_of(terms.low, batch, head, start).ptr + offs)
    return lse, low, tl.load(rows_of(terms.delta, batch, head, start).ptr + offs)


@triton.jit
def row_products(a, b, PRECISION: tl.constexpr):
    """a b^T [M, N], every row of a [M, D] with every row of b [N, D]."""
    if a.dtype == tl.float32 and PRECISION == "ieee":
        # On the FMA units each thread holds its rows of the left operand for the whole loop if a is loop-invariant,
        # which fills the registers; on the right b's turn comes in shared memory.
        products = tl.trans(
            primitives.dot(b, tl.trans(a), tl.zeros([b.shape[0], a.shape[0]], tl.float32), PRECISION)
        )  # [M, N]
    else:
        products = primitives.dot(a, tl.trans(b), tl.zeros([a.shape[0], b.shape[0]], tl.float32), PRECISION)  # [M, N]
    return products


@triton.jit
def score_tile(qk, rows, cols, scores, head, BOUNDED: tl.constexpr):
    """(score, softcap's tanh) for a tile of q.k, [M, N] or [N, M]; the tanh means nothing without a softcap.

    rows and cols are its row and key numbers, broadcastable to qk: [M, 1] and [1, N], or [1, M] and [N, 1]. BOUNDED: the tile crosses the window's edge or the end of the keys.
    """
    curve = qk
    score = qk
    if scores.softcap is not None:
        curve = primitives.tanh(qk * scores.scale)
        score = curve * scores.softcap
    elif scores.scale is not None:
        score = qk * scores.scale
    if scores.mask is not None:
        offs = rows.to(tl.int64) * scores.mask.strides[2] + cols.to(tl.int64) * scores.mask.strides[3]
        inside = rows < head.seqlen_q
        if BOUNDED:  # only here, because the comparison keeps the load from being a vector's
            inside = inside & (cols < head.seqlen_k)
        mask = tl.load(head.mask_ptr + offs, mask=inside, other=0)  # as qk
        if head.mask_ptr.dtype.element_ty == tl.int1:
            score = tl.where(mask, score, float("-inf"))
        else:
            score += mask.to(tl.float32)
    if scores.slopes is not None:
        score -= head.slope * tl.abs(rows + head.diagonal - cols).to(tl.float32)
    if BOUNDED:
        visible = cols < head.seqlen_k
        if scores.left is not None:
            visible = visible & (cols >= rows + head.diagonal - scores.left)
        if scores.right is not None:
            visible = visible & (cols <= rows + head.diagonal + scores.right)
        score = tl.where(visible, score, float("-inf"))
    return score, curve


@triton.jit
def exponent(score, base, scores):
    """What exp2 is taken of: score less base, which is a row's maximum or lse, in that row's unit."""
    if scores.adds_mask is not None:
        x = (score - base) * scores.unit
    else:
        x = score * scores.unit - base
    return x


@triton.jit
def running_softmax(score, row_max, row_sum, scores, MAYBE_EMPTY: tl.constexpr):
    """(p [M, N], alpha [M], row_max, row_sum) with one more tile of scores [M, N]: p is relative to the new maximum, and alpha brings there
    what was summed before. MAYBE_EMPTY: a row may have seen nothing yet."""
    if scores.adds_mask is not None:
        new_max = tl.maximum(row_max, tl.max(score, 1))
    else:
        new_max = tl.maximum(row_max, tl.max(score, 1) * scores.unit)
    shift = new_max
    if MAYBE_EMPTY or scores.mask is not None:  # else -inf - -inf
        shift = tl.where(new_max == float("-inf"), 0.0, new_max)
    p = tl.exp2(exponent(score, shift[:, None], scores))
    if scores.adds_mask is not None:
        alpha = tl.exp2((row_max - shift) * scores.unit)
    else:
        alpha = tl.exp2(row_max - shift)
    return p, alpha, new_max, row_sum * alpha + tl.sum(p, 1)


@triton.jit
def store_lse(lse, low, row_max, row_sum, empty, scores, offs_m, limit_m):
    """lse in natural units, and its low part where there is one; -inf and 0 for rows that saw nothing."""
    if scores.adds_mask is not None:
        log_sum = tl.log2(row_sum) * primitives.LN2
        total = tl.where(empty, float("-inf"), row_max + log_sum)
        store_rows(low, tl.where(empty, 0.0, (row_max - total) + log_sum), offs_m, limit_m)
    else:
        total = tl.where(empty, float("-inf"), (row_max + tl.log2(row_sum)) * primitives.LN2)
    store_rows(lse, total, offs_m, limit_m)


@triton.jit
def key_range(first_row, ROWS: tl.constexpr, scores, head, BLOCK: tl.constexpr):
    """(start, inner, outer, stop): rows [first_row, first_row + ROWS) see keys in [start, stop) only, and every row
    sees every key of the whole tiles [inner, outer)."""
    start = first_row * 0
    stop = start + head.seqlen_k
    inner = start
    outer = stop
    if scores.left is not None:
        start = tl.maximum(first_row + head.diagonal - scores.left, 0)
        inner = tl.maximum(first_row + ROWS - 1 + head.diagonal - scores.left, 0)
    if scores.right is not None:
        stop = tl.maximum(tl.minimum(stop, first_row + ROWS + head.diagonal + scores.right), 0)
        outer = tl.maximum(tl.minimum(outer, first_row + 1 + head.diagonal + scores.right), 0)
    return _whole_tiles(start, inner, outer, stop, BLOCK)


@triton.jit
def row_range(first_col, COLS: tl.constexpr, scores, head, BLOCK: tl.constexpr):
    """key_range seen from the keys: the same four bounds on the rows that see keys [first_col, first_col + COLS). No
    tile is whole where the keys end within it."""
    start = first_col * 0
    stop = start + head.seqlen_q
    inner = start
    outer = stop
    if scores.right is not None:
        start = tl.maximum(first_col - head.diagonal - scores.right, 0)
        inner = tl.maximum(first_col + COLS - 1 - head.diagonal - scores.right, 0)
    if scores.left is not None:
        stop = tl.maximum(tl.minimum(stop, first_col + COLS - head.diagonal + scores.left), 0)
        outer = tl.maximum(tl.minimum(outer, first_col + 1 - head.diagonal + scores.left), 0)
    outer = tl.where(first_col + COLS > head.seqlen_k, 0, outer)
    return _whole_tiles(start, inner, outer, stop, BLOCK)


@triton.jit
def _whole_tiles(start, inner, outer, stop, BLOCK: tl.constexpr):
    """The four bounds, those between which every element counts drawn in to whole tiles."""
    start = start // BLOCK * BLOCK
    inner = tl.minimum((inner + BLOCK - 1) // BLOCK * BLOCK, stop)
    outer = tl.maximum(outer // BLOCK * BLOCK, inner)
    return start, inner, outer, stop


@triton.jit
def softmax_backward(qk, dp, lse, low, delta, keep, rows, cols, scores, dropout, head, BOUNDED: tl.constexpr):
    """(p after dropout, d score, d q.k up to the scale) from the products q.k and dp, all [M, N] or all [N, M].

    lse, low and delta are those of RowTerms, [M, 1] or [1, M].
    """
    score, curve = score_tile(qk, rows, cols, scores, head, BOUNDED)
    x = exponent(score, lse, scores)
    if scores.adds_mask is not None:
        x -= low
    p = tl.exp2(x)
    kept = p
    if dropout is not None:
        kept = tl.where(keep, p * dropout.scale, 0.0)
        dp = tl.where(keep, dp * dropout.scale, 0.0)
    dscore = p * (dp - delta)
    dqk = dscore
    if scores.softcap is not None:
        dqk = dscore * (1 - curve * curve)
    return kept, dscore, dqk


@triton.jit
def load_lse(lse, low, offs_m, limit_m, scores):
    """(lse in the row's unit, its low part in log2 units); +inf for rows that saw nothing or do not exist, which makes
    their probabilities zero. Without a low part the second is anything."""
    high = load_rows(lse, offs_m, limit_m, float("-inf"))
    rest = high
    if scores.adds_mask is not None:
        rest = load_rows(low, offs_m, limit_m, 0.0) * primitives.LOG2E
    else:
        high *= primitives.LOG2E
    return tl.where(high == float("-inf"), float("inf"), high), rest


def lse_parts(lse):
    """(lse, low part or None) as kernels take them, from the operators' pair or single tensor."""
    return (strided(lse), None) if lse.dim() == 3 else (strided(lse[0]), strided(lse[1]))


@triton.jit
def keep_of(dropout, head, first_row, first_col, ROWS: tl.constexpr, COLS: tl.constexpr):
    """bool [ROWS, COLS]: which probabilities of the tile dropout keeps."""
    return philox.keep_tile(tl.load(dropout.seed_ptr), dropout.drop_below, head.index, first_row, first_col, ROWS, COLS)
