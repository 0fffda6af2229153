"""Upsampling, padding, filtering and downsampling of pictures in one. Karras et al. 2020, "Analyzing and Improving the Image
Quality of StyleGAN"; as in StyleGAN3's torch_utils/ops/upfirdn2d."""

from __future__ import annotations

from math import prod

import torch

from pyflash.auto.minima import minima
from pyflash.ops.core.autograd import Function, apply
from pyflash.ops.core.backends import IN_KERNELS, Operation, record
from pyflash.ops.core.checks import NOT_PLAIN, is_plain
from pyflash.ops.core.choice import choose
from pyflash.ops.core.dtypes import BY_ALL
from pyflash.ops.core.layouts import dense, empty, is_channels_last
from pyflash.ops.core.registry import Op
from pyflash.ops.gan import filters
from pyflash.ops.gan.filters import Pass

OPERATION = Operation(
    "upfirdn2d",
    dtypes=BY_ALL,
    rules=minima("upfirdn2d", inference=0, training=0),
    sizes="(elements of the larger of input and output, are gradients needed)",
    notes=dict.fromkeys(BY_ALL, "a filter's own gradient is torch's"),
    second_derivative=IN_KERNELS,
)


def _pass(size, up, down, pad, flip, gain) -> Pass:
    return Pass(tuple(size), tuple(up), tuple(down), tuple(pad), flip, gain)


def _outputs(x, f, size, up, down, pad, flip, gain, channels_last):
    return (empty(x, (*x.shape[:2], *size), channels_last),)


def _reference(x, f, size, up, down, pad, flip, gain, channels_last):
    return (filters.in_torch(x, f, _pass(size, up, down, pad, flip, gain)),)


# A picture of `size` from x; pairs are (height, width), pad is before the first place. x and the result are dense, as
# channels_last says.
_upfirdn2d = Op(
    "upfirdn2d(Tensor x, Tensor f, SymInt[] size, int[] up, int[] down, SymInt[] pad, bool flip, float gain,"
    " bool channels_last, str backend) -> Tensor",
    outputs=_outputs,
    reference=_reference,
    differentiable=True,
    triton="pyflash.ops.gan._triton:upfirdn2d",
    cuda="pyflash.ops.gan._cuda:upfirdn2d",
    cpu="pyflash.ops.gan._cpu:upfirdn2d",
)


class _Upfirdn2d(Function):
    """Linear in x: its derivative is the transposed pass, and that one's the pass again."""

    @staticmethod
    def forward(x, f, size, up, down, pad, flip, gain, channels_last, backend):
        return _upfirdn2d(x, f, size, up, down, pad, flip, gain, channels_last, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, f, *form, ctx.channels_last, ctx.backend = inputs
        ctx.of, ctx.size = _pass(*form), x.shape[2:]
        ctx.save_for_backward(f)

    @staticmethod
    def backward(ctx, dy):
        (f,) = ctx.saved_tensors
        dx = _run(
            dense(dy, ctx.channels_last), f, filters.transposed(ctx.of, f, ctx.size), ctx.channels_last, ctx.backend
        )
        return dx, *(None,) * 9


def _run(x, f, of: Pass, channels_last, backend):
    size, up, down, pad = map(list, of[:4])
    return apply(_Upfirdn2d, x, f, size, up, down, pad, of.flip, of.gain, channels_last, backend)


def upfirdn2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    up: int | tuple[int, int] = 1,
    down: int | tuple[int, int] = 1,
    padding: int | tuple[int, ...] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str | None = None,
) -> torch.Tensor:
    """Upsamples, pads, filters and downsamples each channel: zeros are put behind every place so that there are `up` times
    as many, zeros are added around (or places taken away), the filter goes over it, every `down`-th place is kept.

    Args:
        x: [batch, channels, height, width], float32, float64, bfloat16 or float16, of any strides; the result is channels
            last where x is.
        f: float32 [height, width], or [taps] of a separable filter, as `setup_filter` makes it; None: 1.
        up, down: a whole number, or (across, down).
        padding: of the upsampled picture: a whole number, (across, down) or (left, right, top, bottom); below 0 takes away.
        flip_filter: False convolves, True correlates.
        gain: of the result.
        impl: None, or StyleGAN's "cuda": the backend in use; "ref": torch operations.
    Returns:
        [batch, channels, (height * up + top + bottom - taps) // down + 1, ...] of x's type.
    Raises:
        ValueError: x or f of another rank, a number out of range, nothing is left.
        TypeError: x or f of another type.
    Numerics: sums in float32 (float64 for float64), rounded once. Derivatives of every order in x are the same kernel; the
        gradient of f goes through torch operations.
    """
    return _upfirdn2d_of("upfirdn2d", x, f, up, down, padding, flip_filter, gain, impl)


