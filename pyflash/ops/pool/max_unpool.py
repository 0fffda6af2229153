"""Max unpooling: the elements of a pooled tensor back at the places where they were, and zeros everywhere else.

Its gradient is taken from these places, of every element: also of one that an equal index behind it has overwritten, as
torch has it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pyflash.ops.core.autograd import Function, apply
from pyflash.ops.core.backends import IN_TORCH
from pyflash.ops.core.checks import is_strided, readable
from pyflash.ops.core.dtypes import acc_dtype, cast_by_autocast
from pyflash.ops.core.registry import Op
from pyflash.ops.pool.windows import Pooling, Size, is_channels_last, laid_out, memory_format, new_empty, spread

_POOLINGS = {n: Pooling(f"max_unpool{n}d", n, IN_TORCH) for n in (1, 2, 3)}


def _reference_fwd(x, indices, size, channels_last):
    n = len(size)
    y = x.new_zeros((*x.shape[:-n], *size)).flatten(-n)
    y = y.scatter(-1, indices.flatten(-n), x.flatten(-n)).view(*x.shape[:-n], *size)
    return (y.contiguous(memory_format=memory_format(channels_last, n)),)


def _reference_bwd(dy, indices, n, channels_last):
    dx = dy.flatten(-n).gather(-1, indices.flatten(-n)).view(indices.shape)
    return (dx.contiguous(memory_format=memory_format(channels_last, n)),)


# All tensors [.., *spatial] are contiguous, or all channels_last. An index that is no place in the plane: RuntimeError on
# the CPU; on a GPU its element goes nowhere and gets a gradient of zero.
_fwd = Op(
    "max_unpool_fwd(Tensor x, Tensor indices, SymInt[] size, bool channels_last, str backend) -> Tensor",
    outputs=lambda x, indices, size, channels_last: (new_empty(x, (*x.shape[: -len(size)], *size), channels_last),),
    reference=_reference_fwd,
    differentiable=True,
    triton="pyflash.kernels.pool.max_unpool:max_unpool_fwd",
    cpu="pyflash.ops.pool._cpu:max_unpool_fwd",
)
_bwd = Op(
    "max_unpool_bwd(Tensor dy, Tensor indices, int n, bool channels_last, str backend) -> Tensor",
    outputs=lambda dy, indices, n, channels_last: (new_empty(dy, indices.shape, channels_last),),
    reference=_reference_bwd,
    differentiable=True,
    triton="pyflash.kernels.pool.max_unpool:max_unpool_bwd",
    cpu="pyflash.ops.pool._cpu:max_unpool_bwd",
)


class _MaxUnpool(Function):
    @staticmethod
    def forward(x, indices, size, channels_last, backend):
        return _fwd(x, indices, size, channels_last, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, indices, size, ctx.channels_last, ctx.backend = inputs
        ctx.n = len(size)
        ctx.save_for_backward(indices)

    @staticmethod
    def backward(ctx, dy):
        (indices,) = ctx.saved_tensors
        dy = dy.contiguous(memory_format=memory_format(ctx.channels_last, ctx.n))
        return apply(_MaxUnpoolBwd, dy, indices, ctx.n, ctx.channels_last, ctx.backend), *(None,) * 4


class _MaxUnpoolBwd(Function):
    """Linear in dy; its own derivative adds up what goes back to a place."""

    @staticmethod
    def forward(dy, indices, n, channels_last, backend):
        return _bwd(dy, indices, n, channels_last, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        dy, indices, ctx.n, *_ = inputs
        ctx.shape = tuple(dy.shape)
        ctx.save_for_backward(indices)

    @staticmethod
    def backward(ctx, ddx):
        (indices,), n = ctx.saved_tensors, ctx.n
        ddy = ddx.new_zeros(ctx.shape, dtype=acc_dtype(ddx.dtype)).flatten(-n)
        ddy = ddy.scatter_add(-1, indices.flatten(-n), ddx.flatten(-n).to(ddy.dtype))
        return ddy.view(ctx.shape).to(ddx.dtype), *(None,) * 4


def _output_size(shape, n: int, kernel, stride, padding, size) -> tuple[int, ...] | None:
    """Of the output of these arguments on an input of this shape; None where torch refuses them, or may."""
    for given in (kernel, stride, padding):
        if isinstance(given, (tuple, list)) and len(given) != n:
            return None
    kernel = spread(kernel, n)
    stride, padding = kernel if stride is None else spread(stride, n), spread(padding, n)
    if kernel is None or stride is None or padding is None or len(shape) not in (n + 1, n + 2) or 0 in shape[-n - 1 :]:
        return None
    if min(stride) < 1:
        return None
    default = [(i - 1) * s + k - 2 * p for i, k, s, p in zip(shape[-n:], kernel, stride, padding)]
    if size is None:
        size = default
    elif not isinstance(size, (tuple, list)) or len(size) not in (n, n + 2):
        return None
    size = spread(tuple(size[-n:]), n)
    if size is None or min(size) < 1:
        return None
    for given, usual, s in zip(size, default, stride):
        if not usual - s < given < usual + s:
            return None
    return size


def _is_channels_last(x: Tensor, n: int) -> bool:
    """Is the output so? As torch says it of an input that is both: pixels that are alone in their plane may be as far apart
    as they have channels."""
    if x.is_contiguous() and n > 1 and x.dim() == n + 2:
        return 1 < x.shape[1] == x.stride(-1) and x.is_contiguous(memory_format=memory_format(True, n))
    return is_channels_last(x, n)


def _expect_places(indices: Tensor, size) -> None:
    """torch's error, of where a kernel does not say it."""
    places = 1
    for s in size:
        places *= s
    if indices.numel():
        low, high = (int(value) for value in indices.aminmax())
        if low < 0 or high >= places:
            raise RuntimeError(wrong_place(low if low < 0 else high, size))


