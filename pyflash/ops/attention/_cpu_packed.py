"""Attention of sequences of different lengths on CPU tensors: the dense kernels on views, one call for each run of
neighbouring sequences of equal lengths. Nothing of q, k, v is copied, but a paged cache's blocks."""

from itertools import groupby

from pyflash.ops.attention._cpu import attention_bwd, attention_fwd
from pyflash.ops.attention.decode import each_cache
from pyflash.ops.core.checks import cache_lengths, sequence_offsets


def _runs(q, k, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k):
    """(first sequence, slice of rows, slice of keys, sequences) of each run. The offsets are checked
    here as well: a compiled graph calls this without the public function."""
    of_q = sequence_offsets("attention_varlen", "cu_seqlens_q", cu_seqlens_q, q.shape[0], max_seqlen_q)
    of_k = sequence_offsets("attention_varlen", "cu_seqlens_k", cu_seqlens_k, k.shape[0], max_seqlen_k)
    for _, run in groupby(range(len(of_q) - 1), lambda i: (of_q[i + 1] - of_q[i], of_k[i + 1] - of_k[i])):
        first, *rest = run
        last = rest[-1] + 1 if rest else first + 1
        yield first, slice(of_q[first], of_q[last]), slice(of_k[first], of_k[last]), last - first


def _dense(x, tokens, sequences):
    """[tokens, heads, ...] -> [sequences, heads, length, ...], a view."""
    return x[tokens].unflatten(0, (sequences, (tokens.stop - tokens.start) // sequences)).transpose(1, 2)


def _dense_lse(lse, tokens, sequences):
    """[heads, tokens] -> [sequences, heads, length], a view."""
    return lse[:, tokens].unflatten(1, (sequences, (tokens.stop - tokens.start) // sequences)).transpose(0, 1)


def _slopes(alibi_slopes, first, sequences):
    return alibi_slopes if alibi_slopes is None or alibi_slopes.dim() == 1 else alibi_slopes[first : first + sequences]


def _diagonal(q, k, bottom_right):
    return k.shape[2] - q.shape[2] if bottom_right else 0


def attention_varlen_fwd(
    q, k, v, cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed, max_seqlen_q, max_seqlen_k, dropout_p, scale, softcap,
    window_left, window_right, bottom_right, out, lse,
):  # fmt: skip
    end = 0
    for first, rows, keys, n in _runs(q, k, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k):
        q4, k4, v4 = _dense(q, rows, n), _dense(k, keys, n), _dense(v, keys, n)
        own_lse = lse.new_empty(q4.shape[:3])
        attention_fwd(
            q4, k4, v4, None, _slopes(alibi_slopes, first, n), seed, dropout_p, scale, softcap, window_left,
            window_right, _diagonal(q4, k4, bottom_right), _dense(out, rows, n), own_lse, first_head=first * q.shape[1],
        )  # fmt: skip
        _dense_lse(lse, rows, n).copy_(own_lse)
        end = rows.stop
    out[end:] = 0  # tokens of no sequence
    lse[:, end:] = -float("inf")


def attention_varlen_bwd(
    dout, dlse, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed, max_seqlen_q, max_seqlen_k,
    dropout_p, scale, softcap, window_left, window_right, bottom_right, dq, dk, dv,
):  # fmt: skip
    end_q = end_k = 0
    for first, rows, keys, n in _runs(q, k, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k):
        q4, k4, v4 = _dense(q, rows, n), _dense(k, keys, n), _dense(v, keys, n)
        attention_bwd(
            _dense(dout, rows, n), None if dlse is None else _dense_lse(dlse, rows, n).contiguous(), q4, k4, v4,
            _dense(out, rows, n), _dense_lse(lse, rows, n).contiguous(), None, _slopes(alibi_slopes, first, n), seed,
            dropout_p, scale, softcap, window_left, window_right, _diagonal(q4, k4, bottom_right), False,
            _dense(dq, rows, n), _dense(dk, keys, n), _dense(dv, keys, n), None, first_head=first * q.shape[1],
        )  # fmt: skip
        end_q, end_k = rows.stop, keys.stop
    dq[end_q:], dk[end_k:], dv[end_k:] = 0, 0, 0


def _decode(q, k, v, alibi_slopes, scale, softcap, window_left, window_right, out, lse):
    attention_fwd(
        q, k, v, None, alibi_slopes, None, 0.0, scale, softcap, window_left, window_right, k.shape[2] - q.shape[2], out, lse
    )  # fmt: skip


def attention_decode(q, k_cache, v_cache, cache_seqlens, block_table, alibi_slopes, *scalars_and_outputs):
    *scalars, out, lse = scalars_and_outputs
    if block_table is not None:
        for b, (k, v) in enumerate(each_cache(k_cache, v_cache, cache_seqlens, block_table)):
            of = slice(b, b + 1)
            _decode(q[of], k, v, _slopes(alibi_slopes, b, 1), *scalars, out[of], lse[of])
        return
    lengths = cache_lengths("attention_decode", cache_seqlens, k_cache.shape[2])
    if lengths and lengths.count(lengths[0]) == len(
        lengths
    ):  # one text, or several of a length: nothing is cut but the caches
        keys, values = (cache.narrow(2, 0, lengths[0]) for cache in (k_cache, v_cache))
        _decode(q, keys, values, _slopes(alibi_slopes, 0, len(lengths)), *scalars, out, lse)
        return
    first = 0
    for length, run in groupby(lengths):
        n = sum(1 for _ in run)
        of = slice(first, first + n)
        slopes = _slopes(alibi_slopes, first, n)
        _decode(q[of], k_cache[of, :, :length], v_cache[of, :, :length], slopes, *scalars, out[of], lse[of])
        first += n
