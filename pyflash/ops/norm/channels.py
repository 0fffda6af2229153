"""The norms of tensors with channels, [batch, channels, positions]: one operator and its backward.

BatchNorm (Ioffe & Szegedy 2015, arXiv:1502.03167), GroupNorm (Wu & He 2018, arXiv:1803.08494) and InstanceNorm (Ulyanov et
al. 2016, arXiv:1607.08022) differ in what shares a mean and a deviation, a unit: a channel of all samples (`groups` 0), or a
group of the channels of a sample. y = activation((x - mean) rstd weight + bias + residual).
"""

from __future__ import annotations

import torch

from pyflash.activations import ACTIVATIONS
from pyflash.ops.core.autograd import Function, apply, shaped, vjp
from pyflash.ops.core.checks import is_plain
from pyflash.ops.core.dtypes import HALVES, acc_dtype
from pyflash.ops.core.registry import Op
from pyflash.ops.norm.channel_reference import (
    affine,
    gradients,
    per_element,
    per_unit,
    second_gradients,
    statistics,
)
from pyflash.ops.pointwise.activation import CURVED
from pyflash.ops.pointwise.argument import activated

SIZES = "(elements of a channel, channels, are gradients needed)"


def is_last(x) -> bool:
    """Are the channels [batch, channels, positions] adjacent in memory? x is dense, in this order or that."""
    return x.stride(1) == 1 and x.shape[1] > 1


def _reference_fwd(
    x, residual, weight, bias, running_mean, running_var, groups, uses_input, momentum, eps, activation, first, second
):
    wide = x.to(acc_dtype(x.dtype))
    tracks = uses_input and running_mean is not None
    new_mean, new_var = (wide.new_empty(x.shape[1] if tracks else 0) for _ in range(2))
    if uses_input:
        mean, variance, rstd = statistics(wide, groups, eps)
        if tracks:
            count = x.numel() // per_unit(mean, x, groups).numel()
            of_batch = [t.expand(x.shape[0] if groups else 1, x.shape[1], 1).mean((0, 2)) for t in (mean, variance)]
            new_mean = running_mean.to(wide.dtype) * (1 - momentum) + of_batch[0] * momentum
            new_var = running_var.to(wide.dtype) * (1 - momentum) + of_batch[1] * (momentum * count / (count - 1))
        mean, rstd = per_unit(mean, x, groups).contiguous(), per_unit(rstd, x, groups).contiguous()
    else:
        mean, rstd = running_mean.to(wide.dtype).clone(), torch.rsqrt(running_var.to(wide.dtype) + eps)
    xhat = (wide - per_element(mean, x, groups)) * per_element(rstd, x, groups)
    y = activated(affine(xhat, residual, weight, bias), (activation, first, second))
    return y.to(x.dtype), mean, rstd, new_mean, new_var


def _reference_bwd(
    dy, x, residual, weight, bias, mean, rstd, groups, uses_input, activation, first, second, saves_output, need_dx,
    need_dresidual, need_dweight, need_dbias,
):  # fmt: skip
    wide, rstd = x.to(mean.dtype), per_element(rstd, x, groups)
    xhat = (wide - per_element(mean, x, groups)) * rstd
    dx, dresidual, dweight, dbias = gradients(
        dy, wide, xhat, rstd, residual, weight, bias, groups, uses_input, (activation, first, second)
    )
    nothing = x.new_empty(0)
    return (
        dx.to(x.dtype) if need_dx else nothing,
        dresidual.to(x.dtype, copy=True) if need_dresidual else nothing.clone(),
        dweight if need_dweight else mean.new_empty(0),
        dbias if need_dbias else mean.new_empty(0),
    )


