"""What FlopCounterMode counts for attention: a causal mask halves nothing, the backward counts the scores that it computes
again."""

from __future__ import annotations

from math import prod

from pyflash.ops.core.checks import _is_traced


def attention_fwd(q, k, v, *_, **__):
    return 2 * prod(q.shape[:3]) * k.shape[2] * (q.shape[3] + v.shape[3])


def attention_bwd(dout, dlse, q, k, v, *_, **__):
    return 2 * prod(q.shape[:3]) * k.shape[2] * (3 * q.shape[3] + 2 * v.shape[3])


def weights_fwd(q, k, *_, **__):
    return 2 * q.numel() * k.shape[2]


def weights_bwd(dweights, q, k, *_, **__):
    return 2 * weights_fwd(q, k)


def _lengths(values, longest, count):
    """Of each sequence; where nobody can read them, the longest that there may be."""
    return [longest] * count if values.is_meta or _is_traced(values) else values.tolist()


def _scores(q, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k):
    """How many elements the matrices of scores of all sequences and heads have."""
    rows = _lengths(cu_seqlens_q.diff(), max_seqlen_q, len(cu_seqlens_q) - 1)
    keys = _lengths(cu_seqlens_k.diff(), max_seqlen_k, len(cu_seqlens_k) - 1)
    return q.shape[1] * sum(r * k for r, k in zip(rows, keys))


def varlen_fwd(q, k, v, cu_q, cu_k, slopes, seed, max_q, max_k, *_, **__):
    return 2 * _scores(q, cu_q, cu_k, max_q, max_k) * (q.shape[2] + v.shape[2])


def varlen_bwd(dout, dlse, q, k, v, out, lse, cu_q, cu_k, slopes, seed, max_q, max_k, *_, **__):
    return 2 * _scores(q, cu_q, cu_k, max_q, max_k) * (3 * q.shape[2] + 2 * v.shape[2])


def decode(q, k_cache, v_cache, cache_seqlens, block_table, *_, **__):
    longest = k_cache.shape[2] * (1 if block_table is None else block_table.shape[1])
    keys = sum(_lengths(cache_seqlens, longest, len(cache_seqlens)))
    return 2 * q.shape[1] * q.shape[2] * keys * (q.shape[3] + v_cache.shape[3])
