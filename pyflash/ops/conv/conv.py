"""Convolution and its two gradients: three bilinear operators, each the others' derivative, to any order.

    conv_fwd           y  = activation(scale (x * weight) + bias + residual)
    conv_input_grad    dx = the adjoint in x of dy: transposed convolution's forward, too
    conv_weight_grad   dweight

Dumoulin & Visin 2016 have the arithmetic. All speak of the same convolution: stride, padding, dilation and groups are those
of x -> y. `padding` is what lies before the input; what lies after it follows from the size of the result, so that padding
"same" of an even kernel and output_padding need no copy.
"""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from pyflash.activations import ACTIVATIONS
from pyflash.ops.core.autograd import Function, apply, wanted, way
from pyflash.ops.core.layouts import CHANNELS_LAST, is_channels_last
from pyflash.ops.core.registry import Op
from pyflash.ops.pointwise.activation import CURVED, activation_bwd
from pyflash.ops.pointwise.argument import NO_ACTIVATION

# ---- memory


def _memory_format(a: Tensor, b: Tensor) -> torch.memory_format:
    """That of an operator's result."""
    return CHANNELS_LAST[a.dim()] if is_channels_last(a) or is_channels_last(b) else torch.contiguous_format


def _new_empty(a: Tensor, b: Tensor, shape) -> Tensor:
    return torch.empty(shape, dtype=a.dtype, device=a.device, memory_format=_memory_format(a, b))


# ---- references


def _shifted(x: Tensor, before, after) -> Tensor:
    """Zeros around the spatial dimensions; negative numbers take away."""
    pads = [pad for pair in zip(reversed(before), reversed(after)) for pad in pair]
    return F.pad(F.pad(x, [max(pad, 0) for pad in pads]), [min(pad, 0) for pad in pads])


def _reach(size, kernel, stride, dilation) -> list[int]:
    """How many places of the input so many windows cover, from the first to the last."""
    return [(o - 1) * s + d * (k - 1) + 1 for o, k, s, d in zip(size, kernel, stride, dilation)]