def _reference_bwd_bwd(
    dy, x, residual, weight, bias, mean, rstd, ddx, ddresidual, ddweight, ddbias, groups, uses_input, activation, first,
    second, *needs,
):  # fmt: skip
    wide, rstd = x.to(mean.dtype), per_element(rstd, x, groups)
    xhat = (wide - per_element(mean, x, groups)) * rstd
    found = second_gradients(
        ddx, ddresidual, ddweight, ddbias, dy, wide, xhat, rstd, residual, weight, bias, groups, uses_input,
        (activation, first, second),
    )  # fmt: skip
    types = *(x.dtype,) * 3, *(mean.dtype,) * 2
    return tuple(f.to(t, copy=True) if need else x.new_empty(0, dtype=t) for f, need, t in zip(found, needs, types))


def _outputs_fwd(x, residual, weight, bias, running_mean, running_var, groups, uses_input, *_):
    batch, channels, _ = x.shape
    mean = x.new_empty(batch * groups if groups else channels, dtype=acc_dtype(x.dtype))
    tracked = channels if uses_input and running_mean is not None else 0
    return torch.empty_like(x), mean, torch.empty_like(mean), mean.new_empty(tracked), mean.new_empty(tracked)


def _outputs_bwd(dy, x, residual, weight, bias, mean, *rest):
    channels, (dx, dresidual, dweight, dbias) = x.shape[1], rest[-4:]
    return (
        torch.empty_like(x) if dx else x.new_empty(0),
        torch.empty_like(x) if dresidual else x.new_empty(0),
        mean.new_empty(channels if dweight else 0),
        mean.new_empty(channels if dbias else 0),
    )


def _outputs_bwd_bwd(dy, x, residual, weight, bias, mean, *rest):
    channels, (*elements, dweight, dbias) = x.shape[1], rest[-5:]
    return (
        *(torch.empty_like(x) if need else x.new_empty(0) for need in elements),
        mean.new_empty(channels if dweight else 0),
        mean.new_empty(channels if dbias else 0),
    )


# x and residual [batch, channels, positions], dense, of one memory order (`is_last`); weight, bias and what is tracked
# [channels]; mean and rstd [units]. The new running statistics are empty where nothing is tracked or the input is not used.
_fwd = Op(
    "channel_norm_fwd(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var,"
    " int groups, bool uses_input, float momentum, float eps, str activation, float first, float second, str backend)"
    " -> (Tensor y, Tensor mean, Tensor rstd, Tensor new_running_mean, Tensor new_running_var)",
    outputs=_outputs_fwd,
    reference=_reference_fwd,
    differentiable=True,
    triton="pyflash.kernels.norm.channels:channel_norm_fwd",
    cpu="pyflash.ops.norm._cpu_channels:channel_norm_fwd",
)
# dy in any order of memory, the others as the forward had them; saves_output: of which the activation's derivative is a function. dweight and dbias come in the type of the
# statistics; what is not needed is empty.
_bwd = Op(
    "channel_norm_bwd(Tensor dy, Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, Tensor mean, Tensor rstd,"
    " int groups, bool uses_input, str activation, float first, float second, bool saves_output, bool need_dx,"
    " bool need_dresidual, bool need_dweight, bool need_dbias, str backend)"
    " -> (Tensor dx, Tensor dresidual, Tensor dweight, Tensor dbias)",
    outputs=_outputs_bwd,
    reference=_reference_bwd,
    triton="pyflash.kernels.norm.channels:channel_norm_bwd",
    cpu="pyflash.ops.norm._cpu_channels:channel_norm_bwd",
)
# What arrives at the four gradients, any of it None, becomes what arrives at dy and at the four that they are of: ddy, dx and
# dresidual like x, the others in the type of the statistics; what is not needed is empty.
_bwd_bwd = Op(
    "channel_norm_bwd_bwd(Tensor dy, Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, Tensor mean, Tensor rstd,"
    " Tensor? ddx, Tensor? ddresidual, Tensor? ddweight, Tensor? ddbias, int groups, bool uses_input, str activation,"
    " float first, float second, bool need_ddy, bool need_dx, bool need_dresidual, bool need_dweight, bool need_dbias,"
    " str backend) -> (Tensor ddy, Tensor dx, Tensor dresidual, Tensor dweight, Tensor dbias)",
    outputs=_outputs_bwd_bwd,
    reference=_reference_bwd_bwd,
    triton="pyflash.kernels.norm.channels_second:channel_norm_bwd_bwd",
    cpu="pyflash.ops.norm._cpu_channels:channel_norm_bwd_bwd",
)