def _upfirdn2d_of(name, x, f, up, down, padding, flip_filter, gain, impl):
    filters.expect_picture(name, x)
    filters.expect_implementation(name, impl)
    if f is None:
        f = filters.no_filter(x)
    else:
        filters.expect_filter(name, "f", f, x)
    up, down = filters.steps(name, "up", up), filters.steps(name, "down", down)
    left, right, top, bottom = filters.paddings(name, padding)
    sizes = x.shape[2] * up[0] + top + bottom, x.shape[3] * up[1] + left + right
    size = tuple((n - t) // step + 1 for n, t, step in zip(sizes, filters.taps(f), down))
    filters.expect_places(
        name,
        size,
        x,
        lambda: f"padding {padding!r} leaves {sizes[0]} x {sizes[1]} places to a filter of {filters.taps(f)}",
    )
    of = Pass(size, up, down, (top, left), bool(flip_filter), float(gain))
    if impl == "ref":
        record("upfirdn2d", "torch", "asked for")
        return filters.in_torch(x, f, of)
    refused = filters.unserved(x, f, of) if is_plain(x) else NOT_PLAIN
    training = torch.is_grad_enabled() and x.requires_grad
    work = None if refused else (max(x.numel(), prod(x.shape[:2]) * prod(size)), training)
    backend = choose(OPERATION, x, (f,), size=work, refused=refused)
    if backend is None:
        return filters.in_torch(x, f, of)
    channels_last = is_channels_last(x)
    return _run(dense(x, channels_last), f, of, channels_last, backend)


def _around(padding, f, before, after):
    """`padding`, and what a filter takes: before and after, of the taps of each axis."""
    left, right, top, bottom = padding
    (height, width) = (1, 1) if f is None else filters.taps(f)
    return left + before(width, 1), right + after(width, 1), top + before(height, 0), bottom + after(height, 0)


def _is_filter(f) -> bool:
    return f is None or (isinstance(f, torch.Tensor) and f.dim() in (1, 2))


def filter2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    padding: int | tuple[int, ...] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str | None = None,
) -> torch.Tensor:
    """Filters a picture, which keeps its size; `padding` is added to it. Arguments and errors as those of `upfirdn2d`."""
    if _is_filter(f):
        padding = _around(filters.paddings("filter2d", padding), f, lambda n, i: n // 2, lambda n, i: (n - 1) // 2)
    return _upfirdn2d_of("filter2d", x, f, 1, 1, padding, flip_filter, gain, impl)


def upsample2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    up: int | tuple[int, int] = 2,
    padding: int | tuple[int, ...] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str | None = None,
) -> torch.Tensor:
    """A picture `up` times as large, filtered, as bright as before; `padding` is of the result. Arguments and errors as
    those of `upfirdn2d`."""
    step = filters.steps("upsample2d", "up", up)
    if _is_filter(f):
        padding = _around(
            filters.paddings("upsample2d", padding),
            f,
            lambda n, i: (n + step[i] - 1) // 2,
            lambda n, i: (n - step[i]) // 2,
        )
    return _upfirdn2d_of("upsample2d", x, f, up, 1, padding, flip_filter, gain * step[0] * step[1], impl)


def downsample2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    down: int | tuple[int, int] = 2,
    padding: int | tuple[int, ...] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str | None = None,
) -> torch.Tensor:
    """A picture smaller by `down`, filtered before; `padding` is of x. Arguments and errors as those of `upfirdn2d`."""
    step = filters.steps("downsample2d", "down", down)
    if _is_filter(f):
        padding = _around(
            filters.paddings("downsample2d", padding),
            f,
            lambda n, i: (n - step[i] + 1) // 2,
            lambda n, i: (n - step[i]) // 2,
        )
    return _upfirdn2d_of("downsample2d", x, f, 1, down, padding, flip_filter, gain, impl)
