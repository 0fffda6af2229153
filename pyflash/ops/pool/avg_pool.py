"""Average pooling over windows of one, two or three dimensions. It and its gradient are linear, and each the other's
derivative, to any order."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from pyflash.ops.core.autograd import Function, apply, vjp
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

_FIXED = {n: Pooling(f"avg_pool{n}d", n) for n in (1, 2, 3)}
_ADAPTIVE = {n: Pooling(f"adaptive_avg_pool{n}d", n) for n in (1, 2, 3)}


def _of_torch(x, size, kernel, stride, padding, count_include_pad, divisor):
    """The same in torch's operations, in a type that its kernels have."""
    x, dtype = x.to(acc_dtype(x.dtype)), x.dtype
    n, windows = len(size), Windows(size, kernel, stride, padding, (1,) * len(size))
    if windows.is_adaptive:
        return getattr(F, f"adaptive_avg_pool{n}d")(x, size).to(dtype)
    if n == 1:  # has no divisor
        x, kernel, stride, padding = x[..., None, :], (1, *kernel), (1, *stride), (0, *padding)
    ceil_mode = is_ceil_mode(x.shape, windows)
    function = getattr(F, f"avg_pool{max(n, 2)}d")
    y = function(x, kernel, stride, padding, ceil_mode, count_include_pad, divisor or None)
    return (y[..., 0, :] if n == 1 else y).to(dtype)


def _reference_fwd(x, size, *windows):
    y = _of_torch(x, size, *windows)
    return (y.contiguous(memory_format=memory_format(is_channels_last(x, len(size)), len(size))),)


def _reference_bwd(dy, input_size, channels_last, size, *windows):
    x = dy.new_zeros(input_size).requires_grad_()
    (dx,) = vjp(lambda x: _of_torch(x, size, *windows), (x,), (dy,))
    return (dx.contiguous(memory_format=memory_format(channels_last, len(size))),)


def _outputs_fwd(x, size, *_):
    n = len(size)
    return (new_empty(x, (*x.shape[:-n], *size), is_channels_last(x, n)),)


def _outputs_bwd(dy, input_size, channels_last, *_):
    return (new_empty(dy, input_size, channels_last),)


# As max_pool_fwd and max_pool_bwd (max_pool.py); divisor 0: that of each window.
_fwd = Op(
    "avg_pool_fwd(Tensor x, SymInt[] size, SymInt[] kernel, SymInt[] stride, SymInt[] padding, bool count_include_pad,"
    " int divisor, str backend) -> Tensor",
    outputs=_outputs_fwd,
    reference=_reference_fwd,
    differentiable=True,
    triton="pyflash.kernels.pool.avg_pool:avg_pool_fwd",
    cpu="pyflash.ops.pool._cpu:avg_pool_fwd",
)
_bwd = Op(
    "avg_pool_bwd(Tensor dy, SymInt[] input_size, bool channels_last, SymInt[] size, SymInt[] kernel, SymInt[] stride,"
    " SymInt[] padding, bool count_include_pad, int divisor, str backend) -> Tensor",
    outputs=_outputs_bwd,
    reference=_reference_bwd,
    differentiable=True,
    triton="pyflash.kernels.pool.avg_pool:avg_pool_bwd",
    cpu="pyflash.ops.pool._cpu:avg_pool_bwd",
)


