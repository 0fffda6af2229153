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
from pyflash.ops.core.checks import blocks_in_use, cache_lengths, expect, expect_tensors, readable
from pyflash.ops.core.choice import are_usual, choose, tracing_derivatives
from pyflash.ops.core.dtypes import acc_dtype, cast_by_autocast
from pyflash.ops.core.registry import Op

OPERATION = Operation("attention_decode", dtypes=DTYPES, second_derivative="none, nor a first one")


def _outputs(q, k_cache, v_cache, *_):
    return q.new_empty(*q.shape[:3], v_cache.shape[3]), q.new_empty(q.shape[:3], dtype=acc_dtype(q.dtype))


def max_len(k_cache: Tensor, block_table: Tensor | None) -> int:
    """How many keys each cache has room for."""
    return k_cache.shape[2] if block_table is None else block_table.shape[1] * k_cache.shape[2]


def gathered(cache: Tensor, blocks: list[int], length: int) -> Tensor:
    """[1, kv_heads, length, ...]: a copy of the first keys or values that lie in these blocks of a pool."""
    index = torch.tensor(blocks, dtype=torch.int64, device=cache.device)
    return cache.index_select(0, index).transpose(0, 1).flatten(1, 2)[None, :, :length]


def each_cache(k_cache: Tensor, v_cache: Tensor, cache_seqlens: Tensor, block_table: Tensor | None) -> Any:
    """(keys, values) in use of one cache after the other, [1, kv_heads, length, ...]: views, of a paged pool copies. Reads
    lengths and table, on whatever device they are."""
    lengths = cache_lengths("attention_decode", cache_seqlens, max_len(k_cache, block_table))
    if block_table is None:
        for b, length in enumerate(lengths):
            yield k_cache[b : b + 1, :, :length], v_cache[b : b + 1, :, :length]
        return
    num_blocks, _, block_size, _ = k_cache.shape
    blocks = blocks_in_use("attention_decode", block_table, lengths, block_size, num_blocks)
    for own, length in zip(blocks, lengths):
        yield gathered(k_cache, own, length), gathered(v_cache, own, length)


def reference_decode(q, k_cache, v_cache, cache_seqlens, block_table, alibi_slopes, *scalars):
    """`attention`'s reference, cache by cache; reads the lengths, on whatever device they are."""
    results = [_outputs(q[:0], k_cache, v_cache)]
    for b, (k, v) in enumerate(each_cache(k_cache, v_cache, cache_seqlens, block_table)):
        slopes = alibi_slopes if alibi_slopes is None or alibi_slopes.dim() == 1 else alibi_slopes[b]
        one = q[b : b + 1], k, v
        options = Options.from_caches(*scalars)._replace(diagonal=k.shape[2] - q.shape[2])
        results.append(reference.attention_fwd(*one, None, slopes, None, options))
    outs, lses = zip(*results)
    return torch.cat(outs), torch.cat(lses)