def like(x, t):
    """t in the memory order of x."""
    return t if t is None or t.stride() == x.stride() else torch.empty_like(x, dtype=t.dtype).copy_(t)


class _ChannelNorm(Function):
    @staticmethod
    def forward(x, residual, weight, bias, running_mean, running_var, *rest):
        return _fwd(x, residual, weight, bias, running_mean, running_var, *rest)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        x, residual, weight, bias, _, _, ctx.groups, ctx.uses_input, _, ctx.eps, *ctx.activation, ctx.backend = inputs
        _, mean, rstd, new_mean, new_var = outputs
        ctx.bias_dtype = None if bias is None else bias.dtype
        if not ctx.activation[0]:  # nothing asks what was added
            residual, bias = None, None
        ctx.save_for_backward(x, residual, weight, bias, mean, rstd)
        ctx.mark_non_differentiable(mean, rstd, new_mean, new_var)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, dy, *_):
        if dy is None:
            return (None,) * 14
        x, residual, weight, bias, mean, rstd = ctx.saved_tensors
        needs = ctx.needs_input_grad[:4]
        # Without an activation the sum's gradient is dy itself.
        asked = needs[0], needs[1] and bool(ctx.activation[0]), *needs[2:]
        grads = (None,) * 4
        if any(asked):
            grads = apply(
                _ChannelNormBwd, dy, x, residual, weight, bias, mean, rstd, ctx.groups, ctx.uses_input, ctx.eps,
                *ctx.activation, *asked, ctx.backend,
            )  # fmt: skip
        dx, dresidual, dweight, dbias = (grad if need else None for grad, need in zip(grads, asked))
        return (
            dx,
            dy if needs[1] and not asked[1] else dresidual,
            dweight if dweight is None else dweight.to(weight.dtype),
            dbias if dbias is None else dbias.to(ctx.bias_dtype),
            *(None,) * 10,
        )


class _ChannelNormBwd(Function):
    @staticmethod
    def forward(dy, x, residual, weight, bias, mean, rstd, groups, uses_input, eps, activation, first, second, *rest):
        saves_output = bool(activation) and ACTIVATIONS[activation].saves == "y"
        statistics = mean, rstd, groups, uses_input
        return _bwd(dy, x, residual, weight, bias, *statistics, activation, first, second, saves_output, *rest)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        *tensors, groups, uses_input, eps, a, b, c, _, _, _, _, backend = inputs
        ctx.rest, ctx.activation, ctx.needs = (groups, uses_input, eps, a, b, c, backend), a, inputs[13:17]
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *grads):
        tensors, is_curved = ctx.saved_tensors, ctx.activation in CURVED
        ddx, ddresidual, ddweight, ddbias = (g if need else None for g, need in zip(grads, ctx.needs))
        if ddx is ddresidual is ddweight is ddbias is None:
            return (None,) * 18
        uses_input = ctx.rest[1]
        needs = list(ctx.needs_input_grad[:5])
        # A flat activation passes nothing on to what it is of; xhat is then a factor of dx in its statistics, and of dweight.
        needs[1] &= is_curved or ddweight is not None or (uses_input and ddx is not None)
        needs[2] &= is_curved
        needs[3] &= is_curved or ddx is not None
        needs[4] &= is_curved
        found = (None,) * 5
        if any(needs):
            # The gradient of a sum is one number, seen everywhere.
            ddweight, ddbias = (t if t is None else t.contiguous() for t in (ddweight, ddbias))
            found = apply(
                _ChannelNormBwdBwd, *tensors, ddx, ddresidual, ddweight, ddbias, *ctx.rest[:-1], *needs, ctx.rest[-1]
            )
        ddy, dx, dresidual, dweight, dbias = (f if need else None for f, need in zip(found, needs))
        _, _, _, weight, bias, *_ = tensors
        dweight = dweight if dweight is None else dweight.to(weight.dtype)
        return ddy, dx, dresidual, dweight, dbias if dbias is None else dbias.to(bias.dtype), *(None,) * 13


