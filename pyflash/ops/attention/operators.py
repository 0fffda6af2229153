"""The operators of dense attention and their derivatives. Dao et al. 2022, arXiv:2205.14135."""

from __future__ import annotations

import torch

from pyflash.kernels.attention.options import SCHEMA
from pyflash.ops.attention import flops, reference
from pyflash.ops.attention.shapes import expand_mask, in_order_of
from pyflash.ops.core.autograd import Function, apply, vjp
from pyflash.ops.core.dtypes import acc_dtype
from pyflash.ops.core.registry import Op


def _fwd_outputs(q, k, v, attn_mask, *_):
    shape = q.shape[:3] if attn_mask is None else reference.lse_shape(q, attn_mask)
    lse = q.new_empty(shape, dtype=acc_dtype(q.dtype))
    return in_order_of(q, v.shape[3]), lse


def _bwd_outputs(dout, dlse, q, k, v, out, lse, attn_mask, *rest):
    need_dmask = rest[-1]
    dmask = attn_mask.new_empty(reference.unexpanded_shape(attn_mask)) if need_dmask else q.new_empty(0)
    return in_order_of(q, q.shape[3]), in_order_of(k, k.shape[3]), in_order_of(v, v.shape[3]), dmask


_fwd = Op(
    "attention_fwd(Tensor q, Tensor k, Tensor v, Tensor? attn_mask, Tensor? alibi_slopes, Tensor? seed, "
    + SCHEMA
    + ", str backend) -> (Tensor out, Tensor lse)",
    outputs=_fwd_outputs,
    reference=reference.attention_fwd_operator,
    differentiable=True,
    flops=flops.attention_fwd,
    triton="pyflash.kernels.attention.dense:attention_fwd",
    cuda="pyflash.ops.attention._cuda:attention_fwd",
    cpu="pyflash.ops.attention._cpu:attention_fwd",
)
_bwd = Op(
    "attention_bwd(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor? attn_mask, "
    "Tensor? alibi_slopes, Tensor? seed, "
    + SCHEMA
    + ", bool need_dmask, str backend) -> (Tensor dq, Tensor dk, Tensor dv, Tensor dmask)",
    outputs=_bwd_outputs,
    reference=reference.attention_bwd,
    flops=flops.attention_bwd,
    triton="pyflash.kernels.attention.dense:attention_bwd",
    cuda="pyflash.ops.attention._cuda:attention_bwd",
    cpu="pyflash.ops.attention._cpu:attention_bwd",
)


class Attention(Function):
    """Takes the mask as it is, 4 dimensions but not broadcast: its gradient has that shape."""

    @staticmethod
    def forward(q, k, v, attn_mask, alibi_slopes, seed, options, backend):
        if attn_mask is not None:
            attn_mask = expand_mask(attn_mask, q, k)
        return _fwd(q, k, v, attn_mask, alibi_slopes, seed, *options, backend)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        *tensors, ctx.options, ctx.backend = inputs
        ctx.save_for_backward(*tensors, *outputs)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, dout, dlse):
        q, k, v, attn_mask, alibi_slopes, seed, out, lse = ctx.saved_tensors
        if dout is None and dlse is None:
            return (None,) * 8
        if dout is None:
            dout = torch.zeros_like(out)
        if dlse is not None and reference.has_low_part(attn_mask):
            dlse = dlse[0]
        need_dmask = ctx.needs_input_grad[3]
        dq, dk, dv, dmask = apply(
            AttentionBwd,
            dout,
            dlse,
            q,
            k,
            v,
            out,
            lse,
            attn_mask,
            alibi_slopes,
            seed,
            ctx.options,
            need_dmask,
            ctx.backend,
        )
        return dq, dk, dv, dmask if need_dmask else None, None, None, None, None


class AttentionBwd(Function):
    """`out` and `lse` are functions of the other inputs: the second derivative computes them again."""

    @staticmethod
    def forward(dout, dlse, q, k, v, out, lse, attn_mask, alibi_slopes, seed, options, need_dmask, backend):
        if dlse is not None:
            dlse = dlse.contiguous()
        mask = None if attn_mask is None else expand_mask(attn_mask, q, k)
        dq, dk, dv, dmask = _bwd(
            dout, dlse, q, k, v, out, lse, mask, alibi_slopes, seed, *options, need_dmask, backend
        )  # fmt: skip
        if need_dmask and dmask.shape != attn_mask.shape:  # a compiler may have made the broadcast real
            dmask = dmask.sum_to_size(attn_mask.shape)
        return dq, dk, dv, dmask

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        dout, dlse, q, k, v, _, _, *tensors, ctx.options, ctx.need_dmask, _ = inputs
        ctx.save_for_backward(dout, dlse, q, k, v, *tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *grads):
        *inputs, alibi_slopes, seed = ctx.saved_tensors

        def forward(q, k, v, attn_mask):
            return reference.attention_fwd(q, k, v, expand_mask(attn_mask, q, k), alibi_slopes, seed, ctx.options)

        def backward(dout, dlse, q, k, v, attn_mask):
            dq, dk, dv, dmask = reference.gradients(forward, (q, k, v, attn_mask), (dout, dlse))
            return (dq, dk, dv, dmask) if ctx.need_dmask else (dq, dk, dv)

        second = vjp(backward, inputs, grads)
        return *second[:5], None, None, second[5], *(None,) * 5