def wrong_place(index: int, size) -> str:
    volume = "x".join(map(str, size)) if len(size) > 1 else f"{size[0]}x1"
    return f"pyflash.max_unpool{len(size)}d: Found an invalid max index: {index} (output volumes are of size {volume})"


def _max_unpool(n, input, indices, kernel_size, stride, padding, output_size):
    pooling, options = _POOLINGS[n], (indices, kernel_size, stride, padding, output_size)
    if pooling.is_torchs(input):
        return getattr(F, pooling.name)(input, *options)
    size = None
    if isinstance(indices, Tensor) and is_strided(indices) and indices.dtype is torch.int64:
        if indices.shape == input.shape and indices.device == input.device:
            size = _output_size(input.shape, n, kernel_size, stride, padding, output_size)
    if size is not None and input.is_cpu:  # torch's autocast computes this in float32, on the CPU only
        (input,) = cast_by_autocast((input,), torch.float32)
    backend, x = pooling.choose(input, size, *options, tensors=(indices,) if size is not None else ())
    if backend is None:
        return x
    if (backend == "triton" or not x.is_cpu) and readable(indices):
        _expect_places(indices, size)
    x = laid_out(x, n)
    channels_last = _is_channels_last(x, n)
    indices = indices.contiguous(memory_format=memory_format(channels_last, n))
    return apply(_MaxUnpool, x, indices, size, channels_last, backend)


def max_unpool1d(
    input: Tensor,
    indices: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """As `max_unpool2d`, of [N, C, L]."""
    return _max_unpool(1, input, indices, kernel_size, stride, padding, output_size)


def max_unpool2d(
    input: Tensor,
    indices: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Each element at the place of its plane that its index says, zeros elsewhere, as torch.nn.functional.max_unpool2d.

    Args:
        input: [N, C, H, W] or [C, H, W], float32, float64, bfloat16 or float16, contiguous or channels_last; another layout
            is copied.
        indices: int64, of the input's shape, as `max_pool2d` with return_indices=True gives them.
        kernel_size, stride, padding: of that pooling: a number, or one for each dimension; stride None: the kernel's size.
        output_size: of the result, (H, W) or (N, C, H, W), less than a stride from (H_in - 1) stride + kernel - 2 padding,
            the default.
    Returns:
        [N, C, H_out, W_out], laid out in memory as the input.
    Raises:
        RuntimeError, ValueError, TypeError: torch's; an index that is no place in the plane: RuntimeError on the CPU. On a
            GPU, where only PYFLASH_CHECK=1 reads it, its element goes nowhere.
    Numerics: exact and deterministic: of equal indices in a plane the last one stays.
    """
    return _max_unpool(2, input, indices, kernel_size, stride, padding, output_size)


def max_unpool3d(
    input: Tensor,
    indices: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """As `max_unpool2d`, of [N, C, D, H, W]; channels_last_3d stays so, where torch's result is contiguous."""
    return _max_unpool(3, input, indices, kernel_size, stride, padding, output_size)
