"""Losses of an input and a target, element by element (the table: pyflash/losses.py), with weights, summed in the same pass. What
a function of torch's asks for beside its own arguments is here, too: which calls are ours, broadcasting, autocast."""

from __future__ import annotations

import warnings

import torch

from pyflash.auto.loss import elementwise_rules
from pyflash.kernels.periods import period_of
from pyflash.losses import LOSSES
from pyflash.ops.core.autograd import Function, apply, leaf, vjp
from pyflash.ops.core.backends import Operation
from pyflash.ops.core.checks import NOT_PLAIN, is_dense, is_plain
from pyflash.ops.core.choice import Refused, choose
from pyflash.ops.core.dtypes import FLOATS, acc_dtype
from pyflash.ops.core.registry import Op
from pyflash.ops.loss.arguments import SIZES, result_dtype


def _reference(x, target, weight, pos_weight, loss, parameter, reduction, divisor, dtype):
    x, target, weight, pos_weight = (
        t if t is None else t.to(acc_dtype(x.dtype)) for t in (x, target, weight, pos_weight)
    )
    losses = LOSSES[loss].reference(x, target, pos_weight, parameter)
    if weight is not None:
        losses = losses * weight
    if reduction != "none":
        losses = losses.sum() / (_total(x, weight) if reduction == "weighted" else divisor)
    return losses.to(dtype)


def _total(x, weight):
    return weight.expand(x.shape).sum(dtype=torch.float64)


def _reference_fwd(x, target, weight, pos_weight, loss, parameter, reduction, divisor, dtype):
    y = _reference(x, target, weight, pos_weight, loss, parameter, reduction, divisor, dtype)
    total = x.new_full((), divisor, dtype=torch.float64)
    return y, _total(x, weight) if reduction == "weighted" else total


def _outputs(x, target, weight, pos_weight, loss, parameter, reduction, divisor, dtype):
    y = torch.empty_like(x, dtype=dtype) if reduction == "none" else x.new_empty((), dtype=dtype)
    return y, x.new_empty((), dtype=torch.float64)


def _outputs_bwd(dloss, x, target, weight, pos_weight, total, loss, parameter, reduction, *needs):
    return tuple(torch.empty_like(x) if need else x.new_empty(0) for need in needs)


def _gradients(dloss, x, target, weight, pos_weight, total, loss, parameter, reduction):
    """Of x and of the target, None of what requires none."""

    def losses(x, target):
        return _reference(x, target, weight, pos_weight, loss, parameter, how, 1.0, acc_dtype(x.dtype))

    how, arrives = (reduction, dloss) if reduction == "none" else ("sum", dloss / total)  # which is one for all x
    return vjp(losses, (x, target), (arrives.to(acc_dtype(x.dtype)),))


def _reference_bwd(dloss, x, target, weight, pos_weight, total, *options):
    *options, need_dx, need_dtarget = options
    needs = need_dx, need_dtarget
    inputs = (leaf(t) if need else t.detach() for t, need in zip((x, target), needs))
    found = _gradients(dloss, *inputs, weight, pos_weight, total, *options)
    return tuple(
        x.new_empty(0) if not need else torch.zeros_like(x) if g is None else g for g, need in zip(found, needs)
    )


# x and target of one shape and type, dense, in the same order of dimensions; weight and pos_weight contiguous, of types that
# accumulate in the one that x's does, such that `period_of` has their place, and with them x contiguous; loss names a row of the table. reduction: "none",
# "sum", over which `divisor` stands, or "weighted", over the sum of the weights; dtype that of y.
_fwd = Op(
    "elementwise_loss_fwd(Tensor x, Tensor target, Tensor? weight, Tensor? pos_weight, str loss, float parameter, str reduction,"
    " float divisor, ScalarType dtype, str backend) -> (Tensor y, Tensor total)",
    outputs=_outputs,
    reference=_reference_fwd,
    differentiable=True,
    triton="pyflash.kernels.loss.elementwise:elementwise_loss_fwd",
    cpu="pyflash.ops.loss._cpu_elementwise:elementwise_loss_fwd",
)
# dloss like y; what is not needed is empty.
_bwd = Op(
    "elementwise_loss_bwd(Tensor dloss, Tensor x, Tensor target, Tensor? weight, Tensor? pos_weight, Tensor total, str loss,"
    " float parameter, str reduction, bool need_dx, bool need_dtarget, str backend) -> (Tensor dx, Tensor dtarget)",
    outputs=_outputs_bwd,
    reference=_reference_bwd,
    triton="pyflash.kernels.loss.elementwise:elementwise_loss_bwd",
    cpu="pyflash.ops.loss._cpu_elementwise:elementwise_loss_bwd",
)


def _like(x, t):
    """t in the memory order of x."""
    return t if t.stride() == x.stride() else torch.empty_like(x, dtype=t.dtype).copy_(t)


