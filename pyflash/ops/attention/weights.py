"""The matrix of attention weights itself, for those who ask to see it (nn.MultiheadAttention's need_weights)."""

from __future__ import annotations

import math

from torch import Tensor

from pyflash.auto import attention as auto
from pyflash.kernels.attention.options import SCHEMA, Options
from pyflash.ops.attention import flops, reference
from pyflash.ops.attention.shapes import (
    check_inputs,
    default_scale,
    expand_mask,
    four_dims,
    in_order_of,
    kv_heads,
    mask_four_dims,
    needs_gradient,
    unserved,
)
from pyflash.ops.core.autograd import Function, apply, vjp
from pyflash.ops.core.backends import Operation
from pyflash.ops.core.checks import expect_tensors
from pyflash.ops.core.choice import choose
from pyflash.ops.core.dtypes import ALL_BUT_FLOAT64, FLOATS, acc_dtype, cast_by_autocast
from pyflash.ops.core.philox import seed_for
from pyflash.ops.core.registry import Op

OPERATION = Operation(
    "attention_weights",
    dtypes={"cpu": FLOATS, "triton": ALL_BUT_FLOAT64},
    rules=auto.rules,
    sizes="pyflash.auto.attention.Size",
)


def _fwd_outputs(q, k, attn_mask, *_):
    lse = q.new_empty(reference.lse_shape(q, attn_mask), dtype=acc_dtype(q.dtype))
    return q.new_empty(*q.shape[:3], k.shape[2]), lse


def _bwd_outputs(dweights, q, k, weights, lse, attn_mask, *rest):
    dmask = attn_mask.new_empty(reference.unexpanded_shape(attn_mask)) if rest[-1] else q.new_empty(0)
    return in_order_of(q, q.shape[3]), in_order_of(k, k.shape[3]), dmask


_fwd = Op(
    "attention_weights_fwd(Tensor q, Tensor k, Tensor? attn_mask, Tensor? seed, "
    + SCHEMA
    + ", str backend) -> (Tensor weights, Tensor lse)",
    outputs=_fwd_outputs,
    reference=reference.attention_weights_fwd,
    differentiable=True,
    flops=flops.weights_fwd,
    triton="pyflash.kernels.attention.weights:attention_weights_fwd",
    cpu="pyflash.ops.attention._cpu:attention_weights_fwd",
)
_bwd = Op(
    "attention_weights_bwd(Tensor dweights, Tensor q, Tensor k, Tensor weights, Tensor lse, Tensor? attn_mask, "
    "Tensor? seed, " + SCHEMA + ", bool need_dmask, str backend) -> (Tensor dq, Tensor dk, Tensor dmask)",
    outputs=_bwd_outputs,
    reference=reference.attention_weights_bwd,
    flops=flops.weights_bwd,
    triton="pyflash.kernels.attention.weights:attention_weights_bwd",
    cpu="pyflash.ops.attention._cpu:attention_weights_bwd",
)


class _Weights(Function):
    @staticmethod
    def forward(q, k, attn_mask, seed, options, backend):
        return _fwd(q, k, expand_mask(attn_mask, q, k), seed, *options, backend)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        *tensors, ctx.options, ctx.backend = inputs
        ctx.mark_non_differentiable(outputs[1])
        ctx.save_for_backward(*tensors, *outputs)

    @staticmethod
    def backward(ctx, dweights, _):
        q, k, attn_mask, seed, weights, lse = ctx.saved_tensors
        need_dmask = ctx.needs_input_grad[2]
        dq, dk, dmask = apply(
            _WeightsBwd, dweights, q, k, weights, lse, attn_mask, seed, ctx.options, need_dmask, ctx.backend
        )
        return dq, dk, dmask if need_dmask else None, None, None, None


class _WeightsBwd(Function):
    @staticmethod
    def forward(dweights, q, k, weights, lse, attn_mask, seed, options, need_dmask, backend):
        mask = expand_mask(attn_mask, q, k)
        dq, dk, dmask = _bwd(dweights, q, k, weights, lse, mask, seed, *options, need_dmask, backend)
        if need_dmask and dmask.shape != attn_mask.shape:
            dmask = dmask.sum_to_size(attn_mask.shape)
        return dq, dk, dmask

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        dweights, q, k, _, _, attn_mask, seed, ctx.options, ctx.need_dmask, _ = inputs
        ctx.save_for_backward(dweights, q, k, attn_mask, seed)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *grads):
        *inputs, seed = ctx.saved_tensors

        def forward(q, k, attn_mask):
            return reference.attention_weights_fwd(q, k, expand_mask(attn_mask, q, k), seed, *ctx.options)[0]

        def backward(dweights, q, k, attn_mask):
            dq, dk, dmask = reference.gradients(forward, (q, k, attn_mask), (dweights,))
            return (dq, dk, dmask) if ctx.need_dmask else (dq, dk)

        second = vjp(backward, inputs, grads)
        return *second[:3], None, None, second[3], *(None,) * 4


def attention_weights(
    q: Tensor, k: Tensor, attn_mask: Tensor | None = None, *, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False, seed: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """dropout(softmax(scale q k^T + mask)), [..., heads, L, S]: what `attention` multiplies v with.

    Args:
        q, k, attn_mask, dropout_p, is_causal, scale, enable_gqa: as in `scaled_dot_product_attention`.
        seed: int64, one element; the same seed drops the same weights in `attention`.
    Numerics: a row that sees no key is 0. Differentiable in q, k and a floating-point mask, twice.
    """
    name = "attention_weights"
    expect_tensors(name, ("attn_mask",), q=q, k=k, attn_mask=attn_mask)
    q, k, attn_mask = cast_by_autocast((q, k, attn_mask))
    leading = check_inputs(name, q, k, k, attn_mask, dropout_p, enable_gqa)
    (rows, head_dim), keys = q.shape[-2:], k.shape[-2]
    if scale is None:
        scale = default_scale(head_dim)
    options = Options(
        dropout_p=float(dropout_p), scale=float(scale), softcap=0.0, window_left=-1,
        window_right=0 if is_causal else -1, diagonal=0,
    )  # fmt: skip
    mask = None if attn_mask is None else mask_four_dims(name, attn_mask, leading, rows, keys, q.dtype)
    refused = unserved(q, k, None, attn_mask=attn_mask)
    others = [t for t in (k, attn_mask) if t is not None]
    # Whose dropout it is must not depend on gradients: a reentrant checkpoint computes without them, then with.
    training = not dropout_p and needs_gradient(q, k, k, attn_mask)
    size = auto.Size("weights", math.prod(leading), rows, keys, head_dim, training)
    backend = choose(OPERATION, q, others, size=size, refused=refused)
    seed = seed_for("attention_weights", seed, dropout_p, q)
    of_k, _ = kv_heads(k, k, leading, enable_gqa)
    q4, k4 = four_dims(q, leading, leading[-1]), four_dims(k, leading, of_k)
    if backend is None:
        weights, _ = reference.attention_weights_fwd(q4, k4, mask, seed, *options)
    else:
        weights, _ = apply(_Weights, q4, k4, mask, seed, options, backend)
    if len(leading) == 2:
        return weights
    return weights.reshape(*(leading if max(q.dim(), k.dim()) > 2 else ()), rows, keys)