class _AvgPool(Function):
    @staticmethod
    def forward(x, size, kernel, stride, padding, count_include_pad, divisor, backend):
        return _fwd(x, size, kernel, stride, padding, count_include_pad, divisor, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, *ctx.options = inputs
        ctx.input_size, ctx.channels_last = tuple(x.shape), is_channels_last(x, len(inputs[1]))

    @staticmethod
    def backward(ctx, dy):
        return apply(_AvgPoolBwd, dy, ctx.input_size, ctx.channels_last, *ctx.options), *(None,) * 7


class _AvgPoolBwd(Function):
    @staticmethod
    def forward(dy, input_size, channels_last, size, kernel, stride, padding, count_include_pad, divisor, backend):
        return _bwd(dy, input_size, channels_last, size, kernel, stride, padding, count_include_pad, divisor, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, _, ctx.channels_last, *ctx.options = inputs

    @staticmethod
    def backward(ctx, ddx):
        ddx = ddx.contiguous(memory_format=memory_format(ctx.channels_last, len(ctx.options[0])))
        return apply(_AvgPool, ddx, *ctx.options), *(None,) * 9


def _pooled(x, windows: Windows, count_include_pad: bool, divisor: int, backend: str):
    x = laid_out(x, len(windows.size))
    return apply(_AvgPool, x, *windows[:4], count_include_pad, divisor, backend)


def _avg_pool(n, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override=None):
    pooling, options = _FIXED[n], (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    if n == 1:
        options = (kernel_size, () if stride is None else stride, *options[2:-1])
    if pooling.is_torchs(input):
        return getattr(F, pooling.name)(input, *options)
    windows = None
    if type(count_include_pad) is bool and (
        divisor_override is None or (type(divisor_override) is int and divisor_override)
    ):
        windows = fixed_windows(input.shape, n, kernel_size, stride, padding, 1, ceil_mode)
    backend, x = pooling.choose(input, windows, *options)
    if backend is None:
        return x
    return _pooled(x, windows, count_include_pad, divisor_override or 0, backend)


def avg_pool1d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """As `avg_pool2d`, of [N, C, L]."""
    return _avg_pool(1, input, kernel_size, stride, padding, ceil_mode, count_include_pad)


def avg_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window, as torch.nn.functional.avg_pool2d.

    Args:
        input: [N, C, H, W] or [C, H, W], float32, float64, bfloat16 or float16, contiguous or channels_last; another layout
            is copied.
        kernel_size, stride, padding: a number, or one for each dimension; stride None: the kernel's size.
        ceil_mode: a last window may stick out over the edge.
        count_include_pad: padding counts as zeros; otherwise the mean is of what is there.
        divisor_override: divide by this in place of the number of elements.
    Returns:
        [N, C, H_out, W_out], laid out in memory as the input.
    Raises:
        RuntimeError, TypeError: torch's.
    Numerics: sums in float32 (float64 for float64), rounded once; deterministic.
    """
    return _avg_pool(2, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def avg_pool3d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """As `avg_pool2d`, of [N, C, D, H, W]; channels_last_3d stays so, where torch's result is contiguous."""
    return _avg_pool(3, input, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)


def _adaptive_avg_pool(n, input, output_size):
    pooling = _ADAPTIVE[n]
    if pooling.is_torchs(input):
        return getattr(F, pooling.name)(input, output_size)
    windows = adaptive_windows(input.shape, n, output_size)
    backend, x = pooling.choose(input, windows, output_size)
    return x if backend is None else _pooled(x, windows, True, 0, backend)


def adaptive_avg_pool1d(input: Tensor, output_size: int | Sequence[int]) -> Tensor:
    """As `adaptive_avg_pool2d`, of [N, C, L]."""
    return _adaptive_avg_pool(1, input, output_size)


def adaptive_avg_pool2d(input: Tensor, output_size: int | Sequence[int | None] | None) -> Tensor:
    """The means of output_size windows that cover the input, as torch.nn.functional.adaptive_avg_pool2d.

    Window o of a dimension reaches from floor(o in / out) to ceil((o + 1) in / out).

    Args:
        input: as that of `avg_pool2d`.
        output_size: a number, or one for each dimension; None: the input's. 1 is the global mean.
    """
    return _adaptive_avg_pool(2, input, output_size)


def adaptive_avg_pool3d(input: Tensor, output_size: int | Sequence[int | None] | None) -> Tensor:
    """As `adaptive_avg_pool2d`, of [N, C, D, H, W]; channels_last_3d stays so, where torch's result is contiguous."""
    return _adaptive_avg_pool(3, input, output_size)
