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
from pyflash.ops.pointwise.activation import derivative
from pyflash.ops.pointwise.argument import activated

SIZES = "(elements of a channel, channels, are gradients needed)"


def is_last(x) -> bool:
    """Are the channels [batch, channels, positions] adjacent in memory? x is dense, in this order or that."""
    return x.stride(1) == 1 and x.shape[1] > 1


def _over_channels(t):
    return None if t is None else t[:, None]


def _per_element(units, x, groups):
    """[units] as it meets x [batch, channels, positions]."""
    if not groups:
        return units[:, None]
    batch, channels, _ = x.shape
    return units.view(batch, groups, 1, 1).expand(batch, groups, channels // groups, 1).reshape(batch, channels, 1)


def _mean(t, groups):
    """Of each unit of t [batch, channels, positions], as it meets t."""
    if not groups:
        return t.mean((0, 2), keepdim=True)
    means = t.reshape(t.shape[0], groups, -1).mean(2)
    return _per_element(means.reshape(-1), t, groups)


def _statistics(wide, groups, eps):
    """Mean, variance and 1 / deviation of each unit as they meet x."""
    mean = _mean(wide, groups)
    variance = _mean((wide - mean).square(), groups)
    return mean, variance, torch.rsqrt(variance + eps)


def _units(t, x, groups):
    """The reverse of `_per_element`."""
    if not groups:
        return t.reshape(-1)
    batch, channels, _ = x.shape
    return t.view(batch, groups, channels // groups)[:, :, 0].reshape(-1)


def _affine(xhat, residual, weight, bias):
    z = xhat if weight is None else xhat * weight[:, None]
    z = z if bias is None else z + bias[:, None]
    return z if residual is None else z + residual


def _reference_fwd(
    x, residual, weight, bias, running_mean, running_var, groups, uses_input, momentum, eps, activation, first, second
):
    wide = x.to(acc_dtype(x.dtype))
    tracks = uses_input and running_mean is not None
    new_mean, new_var = (wide.new_empty(x.shape[1] if tracks else 0) for _ in range(2))
    if uses_input:
        mean, variance, rstd = _statistics(wide, groups, eps)
        if tracks:
            count = x.numel() // _units(mean, x, groups).numel()
            of_batch = [t.expand(x.shape[0] if groups else 1, x.shape[1], 1).mean((0, 2)) for t in (mean, variance)]
            new_mean = running_mean.to(wide.dtype) * (1 - momentum) + of_batch[0] * momentum
            new_var = running_var.to(wide.dtype) * (1 - momentum) + of_batch[1] * (momentum * count / (count - 1))
        mean, rstd = _units(mean, x, groups).contiguous(), _units(rstd, x, groups).contiguous()
    else:
        mean, rstd = running_mean.to(wide.dtype).clone(), torch.rsqrt(running_var.to(wide.dtype) + eps)
    xhat = (wide - _per_element(mean, x, groups)) * _per_element(rstd, x, groups)
    y = activated(_affine(xhat, residual, weight, bias), (activation, first, second))
    return y.to(x.dtype), mean, rstd, new_mean, new_var


def _gradients(dy, wide, xhat, rstd, residual, weight, bias, groups, uses_input, activation):
    """dx, dresidual, dweight, dbias, in the accumulation type; the means make dx orthogonal to 1 and to xhat."""
    dz = dy.to(wide.dtype)
    if activation[0]:
        dz = derivative(dz, _affine(xhat, residual, weight, bias), *activation)
    dxhat = dz if weight is None else dz * weight[:, None]
    if uses_input:
        dxhat = dxhat - _mean(dxhat, groups) - xhat * _mean(dxhat * xhat, groups)
    return dxhat * rstd, dz, (dz * xhat).sum((0, 2)), dz.sum((0, 2))


def _reference_bwd(
    dy, x, residual, weight, bias, mean, rstd, groups, uses_input, activation, first, second, saves_output, need_dx,
    need_dresidual, need_dweight, need_dbias,
):  # fmt: skip
    wide, rstd = x.to(mean.dtype), _per_element(rstd, x, groups)
    xhat = (wide - _per_element(mean, x, groups)) * rstd
    dx, dresidual, dweight, dbias = _gradients(
        dy, wide, xhat, rstd, residual, weight, bias, groups, uses_input, (activation, first, second)
    )
    nothing = x.new_empty(0)
    return (
        dx.to(x.dtype) if need_dx else nothing,
        dresidual.to(x.dtype, copy=True) if need_dresidual else nothing.clone(),
        dweight if need_dweight else mean.new_empty(0),
        dbias if need_dbias else mean.new_empty(0),
    )


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
        *tensors, ctx.groups, ctx.uses_input, ctx.eps, a, b, c, _, _, _, _, _ = inputs
        ctx.activation, ctx.needs = (a, b, c), inputs[13:17]
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *grads):
        dy, x, residual, weight, bias, mean, rstd = ctx.saved_tensors

        def function(dy, x, residual, weight, bias):  # of the input mean and rstd are functions: computed again
            wide = x.to(mean.dtype)
            if ctx.uses_input:
                center, _, scale = _statistics(wide, ctx.groups, ctx.eps)
            else:
                center, scale = (_per_element(t, x, ctx.groups) for t in (mean, rstd))
            xhat = (wide - center) * scale
            return _gradients(dy, wide, xhat, scale, residual, weight, bias, ctx.groups, ctx.uses_input, ctx.activation)

        grads = [g if need else None for g, need in zip(grads, ctx.needs)]
        return *vjp(function, (dy, x, residual, weight, bias), grads), *(None,) * 13


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
    y, _, _, new_mean, new_var = apply(
        _ChannelNorm, x3, residual, *(None if t is None else t.contiguous() for t in (weight, bias)),
        running_mean, running_var, groups, uses_input, float(momentum), float(eps), *activation, backend,
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
