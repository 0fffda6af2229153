"""Attention on CPU tensors."""

import torch

from pyflash import _cpu
from pyflash.kernels.dropout import keep_scale, threshold
from pyflash.ops.attention.shapes import within_reach
from pyflash.ops.core.dtypes import acc_dtype
from pyflash.ops.core.native import DTYPES
from pyflash.ops.core.workspace import take_workspace

FWD, BWD = _cpu.ATTENTION_PASSES["fwd"], _cpu.ATTENTION_PASSES["bwd"]
BOOLEAN, NO_MASK = _cpu.MASK_TYPES["boolean"], _cpu.MASK_TYPES["none"]
NOWHERE = (0, 0, 0, 0)


def _problem(
    q, k, v, attn_mask, alibi_slopes, seed, dropout_p, scale, softcap, window_left, window_right, diagonal, first_head=0
):  # fmt: skip
    """What every attention kernel is told; bindings/attention.cpp reads it field by field, in this order."""
    mask_type = NO_MASK
    if attn_mask is not None:
        mask_type = BOOLEAN if attn_mask.dtype == torch.bool else DTYPES[attn_mask.dtype]
    slopes_stride = (0, 0)
    if alibi_slopes is not None:
        slopes_stride = (alibi_slopes.stride(0) if alibi_slopes.dim() == 2 else 0, alibi_slopes.stride(-1))
    dropout = (threshold(dropout_p), keep_scale(dropout_p), int(seed)) if dropout_p > 0 else (0, 1.0, 0)
    return (
        q.shape, k.shape, 0 if v is None else v.shape[3],
        q.data_ptr(), k.data_ptr(), 0 if v is None else v.data_ptr(),
        0 if attn_mask is None else attn_mask.data_ptr(),
        0 if alibi_slopes is None else alibi_slopes.data_ptr(),
        q.stride(), k.stride(), NOWHERE if v is None else v.stride(), NOWHERE if attn_mask is None else attn_mask.stride(), slopes_stride,
        within_reach(window_left), within_reach(window_right), within_reach(diagonal),
        scale, softcap, *dropout, first_head, DTYPES[q.dtype], mask_type,
    )  # fmt: skip


def _slopes(alibi_slopes, q):
    """In the arithmetic type, which is what the kernels read."""
    if alibi_slopes is None:
        return None
    return alibi_slopes.to(acc_dtype(q.dtype))


def _memory(q, k, v, kind, threads):
    shape = q.shape, k.shape[2], 0 if v is None else v.shape[3], DTYPES[q.dtype], kind
    return take_workspace(_cpu.attention_workspace(shape, threads), "attention")


def _addresses(lse):
    """Of lse and of its low part, 0 where it has none; see reference.lse_shape."""
    return lse.data_ptr(), lse[1].data_ptr() if lse.dim() == 4 else 0


def _gradients(dout, dlse, out, lse, dq, dk, dv, dmask, workspace, of_weights=False):
    """What a backward is told beside its `_problem`; bindings/attention.cpp reads it field by field, in this order."""
    return (
        dout.data_ptr(), 0 if dlse is None else dlse.data_ptr(), out.data_ptr(), *_addresses(lse),
        dq.data_ptr(), dk.data_ptr(), 0 if dv is None else dv.data_ptr(), 0 if dmask is None else dmask.data_ptr(),
        dout.stride(), out.stride(), dq.stride(), dk.stride(), NOWHERE if dv is None else dv.stride(),
        NOWHERE if dmask is None else dmask.shape, workspace.data_ptr(), of_weights,
    )  # fmt: skip


def _results(out, lse, workspace):
    """What a forward is told beside its `_problem`, in the order of bindings/attention.cpp."""
    return out.data_ptr(), *_addresses(lse), out.stride(), workspace.data_ptr()


def attention_fwd(q, k, v, attn_mask, alibi_slopes, seed, *rest, first_head=0):
    *scalars, out, lse = rest
    slopes = _slopes(alibi_slopes, q)
    threads = torch.get_num_threads()
    workspace = _memory(q, k, v, FWD, threads)
    problem = _problem(q, k, v, attn_mask, slopes, seed, *scalars, first_head)
    _cpu.attention_fwd(problem, _results(out, lse, workspace), threads)


def attention_bwd(dout, dlse, q, k, v, out, lse, attn_mask, alibi_slopes, seed, *rest, first_head=0):
    *scalars, need_dmask, dq, dk, dv, dmask = rest
    slopes = _slopes(alibi_slopes, q)
    threads = torch.get_num_threads()
    workspace = _memory(q, k, v, BWD, threads)
    problem = _problem(q, k, v, attn_mask, slopes, seed, *scalars, first_head)
    gradients = _gradients(dout, dlse, out, lse, dq, dk, dv, dmask if need_dmask else None, workspace)
    _cpu.attention_bwd(problem, gradients, threads)


def attention_weights_fwd(q, k, attn_mask, seed, *rest):
    *scalars, weights, lse = rest
    threads = torch.get_num_threads()
    workspace = _memory(q, k, None, FWD, threads)
    problem = _problem(q, k, None, attn_mask, None, seed, *scalars)
    _cpu.attention_weights(problem, _results(weights, lse, workspace), threads)


def attention_weights_bwd(dweights, q, k, weights, lse, attn_mask, seed, *rest):
    *scalars, need_dmask, dq, dk, dmask = rest
    threads = torch.get_num_threads()
    workspace = _memory(q, k, None, BWD, threads)
    problem = _problem(q, k, None, attn_mask, None, seed, *scalars)
    gradients = _gradients(
        dweights, None, weights, lse, dq, dk, None, dmask if need_dmask else None, workspace, of_weights=True
    )
    _cpu.attention_bwd(problem, gradients, threads)
