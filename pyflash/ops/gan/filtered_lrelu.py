"""A leaky ReLU at a higher sampling rate. Karras et al. 2021, "Alias-Free Generative Adversarial Networks", section 3.2; as
in StyleGAN3's torch_utils/ops/filtered_lrelu."""

from __future__ import annotations

from math import prod

import torch

from pyflash.auto.minima import minima
from pyflash.ops.core.autograd import Function, apply
from pyflash.ops.core.backends import IN_KERNELS, Operation, record
from pyflash.ops.core.checks import INTS, NOT_PLAIN, expect, expect_tensors, is_plain
from pyflash.ops.core.choice import choose
from pyflash.ops.core.dtypes import FLOATS
from pyflash.ops.core.layouts import dense, empty, is_channels_last
from pyflash.ops.core.registry import Op
from pyflash.ops.gan import filters, passes

OPERATION = Operation(
    "filtered_lrelu",
    dtypes={"cpu": FLOATS, "triton": FLOATS},
    rules=minima("filtered_lrelu", inference=0, training=0),
    sizes="(elements of the largest of input, upsampled picture and output, are gradients needed)",
    notes={
        "cpu": "a filter's own gradient is torch's",
        "triton": "one launch where up and down are 2, filters have 3 to 12 taps each way and x is not float64; else passes by"
        " way of memory; a filter's own gradient is torch's",
    },
    second_derivative=IN_KERNELS,
)


def _outputs(x, fu, fd, b, v, middle, size, *form):
    return (empty(x, (*x.shape[:2], *size), form[-1]),)


def _reference(x, fu, fd, b, v, *form):
    return (passes.reference(x, fu, fd, b, v, *form[:-1]),)


# A picture of `size`, through one of `middle`; form is one of passes.py. Pairs are (height, width), pad is before the first
# place, clamp below 0 is none. x, v and the result are dense, as channels_last says.
_filtered_lrelu = Op(
    "filtered_lrelu(Tensor x, Tensor fu, Tensor fd, Tensor? b, Tensor? v, SymInt[] middle, SymInt[] size, int up, int down,"
    " SymInt[] pad, bool flip, float gain, float slope, float clamp, int form, bool channels_last, str backend) -> Tensor",
    outputs=_outputs,
    reference=_reference,
    differentiable=True,
    triton="pyflash.ops.gan._triton:filtered_lrelu",
    cpu="pyflash.ops.gan._cpu:filtered_lrelu",
)


class _FilteredLrelu(Function):
    @staticmethod
    def forward(x, fu, fd, b, middle, size, *rest):
        return _filtered_lrelu(x, fu, fd, b, None, middle, size, *rest[:-2], passes.VALUE, *rest[-2:])

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, fu, fd, b, ctx.middle, ctx.size, *ctx.rest = inputs
        ctx.save_for_backward(x, fu, fd, b)

    @staticmethod
    def backward(ctx, dy):
        x, fu, fd, b = ctx.saved_tensors
        sizes = ctx.middle, [*x.shape[2:]], ctx.size
        dx = apply(_Derivative, dense(dy, ctx.rest[-2]), x, fu, fd, b, passes.GRADIENT, *sizes, *ctx.rest)
        db = dx.sum((0, 2, 3)) if b is not None and ctx.needs_input_grad[3] else None
        return dx, None, None, db, *(None,) * (2 + len(ctx.rest))


class _Derivative(Function):
    """GRADIENT or DERIVATIVE of passes.py: linear in v, and of x and b it takes steps only."""

    @staticmethod
    def forward(v, x, fu, fd, b, form, middle, size, other_size, *rest):
        return _filtered_lrelu(x, fu, fd, b, v, middle, size, *rest[:-2], form, *rest[-2:])

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, x, fu, fd, b, ctx.form, ctx.middle, ctx.size, ctx.other_size, *ctx.rest = inputs
        ctx.save_for_backward(x, fu, fd, b)

    @staticmethod
    def backward(ctx, w):
        form = passes.DERIVATIVE if ctx.form == passes.GRADIENT else passes.GRADIENT
        sizes = ctx.middle, ctx.other_size, ctx.size
        dv = apply(_Derivative, dense(w, ctx.rest[-2]), *ctx.saved_tensors, form, *sizes, *ctx.rest)
        return dv, *(None,) * (8 + len(ctx.rest))


def _step(name: str, value) -> int:
    if type(value) not in INTS:
        raise TypeError(f"pyflash.filtered_lrelu: {name} is {value!r}, expected a whole number")
    expect(value >= 1, "filtered_lrelu", lambda: f"{name} is {value}, expected 1 or more")
    return value


