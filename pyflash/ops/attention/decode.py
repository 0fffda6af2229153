"""Attention of a few new queries over caches of keys and values that are filled to different lengths."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyflash.kernels.attention.options import OF_CACHES, Options
from pyflash.ops.attention import flops, reference
from pyflash.ops.attention.shapes import check_alike, check_integers, default_scale, unserved, window
from pyflash.ops.attention.varlen import DTYPES
from pyflash.ops.core.autograd import Function, apply
from pyflash.ops.core.backends import Operation
from pyflash.ops.core.checks import cache_lengths, expect, expect_tensors, readable
from pyflash.ops.core.choice import choose, tracing_derivatives
from pyflash.ops.core.dtypes import acc_dtype, cast_by_autocast
from pyflash.ops.core.registry import Op

OPERATION = Operation("attention_decode", dtypes=DTYPES, second_derivative="none, nor a first one")


def _outputs(q, k_cache, v_cache, *_):
    return q.new_empty(*q.shape[:3], v_cache.shape[3]), q.new_empty(q.shape[:3], dtype=acc_dtype(q.dtype))


def reference_decode(q, k_cache, v_cache, cache_seqlens, alibi_slopes, *scalars):
    """`attention`'s reference, cache by cache; reads the lengths, on whatever device they are."""
    results = [_outputs(q[:0], k_cache, v_cache)]
    for b, length in enumerate(cache_lengths("attention_decode", cache_seqlens, k_cache.shape[2])):
        slopes = alibi_slopes if alibi_slopes is None or alibi_slopes.dim() == 1 else alibi_slopes[b]
        one = (x[b : b + 1] for x in (q, k_cache[:, :, :length], v_cache[:, :, :length]))
        options = Options.from_caches(*scalars)._replace(diagonal=length - q.shape[2])
        results.append(reference.attention_fwd(*one, None, slopes, None, options))
    outs, lses = zip(*results)
    return torch.cat(outs), torch.cat(lses)


_decode = Op(
    "attention_decode(Tensor q, Tensor k_cache, Tensor v_cache, Tensor cache_seqlens, Tensor? alibi_slopes, "
    + OF_CACHES
    + ", str backend) -> (Tensor out, Tensor lse)",
    outputs=_outputs,
    reference=reference_decode,
    flops=flops.decode,
    triton="pyflash.kernels.attention.decode:attention_decode",
    cuda="pyflash.ops.attention._cuda:attention_decode",
    cpu="pyflash.ops.attention._cpu_packed:attention_decode",
)


class _Decode(Function):
    """Says so when somebody asks for the gradient that is not there."""

    @staticmethod
    def forward(q, k_cache, v_cache, cache_seqlens, alibi_slopes, scalars, backend):
        return _decode(q, k_cache, v_cache, cache_seqlens, alibi_slopes, *scalars, backend)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        pass

    @staticmethod
    def backward(ctx, *grads):
        raise NotImplementedError(
            "pyflash.attention_decode: it has no gradient; use attention, or attention_varlen for caches of several lengths"
        )


def attention_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    *,
    is_causal: bool = True,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    alibi_slopes: Tensor | None = None,
    softcap: float = 0.0,
    return_lse: bool = False,
) -> Any:  # fmt: skip
    """`attention` of the last few tokens of each sequence over its cache; no gradient.

    Args:
        q: [batch, heads, few, head_dim], any strides; the last query stands at the last key of its cache, whose keys
            include those of these queries. float32, float64, bfloat16 or float16.
        k_cache, v_cache: [batch, kv_heads, max_len, head_dim or Ev]; kv_heads divides heads, whose groups share them.
            What lies after a cache's length is not read.
        cache_seqlens: int32 or int64 [batch], keys in use of each cache. Checked on the CPU; on another device never read
            by the host (the kernels clamp them to max_len; with PYFLASH_CHECK=1 they are checked) but for the `torch`
            backend, which must.
        is_causal: each query sees the keys up to its own; the default. With few = 1 it changes nothing.
        scale, softcap: as in `attention`.
        window_size: keys visible to the left and right of a query's own, in tokens; -1 is unlimited.
        alibi_slopes: [heads] or [batch, heads].
        return_lse: also return lse.
    Returns:
        out [batch, heads, few, Ev]; with `return_lse` also lse [batch, heads, few], as `attention` gives it. A query
        that sees no key (an empty cache) has out 0, lse -inf.
    Raises:
        ValueError: shapes disagree, or a length is outside [0, max_len]. RuntimeError: dtypes or devices differ.
        NotImplementedError: in the backward; `attention` has one.
    Numerics: as `attention`. On a GPU the keys are split among programs, a split that depends on max_len, not on lengths.
    """
    name = "attention_decode"
    caches = {"k_cache": k_cache, "v_cache": v_cache, "cache_seqlens": cache_seqlens}
    expect_tensors(name, ("alibi_slopes",), q=q, **caches, alibi_slopes=alibi_slopes)
    q, k_cache, v_cache = cast_by_autocast((q, k_cache, v_cache))
    expect(
        q.dim() == k_cache.dim() == v_cache.dim() == 4, name,
        lambda: f"q, k_cache, v_cache have {q.dim()}, {k_cache.dim()}, {v_cache.dim()} dimensions, expected 4: "
        "[batch, heads, tokens, head_dim]",
    )  # fmt: skip
    batch, heads, _, head_dim = q.shape
    check_integers(name, "cache_seqlens", cache_seqlens, q)
    expect(
        k_cache.shape[0] == cache_seqlens.shape[0] == batch, name,
        lambda: f"k_cache has a batch of {k_cache.shape[0]} and cache_seqlens {cache_seqlens.shape[0]} elements, expected "
        f"q's {batch}",
    )  # fmt: skip
    check_alike(
        name, q, k_cache, v_cache, ("q", "k_cache", "v_cache"), ((heads,), (batch, heads)), alibi_slopes, softcap
    )
    if readable(cache_seqlens):
        cache_lengths(name, cache_seqlens, k_cache.shape[2])
    if scale is None:
        scale = default_scale(head_dim)
    window_left, window_right = window(name, window_size, is_causal)
    options = Options(
        dropout_p=0.0, scale=float(scale), softcap=float(softcap), window_left=window_left, window_right=window_right,
        diagonal=None,
    )  # fmt: skip
    scalars = options.of_caches()
    refused = unserved(q, k_cache, v_cache, alibi_slopes)
    backend = choose(OPERATION, q, (k_cache, v_cache), refused=refused)
    tensors = q, k_cache, v_cache, cache_seqlens.contiguous(), alibi_slopes
    if backend is None and (refused or tracing_derivatives((q, k_cache, v_cache))):
        out, lse = reference_decode(*tensors, *scalars)
    else:
        out, lse = apply(_Decode, *tensors, scalars, backend or "torch")
    return (out, lse) if return_lse else out
