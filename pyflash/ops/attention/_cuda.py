"""Attention by the kernels of csrc/cuda/attention: dense, of packed sequences, over caches. bindings/cuda/attention.cpp reads
the tuples field by field, in this order. What lies on the device, a seed, offsets, lengths, is never read here.
"""

import torch

from pyflash.kernels.attention.options import Options
from pyflash.kernels.dropout import keep_scale, threshold
from pyflash.ops.attention.decode import max_len
from pyflash.ops.attention.shapes import within_reach
from pyflash.ops.core._cuda import DTYPES, address, launch, native

BOOLEAN, NO_MASK = native.MASK_TYPES["boolean"], native.MASK_TYPES["none"]
NOWHERE = (0, 0, 0, 0)


class _Call:
    """What every kernel is told of a call. Keeps what the addresses point to alive.

    Args:
        q, k, v: [batch, heads, rows, ...]; of a packed batch see `_unpacked`.
        cu_seqlens: (of queries, of keys), or None.
        cache_seqlens: keys in use, [batch], or None.
        longest: rows and keys of a sequence beyond these are not computed.
        lse_stride: from batch to batch and from head to head.
        keys: of a sequence, where k and v are pools of blocks.
    """

    def __init__(self, q, k, v, attn_mask, alibi_slopes, seed, options, longest, lse_stride, cu_seqlens=(None, None),
                 cache_seqlens=None, keys=None):  # fmt: skip
        dropout_p, scale, softcap, window_left, window_right, diagonal = options
        mask_type, slopes_stride = NO_MASK, (0, 0)
        if attn_mask is not None:
            mask_type = BOOLEAN if attn_mask.dtype == torch.bool else DTYPES[attn_mask.dtype]
        if alibi_slopes is not None:
            alibi_slopes = alibi_slopes.float()
            slopes_stride = (alibi_slopes.stride(0) if alibi_slopes.dim() == 2 else 0, alibi_slopes.stride(-1))
        drops = dropout_p > 0
        self.kept = q, k, v, attn_mask, alibi_slopes, seed, cu_seqlens, cache_seqlens
        self.problem = (
            tuple(q.shape), (*k.shape[:2], k.shape[2] if keys is None else keys, k.shape[3]), v.shape[3],
            q.data_ptr(), k.data_ptr(), v.data_ptr(), address(attn_mask), address(alibi_slopes),
            q.stride(), k.stride(), v.stride(), NOWHERE if attn_mask is None else attn_mask.stride(), slopes_stride,
            within_reach(window_left), within_reach(window_right), within_reach(diagonal or 0),
            scale, softcap, threshold(dropout_p) if drops else 0, keep_scale(dropout_p) if drops else 1.0,
            0, 0, DTYPES[q.dtype], mask_type,
        )  # fmt: skip
        of_q, of_k = cu_seqlens
        index_q, index_k = of_q, of_k if cache_seqlens is None else cache_seqlens
        self.on_device = (
            address(seed) if drops else 0, address(of_q), address(of_k), address(cache_seqlens), *longest, lse_stride,
            4 if index_q is None else index_q.element_size(), 4 if index_k is None else index_k.element_size(),
            diagonal is None,
        )  # fmt: skip


def _addresses(lse):
    """Of lse and of its low part, 0 where it has none; see reference.lse_shape."""
    return lse.data_ptr(), lse[1].data_ptr() if lse.dim() == 4 else 0


def _of_heads(q):
    """lse_stride of a dense batch."""
    _, heads, rows, _ = q.shape
    return heads * rows, rows


def attention_fwd(q, k, v, attn_mask, alibi_slopes, seed, *scalars_and_outputs):
    *scalars, out, lse = scalars_and_outputs
    longest = q.shape[2], k.shape[2]
    call = _Call(q, k, v, attn_mask, alibi_slopes, seed, Options(*scalars), longest, _of_heads(q))
    results = out.data_ptr(), *_addresses(lse), out.stride()
    launch(native.attention_fwd, (call.problem, call.on_device, results), q)


def attention_bwd(dout, dlse, q, k, v, out, lse, attn_mask, alibi_slopes, seed, *rest):
    *scalars, need_dmask, dq, dk, dv, dmask = rest
    call = _Call(q, k, v, attn_mask, alibi_slopes, seed, Options(*scalars), (q.shape[2], k.shape[2]), _of_heads(q))
    rows = q.shape[0] * q.shape[1] * q.shape[2]
    _backward(call, dout, dlse, out, lse, dq, dk, dv, dmask if need_dmask else None, rows)


