"""Attention in torch operations: the truth for tests, the `torch` backend, and the derivatives beyond the first.

Tensors are as the operators of pyflash/ops/attention/operators.py take them: q [B, H, L, E], k [B, Hkv, S, E], v [B, Hkv, S, Ev].
"""

from __future__ import annotations

import torch

from pyflash.kernels.attention.options import Options
from pyflash.kernels.dropout import keep_scale
from pyflash.ops.core.autograd import vjp
from pyflash.ops.core.dtypes import acc_dtype
from pyflash.ops.core.philox import attention_keep


def visible(rows, keys, window_left, window_right, diagonal, device):
    """bool [rows, keys]: what the window lets each row see; None when it is everything."""
    if window_left < 0 and window_right < 0:
        return None
    distance = torch.arange(keys, device=device) - (torch.arange(rows, device=device)[:, None] + diagonal)
    seen = torch.ones_like(distance, dtype=torch.bool)
    if window_left >= 0:
        seen = seen & (distance >= -window_left)
    if window_right >= 0:
        seen = seen & (distance <= window_right)
    return seen


def _grouped(q, kv_heads):
    """[B, H, L, E] -> [B, Hkv, H / Hkv * L, E]: heads that read the same keys, side by side."""
    batch, heads, rows, dim = q.shape
    return q.reshape(batch, kv_heads, heads // max(kv_heads, 1) * rows, dim)


def scores(q, k, attn_mask, alibi_slopes, options):
    """[B, H, L, S] in the arithmetic type; -inf where a row must not look."""
    _, scale, softcap, window_left, window_right, diagonal = options
    dtype = acc_dtype(q.dtype)
    s = torch.matmul(_grouped(q.to(dtype) * scale, k.shape[1]), k.to(dtype).mT)
    s = s.reshape(*q.shape[:3], k.shape[2])
    if softcap:
        s = softcap * torch.tanh(s / softcap)
    if alibi_slopes is not None:
        distance = torch.arange(k.shape[2], device=q.device) - (
            torch.arange(q.shape[2], device=q.device)[:, None] + diagonal
        )
        s = s - alibi_slopes.to(dtype)[..., :, None, None] * distance.abs()
    if attn_mask is not None:
        s = s.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else s + attn_mask.to(dtype)
    seen = visible(q.shape[2], k.shape[2], window_left, window_right, diagonal, q.device)
    return s if seen is None else s.masked_fill(~seen, -torch.inf)


def has_low_part(attn_mask):
    """Does the operators' lse come as a pair: [2, B, H, L], the number and what its rounding left out?

    Where a float mask is added, a row's maximum may be -1e9, beside which the logarithm of its sum vanishes; a backward
    that takes exp(score - lse) for the probabilities would get them wrong by a factor of that sum.
    """
    return attn_mask is not None and attn_mask.dtype != torch.bool


def lse_shape(q, attn_mask):
    return (2, *q.shape[:3]) if has_low_part(attn_mask) else q.shape[:3]


def softmax_and_lse(s, low_part=False):
    """Over the last dimension; a row of -inf gives zeros and -inf, and zero gradients. lse as `has_low_part` says."""
    if s.shape[-1] == 0:
        lse = s.new_full(s.shape[:-1], -torch.inf)
        return s, torch.stack([lse, torch.zeros_like(lse)]) if low_part else lse
    largest = s.detach().amax(-1, keepdim=True)
    largest = torch.where(largest == -torch.inf, 0.0, largest)
    p = torch.exp(s - largest)
    total = p.sum(-1, keepdim=True)
    is_empty = total == 0
    total = torch.where(is_empty, 1.0, total)
    lse = torch.where(is_empty, -torch.inf, largest + torch.log(total))
    if low_part:
        low = torch.where(is_empty, 0.0, (largest - lse) + torch.log(total)).detach()
        return p / total, torch.stack([lse, low]).squeeze(-1)
    return p / total, lse.squeeze(-1)


def weights(q, k, attn_mask, alibi_slopes, seed, options, first_head=0, low_part=False):
    """Attention weights after dropout, [B, H, L, S], and lse [B, H, L], in the arithmetic type."""
    w, lse = softmax_and_lse(scores(q, k, attn_mask, alibi_slopes, options), low_part)
    if options.dropout_p > 0:
        keep = attention_keep(seed, *w.shape, options.dropout_p, first_head)
        w = w * (keep.to(w.dtype) * keep_scale(options.dropout_p))
    return w, lse


def attention_fwd(q, k, v, attn_mask, alibi_slopes, seed, options, first_head=0, low_part=False):
    w, lse = weights(q, k, attn_mask, alibi_slopes, seed, options, first_head, low_part)
    out = torch.matmul(_grouped(w, v.shape[1]), v.to(w.dtype)).reshape(*w.shape[:3], v.shape[3])
    return out.to(q.dtype), lse


def gradients(function, inputs, grad_outputs):
    """As `vjp`, but every floating-point input gets a gradient, zeros where nothing depends on it."""
    inputs = [
        t if t is None or not t.is_floating_point() or t.requires_grad else t.detach().requires_grad_() for t in inputs
    ]
    grads = vjp(function, inputs, grad_outputs)
    return tuple(
        torch.zeros_like(t) if g is None and t is not None and t.is_floating_point() else g
        for t, g in zip(inputs, grads)
    )


def attention_bwd(dout, dlse, q, k, v, out, lse, attn_mask, alibi_slopes, seed, *rest):
    """dq, dk, dv and the gradient of a floating-point mask in the mask's own shape; `out` and `lse` are computed again."""
    *scalars, need_dmask = rest
    options = Options(*scalars)

    def forward(q, k, v, attn_mask):
        return attention_fwd(q, k, v, attn_mask, alibi_slopes, seed, options)

    dq, dk, dv, dmask = gradients(forward, (q, k, v, attn_mask), (dout, dlse))
    if not need_dmask:
        return dq, dk, dv, q.new_empty(0)
    kept = unexpanded_shape(attn_mask)
    return dq, dk, dv, dmask.sum([d for d in range(4) if kept[d] != dmask.shape[d]], keepdim=True)


def attention_fwd_operator(q, k, v, attn_mask, alibi_slopes, seed, *scalars):
    """The operator, whose lse has a low part where a float mask is added."""
    options = Options(*scalars)
    return attention_fwd(q, k, v, attn_mask, alibi_slopes, seed, options, low_part=has_low_part(attn_mask))


def attention_weights_fwd(q, k, attn_mask, seed, *scalars):
    w, lse = weights(q, k, attn_mask, None, seed, Options(*scalars), low_part=has_low_part(attn_mask))
    return w.to(q.dtype), lse


def attention_weights_bwd(dweights, q, k, weights, lse, attn_mask, seed, *rest):
    *scalars, need_dmask = rest

    def forward(q, k, attn_mask):
        return attention_weights_fwd(q, k, attn_mask, seed, *scalars)[0]

    dq, dk, dmask = gradients(forward, (q, k, attn_mask), (dweights,))
    if not need_dmask:
        return dq, dk, q.new_empty(0)
    kept = unexpanded_shape(attn_mask)
    return dq, dk, dmask.sum([d for d in range(4) if kept[d] != dmask.shape[d]], keepdim=True)


def unexpanded_shape(attn_mask):
    """Sizes of the mask before it was broadcast: 1 where it repeats."""
    return [1 if stride == 0 else size for size, stride in zip(attn_mask.shape, attn_mask.stride())]
