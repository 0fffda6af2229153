"""Multi-head attention: projections, attention and projection back, composed of our operations.

torch.nn.functional.multi_head_attention_forward's meaning and masks. Queries, keys and values stay views of the
projections: [batch, heads, seqlen, head_dim], with the strides of (batch, seqlen, ...) or (seqlen, batch, ...).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyflash.auto import SMALL
from pyflash.auto import attention as auto
from pyflash.ops.attention.dense import attention, scaled_dot_product_attention
from pyflash.ops.attention.weights import attention_weights
from pyflash.ops.core.backends import _state, record
from pyflash.ops.core.checks import expect
from pyflash.ops.core.choice import tracing_derivatives
from pyflash.ops.core.philox import draw_seed
from pyflash.ops.linear.linear import linear

NAME = "multi_head_attention_forward"
_shape_check = F._mha_shape_check  # type: ignore[attr-defined]  # torch's stub has only what is public


def canonical_masks(
    attn_mask: Tensor | None,
    key_padding_mask: Tensor | None,
    dtype: torch.dtype,
    name: str = "attn_mask",
    padding_name: str = "key_padding_mask",
    keep_bool: bool = True,
) -> tuple[Tensor | None, Tensor | None]:
    """Both masks as they are when both are boolean (True is masked), else both as torch makes them: floats to add."""
    if attn_mask is None and key_padding_mask is None:
        return None, None
    given = [mask for mask in (attn_mask, key_padding_mask) if mask is not None]
    if keep_bool and all(mask.dtype == torch.bool for mask in given):
        return attn_mask, key_padding_mask
    other = F._none_or_dtype(attn_mask)
    key_padding_mask = F._canonical_mask(key_padding_mask, padding_name, other, name, dtype)
    return F._canonical_mask(attn_mask, name, None, "", dtype, check_other=False), key_padding_mask


def torch_is_quicker(query: Tensor, embed_dim: int, keys: int, need_weights: bool = False) -> bool:
    """Does `auto` give a call this small to torch as a whole? Then it is counted."""
    if not need_weights and torch.is_grad_enabled():
        return False  # torch's fused kernel has no second derivative on a CPU
    if _state.wish != "auto" or torch.compiler.is_compiling():
        return False
    if not need_weights and tracing_derivatives((query,)):
        return False  # nor a forward mode
    if not auto.prefers_torch(query.device.type, query.numel(), embed_dim, keys):
        return False
    record(NAME, "torch", SMALL)
    return True


def multi_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    in_weight: Tensor | tuple[Tensor, Tensor, Tensor],
    in_bias: Tensor | None,
    out_weight: Any,  # a Tensor; None beside out_proj
    out_bias: Tensor | None,
    *,
    out_proj=None,
    embed_dim: int,
    bias_kv: tuple[Tensor, Tensor] | None = None,
    add_zero_attn: bool = False,
    dropout_p: float = 0.0,
    attn_mask: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    is_causal: bool = False,
    need_weights: bool = True,
    average_attn_weights: bool = True,
    batch_first: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The output, and the attention weights when they are needed.

    Args:
        query: [seqlen_q, batch, embed_dim], or [batch, seqlen_q, embed_dim] under batch_first, or without batch.
        key, value: likewise with seqlen_k; their last dimension is that of their weight.
        in_weight: [3 * embed_dim, embed_dim], or the three weights.
        out_proj: called in place of the product with out_weight.
        bias_kv: [1, 1, embed_dim] each: one more key and value.
        attn_mask: [seqlen_q, seqlen_k] or [batch * num_heads, seqlen_q, seqlen_k]; boolean (True is masked) or added.
        key_padding_mask: [batch, seqlen_k], or [seqlen_k] without batch; likewise.
        is_causal: a hint that attn_mask is causal: then it alone decides where there is no padding mask.
    Returns:
        output: as query. weights: [batch, seqlen_q, seqlen_k], or [batch, num_heads, ...] when not averaged.
    Numerics: a query with everything masked gives zeros, also in the weights.
    """
    if attn_mask is None and key_padding_mask is None and query.dim() == key.dim() == value.dim() == 3:
        batched = True  # what the two functions below would say
    else:
        batched = _shape_check(query, key, value, key_padding_mask, attn_mask, num_heads)
        attn_mask, key_padding_mask = canonical_masks(attn_mask, key_padding_mask, query.dtype)
    if is_causal and attn_mask is None:
        raise RuntimeError(
            f"pyflash.{NAME}: Need attn_mask if specifying the is_causal hint;"
            " Transformer.generate_square_subsequent_mask creates one"
        )
    if query.shape[-1] != embed_dim:
        raise AssertionError(
            f"pyflash.{NAME}: was expecting embedding dimension of {embed_dim}, but got {query.shape[-1]} in query"
        )
    compared = None if isinstance(in_weight, Tensor) else -1  # weights of their own may take other widths
    if key is not value and key.shape[:compared] != value.shape[:compared]:
        raise AssertionError(f"pyflash.{NAME}: key shape {key.shape} does not match value shape {value.shape}")

    if not batched:
        key_padding_mask = key_padding_mask.unsqueeze(0) if key_padding_mask is not None else None
        batch_first = True
    q, k, v = _project(query, key, value, in_weight, in_bias, num_heads, batch_first)
    batch, _, seqlen_q, head_dim = q.shape
    seqlen_k = k.shape[2]
    if k.shape[0] != batch:
        raise RuntimeError(f"pyflash.{NAME}: key has a batch of {k.shape[0]}, expected query's {batch}")

    mask = None
    drops_mask = is_causal and key_padding_mask is None and not need_weights
    if not drops_mask and (attn_mask is not None or key_padding_mask is not None):
        is_causal = False
        mask = _attend_mask(
            _checked(attn_mask, batch, num_heads, seqlen_q, seqlen_k),
            _checked_padding(key_padding_mask, batch, seqlen_k),
            query.dtype,
            (bias_kv is not None) + add_zero_attn,
        )

    if bias_kv is not None:
        bias_k, bias_v = (b.view(1, num_heads, 1, -1).expand(batch, -1, -1, -1) for b in bias_kv)
        k, v = torch.cat([k, bias_k], 2), torch.cat([v, bias_v], 2)
    if add_zero_attn:
        zero = k.new_zeros(batch, num_heads, 1, head_dim)
        k, v = torch.cat([k, zero], 2), torch.cat([v, zero], 2)

    weights = None
    if need_weights:
        seed = draw_seed(q) if dropout_p > 0.0 else None
        out = attention(q, k, v, mask, dropout_p=dropout_p, seed=seed)
        weights = attention_weights(q, k, mask, dropout_p=dropout_p, seed=seed)
        weights = weights.mean(1) if average_attn_weights else weights
    else:
        out = scaled_dot_product_attention(q, k, v, mask, dropout_p, is_causal)

    out = out.transpose(1, 2) if batch_first else out.permute(2, 0, 1, 3)
    out = out.reshape(out.shape[0], out.shape[1], embed_dim)
    out = linear(out, out_weight, out_bias) if out_proj is None else out_proj(out)
    if not batched:
        return out.squeeze(0), weights.squeeze(0) if weights is not None else None
    return out, weights