_decode = Op(
    "attention_decode(Tensor q, Tensor k_cache, Tensor v_cache, Tensor cache_seqlens, Tensor? block_table, "
    "Tensor? alibi_slopes, " + OF_CACHES + ", str backend) -> (Tensor out, Tensor lse)",
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
    def forward(q, k_cache, v_cache, cache_seqlens, block_table, alibi_slopes, scalars, backend):
        return _decode(q, k_cache, v_cache, cache_seqlens, block_table, alibi_slopes, *scalars, backend)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        pass

    @staticmethod
    def backward(ctx, *grads):
        raise NotImplementedError(
            "pyflash.attention_decode: it has no gradient; use attention, or attention_varlen for caches of several lengths"
        )


def _checked(
    name, q, k_cache, v_cache, cache_seqlens, block_table, alibi_slopes, is_causal, scale, window_size, softcap
):
    """(q, k_cache, v_cache) as they are computed with, and the operator's scalars."""
    caches = {"k_cache": k_cache, "v_cache": v_cache, "cache_seqlens": cache_seqlens}
    optional = {"block_table": block_table, "alibi_slopes": alibi_slopes}
    expect_tensors(name, tuple(optional), q=q, **caches, **optional)
    q, k_cache, v_cache = cast_by_autocast((q, k_cache, v_cache))
    expect(
        q.dim() == k_cache.dim() == v_cache.dim() == 4, name,
        lambda: f"q, k_cache, v_cache have {q.dim()}, {k_cache.dim()}, {v_cache.dim()} dimensions, expected 4: "
        "[batch, heads, tokens, head_dim]",
    )  # fmt: skip
    batch, heads, _, head_dim = q.shape
    check_integers(name, "cache_seqlens", cache_seqlens, q)
    if block_table is None:
        expect(
            k_cache.shape[0] == cache_seqlens.shape[0] == batch, name,
            lambda: f"k_cache has a batch of {k_cache.shape[0]} and cache_seqlens {cache_seqlens.shape[0]} elements, "
            f"expected q's {batch}",
        )  # fmt: skip
    else:
        check_integers(name, "block_table", block_table, q, dimensions=2)
        expect(
            block_table.shape[0] == cache_seqlens.shape[0] == batch, name,
            lambda: f"block_table has {block_table.shape[0]} rows and cache_seqlens {cache_seqlens.shape[0]} elements, "
            f"expected q's {batch}",
        )  # fmt: skip
        expect(
            max_len(k_cache, block_table) < 2**31, name,
            lambda: f"block_table has {block_table.shape[1]} blocks of {k_cache.shape[2]} keys, expected fewer than 2^31 keys",
        )  # fmt: skip
    check_alike(
        name, q, k_cache, v_cache, ("q", "k_cache", "v_cache"), ((heads,), (batch, heads)), alibi_slopes, softcap
    )
    if scale is None:
        scale = default_scale(head_dim)
    window_left, window_right = window(name, window_size, is_causal)
    options = Options(
        dropout_p=0.0, scale=float(scale), softcap=float(softcap), window_left=window_left, window_right=window_right,
        diagonal=None,
    )  # fmt: skip
    return (q, k_cache, v_cache), options.of_caches()


_CHECKED: dict[tuple, tuple] = {}  # what the checks of a usual call depend on -> the scalars that were made of it
_MOST_CHECKED = 4096


_NUMBERS = frozenset((bool, int, float, type(None)))


def _checked_by(tensors, is_causal, scale, window_size, softcap) -> tuple | None:
    """What the checks of these tensors on the CPU depend on, where they have nothing unusual. A loop that writes text asks the
    same for each token and layer: Zen 4, one thread, 6 heads of 32, 64 keys: 32 us a call, 45 with its checks."""
    if torch.compiler.is_compiling() or not are_usual(*tensors) or type(window_size) is not tuple:
        return None
    options = is_causal, scale, softcap, *window_size
    if not _NUMBERS.issuperset(map(type, options)) or any(t is None for t in tensors):
        return None
    return *(t.shape for t in tensors), *(t.dtype for t in tensors), *options


def attention_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    *,
    block_table: Tensor | None = None,
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
            What lies after a cache's length is not read. With a block_table they are pools of blocks that all caches
            share, [num_blocks, kv_heads, block_size, head_dim or Ev], of any strides: pools with the heads inside the
            tokens, [num_blocks, block_size, kv_heads, head_dim], are passed as `pool.transpose(1, 2)`.
        cache_seqlens: int32 or int64 [batch], keys in use of each cache. Checked on the CPU; on another device never read
            by the host (the kernels clamp them to max_len; with PYFLASH_CHECK=1 they are checked) but for the `torch`
            backend, which must.
        block_table: int32 or int64 [batch, max_blocks]: key t of a cache lies in block block_table[b, t // block_size] of
            the pools, at t % block_size, and max_len is max_blocks * block_size. Entries behind those of a cache's keys
            are not read; those in use are checked, or clamped, as lengths are. `triton` and `cuda` read the pools where
            they lie; `cpu` and `torch` copy a cache's blocks first.
        is_causal: each query sees the keys up to its own; the default. With few = 1 it changes nothing.
        scale, softcap: as in `attention`.
        window_size: keys visible to the left and right of a query's own, in tokens; -1 is unlimited.
        alibi_slopes: [heads] or [batch, heads].
        return_lse: also return lse.
    Returns:
        out [batch, heads, few, Ev]; with `return_lse` also lse [batch, heads, few], as `attention` gives it. A query
        that sees no key (an empty cache) has out 0, lse -inf.
    Raises:
        ValueError: shapes disagree, a length is outside [0, max_len] or a block outside the pool. RuntimeError: dtypes or devices differ.
        NotImplementedError: in the backward; `attention` has one.
    Numerics: as `attention`. On a GPU the keys are split among programs, a split that depends on max_len, not on lengths.
    """
    name = "attention_decode"
    tensors, options = (q, k_cache, v_cache, cache_seqlens), (is_causal, scale, window_size, softcap)
    key = _checked_by(tensors, *options) if block_table is None and alibi_slopes is None else None
    scalars, refused = _CHECKED.get(key) if key is not None else None, ""
    if scalars is None:
        (q, k_cache, v_cache), scalars = _checked(name, *tensors, block_table, alibi_slopes, *options)
        refused = unserved(q, k_cache, v_cache, alibi_slopes)
        if key is not None and not refused:
            if len(_CHECKED) >= _MOST_CHECKED:
                _CHECKED.clear()
            _CHECKED[key] = scalars
    backend = choose(OPERATION, q, (k_cache, v_cache), refused=refused)
    # On the CPU what computes reads the lengths, and checks them: it need not be done twice. Triton's kernels clamp them.
    if (backend not in (None, "auto", "cpu") or not q.is_cpu or block_table is not None) and readable(cache_seqlens):
        lengths = cache_lengths(name, cache_seqlens, max_len(k_cache, block_table))
        if block_table is not None and readable(block_table):
            blocks_in_use(name, block_table, lengths, k_cache.shape[2], k_cache.shape[0])
    if block_table is not None:
        block_table = block_table.contiguous()
    inputs = q, k_cache, v_cache, cache_seqlens.contiguous(), block_table, alibi_slopes
    if backend is None and (refused or tracing_derivatives((q, k_cache, v_cache))):
        out, lse = reference_decode(*inputs, *scalars)
    else:
        out, lse = apply(_Decode, *inputs, scalars, backend or "torch")
    return (out, lse) if return_lse else out
