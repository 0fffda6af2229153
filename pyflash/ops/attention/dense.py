"""Fused attention: softmax(scale q k^T + mask) v without the matrix of scores. Dao et al. 2022, arXiv:2205.14135."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from pyflash.auto import attention as auto
from pyflash.ops.attention import reference
from pyflash.ops.core import backends
from pyflash.ops.core.autograd import Function, apply, vjp
from pyflash.ops.core.backends import Operation
from pyflash.ops.core.checks import (
    expect,
    expect_tensors,
    is_plain,
    scalar_type,
    size_mismatch,
    window_pair,
)
from pyflash.ops.core.choice import Refused, choose, tracing_derivatives
from pyflash.ops.core.dtypes import ALL_BUT_FLOAT64, FLOATS, acc_dtype, cast_by_autocast
from pyflash.ops.core.philox import draw_seed
from pyflash.ops.core.registry import Op

OPERATION = Operation(
    "attention",
    dtypes={"cpu": FLOATS, "triton": ALL_BUT_FLOAT64},
    rules=auto.rules,
    sizes="pyflash.auto.attention.Size",
)

_SCALARS = "float dropout_p, float scale, float softcap, int window_left, int window_right, int diagonal"


def _in_order_of(x, size_last):
    """A new [B, H, L, size_last] that lies in memory as [B, L, H, size_last] when x does."""
    batch, heads, rows, size = x.shape
    if size == size_last and x.is_contiguous():
        return torch.empty_like(x)
    _, of_heads, of_rows, _ = x.stride()
    if of_heads < of_rows and heads > 1:
        return x.new_empty(batch, rows, heads, size_last).transpose(1, 2)
    return x.new_empty(batch, heads, rows, size_last)


def _fwd_outputs(q, k, v, attn_mask, *_):
    lse = q.new_empty(reference.lse_shape(q, attn_mask), dtype=acc_dtype(q.dtype))
    return _in_order_of(q, v.shape[3]), lse


def _bwd_outputs(dout, dlse, q, k, v, out, lse, attn_mask, *rest):
    need_dmask = rest[-1]
    dmask = attn_mask.new_empty(reference.unexpanded_shape(attn_mask)) if need_dmask else q.new_empty(0)
    return _in_order_of(q, q.shape[3]), _in_order_of(k, k.shape[3]), _in_order_of(v, v.shape[3]), dmask


_fwd = Op(
    "attention_fwd(Tensor q, Tensor k, Tensor v, Tensor? attn_mask, Tensor? alibi_slopes, Tensor? seed, "
    + _SCALARS
    + ", str backend) -> (Tensor out, Tensor lse)",
    outputs=_fwd_outputs,
    reference=reference.attention_fwd_operator,
    differentiable=True,
    triton="pyflash.kernels.attention.dense:attention_fwd",
    cpu="pyflash.ops.attention._cpu:attention_fwd",
)
_bwd = Op(
    "attention_bwd(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor? attn_mask, "
    "Tensor? alibi_slopes, Tensor? seed, "
    + _SCALARS
    + ", bool need_dmask, str backend) -> (Tensor dq, Tensor dk, Tensor dv, Tensor dmask)",
    outputs=_bwd_outputs,
    reference=reference.attention_bwd,
    triton="pyflash.kernels.attention.dense:attention_bwd",
    cpu="pyflash.ops.attention._cpu:attention_bwd",
)


def _expand_mask(attn_mask, q, k):
    """[1 or B, 1 or H, 1 or L, 1 or S] -> [B, H, L, S] as a view; a dimension of 1 element counts as repeated."""
    if attn_mask is None:
        return None
    return attn_mask.expand(*q.shape[:3], k.shape[2])


class _Attention(Function):
    """Takes the mask as it is, 4 dimensions but not broadcast: its gradient has that shape."""

    @staticmethod
    def forward(q, k, v, attn_mask, alibi_slopes, seed, scalars, backend):
        return _fwd(q, k, v, _expand_mask(attn_mask, q, k), alibi_slopes, seed, *scalars, backend)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        *tensors, ctx.scalars, ctx.backend = inputs
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
            _AttentionBwd,
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
            (*ctx.scalars, need_dmask),
            ctx.backend,
        )
        return dq, dk, dv, dmask if need_dmask else None, None, None, None, None


class _AttentionBwd(Function):
    """`out` and `lse` are functions of the other inputs: the second derivative computes them again."""

    @staticmethod
    def forward(dout, dlse, q, k, v, out, lse, attn_mask, alibi_slopes, seed, scalars, backend):
        if dlse is not None:
            dlse = dlse.contiguous()
        dq, dk, dv, dmask = _bwd(
            dout, dlse, q, k, v, out, lse, _expand_mask(attn_mask, q, k), alibi_slopes, seed, *scalars, backend
        )
        if scalars[-1] and dmask.shape != attn_mask.shape:  # a compiler may have made the broadcast real
            dmask = dmask.sum_to_size(attn_mask.shape)
        return dq, dk, dv, dmask

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        dout, dlse, q, k, v, _, _, *tensors, ctx.scalars, _ = inputs
        ctx.save_for_backward(dout, dlse, q, k, v, *tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *grads):
        *inputs, alibi_slopes, seed = ctx.saved_tensors
        *scalars, need_dmask = ctx.scalars

        def forward(q, k, v, attn_mask):
            return reference.attention_fwd(q, k, v, _expand_mask(attn_mask, q, k), alibi_slopes, seed, *scalars)

        def backward(dout, dlse, q, k, v, attn_mask):
            dq, dk, dv, dmask = reference.gradients(forward, (q, k, v, attn_mask), (dout, dlse))
            return (dq, dk, dv, dmask) if need_dmask else (dq, dk, dv)

        second = vjp(backward, inputs, grads)
        return *second[:5], None, None, second[5], None, None, None, None


# ---- shapes --------------------------------------------------------------------------------------------------------
def check_floating(operation, name, q):
    if not q.is_floating_point():
        message = f"pyflash.{operation}: {name} is {q.dtype}, expected float32, float64, bfloat16 or float16"
        raise NotImplementedError(message) if q.is_complex() else RuntimeError(message)


def _check(operation, q, k, v, attn_mask, dropout_p, enable_gqa):
    """Raises what torch raises; returns the sizes before [L, E] that q, k and v broadcast to, the last counts heads."""
    if not 0 <= dropout_p <= 1:
        raise RuntimeError(
            f"pyflash.{operation}: dropout probability has to be between 0 and 1, but got {dropout_p} as dropout_p"
        )
    check_floating(operation, "query", q)
    if attn_mask is not None:
        _check_mask(operation, attn_mask, q)
    leading = _usual_leading(q, k, v)
    if leading is None:
        _check_sizes(operation, q, k, v, enable_gqa)
        leading = _leading(operation, q, k, v, enable_gqa) or (1,)
    return leading


def _usual_leading(q, k, v):
    """(batch, heads) of three tensors [batch, heads, ., .] that fit each other, else None: the usual call in few steps."""
    if not (q.dim() == k.dim() == v.dim() == 4 and q.dtype == k.dtype == v.dtype and q.device == k.device == v.device):
        return None
    (*of_q, _, head_dim), (*of_k, keys, head_dim_k), (*of_v, keys_v, _) = q.shape, k.shape, v.shape
    return tuple(of_q) if of_q == of_k == of_v and head_dim == head_dim_k and keys == keys_v else None


def _check_mask(operation, attn_mask, q):
    def check(condition, message):
        expect(condition, operation, message, RuntimeError)

    check(
        attn_mask.dtype in (torch.bool, torch.float32, q.dtype),
        lambda: (
            "Expected attn_mask dtype to be bool or float or to match query dtype, but got attn_mask.dtype:"
            f" {scalar_type(attn_mask.dtype, True)} and  query.dtype: {scalar_type(q.dtype, True)}; convert attn_mask"
        ),
    )
    check(attn_mask.device == q.device, lambda: f"attn_mask is on {attn_mask.device}, query on {q.device}; move one")


def _check_sizes(operation, q, k, v, enable_gqa):
    def check(condition, message):
        expect(condition, operation, message, RuntimeError)

    def differ(what, of_q, of_k, of_v):
        of = what.split()[0]
        return (
            f"Expected query, key, and value to have the same {what}, but got query.{of}: {of_q} key.{of}: {of_k} and"
            f" value.{of}: {of_v} instead"
        )

    def check_like_query(name, x):
        check(
            x.dtype == q.dtype,
            lambda: (
                f"{differ('dtype', *[scalar_type(t.dtype, True) for t in (q, k, v)])}: convert {name}, or use"
                " torch.autocast"
            ),
        )
        check(x.device == q.device, lambda: f"{differ('device type', q.device, k.device, v.device)}: move {name}")

    check_like_query("key", k)
    check_like_query("value", v)
    check(
        min(q.dim(), k.dim(), v.dim()) >= 2,
        lambda: (
            "Expected query, key, and value to all be  at least 2 dimensional, but got query.dim:"
            f" {q.dim()} key.dim: {k.dim()} and value.dim: {v.dim()}: expected [..., L, E]"
        ),
    )
    check(
        q.shape[-1] == k.shape[-1],
        lambda: f"key has head_dim {k.shape[-1]}, expected {q.shape[-1]} to match query {tuple(q.shape)}",
    )
    check(
        k.shape[-2] == v.shape[-2],
        lambda: f"value has {v.shape[-2]} keys, expected {k.shape[-2]} to match key {tuple(k.shape)}",
    )
    if enable_gqa:
        expect(
            min(q.dim(), k.dim(), v.dim()) >= 3, operation,
            lambda: f"query, key, value have {q.dim()}, {k.dim()}, {v.dim()} dimensions, expected at least 3 with"
            " enable_gqa: [..., heads, L, E]",
            IndexError,
        )  # fmt: skip
        heads = q.shape[-3]
        check(
            k.shape[-3] > 0 and v.shape[-3] > 0 and heads % k.shape[-3] == 0 and heads % v.shape[-3] == 0,
            lambda: (
                "Number of heads in key and value must divide the number of heads in query: key has"
                f" {k.shape[-3]} and value {v.shape[-3]} heads, query {heads}"
            ),
        )


def _leading(operation, q, k, v, enable_gqa):
    shapes = [x.shape[:-2] for x in (q, k, v)]
    if shapes[0] == shapes[1] == shapes[2]:
        return shapes[0]  # torch.broadcast_shapes takes 30 us to say so
    if enable_gqa:
        shapes = [shapes[0], *((*shape[:-1], 1) for shape in shapes[1:])]
    try:
        return torch.broadcast_shapes(*shapes)
    except RuntimeError:
        pairs = [(shapes[0], shapes[1]), (shapes[0], shapes[2]), (shapes[1], shapes[2])]
        message = next(filter(None, (size_mismatch(*pair, default="") for pair in pairs)))
        message += f": query {tuple(q.shape)}, key {tuple(k.shape)}, value {tuple(v.shape)} do not broadcast"
        if not enable_gqa:
            message += "; enable_gqa=True shares key heads between query heads"
        raise RuntimeError(f"pyflash.{operation}: {message}") from None


def _four(x, leading, heads):
    """[..., rows, cols] -> [B, heads, rows, cols], a view where strides allow."""
    if x.dim() == 4 and len(leading) == 2 and x.shape[0] == leading[0] and x.shape[1] == heads:
        return x
    x = x.expand(*leading[:-1], heads, *x.shape[-2:])
    return x[None] if len(leading) == 1 else x if len(leading) == 2 else x.flatten(0, -4)


def _mask_four(operation, attn_mask, leading, rows, keys, dtype):
    """[1 or B, 1 or H, 1 or L, 1 or S]; dimensions that were broadcast stay 1."""
    full = (*leading, rows, keys)
    shape = (1,) * (len(full) - attn_mask.dim()) + tuple(attn_mask.shape)
    expect(
        len(shape) == len(full) and all(a == b or a == 1 for a, b in zip(shape, full)),
        operation,
        lambda: (
            f"{size_mismatch(full, attn_mask.shape)}: attn_mask has shape {tuple(attn_mask.shape)}, expected one that"
            f" broadcasts to {tuple(full)}"
        ),
        RuntimeError,
    )
    attn_mask = attn_mask.reshape(shape)
    if dtype == torch.float64 and attn_mask.is_floating_point():
        attn_mask = attn_mask.to(dtype)
    if attn_mask.requires_grad and any(a > 1 and stride == 0 for a, stride in zip(shape, attn_mask.stride())):
        attn_mask = attn_mask.contiguous()  # each element has a gradient of its own: not what we broadcast ourselves
    if len(leading) == 1:
        return attn_mask[None]
    if len(leading) == 2:
        return attn_mask
    if all(size == 1 for size in shape[:-3]):
        return attn_mask.reshape(1, *shape[-3:])
    return attn_mask.expand(*leading[:-1], *shape[-3:]).flatten(0, -4)


def _kv_heads(k, v, leading, enable_gqa):
    """Heads that k and v are given to the kernel with: as few as both have."""
    heads = leading[-1]
    of_k = k.shape[-3] if k.dim() > 2 else 1
    of_v = v.shape[-3] if v.dim() > 2 else 1
    if of_k == of_v and (enable_gqa or of_k in (1, heads)):
        return of_k, of_k
    if enable_gqa:
        return of_k, of_v
    return heads, heads


def _plain_mask(attn_mask):
    if attn_mask is None:
        return True
    if attn_mask.is_floating_point():
        return is_plain(attn_mask)
    return type(attn_mask) in (torch.Tensor, torch.nn.Parameter) or torch.compiler.is_compiling()


def _needs_gradient(*tensors):
    return torch.is_grad_enabled() and any([t.requires_grad for t in tensors])


def _size_of(kind):
    def size_of(training, query, key, value, *_):
        if min(query.dim(), key.dim(), value.dim()) < 2 or key.shape[-2] != value.shape[-2]:
            return None  # torch's kernel reads behind the last value
        queries, dim = query.shape[-2:]
        sizes = math.prod(query.shape[:-2]), queries, key.shape[-2], dim + value.shape[-1]
        return auto.Size(kind, *sizes, training)

    return size_of


def _key_of(query, key, value):
    return query.shape, key.shape, value.shape, query.dtype, query.is_cpu


_REFUSED = {kind: Refused(OPERATION, _size_of(kind), _key_of) for kind in auto.FUSED}  # without dropout


# ---- public ---------------------------------------------------------------------------------------------------------
def scaled_dot_product_attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False
):
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
    if not dropout_p and (
        attn_mask is None or not (is_causal or attn_mask.requires_grad or attn_mask.is_cpu is not query.is_cpu)
    ):
        refused = _REFUSED["mask" if attn_mask is not None else "causal" if is_causal else "plain"]
        if not tracing_derivatives((query, key, value)) and refused.holds(query, key, value):
            try:
                return F.scaled_dot_product_attention(
                    query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
                )
            except (RuntimeError, IndexError):
                pass  # said below in our words
    return attention(
        query, key, value, attn_mask, dropout_p=dropout_p, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa,
        _operation="scaled_dot_product_attention",
    )  # fmt: skip


def attention(
    q, k, v, attn_mask=None, *, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False, causal_align="top_left",
    window_size=(-1, -1), alibi_slopes=None, softcap=0.0, return_lse=False, seed=None, _operation="attention",
):  # fmt: skip
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
    expect_tensors(
        _operation, ("attn_mask", "alibi_slopes"), q=q, k=k, v=v, attn_mask=attn_mask, alibi_slopes=alibi_slopes
    )
    q, k, v, attn_mask = cast_by_autocast((q, k, v, attn_mask))
    leading = _check(_operation, q, k, v, attn_mask, dropout_p, enable_gqa)
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
        scale = 1 / math.sqrt(head_dim) if head_dim else 1.0
    scalars = (
        float(dropout_p), float(scale), float(softcap), max(window_left, -1), max(window_right, -1), diagonal
    )  # fmt: skip
    mask = None if attn_mask is None else _mask_four(_operation, attn_mask, leading, rows, keys, q.dtype)
    of_k, of_v = _kv_heads(k, v, leading, enable_gqa)
    if alibi_slopes is not None:
        expect(
            alibi_slopes.shape in ((leading[-1],), leading), _operation,
            lambda: f"alibi_slopes has shape {tuple(alibi_slopes.shape)}, expected ({leading[-1]},) or {tuple(leading)}",
        )  # fmt: skip
        expect(
            alibi_slopes.device == q.device, _operation,
            lambda: f"alibi_slopes is on {alibi_slopes.device}, q on {q.device}; move one", RuntimeError,
        )  # fmt: skip

    refused = ""
    if not (is_plain(q) and is_plain(k) and is_plain(v) and _plain_mask(attn_mask)):
        refused = "only strided floating-point tensors are served"
    elif of_k != of_v:
        refused = "key and value have different numbers of heads"
    elif alibi_slopes is not None and alibi_slopes.requires_grad:
        refused = "alibi_slopes that need a gradient"
    elif max(head_dim, value_dim) > 256 and (not q.is_cpu or backends._state.wish == "triton"):
        refused = f"head_dim is {max(head_dim, value_dim)}; triton supports up to 256"
    others = (k, v) if attn_mask is None else (k, v, attn_mask)
    is_extended = (
        return_lse or softcap or alibi_slopes is not None or tuple(window_size) != (-1, -1) or seed is not None
    )
    means_both = is_causal and (attn_mask is not None or diagonal)
    if is_extended or means_both or (attn_mask is not None and _needs_gradient(attn_mask)):
        kind = "extended"
    else:
        kind = "dropout" if dropout_p > 0 else "mask" if attn_mask is not None else "causal" if is_causal else "plain"
    size = auto.Size(kind, math.prod(leading), rows, keys, head_dim + value_dim, _needs_gradient(q, *others))
    backend = choose(OPERATION, q, others, size=size, refused=refused)

    if backend is None:
        if not (is_extended or means_both or tracing_derivatives((q, *others))):
            return F.scaled_dot_product_attention(
                q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
    if seed is None and dropout_p > 0:
        seed = draw_seed(q)
    if dropout_p == 0:
        seed = None
    q4, k4, v4 = _four(q, leading, leading[-1]), _four(k, leading, of_k), _four(v, leading, of_v)
    if alibi_slopes is not None and alibi_slopes.dim() > 2:
        alibi_slopes = alibi_slopes.flatten(0, -2)
    if backend is None:
        if of_k != of_v:
            k4, v4 = (x.repeat_interleave(leading[-1] // x.shape[1], 1) for x in (k4, v4))
        out, lse = reference.attention_fwd(q4, k4, v4, mask, alibi_slopes, seed, *scalars)
    else:
        out, lse = apply(_Attention, q4, k4, v4, mask, alibi_slopes, seed, scalars, backend)
        if reference.has_low_part(mask):
            lse = lse[0]
    if len(leading) != 2:
        batch_shape = leading if max(q.dim(), k.dim(), v.dim()) > 2 else ()
        out, lse = out.reshape(*batch_shape, rows, value_dim), lse.reshape(*batch_shape, rows)
    return (out, lse) if return_lse else out
