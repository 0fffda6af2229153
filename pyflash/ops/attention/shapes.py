"""What attention asks of its arguments, and how inputs and masks become four-dimensional."""

from __future__ import annotations

import math

import torch

from pyflash.kernels.attention.options import MAX_HEAD_DIM
from pyflash.ops.core import backends
from pyflash.ops.core.checks import NOT_PLAIN, expect, is_plain, scalar_type, size_mismatch, window_pair


def default_scale(head_dim):
    return 1 / math.sqrt(head_dim) if head_dim else 1.0


def check_floating(operation, name, q):
    if not q.is_floating_point():
        message = f"pyflash.{operation}: {name} is {q.dtype}, expected float32, float64, bfloat16 or float16"
        raise NotImplementedError(message) if q.is_complex() else RuntimeError(message)


def check_inputs(operation, q, k, v, attn_mask, dropout_p, enable_gqa):
    """Raises what torch raises; returns the sizes before [L, E] that q, k and v broadcast to, the last counts heads."""
    if not 0 <= dropout_p <= 1:
        raise RuntimeError(
            f"pyflash.{operation}: dropout probability has to be between 0 and 1, but got {dropout_p} as dropout_p"
        )
    check_floating(operation, "query", q)
    if attn_mask is not None:
        _check_mask(operation, attn_mask, q)
    leading = usual_leading(q, k, v)
    if leading is None:
        _check_sizes(operation, q, k, v, enable_gqa)
        leading = _leading(operation, q, k, v, enable_gqa) or (1,)
    return leading


def usual_leading(q, k, v):
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


def four_dims(x, leading, heads):
    """[..., rows, cols] -> [B, heads, rows, cols], a view where strides allow."""
    if x.dim() == 4 and len(leading) == 2 and x.shape[0] == leading[0] and x.shape[1] == heads:
        return x
    x = x.expand(*leading[:-1], heads, *x.shape[-2:])
    return x[None] if len(leading) == 1 else x if len(leading) == 2 else x.flatten(0, -4)


def mask_four_dims(operation, attn_mask, leading, rows, keys, dtype):
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


def kv_heads(k, v, leading, enable_gqa):
    """Heads that k and v are given to the kernel with: as few as both have."""
    heads = leading[-1]
    of_k = k.shape[-3] if k.dim() > 2 else 1
    of_v = v.shape[-3] if v.dim() > 2 else 1
    if of_k == of_v and (enable_gqa or of_k in (1, heads)):
        return of_k, of_k
    if enable_gqa:
        return of_k, of_v
    return heads, heads


def _is_plain_mask(attn_mask):
    if attn_mask.is_floating_point():
        return is_plain(attn_mask)
    return type(attn_mask) in (torch.Tensor, torch.nn.Parameter) or torch.compiler.is_compiling()


def expand_mask(attn_mask, q, k):
    """[1 or B, 1 or H, 1 or L, 1 or S] -> [B, H, L, S] as a view; a dimension of 1 element counts as repeated."""
    if attn_mask is None:
        return None
    return attn_mask.expand(*q.shape[:3], k.shape[2])


def in_order_of(x, size_last):
    """A new [B, H, L, size_last] that lies in memory as [B, L, H, size_last] when x does."""
    batch, heads, rows, size = x.shape
    if size == size_last and x.is_contiguous():
        return torch.empty_like(x)
    _, of_heads, of_rows, _ = x.stride()
    if of_heads < of_rows and heads > 1:
        return x.new_empty(batch, rows, heads, size_last).transpose(1, 2)
    return x.new_empty(batch, heads, rows, size_last)


FAR = 1 << 29  # a window or diagonal beyond this sees the same keys; sums stay within 31 bits


def within_reach(distance):
    """A side of a window, or a diagonal, as the native kernels take it; negative sides stay negative."""
    return max(-FAR, min(FAR, distance))


def needs_gradient(q, k, v, attn_mask):
    if not torch.is_grad_enabled():
        return False
    return q.requires_grad or k.requires_grad or v.requires_grad or (attn_mask is not None and attn_mask.requires_grad)