def _project(query, key, value, weight, bias, num_heads, batch_first):
    """The three projections [batch, num_heads, seqlen, head_dim], views of one result where inputs are the same tensor."""
    is_one = isinstance(weight, Tensor)
    if is_one and query is key is value:
        return _heads(linear(query, weight, bias), 3, num_heads, batch_first)
    if is_one and key is value:
        embed_dim = weight.shape[0] // 3
        weight_q, weight_kv = weight.split([embed_dim, 2 * embed_dim])
        bias_q, bias_kv = (None, None) if bias is None else bias.split([embed_dim, 2 * embed_dim])
        q = _heads(linear(query, weight_q, bias_q), 1, num_heads, batch_first)
        return *q, *_heads(linear(key, weight_kv, bias_kv), 2, num_heads, batch_first)
    weights = weight.chunk(3) if is_one else weight
    biases = (None, None, None) if bias is None else bias.chunk(3)
    return [
        _heads(linear(x, w, b), 1, num_heads, batch_first)[0] for x, w, b in zip((query, key, value), weights, biases)
    ]


def _heads(x, parts, num_heads, batch_first):
    """Views [batch, num_heads, seqlen, head_dim] of `parts` projections that lie side by side."""
    if x.dim() == 2:
        x = x.unsqueeze(0)
    rows, columns, width = x.shape
    # Apart before the dimensions change places: the backward then joins gradients that lie as they will be read.
    x = x.view(rows, columns, parts, num_heads, width // parts // num_heads)
    found = []
    for part in x.unbind(2):
        found.append(part.transpose(1, 2) if batch_first else part.permute(1, 2, 0, 3))
    return found


def _checked(attn_mask, batch, num_heads, seqlen_q, seqlen_k):
    """[1 or batch, 1 or num_heads, seqlen_q, seqlen_k]"""
    if attn_mask is None:
        return None
    shape = (seqlen_q, seqlen_k) if attn_mask.dim() == 2 else (batch * num_heads, seqlen_q, seqlen_k)
    expect(
        attn_mask.shape == shape,
        NAME,
        lambda: f"The shape of the {attn_mask.dim()}D attn_mask is {attn_mask.shape}, but should be {shape}.",
        RuntimeError,
    )
    return attn_mask.view(1, 1, *shape) if attn_mask.dim() == 2 else attn_mask.view(batch, num_heads, *shape[1:])


def _checked_padding(padding, batch, seqlen_k):
    """[batch, 1, 1, seqlen_k]"""
    if padding is None:
        return None
    expect(
        padding.shape == (batch, seqlen_k),
        NAME,
        lambda: _padding_mismatch(padding, batch, seqlen_k),
        AssertionError,
    )
    return padding[:, None, None, :]


def _padding_mismatch(padding, *wanted):
    """torch's words."""
    dim = 0 if padding.shape[0] != wanted[0] else 1
    return (
        f"Expected key_padded_mask.shape[{dim}] to be {wanted[dim]}, but got {padding.shape[dim]}: key_padding_mask has"
        f" shape {tuple(padding.shape)}, expected {wanted}"
    )


def _attend_mask(attn_mask, padding, dtype, more_keys):
    """One mask as scaled_dot_product_attention takes it: boolean with True for what is attended, or floats to add."""
    masks = [mask for mask in (attn_mask, padding) if mask is not None]
    if not masks:
        return None
    # `canonical_masks` left both boolean or both floating.
    mask = masks[0] if len(masks) == 1 else masks[0] | masks[1] if masks[0].dtype == torch.bool else masks[0] + masks[1]
    if more_keys:
        mask = F.pad(mask, (0, more_keys))  # the keys after the caller's are attended
    return mask.logical_not() if mask.dtype == torch.bool else mask


def multi_head_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """As torch.nn.functional.multi_head_attention_forward; static keys or values go to torch."""
    weight: Any = (q_proj_weight, k_proj_weight, v_proj_weight) if use_separate_proj_weight else in_proj_weight
    if static_k is not None or static_v is not None:
        record(NAME, "torch", "static keys or values")
        return F.multi_head_attention_forward(
            query,
            key,
            value,
            embed_dim_to_check,
            num_heads,
            in_proj_weight,
            in_proj_bias,
            bias_k,
            bias_v,
            add_zero_attn,
            dropout_p,
            out_proj_weight,
            out_proj_bias,
            training,
            key_padding_mask,
            need_weights,
            attn_mask,
            use_separate_proj_weight,
            q_proj_weight,
            k_proj_weight,
            v_proj_weight,
            static_k,
            static_v,
            average_attn_weights,
            is_causal,
        )
    missing = weight is None if in_proj_weight is weight else any(w is None for w in weight)
    expect(not missing, NAME, lambda: "a projection weight is None", AssertionError)
    expect((bias_k is None) == (bias_v is None), NAME, lambda: "one of bias_k and bias_v is None", AssertionError)
    return multi_head_attention(
        query,
        key,
        value,
        num_heads,
        weight,
        in_proj_bias,
        out_proj_weight,
        out_proj_bias,
        embed_dim=embed_dim_to_check,
        bias_kv=None if bias_k is None or bias_v is None else (bias_k, bias_v),
        add_zero_attn=add_zero_attn,
        dropout_p=dropout_p if training else 0.0,
        attn_mask=attn_mask,
        key_padding_mask=key_padding_mask,
        is_causal=is_causal,
        need_weights=need_weights,
        average_attn_weights=average_attn_weights,
    )
