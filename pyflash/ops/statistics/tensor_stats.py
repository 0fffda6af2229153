"""Sums and counts over the elements of a tensor, for each of its groups, in one pass: what pyflash.diagnostics reads of
activations and gradients."""

from __future__ import annotations

from math import inf, prod

import torch

from pyflash.ops.core.backends import _state, why_not
from pyflash.ops.core.checks import device_type, is_dense, is_plain
from pyflash.ops.core.dtypes import FLOATS, acc_dtype
from pyflash.ops.core.registry import Op

# What is kept of a group. Of the finite elements their sum and that of their squares; how many are 0, <= low or >= high, and
# infinite or NaN.
MOMENTS = ("sum", "squares", "zeros", "outside", "not_finite")


def _reference(x, outer, groups, inner, low, high):
    x = x.as_strided((outer, groups, inner), (groups * inner, inner, 1)).to(acc_dtype(x.dtype))
    finite = x.isfinite()
    wide = torch.where(finite, x, 0).double()
    found = wide, wide.square(), x == 0, (x <= low) | (x >= high), ~finite
    return (torch.stack([part.sum((0, 2), dtype=torch.float64) for part in found], 1),)


# x dense, in memory [outer, groups, inner].
_stats = Op(
    "tensor_stats(Tensor x, int outer, int groups, int inner, float low, float high, str backend) -> Tensor",
    outputs=lambda x, outer, groups, inner, low, high: (x.new_empty((groups, len(MOMENTS)), dtype=torch.float64),),
    reference=_reference,
    triton="pyflash.kernels.statistics.tensor_stats:tensor_stats",
    cpu="pyflash.ops.statistics._cpu:tensor_stats",
)


def _in_memory(x: torch.Tensor, dim: int | None) -> tuple[int, int, int]:
    """x, dense in any order of its dimensions, as [outer, groups, inner]: the order within a group is nobody's concern."""
    if dim is None:
        return 1, 1, x.numel()
    dim %= x.dim()
    stride, size = x.stride(dim), x.shape[dim]
    inner = prod(n for n, s in zip(x.shape, x.stride()) if n > 1 and s < stride) if size > 1 else 1
    return x.numel() // max(size * inner, 1), size, inner


def _backend(x: torch.Tensor) -> str:
    """The one asked for, where it can: who looks on raises nothing."""
    wish = _state.wish
    cannot = wish == "cuda" or (wish in _stats.kernels and why_not(wish, device_type(x)))
    return "auto" if cannot else wish


def tensor_stats(x: torch.Tensor, dim: int | None = None, low: float = -inf, high: float = inf) -> torch.Tensor:
    """Sums and counts over the elements of x, in one pass; without a derivative.

    Args:
        x: of any shape; float32, float64, bfloat16 or float16.
        dim: each index of this dimension is a group of its own; None: all of x is one.
        low, high: what is <= low or >= high is counted as outside.
    Returns:
        [groups, 5], float64: `MOMENTS` of each group.
    Numerics: elements and their squares are added up in float64, on a CPU in the same order whatever the number of threads.
    """
    x = x.detach()
    if not is_plain(x) or x.dtype not in FLOATS:  # a subclass with its own dispatch, say
        shape = (1, 1, x.numel()) if dim is None else (1, x.shape[dim], x.numel() // max(x.shape[dim], 1))
        x = x.reshape(-1) if dim is None else x.movedim(dim, 0).reshape(shape[1:])
        return _reference(x.contiguous(), *shape, low, high)[0]
    if not is_dense(x):
        x = x.contiguous()
    return _stats(x, *_in_memory(x, dim), low, high, _backend(x))