def _expect_bias(b, x) -> None:
    expect_tensors("filtered_lrelu", b=b)
    expect(
        b.shape == x.shape[1:2],
        "filtered_lrelu",
        lambda: f"b has shape {tuple(b.shape)}, expected ({x.shape[1]},), the channels of x {tuple(x.shape)}",
    )
    expect(b.dtype == x.dtype, "filtered_lrelu", lambda: f"b is of {b.dtype}, expected {x.dtype}, x's", TypeError)
    expect(b.device == x.device, "filtered_lrelu", lambda: f"b is on {b.device}, expected {x.device}, where x is")


def filtered_lrelu(
    x: torch.Tensor,
    fu: torch.Tensor | None = None,
    fd: torch.Tensor | None = None,
    b: torch.Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | tuple[int, ...] = 0,
    gain: float = 2**0.5,
    slope: float = 0.2,
    clamp: float | None = None,
    flip_filter: bool = False,
    impl: str | None = None,
) -> torch.Tensor:
    """Adds a bias, upsamples, applies a leaky ReLU and downsamples, in one.

    Args:
        x: [batch, channels, height, width], float32, float64, bfloat16 or float16, of any strides; the result is channels
            last where x is.
        fu, fd: filters of the upsampling, which makes up for the zeros it puts in, and of the downsampling: float32 [taps]
            or [height, width], as `setup_filter` makes them; None: 1.
        b: [channels], of x's type.
        up, down: whole numbers.
        padding: of the upsampled picture: a whole number, (across, down) or (left, right, top, bottom); below 0 takes away.
        gain, slope: the activation is gain * u, for u <= 0 times slope.
        clamp: no further from 0 than this, behind the gain; None: as far as it is.
        flip_filter: False convolves, True correlates.
        impl: None, or StyleGAN's "cuda": the backend in use; "ref": torch operations.
    Returns:
        [batch, channels, (height * up + top + bottom - taps of fu - taps of fd + 2 + down - 1) // down, ...] of x's type.
    Raises:
        ValueError: x, b or a filter of another shape, a number out of range, nothing is left.
        TypeError: x, b or a filter of another type.
    Numerics: sums in float32 (float64 for float64), rounded once. Of the upsampled picture nothing is kept: gradients
        compute it again. Derivatives of every order in x and b are kernels, but for the sum of b's; those of the filters go
        through torch operations.
    """
    name = "filtered_lrelu"
    filters.expect_picture(name, x)
    filters.expect_implementation(name, impl)
    for which, f in (("fu", fu), ("fd", fd)):
        if f is not None:
            filters.expect_filter(name, which, f, x)
    fu, fd = (filters.no_filter(x) if f is None else f for f in (fu, fd))
    if b is not None:
        _expect_bias(b, x)
    up, down = _step("up", up), _step("down", down)
    expect(clamp is None or clamp >= 0, name, lambda: f"clamp is {clamp}, expected None, 0 or more")
    left, right, top, bottom = filters.paddings(name, padding)
    sizes = x.shape[2] * up + top + bottom, x.shape[3] * up + left + right
    middle = [n - t + 1 for n, t in zip(sizes, filters.taps(fu))]
    size = [(n - t) // down + 1 for n, t in zip(middle, filters.taps(fd))]

    def why():
        of = f"filters of {filters.taps(fu)} and {filters.taps(fd)}"
        return f"padding {padding!r} leaves {sizes[0]} x {sizes[1]} places to {of}"

    filters.expect_places(name, middle, x, why)
    filters.expect_places(name, size, x, why)
    rest = up, down, [top, left], bool(flip_filter), float(gain), float(slope), -1.0 if clamp is None else float(clamp)
    tensors = x, fu, fd, b
    if impl == "ref":
        record(name, "torch", "asked for")
        return passes.reference(*tensors, None, middle, size, *rest, passes.VALUE)
    refused = _unserved(x, fu, fd, b, middle, size, rest) if is_plain(x) else NOT_PLAIN
    training = torch.is_grad_enabled() and (x.requires_grad or (b is not None and b.requires_grad))
    work = None if refused else (max(x.numel(), prod(x.shape[:2]) * prod(middle)), training)
    backend = choose(OPERATION, x, tensors[1:], size=work, refused=refused)
    if backend is None:
        return passes.reference(*tensors, None, middle, size, *rest, passes.VALUE)
    channels_last = is_channels_last(x)
    return apply(_FilteredLrelu, dense(x, channels_last), fu, fd, b, middle, size, *rest, channels_last, backend)


def _unserved(x, fu, fd, b, middle, size, rest) -> str:
    form = *rest, passes.VALUE
    (fu, above), _, (fd, below), _ = passes.of(x, fu, fd, None, middle, size, *form)
    if b is not None and not is_plain(b):
        return NOT_PLAIN
    return filters.unserved(x, fu, above) or filters.unserved(x, fd, below, middle)