def _as_torch_pads(x, size, kernel, stride, padding, dilation):
    """x and the padding with which torch's convolution finds `size` windows in it: x with zeros around it where torch, which
    pads both ends alike, would find others."""
    torchs = [(i + 2 * p - r) // s + 1 for i, p, r, s in zip(x.shape[2:], padding, _reach([1] * len(size), kernel, stride, dilation), stride)]  # fmt: skip
    if min(padding) >= 0 and torchs == list(size):
        return x, padding
    after = [r - i - p for r, i, p in zip(_reach(size, kernel, stride, dilation), x.shape[2:], padding)]
    return _shifted(x, padding, after), [0] * len(size)


def scaled(weight: Tensor, scale: Tensor) -> Tensor:
    """The weight whose convolution is `scale` times that of `weight`, channel by channel."""
    return weight * scale.view(-1, *[1] * (weight.dim() - 1))


def _by_channel(t, y):
    return t.view(-1, *[1] * (y.dim() - 2))


def _plus_bias(y, bias):
    return y if bias is None else y + _by_channel(bias, y)


def _has_no_terms(a: Tensor, b: Tensor, shape) -> bool:
    """Is the result nothing, or a sum of nothing? An empty batch alone is torch's."""
    return 0 in (*a.shape[1:], *b.shape[1:], *shape[1:])


def _convolved(x, weight, bias, size, stride, padding, dilation, groups):
    shape = x.shape[0], weight.shape[0], *size
    if _has_no_terms(x, weight, shape):
        return _plus_bias(x.new_zeros(shape), bias)
    x, padding = _as_torch_pads(x, size, weight.shape[2:], stride, padding, dilation)
    return torch.ops.aten.convolution(x, weight, bias, stride, padding, dilation, False, [0] * len(size), groups)


def _reference_fwd(
    x, weight, scale, bias, residual, size, stride, padding, dilation, groups, activation, first, second, save_preact,
    keeps_weight,
):  # fmt: skip
    weight = weight if scale is None else scaled(weight, scale)
    z = _convolved(x, weight, bias, size, stride, padding, dilation, groups)
    z = z if residual is None else z + residual
    y = ACTIVATIONS[activation].of(z, (first, second)) if activation else z
    return y, z if save_preact else z.new_empty(0)


def _reference_input_grad(dy, weight, bias, size, stride, padding, dilation, groups, keeps_weight):
    shape = dy.shape[0], weight.shape[1] * groups, *size
    if _has_no_terms(dy, weight, shape):
        return (_plus_bias(dy.new_zeros(shape), bias),)
    transposed = torch.ops.aten.convolution
    reach = _reach(dy.shape[2:], weight.shape[2:], stride, dilation)
    extra = [i + 2 * p - r for i, p, r in zip(size, padding, reach)]  # torch's output_padding
    if min(padding) >= 0 and all(0 <= e < max(s, d) for e, s, d in zip(extra, stride, dilation)):
        return (transposed(dy, weight, bias, stride, padding, dilation, True, extra, groups),)
    nothing = [0] * len(size)
    dx = transposed(dy, weight, None, stride, nothing, dilation, True, nothing, groups)
    after = [i + p - r for i, p, r in zip(size, padding, reach)]
    return (_plus_bias(_shifted(dx, [-p for p in padding], after), bias),)


def _reference_weight_grad(dy, x, size, stride, padding, dilation, groups):
    shape = dy.shape[1], x.shape[1] // groups, *size
    if _has_no_terms(dy, x, shape) or not shape[0]:
        return (dy.new_zeros(shape),)
    x, padding = _as_torch_pads(x, dy.shape[2:], size, stride, padding, dilation)
    options = stride, padding, dilation, False, [0] * len(size), groups
    weight = dy.new_empty(shape)  # only its shape is read
    return (torch.ops.aten.convolution_backward(dy, x, weight, None, *options, [False, True, False])[1],)


# ---- operators


def _fwd_outputs(x, weight, scale, bias, residual, size, stride, padding, dilation, groups, activation, first, second, save_preact, keeps_weight):  # fmt: skip
    y = _new_empty(x, weight, (x.shape[0], weight.shape[0], *size))
    return y, torch.empty_like(y) if save_preact else x.new_empty(0)


def _input_grad_outputs(dy, weight, bias, size, stride, padding, dilation, groups, keeps_weight):
    return (_new_empty(dy, weight, (dy.shape[0], weight.shape[1] * groups, *size)),)


def _weight_grad_outputs(dy, x, size, stride, padding, dilation, groups):
    return (_new_empty(dy, x, (dy.shape[1], x.shape[1] // groups, *size)),)


# As torch's formulas, and so a weight's gradient counts groups as if there were one.
def _fwd_flops(x, weight, scale, bias, residual, size, *_, **__):
    return 2 * x.shape[0] * prod(size) * weight.numel()


def _input_grad_flops(dy, weight, *_, **__):
    return 2 * dy.shape[0] * prod(dy.shape[2:]) * weight.numel()


def _weight_grad_flops(dy, x, size, *_, **__):
    return 2 * dy.numel() * x.shape[1] * prod(size)


_OPTIONS = "SymInt[] size, int[] stride, int[] padding, int[] dilation, int groups"
_fwd = Op(
    f"conv_fwd(Tensor x, Tensor weight, Tensor? scale, Tensor? bias, Tensor? residual, {_OPTIONS}, str activation,"
    " float first, float second, bool save_preact, bool keeps_weight, str backend) -> (Tensor y, Tensor preact)",
    outputs=_fwd_outputs,
    reference=_reference_fwd,
    differentiable=True,
    flops=_fwd_flops,
    triton="pyflash.kernels.conv:conv_fwd",
    cuda="pyflash.ops.conv._cuda:conv_fwd",
    cpu="pyflash.ops.conv._cpu:conv_fwd",
)
_input_grad = Op(
    f"conv_input_grad(Tensor dy, Tensor weight, Tensor? bias, {_OPTIONS}, bool keeps_weight, str backend) -> Tensor",
    outputs=_input_grad_outputs,
    reference=_reference_input_grad,
    differentiable=True,
    flops=_input_grad_flops,
    triton="pyflash.kernels.conv:conv_input_grad",
    cuda="pyflash.ops.conv._cuda:conv_input_grad",
    cpu="pyflash.ops.conv._cpu:conv_input_grad",
)
_weight_grad = Op(
    f"conv_weight_grad(Tensor dy, Tensor x, {_OPTIONS}, str backend) -> Tensor",
    outputs=_weight_grad_outputs,
    reference=_reference_weight_grad,
    differentiable=True,
    flops=_weight_grad_flops,
    triton="pyflash.kernels.conv:conv_weight_grad",
    cuda="pyflash.ops.conv._cuda:conv_weight_grad",
    cpu="pyflash.ops.conv._cpu:conv_weight_grad",
)


# ---- derivatives


def _sum_of_channels(dy):
    return dy.sum([0, *range(2, dy.dim())])


def _in_format_of(dy: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """dy in the memory format that a and b decide, and so the gradients that are computed of it: as torch has them."""
    wanted = _memory_format(a, b)
    if (wanted is torch.contiguous_format) is not is_channels_last(dy):
        return dy
    return torch.empty_like(dy, memory_format=wanted).copy_(dy)


class _Conv(Function):
    @staticmethod
    def forward(
        x, weight, scale, bias, residual, size, stride, padding, dilation, groups, activation, first, second, save_preact,
        keeps_weight, backend,
    ):  # fmt: skip
        options = size, stride, padding, dilation, groups, activation, first, second, save_preact, keeps_weight, backend
        return _fwd(x, weight, scale, bias, residual, *options)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        x, weight, scale, bias, residual, ctx.size, *rest, save_preact, _, ctx.backend = inputs
        ctx.geometry, ctx.activation = rest[:4], rest[4:]
        y, preact = outputs
        ctx.mark_non_differentiable(preact)
        ctx.set_materialize_grads(False)  # zeros for preact would be as large as the result
        if not save_preact:  # what the pre-activation is computed from again
            bias = residual = None
        saved = None if not ctx.activation[0] else preact if save_preact else y
        ctx.save_for_backward(x, weight, scale, bias, residual, saved)

    @staticmethod
    def backward(ctx, dy, _):
        if dy is None:
            return (None,) * 16
        x, weight, scale, bias, residual, saved = ctx.saved_tensors
        need_dx, need_dweight = wanted(ctx, 2)
        need_dscale, need_dbias, need_dresidual = ctx.needs_input_grad[2:5]
        name, *_ = ctx.activation
        if name:
            if torch.is_grad_enabled() and ACTIVATIONS[name].saves == "x" and name in CURVED:
                # The saved pre-activation knows nothing of what it was computed from.
                options = *ctx.geometry, *NO_ACTIVATION, False, False, ctx.backend
                saved = apply(_Conv, x, weight, scale, bias, residual, ctx.size, *options)[0]
            dy = activation_bwd(dy, saved, *ctx.activation, ctx.backend)
        dx = dweight = dscale = None
        if need_dscale:
            sums = conv_fwd(x, weight, None, None, None, ctx.size, *ctx.geometry, NO_ACTIVATION, ctx.backend)
            dscale = _sum_of_channels(dy * sums)
        if need_dx or need_dweight:
            dz = _in_format_of(dy if scale is None else dy * _by_channel(scale, dy), x, weight)
            if need_dx:
                dx = apply(_InputGrad, dz, weight, None, x.shape[2:], *ctx.geometry, False, ctx.backend)
            if need_dweight:
                dweight = apply(_WeightGrad, dz, x, weight.shape[2:], *ctx.geometry, ctx.backend)
        dbias = _sum_of_channels(dy) if need_dbias else None
        return dx, dweight, dscale, dbias, dy if need_dresidual else None, *(None,) * 11


class _InputGrad(Function):
    @staticmethod
    def forward(dy, weight, bias, size, stride, padding, dilation, groups, keeps_weight, backend):
        return _input_grad(dy, weight, bias, size, stride, padding, dilation, groups, keeps_weight, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        dy, weight, _, _, *ctx.geometry, _, ctx.backend = inputs
        ctx.save_for_backward(dy, weight)

    @staticmethod
    def backward(ctx, ddx):
        dy, weight = ctx.saved_tensors
        need_ddy, need_dweight = wanted(ctx, 2)
        need_dbias = ctx.needs_input_grad[2]
        ddy = dweight = None
        if need_ddy or need_dweight:
            x = _in_format_of(ddx, dy, weight)
            if need_ddy:
                ddy = conv_fwd(x, weight, None, None, None, dy.shape[2:], *ctx.geometry, NO_ACTIVATION, ctx.backend)
            if need_dweight:
                dweight = apply(_WeightGrad, dy, x, weight.shape[2:], *ctx.geometry, ctx.backend)
        return ddy, dweight, _sum_of_channels(ddx) if need_dbias else None, *(None,) * 7


class _WeightGrad(Function):
    @staticmethod
    def forward(dy, x, size, stride, padding, dilation, groups, backend):
        return _weight_grad(dy, x, size, stride, padding, dilation, groups, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        dy, x, _, *ctx.geometry, ctx.backend = inputs
        ctx.save_for_backward(dy, x)

    @staticmethod
    def backward(ctx, ddweight):
        dy, x = ctx.saved_tensors
        need_ddy, need_dx = wanted(ctx, 2)
        weight = _in_format_of(ddweight, dy, x)
        ddy = dx = None
        if need_ddy:
            ddy = conv_fwd(x, weight, None, None, None, dy.shape[2:], *ctx.geometry, NO_ACTIVATION, ctx.backend)
        if need_dx:
            dx = apply(_InputGrad, dy, weight, None, x.shape[2:], *ctx.geometry, False, ctx.backend)
        return ddy, dx, *(None,) * 6


def keeps(weight: Tensor) -> bool:
    """May a kernel keep the weight as it reads it? Gradients are off, and it is a layer's, which calls again."""
    return not torch.is_grad_enabled() and isinstance(weight, torch.nn.Parameter)


def conv_fwd(x, weight, scale, bias, residual, size, stride, padding, dilation, groups, activation, backend):
    """activation(scale (x * weight) + bias + residual) by one backend; differentiable.

    Args:
        x: [N, G*Ci, *in], any strides.
        weight: [G*Co, Ci, *kernel], any strides.
        scale, bias: [G*Co], or None.
        residual: [N, G*Co, *size], any strides, or None.
        size: of the result, for each of one, two or three dimensions.
        stride, padding, dilation: likewise; padding before the input, of any sign.
        activation: a row of the table and the values of its parameters, or NO_ACTIVATION.
    """
    given = [t for t in (x, weight, scale, bias, residual) if t is not None]
    save_preact = (
        bool(activation[0])
        and ACTIVATIONS[activation[0]].saves == "x"
        and torch.is_grad_enabled()
        and any([t.requires_grad for t in given])
    )
    options = size, stride, padding, dilation, groups, *activation, save_preact, keeps(weight), backend
    call, args = way(_Conv, (x, weight, scale, bias, residual, *options))
    return call(*args)[0]


def conv_input_grad(dy, weight, bias, size, stride, padding, dilation, groups, backend):
    """The adjoint of `conv_fwd` in x, plus a bias, by one backend; differentiable.

    Args:
        dy: [N, G*Co, *out], any strides.
        weight: [G*Co, Ci, *kernel], any strides.
        bias: [G*Ci], or None.
        size: of the result, [N, G*Ci, *size].
    """
    return apply(_InputGrad, dy, weight, bias, size, stride, padding, dilation, groups, keeps(weight), backend)


def conv_weight_grad(dy, x, size, stride, padding, dilation, groups, backend):
    """The adjoint of `conv_fwd` in the weight by one backend; differentiable.

    Args:
        dy: [N, G*Co, *out], any strides.
        x: [N, G*Ci, *in], any strides.
        size: of the kernel; the result is [G*Co, Ci, *size].
    """
    return apply(_WeightGrad, dy, x, size, stride, padding, dilation, groups, backend)