def unserved(q, k, v, alibi_slopes=None, attn_mask=None):
    """Why no kernel takes these tensors; empty when one does. v is None where the weights are the result."""
    is_served = is_plain(q) and is_plain(k) and (v is None or is_plain(v))
    if not is_served or (attn_mask is not None and not _is_plain_mask(attn_mask)):
        return NOT_PLAIN
    if alibi_slopes is not None and alibi_slopes.requires_grad:
        return "alibi_slopes that need a gradient"
    width = q.shape[-1] if v is None else max(q.shape[-1], v.shape[-1])
    if width > MAX_HEAD_DIM and (not q.is_cpu or backends._state.wish in ("triton", "cuda")):
        return f"head_dim is {width}; kernels for GPUs support up to {MAX_HEAD_DIM}"
    return ""


# ---- packed sequences and caches ------------------------------------------------------------------------------------
def _check_on_device_of_q(operation, name, x, q):
    expect(x.device == q.device, operation, lambda: f"{name} is on {x.device}, q on {q.device}; move one", RuntimeError)


def _check_like_q(operation, name, x, q):
    expect(
        x.dtype == q.dtype, operation,
        lambda: f"{name} is {x.dtype}, expected {q.dtype} as q; convert one, or use torch.autocast", RuntimeError,
    )  # fmt: skip
    _check_on_device_of_q(operation, name, x, q)


def check_alike(operation, q, k, v, names, slopes_shapes, alibi_slopes, softcap):
    """What every function here asks of its floating-point inputs. Shapes end in head_dim; `names` are q's, k's and v's."""
    check_floating(operation, names[0], q)
    for name, x in zip(names[1:], (k, v)):
        _check_like_q(operation, name, x, q)
    expect(
        q.shape[-1] == k.shape[-1], operation,
        lambda: f"{names[1]} has head_dim {k.shape[-1]}, expected {q.shape[-1]} to match q {tuple(q.shape)}",
    )  # fmt: skip
    expect(
        k.shape[:-1] == v.shape[:-1], operation,
        lambda: f"{names[2]} has shape {tuple(v.shape)}, expected {(*k.shape[:-1], 'Ev')} to match {names[1]}",
    )  # fmt: skip
    expect(
        k.shape[1] > 0 and q.shape[1] % k.shape[1] == 0, operation,
        lambda: f"{names[1]} has {k.shape[1]} heads, expected a divisor of q's {q.shape[1]}",
    )  # fmt: skip
    expect(0 <= softcap < math.inf, operation, lambda: f"softcap is {softcap}, expected 0 (off) or a positive number")
    if alibi_slopes is not None:
        check_slopes(operation, alibi_slopes, slopes_shapes, q)


def check_slopes(operation, alibi_slopes, shapes, q):
    """ALiBi's slopes have one of these shapes, and are where q is."""
    expect(
        tuple(alibi_slopes.shape) in shapes, operation,
        lambda: f"alibi_slopes has shape {tuple(alibi_slopes.shape)}, expected {' or '.join(map(str, shapes))}",
    )  # fmt: skip
    _check_on_device_of_q(operation, "alibi_slopes", alibi_slopes, q)


def check_integers(operation, name, x, q, dimensions=1):
    """Offsets, lengths or blocks: int32 or int64, [n] or [n, m], where q is."""
    expect(
        x.dim() == dimensions, operation,
        lambda: f"{name} has shape {tuple(x.shape)}, expected {'one dimension' if dimensions == 1 else 'two dimensions'}",
    )  # fmt: skip
    expect(
        x.dtype in (torch.int32, torch.int64), operation,
        lambda: f"{name} is {x.dtype}, expected torch.int32 or torch.int64", RuntimeError,
    )  # fmt: skip
    _check_on_device_of_q(operation, name, x, q)


def window(operation, window_size, is_causal):
    """(left, right) for the operators: negative is unlimited."""
    left, right = window_pair(operation, window_size)
    return max(left, -1), 0 if is_causal else max(right, -1)