class _ChannelNormBwdBwd(Function):
    @staticmethod
    def forward(*args):
        *tensors, groups, uses_input, _, activation, first, second, a, b, c, d, e, backend = args
        return _bwd_bwd(*tensors, groups, uses_input, activation, first, second, a, b, c, d, e, backend)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        ctx.save_for_backward(*inputs[:11])
        ctx.rest = inputs[11:22]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *grads):
        """The third derivative, in torch operations."""
        dy, x, residual, weight, bias, mean, rstd, *arriving = ctx.saved_tensors
        groups, uses_input, eps, a, b, c, *needs = ctx.rest

        def function(dy, x, residual, weight, bias, *arriving):  # mean and rstd are functions of x
            wide = x.to(mean.dtype)
            if uses_input:
                center, _, scale = statistics(wide, groups, eps)
            else:
                center, scale = (per_element(t, x, groups) for t in (mean, rstd))
            given = dy, wide, (wide - center) * scale, scale, residual, weight, bias
            found = second_gradients(*arriving, *given, groups, uses_input, (a, b, c))
            return [f for f, need in zip(found, needs) if need]

        inputs = dy, x, residual, weight, bias, *arriving
        found = vjp(function, inputs, [g for g, need in zip(grads, needs) if need])
        return *found[:5], None, None, *found[5:], *(None,) * 12


def channel_norm(
    x, residual, weight, bias, running_mean, running_var, groups, uses_input, momentum, eps, activation, backend
):
    """y, and the new running statistics where there are any, of x [batch, channels, ...] by one backend."""
    shape = x.shape
    if not is_dense(x):
        x = x.contiguous()
    x3 = x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)
    if residual is not None:
        residual = like(x3, residual.flatten(2) if residual.dim() > 2 else residual.unsqueeze(2))
    parameters = [None if t is None else t.contiguous() for t in (weight, bias, running_mean, running_var)]
    y, _, _, new_mean, new_var = apply(
        _ChannelNorm, x3, residual, *parameters, groups, uses_input, float(momentum), float(eps), *activation, backend
    )  # fmt: skip
    return shaped(y, shape), new_mean, new_var


def is_dense(x) -> bool:
    """As the kernels read it: in the order of its dimensions, or with the channels last."""
    if x.is_contiguous():
        return True
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    return layout is not None and x.is_contiguous(memory_format=layout)


# ---- what their public functions share ----------------------------------------------------------------------------


def size_of(training, input, *_):
    """(elements of a channel, channels, are gradients needed)."""
    if not is_plain(input) or input.dim() < 2:
        return None
    channels = input.shape[1]
    return input.numel() // max(channels, 1), channels, training


def size(*tensors):
    return size_of(torch.is_grad_enabled() and any([t is not None and t.requires_grad for t in tensors]), *tensors)


def move_to(running, new) -> None:
    """Writes a running statistic. torch's backward, of another call of the same module, holds it and wants it as it was,
    though it does not read it after training: to that the change is not shown, as torch does not show its own."""
    (running if torch.compiler.is_compiling() else running.data).copy_(new)


def residual_refusal(input, residual) -> str:
    """Why no kernel adds it."""
    if residual is None or (residual.dtype == input.dtype and residual.device == input.device):
        return ""
    return f"residual is {residual.dtype} on {residual.device}, input {input.dtype} on {input.device}"


def mixed_types(input, **parameters) -> str:
    """Why no kernel takes these types: a half input goes with parameters of its own or of float32, all alike."""
    given = {name: t.dtype for name, t in parameters.items() if t is not None}
    for name, dtype in given.items():
        if dtype != input.dtype and not (input.dtype in HALVES and dtype == torch.float32):
            return f"{name} is {dtype}, input {input.dtype}"
    return "" if len(set(given.values())) < 2 else f"parameters are of different types, {given}"