def _backward(call, dout, dlse, out, lse, dq, dk, dv, dmask, rows):
    """rows: of all heads and batches, as lse counts them."""
    terms = torch.empty(3 * rows, dtype=torch.float32, device=dout.device)
    gradients = (
        dout.data_ptr(), address(dlse), out.data_ptr(), *_addresses(lse), dq.data_ptr(), dk.data_ptr(), dv.data_ptr(),
        address(dmask), dout.stride(), out.stride(), dq.stride(), dk.stride(), dv.stride(),
        NOWHERE if dmask is None else tuple(dmask.shape), terms.data_ptr(), rows,
    )  # fmt: skip
    launch(native.attention_bwd, (call.problem, call.on_device, gradients), dout)


# ---- packed sequences -----------------------------------------------------------------------------------------------
def _unpacked(x, cu_seqlens):
    """[tokens, heads, ...] seen as [batch, heads, tokens, ...] with batch stride 0."""
    x = x.transpose(0, 1)
    return x.expand(cu_seqlens.shape[0] - 1, *x.shape)


def _packed_call(q, k, v, cu_seqlens_q, cu_seqlens_k, alibi_slopes, seed, max_seqlen_q, max_seqlen_k, *scalars):
    views = (_unpacked(x, cu_seqlens_q) for x in (q, k, v))
    longest, lse_stride = (min(max_seqlen_q, q.shape[0]), min(max_seqlen_k, k.shape[0])), (0, q.shape[0])
    of = cu_seqlens_q, cu_seqlens_k
    return _Call(*views, None, alibi_slopes, seed, Options.from_sequences(*scalars), longest, lse_stride, of)


def attention_varlen_fwd(q, *rest):
    *rest, out, lse = rest
    out.zero_()  # tokens of no sequence
    lse.fill_(float("-inf"))
    call = _packed_call(q, *rest)
    results = out.data_ptr(), *_addresses(lse), _unpacked(out, rest[2]).stride()
    launch(native.attention_fwd, (call.problem, call.on_device, results), q)


def attention_varlen_bwd(dout, dlse, q, k, v, out, lse, *rest):
    *rest, dq, dk, dv = rest
    for gradient in (dq, dk, dv):
        gradient.zero_()
    if dlse is not None:
        dlse = dlse.contiguous()
    cu_seqlens = rest[0]
    views = (_unpacked(x, cu_seqlens) for x in (dq, dk, dv))
    dout, out = _unpacked(dout, cu_seqlens), _unpacked(out, cu_seqlens)
    _backward(_packed_call(q, k, v, *rest), dout, dlse, out, lse, *views, None, q.shape[0] * q.shape[1])


# ---- caches ---------------------------------------------------------------------------------------------------------
SPLIT_KEYS = 256  # at least, of a part: what combines the parts must stay small beside it
PARTS = 256  # blocks that fill a GPU of 132 processors, two on each


def _paged(k_cache, block_table):
    """As the kernel is told of it: (the table, its blocks a cache, keys a block, blocks of the pool, bytes of a number)."""
    if block_table is None:
        return 0, 0, 0, 0, 4
    return block_table.data_ptr(), block_table.shape[1], k_cache.shape[2], k_cache.shape[0], block_table.element_size()


def attention_decode(q, k_cache, v_cache, cache_seqlens, block_table, alibi_slopes, *scalars_and_outputs):
    *scalars, out, lse = scalars_and_outputs
    batch, heads, few, _ = q.shape
    kv_heads = k_cache.shape[1]
    # Of a pool without blocks no table can name one.
    keys = max_len(k_cache, block_table) if k_cache.shape[0] else 0
    rows = heads // kv_heads * few
    # Of sizes only: lengths are on the device, and results must not depend on what else is in the batch.
    tiles = batch * kv_heads * ((rows + 63) // 64)
    splits = max(1, min(keys // SPLIT_KEYS, PARTS // max(tiles, 1)))
    split_len = -(-keys // splits) if keys else 0
    split_len = -(-split_len // 64) * 64
    part_out = q.new_empty(batch, heads, few, splits, v_cache.shape[3], dtype=torch.float32)
    part_lse = q.new_empty(batch, heads, few, splits, dtype=torch.float32)
    options = Options.from_caches(*scalars)
    longest = few, keys
    call = _Call(
        q, k_cache, v_cache, None, alibi_slopes, None, options, longest, _of_heads(q), cache_seqlens=cache_seqlens,
        keys=keys,
    )  # fmt: skip
    results = (
        out.data_ptr(), lse.data_ptr(), 0, out.stride(), part_out.data_ptr(), part_lse.data_ptr(), splits, split_len,
        *_paged(k_cache, block_table),
    )  # fmt: skip
    launch(native.attention_decode, (call.problem, call.on_device, results), q)
