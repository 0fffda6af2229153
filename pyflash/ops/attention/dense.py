"""Fused attention: softmax(scale q k^T + mask) v without the matrix of scores. Dao et al. 2022, arXiv:2205.14135."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyflash.auto import attention as auto
from pyflash.kernels.attention.options import Options
from pyflash.ops.attention import reference
from pyflash.ops.attention.operators import Attention
from pyflash.ops.attention.shapes import (
    check_inputs,
    check_slopes,
    default_scale,
    four_dims,
    kv_heads,
    mask_four_dims,
    needs_gradient,
    unserved,
    usual_leading,
)
from pyflash.ops.core.autograd import apply, way
from pyflash.ops.core.backends import Operation, counts, record
from pyflash.ops.core.checks import expect_tensors, window_pair
from pyflash.ops.core.choice import Refused, are_usual, choose, tracing_derivatives
from pyflash.ops.core.dtypes import ALL_BUT_FLOAT64, FLOATS, HALVES, cast_by_autocast
from pyflash.ops.core.philox import seed_for

OPERATION = Operation(
    "attention",
    dtypes={"cpu": FLOATS, "triton": ALL_BUT_FLOAT64, "cuda": HALVES},
    rules=auto.rules,
    sizes="pyflash.auto.attention.Size",
)


def _size_of(kind):
    def size_of(training, query, key, value, *_):
        if min(query.dim(), key.dim(), value.dim()) < 2 or key.shape[-2] != value.shape[-2]:
            return None  # torch's kernel reads past the last value
        queries, dim = query.shape[-2:]
        sizes = math.prod(query.shape[:-2]), queries, key.shape[-2], dim + value.shape[-1]
        return auto.Size(kind, *sizes, training)

    return size_of


def _key_of(query, key, value):
    return query.shape, key.shape, value.shape, query.dtype, query.is_cpu


_REFUSED = {kind: Refused(OPERATION, _size_of(kind), _key_of) for kind in auto.FUSED}  # without dropout


# ---- public ---------------------------------------------------------------------------------------------------------
def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """softmax(scale q k^T + mask) v, as torch.nn.functional.scaled_dot_product_attention.

    Args:
        query: [..., heads, L, E], any strides. float32, float64, bfloat16 or float16.
        key: [..., heads, S, E]; with `enable_gqa` its heads divide query's.
        value: [..., heads, S, Ev].
        attn_mask: broadcastable to [..., heads, L, S]; bool (True: attend) or floating (added; it gets a gradient).
        dropout_p: probability that a weight is dropped; applied whenever > 0, as in torch.
        is_causal: row i sees keys 0 .. i. Together with `attn_mask` both hold.
        scale: default 1 / sqrt(E).
    Numerics: float32 sums for half types; a row that sees no key gives 0. Deterministic, memory linear in L and S.
        The dropout mask differs from torch's for the same seed.
    """
    if not (
        isinstance(query, torch.Tensor)
        and isinstance(key, torch.Tensor)
        and isinstance(value, torch.Tensor)
        and (attn_mask is None or isinstance(attn_mask, torch.Tensor))
    ):
        return F.scaled_dot_product_attention(  # its error, or torch.fx's record of the call
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if query.is_nested or key.is_nested or value.is_nested:
        choose(OPERATION, query, refused="NestedTensor input")  # counts it, or raises for a backend asked for by name
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    is_torchs = None
    if (
        dropout_p == 0
        and (attn_mask is None or not (is_causal or attn_mask.requires_grad or attn_mask.is_cpu is not query.is_cpu))
        and not tracing_derivatives((query, key, value, attn_mask))
    ):
        refused = _REFUSED["mask" if attn_mask is not None else "causal" if is_causal else "plain"]
        is_torchs = refused.holds(query, key, value)
        if is_torchs:
            try:
                return F.scaled_dot_product_attention(
                    query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
                )
            except (RuntimeError, IndexError):
                pass  # said below in our words
        if (
            is_torchs is False
            and attn_mask is None
            and usual_leading(query, key, value)
            and are_usual(query, key, value)
        ):
            # What `attention` comes to, without the questions that have just been answered.
            counts["attention", "cpu", ""] += 1
            scale = default_scale(query.shape[3]) if scale is None else float(scale)
            options = Options(0.0, scale, 0.0, -1, 0 if is_causal else -1, 0)
            call, args = way(Attention, (query, key, value, None, None, None, options, "auto"))
            return call(*args)[0]
    return attention(
        query, key, value, attn_mask, dropout_p=dropout_p, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa,
        _operation="scaled_dot_product_attention", _is_ours=is_torchs is False,
    )  # fmt: skip


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    *,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    causal_align: str = "top_left",
    window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None,
    softcap: float = 0.0,
    return_lse: bool = False,
    seed: Tensor | None = None,
    _operation: str = "attention",
    _is_ours: bool = False,
) -> Any:  # fmt: skip
    """Attention as `scaled_dot_product_attention`, with windows, ALiBi, softcap and the log of the softmax's denominator.

    Args:
        q, k, v, attn_mask, dropout_p, is_causal, scale, enable_gqa: as in `scaled_dot_product_attention`.
        causal_align: which corner the diagonal of `is_causal`, of windows and of ALiBi starts from: "top_left" (key i
            belongs to row i) or "bottom_right" (key i + S - L does).
        window_size: keys visible to the left and right of the diagonal, in tokens; -1 is unlimited.
        alibi_slopes: [heads] or [batch, heads]; slope |i - j| is subtracted from the score. Press et al. 2022.
        softcap: scores become softcap tanh(score / softcap) before masks; 0: off.
        return_lse: also return lse.
        seed: int64, one element: where the dropout mask comes from. Default: drawn from torch's generator.
    Returns:
        out [..., heads, L, Ev]; with `return_lse` also lse [..., heads, L], float32 (float64 for float64), natural
        logarithm, -inf for a row that sees no key, differentiable.
    """
    if _operation == OPERATION.name:  # scaled_dot_product_attention has looked
        optional = "attn_mask", "alibi_slopes"
        expect_tensors(_operation, optional, q=q, k=k, v=v, attn_mask=attn_mask, alibi_slopes=alibi_slopes)
    given = q.dtype
    q, k, v, attn_mask = cast_by_autocast((q, k, v, attn_mask))
    leading = check_inputs(_operation, q, k, v, attn_mask, dropout_p, enable_gqa)
    if causal_align not in ("top_left", "bottom_right"):
        raise ValueError(
            f"pyflash.{_operation}: causal_align is {causal_align!r}, expected 'top_left' or 'bottom_right'"
        )
    if not 0 <= softcap < math.inf:
        raise ValueError(f"pyflash.{_operation}: softcap is {softcap}, expected 0 (off) or a positive number")
    rows, head_dim = q.shape[-2:]
    keys, value_dim = v.shape[-2:]
    window_left, window_right = window_pair(_operation, window_size)
    if is_causal:
        window_right = 0
    diagonal = keys - rows if causal_align == "bottom_right" else 0
    if scale is None:
        scale = default_scale(head_dim)
    options = Options(
        dropout_p=float(dropout_p), scale=float(scale), softcap=float(softcap), window_left=max(window_left, -1),
        window_right=max(window_right, -1), diagonal=diagonal,
    )  # fmt: skip
    mask = None if attn_mask is None else mask_four_dims(_operation, attn_mask, leading, rows, keys, q.dtype)
    of_k, of_v = kv_heads(k, v, leading, enable_gqa)
    if alibi_slopes is not None:
        check_slopes(_operation, alibi_slopes, ((leading[-1],), tuple(leading)), q)

    refused = unserved(q, k, v, alibi_slopes, attn_mask)
    if of_k != of_v and not refused:
        refused = "key and value have different numbers of heads"
    others = (k, v) if attn_mask is None else (k, v, attn_mask)
    is_extended = (
        return_lse or softcap or alibi_slopes is not None or tuple(window_size) != (-1, -1) or seed is not None
    )
    has_torchs_meaning = not (is_extended or (is_causal and (attn_mask is not None or diagonal)))
    if _is_ours and not refused and q.dtype == given:
        record(OPERATION.name, "cpu" if q.is_cpu else "triton")
        backend: str | None = "auto"  # the rules have just been asked
    else:
        kind = "dropout" if dropout_p > 0 else "mask" if attn_mask is not None else "causal" if is_causal else "plain"
        if not has_torchs_meaning or (attn_mask is not None and torch.is_grad_enabled() and attn_mask.requires_grad):
            kind = "extended"
        size = auto.Size(kind, math.prod(leading), rows, keys, head_dim + value_dim, needs_gradient(q, k, v, attn_mask))
        backend = choose(OPERATION, q, others, size=size, refused=refused)

    if backend is None:
        if has_torchs_meaning and not tracing_derivatives((q, *others)):
            return F.scaled_dot_product_attention(
                q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
    seed = seed_for(_operation, seed, dropout_p, q)
    q4, k4, v4 = four_dims(q, leading, leading[-1]), four_dims(k, leading, of_k), four_dims(v, leading, of_v)
    if alibi_slopes is not None and alibi_slopes.dim() > 2:
        alibi_slopes = alibi_slopes.flatten(0, -2)
    if backend is None:
        if of_k != of_v:
            k4, v4 = (x.repeat_interleave(leading[-1] // x.shape[1], 1) for x in (k4, v4))
        out, lse = reference.attention_fwd(q4, k4, v4, mask, alibi_slopes, seed, options)
    else:
        out, lse = apply(Attention, q4, k4, v4, mask, alibi_slopes, seed, options, backend)
        if reference.has_low_part(mask):
            lse = lse[0]
    if len(leading) != 2:
        batch_shape = leading if max(q.dim(), k.dim(), v.dim()) > 2 else ()
        out, lse = out.reshape(*batch_shape, rows, value_dim), lse.reshape(*batch_shape, rows)
    return (out, lse) if return_lse else out