class _ElementwiseLoss(Function):
    @staticmethod
    def forward(x, target, weight, pos_weight, loss, parameter, reduction, divisor, dtype, backend):
        return _fwd(x, target, weight, pos_weight, loss, parameter, reduction, divisor, dtype, backend)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        *tensors, loss, parameter, reduction, _, _, ctx.backend = inputs
        ctx.options = loss, parameter, reduction
        ctx.mark_non_differentiable(outputs[1])
        ctx.save_for_backward(*tensors, outputs[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, dloss, _):
        if dloss is None:
            return (None,) * 10
        needs = ctx.needs_input_grad[:2]
        grads = apply(_ElementwiseLossBwd, dloss, *ctx.saved_tensors, *ctx.options, *needs, ctx.backend)
        return *(grad if need else None for grad, need in zip(grads, needs)), *(None,) * 8


class _ElementwiseLossBwd(Function):
    @staticmethod
    def forward(dloss, x, *args):
        return _bwd(dloss if dloss.dim() != x.dim() else _like(x, dloss), x, *args)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        *tensors, loss, parameter, reduction, need_dx, need_dtarget, _ = inputs
        ctx.options, ctx.needs = (loss, parameter, reduction), (need_dx, need_dtarget)
        ctx.mark_non_differentiable(*(t for t, need in zip(outputs, ctx.needs) if not need))
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *dds):
        dloss, x, target, *others = ctx.saved_tensors
        dds = [dd if need else None for dd, need in zip(dds, ctx.needs)]

        def gradients(dloss, x, target):
            inputs = (leaf(t) if need else t.detach() for t, need in zip((x, target), ctx.needs))
            found = _gradients(dloss, *inputs, *others, *ctx.options)
            return [x.new_empty(0) if g is None else g for g in found]

        return *vjp(gradients, (dloss, x, target), dds), *(None,) * 9


# ---- what the functions share ----


def operation(name: str, **more) -> tuple[Operation, Refused]:
    """Of a function, and its calls that `auto` leaves to torch."""
    made = Operation(name, dtypes={"cpu": FLOATS, "triton": FLOATS}, rules=elementwise_rules(name), sizes=SIZES, **more)
    return made, Refused(made, _size_of)


def _size_of(training, input, *_):
    return (input.numel(), training) if is_plain(input) else None


def are_tensors(*tensors, optional=()) -> bool:
    """Of one device, and floating-point ones? Of others torch says itself what is wrong, or knows what to do. Those that are
    optional may be None."""
    device = getattr(tensors[0], "device", None)
    return all(
        isinstance(t, torch.Tensor) and t.is_floating_point() and t.device == device
        for t in (*tensors, *(t for t in optional if t is not None))
    )


NAMES = "input", "target", "weight", "pos_weight"


def _unserved(input, target, weights, names) -> str:
    wide = result_dtype(input)
    for i, (name, t) in enumerate(zip(names, (input, target, *weights))):
        if t is None:
            continue
        if not is_plain(t):
            return NOT_PLAIN
        if t.dtype not in (input.dtype, wide):
            return f"{name} is {t.dtype}, {names[0]} {input.dtype}"
        if i > 1 and t.requires_grad and torch.is_grad_enabled():
            return f"{name} requires a gradient"
    return ""


def elementwise_loss(
    served: Operation, input, target, loss: str, reduction: str, torchs, *, parameter=0.0, weight=None, pos_weight=None,
    refused="", warning="", names=NAMES,
) -> torch.Tensor:  # fmt: skip
    """The loss of a row of the table, or torch's. input and target of shapes that broadcast, weights of such as fit them.

    Args:
        served: whose call it is.
        reduction: "none", "mean", "sum", "batchmean", or "weighted": the mean over the weights.
        torchs: () -> torch's own.
        refused: why no kernel takes these arguments, when that is so.
        warning: what torch would warn of, where the caller of ours stands.
        names: of the tensors, as the function's arguments are called.
    """
    training = torch.is_grad_enabled() and (input.requires_grad or target.requires_grad)
    reason = refused or _unserved(input, target, (weight, pos_weight), names)
    if training and target.requires_grad and not LOSSES[loss].by_target:
        reason = f"{names[1]} requires a gradient"
    backend = choose(served, input, (target, weight, pos_weight), _size_of(training, input), reason)
    if backend is None:
        return torchs()
    if warning:
        warnings.warn(warning, stacklevel=3)
    dtype, divisor = result_dtype(input), 1.0
    if reduction == "batchmean":
        divisor = float(input.shape[0])
    if target.dtype != input.dtype:  # under autocast, one of them float32
        input, target = input.to(dtype), target.to(dtype)
    if input.shape != target.shape:
        input, target = torch.broadcast_tensors(input, target)
    has_weights = weight is not None or pos_weight is not None
    x = input.contiguous() if has_weights or not is_dense(input) else input
    target = _in_order_of(x, target)
    weight, pos_weight = (
        t if t is None else (t if period_of(t.shape, x.shape) else t.expand(x.shape)).contiguous()
        for t in (weight, pos_weight)
    )
    if reduction == "mean":
        divisor = float(x.numel())
    reduction = reduction if reduction in ("none", "weighted") else "sum"
    options = loss, float(parameter), reduction, divisor, dtype, backend
    return apply(_ElementwiseLoss, x, target, weight, pos_weight, *options)[0]


def _in_order_of(x, target):
    """A target in the memory order of x, with its history."""
    if target.stride() == x.stride():
        return target
    if x.is_contiguous():
        return target.contiguous()
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    return target.permute(order).contiguous().permute([order.index(dim) for dim in range(x.dim())])
