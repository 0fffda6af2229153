"""Max pooling over windows of one, two or three dimensions, and its gradient by indices.

An index is the place of an element in its plane, as torch counts it. A forward that needs none writes none; one that
records a gradient and is not asked for indices keeps them in 32 bits, half of what torch keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyflash.ops.core.autograd import Function, apply
from pyflash.ops.core.dtypes import acc_dtype
from pyflash.ops.core.registry import Op
from pyflash.ops.pool.windows import (
    Pooling,
    Size,
    Windows,
    adaptive_windows,
    fixed_windows,
    is_ceil_mode,
    is_channels_last,
    laid_out,
    memory_format,
    new_empty,
)

_FIXED = {n: Pooling(f"max_pool{n}d", n) for n in (1, 2, 3)}

_ADAPTIVE = {n: Pooling(f"adaptive_max_pool{n}d", n) for n in (1, 2, 3)}

_INDEX_DTYPES = {0: torch.int32, 32: torch.int32, 64: torch.int64}


def _reference_fwd(x, size, kernel, stride, padding, dilation, index_bits):
    n, windows = len(size), Windows(size, kernel, stride, padding, dilation)
    if windows.is_adaptive:
        y, indices = getattr(F, f"adaptive_max_pool{n}d")(x, size, return_indices=True)
    else:
        pool = getattr(F, f"max_pool{n}d")
        y, indices = pool(x, *windows[1:], is_ceil_mode(x.shape, windows), return_indices=True)
    return y, indices.to(_INDEX_DTYPES[index_bits]) if index_bits else x.new_empty(0, dtype=torch.int32)


def _reference_bwd(dy, indices, input_size, channels_last, size, kernel, stride, padding, dilation):
    n = len(size)
    dx = dy.new_zeros(input_size, dtype=acc_dtype(dy.dtype)).flatten(-n)
    dx = dx.scatter_add(-1, indices.flatten(-n).long(), dy.flatten(-n).to(dx.dtype)).view(input_size).to(dy.dtype)
    return (dx.contiguous(memory_format=memory_format(channels_last, n)),)


def _outputs_fwd(x, size, kernel, stride, padding, dilation, index_bits):
    n = len(size)
    shape, channels_last = (*x.shape[:-n], *size), is_channels_last(x, n)
    y = new_empty(x, shape, channels_last)
    dtype = _INDEX_DTYPES[index_bits]
    return y, new_empty(x, shape, channels_last, dtype) if index_bits else x.new_empty(0, dtype=dtype)


def _outputs_bwd(dy, indices, input_size, channels_last, *_):
    return (new_empty(dy, input_size, channels_last),)


# x [.., *spatial], contiguous or channels_last, and so y; kernels of 0 are adaptive; indices are empty without index_bits.
_fwd = Op(
    "max_pool_fwd(Tensor x, SymInt[] size, SymInt[] kernel, SymInt[] stride, SymInt[] padding, SymInt[] dilation,"
    " int index_bits, str backend) -> (Tensor y, Tensor indices)",
    outputs=_outputs_fwd,
    reference=_reference_fwd,
    differentiable=True,
    triton="pyflash.kernels.pool.max_pool:max_pool_fwd",
    cpu="pyflash.ops.pool._cpu:max_pool_fwd",
)
# indices lie in memory as dx does, channels_last or not; dy in any order.
_bwd = Op(
    "max_pool_bwd(Tensor dy, Tensor indices, SymInt[] input_size, bool channels_last, SymInt[] size, SymInt[] kernel,"
    " SymInt[] stride, SymInt[] padding, SymInt[] dilation, str backend) -> Tensor",
    outputs=_outputs_bwd,
    reference=_reference_bwd,
    triton="pyflash.kernels.pool.max_pool:max_pool_bwd",
    cpu="pyflash.ops.pool._cpu:max_pool_bwd",
)


Pooled = Any  # a tensor, or a pair of it and the indices where return_indices says so


class _MaxPool(Function):
    @staticmethod
    def forward(x, size, kernel, stride, padding, dilation, index_bits, backend):
        return _fwd(x, size, kernel, stride, padding, dilation, index_bits, backend)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        x, *windows, _, ctx.backend = inputs
        ctx.windows, ctx.input_size = Windows(*windows), tuple(x.shape)
        ctx.channels_last = is_channels_last(x, len(ctx.windows.size))
        ctx.save_for_backward(outputs[1])
        ctx.mark_non_differentiable(outputs[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, dy, _indices):
        if dy is None:
            return (None,) * 8
        (indices,) = ctx.saved_tensors
        dx = apply(_MaxPoolBwd, dy, indices, ctx.input_size, ctx.channels_last, *ctx.windows, ctx.backend)
        return dx, *(None,) * 7


class _MaxPoolBwd(Function):
    """Linear in dy; its own derivative picks the elements that were largest."""

    @staticmethod
    def forward(dy, indices, input_size, channels_last, size, kernel, stride, padding, dilation, backend):
        return _bwd(dy, indices, input_size, channels_last, size, kernel, stride, padding, dilation, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])
        ctx.n = len(inputs[4])

    @staticmethod
    def backward(ctx, ddx):
        (indices,) = ctx.saved_tensors
        picked = ddx.flatten(-ctx.n).gather(-1, indices.flatten(-ctx.n).long())
        return picked.view(indices.shape), *(None,) * 9


def pooled(x: Tensor, windows: Windows, return_indices: bool, backend: str):
    """(y, indices) over windows that were checked."""
    bits = 64 if return_indices else 32 if torch.is_grad_enabled() and x.requires_grad else 0
    return apply(_MaxPool, laid_out(x, len(windows.size)), *windows, bits, backend)


def _max_pool(n, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices):
    pooling, options = _FIXED[n], (kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    if pooling.is_torchs(input):
        return getattr(F, pooling.name)(input, *options)
    windows = fixed_windows(input.shape, n, kernel_size, stride, padding, dilation, ceil_mode)
    backend, x = pooling.choose(input, windows, *options)
    if backend is None:
        return x
    y, indices = pooled(x, windows, return_indices, backend)
    return (y, indices) if return_indices else y


def max_pool1d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Pooled:
    """As `max_pool2d`, of [N, C, L]."""
    return _max_pool(1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool1d_with_indices(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Tensor, Tensor]:
    """`max_pool1d` with return_indices=True, whatever is given for it."""
    return _max_pool(1, input, kernel_size, stride, padding, dilation, ceil_mode, True)


def max_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Pooled:
    """The largest element of each window, as torch.nn.functional.max_pool2d.

    Args:
        input: [N, C, H, W] or [C, H, W], float32, float64, bfloat16 or float16, contiguous or channels_last; another layout
            is copied.
        kernel_size, stride, padding, dilation: a number, or one for each dimension; stride None: the kernel's size.
            Padding is never the largest.
        ceil_mode: a last window may stick out over the edge.
        return_indices: also return where in its plane each element was, int64: the first of equal ones, or the last NaN.
    Returns:
        [N, C, H_out, W_out], or a pair of it and the indices, laid out in memory as the input.
    Raises:
        RuntimeError, TypeError: torch's.
    Numerics: exact; the gradient of overlapping windows is summed in float32 (float64 for float64), deterministically.
    """
    return _max_pool(2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool2d_with_indices(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Tensor, Tensor]:
    """`max_pool2d` with return_indices=True, whatever is given for it."""
    return _max_pool(2, input, kernel_size, stride, padding, dilation, ceil_mode, True)


def max_pool3d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Pooled:
    """As `max_pool2d`, of [N, C, D, H, W]."""
    return _max_pool(3, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def max_pool3d_with_indices(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[Tensor, Tensor]:
    """`max_pool3d` with return_indices=True, whatever is given for it."""
    return _max_pool(3, input, kernel_size, stride, padding, dilation, ceil_mode, True)


def _adaptive_max_pool(n, input, output_size, return_indices):
    pooling = _ADAPTIVE[n]
    if pooling.is_torchs(input):
        return getattr(F, pooling.name)(input, output_size, return_indices)
    windows = adaptive_windows(input.shape, n, output_size)
    backend, x = pooling.choose(input, windows, output_size, return_indices)
    if backend is None:
        return x
    y, indices = pooled(x, windows, return_indices, backend)
    return (y, indices) if return_indices else y


def adaptive_max_pool1d(input: Tensor, output_size: int | Sequence[int], return_indices: bool = False) -> Pooled:
    """As `adaptive_max_pool2d`, of [N, C, L]."""
    return _adaptive_max_pool(1, input, output_size, return_indices)


def adaptive_max_pool1d_with_indices(
    input: Tensor, output_size: int | Sequence[int], return_indices: bool = False
) -> tuple[Tensor, Tensor]:
    """`adaptive_max_pool1d` with return_indices=True, whatever is given for it."""
    return _adaptive_max_pool(1, input, output_size, True)


def adaptive_max_pool2d(
    input: Tensor, output_size: int | Sequence[int | None] | None, return_indices: bool = False
) -> Pooled:
    """The largest elements of output_size windows that cover the input, as torch.nn.functional.adaptive_max_pool2d.

    Window o of a dimension reaches from floor(o in / out) to ceil((o + 1) in / out).

    Args:
        input, return_indices: as those of `max_pool2d`.
        output_size: a number, or one for each dimension; None: the input's.
    """
    return _adaptive_max_pool(2, input, output_size, return_indices)


def adaptive_max_pool2d_with_indices(
    input: Tensor, output_size: int | Sequence[int | None] | None, return_indices: bool = False
) -> tuple[Tensor, Tensor]:
    """`adaptive_max_pool2d` with return_indices=True, whatever is given for it."""
    return _adaptive_max_pool(2, input, output_size, True)


def adaptive_max_pool3d(
    input: Tensor, output_size: int | Sequence[int | None] | None, return_indices: bool = False
) -> Pooled:
    """As `adaptive_max_pool2d`, of [N, C, D, H, W]."""
    return _adaptive_max_pool(3, input, output_size, return_indices)


def adaptive_max_pool3d_with_indices(
    input: Tensor, output_size: int | Sequence[int | None] | None, return_indices: bool = False
) -> tuple[Tensor, Tensor]:
    """`adaptive_max_pool3d` with return_indices=True, whatever is given for it."""
    return _adaptive_max_pool(3, input, output_size, True)
