"""The negative of the score of each target: cross entropy's second half, where the logarithms of probabilities are there already."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pyflash.auto.loss import nll_rules
from pyflash.ops.core.autograd import Function, apply, vjp
from pyflash.ops.core.backends import Operation
from pyflash.ops.core.checks import CHECK_VALUES, is_plain, readable
from pyflash.ops.core.choice import Refused, choose
from pyflash.ops.core.dtypes import FLOATS, acc_dtype
from pyflash.ops.core.registry import Op
from pyflash.ops.loss.arguments import SIZES, reduction_of, result_dtype
from pyflash.ops.loss.cross_entropy import expect_classes, is_asked_right, unserved

OPERATION = Operation(
    "nll_loss",
    dtypes={"cpu": FLOATS, "triton": FLOATS},
    rules=nll_rules,
    sizes=SIZES,
)


def _reference(x, targets, weight, ignore_index, reduction, dtype):
    wide = x.to(acc_dtype(x.dtype))
    targets = targets.masked_fill((targets < 0) | (targets >= x.shape[1]), ignore_index)
    weight = weight if weight is None else weight.to(wide.dtype)
    return F.nll_loss(wide, targets, weight, ignore_index=ignore_index, reduction=reduction).to(dtype)


def _total(x, targets, weight, ignore_index, reduction):
    """What a mean divides by."""
    if reduction != "mean":
        return x.new_ones((), dtype=acc_dtype(x.dtype))
    counts = (targets != ignore_index) & (targets >= 0) & (targets < x.shape[1])
    of_each = 1 if weight is None else weight.to(acc_dtype(x.dtype))[targets.where(counts, 0)]
    return (counts * of_each).sum().to(acc_dtype(x.dtype))


def _reference_fwd(x, targets, weight, ignore_index, reduction, dtype):
    loss = _reference(x, targets, weight, ignore_index, reduction, dtype)
    return loss, _total(x, targets, weight, ignore_index, reduction)


def _reference_bwd(dloss, shape, targets, weight, total, ignore_index, reduction, dtype):
    wide = dloss.new_zeros(shape, dtype=acc_dtype(dtype))
    counts = (targets != ignore_index) & (targets >= 0) & (targets < shape[1])
    at = targets.where(counts, 0)
    g = dloss.to(wide.dtype) / total
    if weight is not None:
        g = g * weight.to(wide.dtype)[at]
    g = torch.where(counts, -g, 0.0)
    return (wide.scatter(1, at.unsqueeze(1), g.expand(at.shape).unsqueeze(1)).to(dtype),)


# x [N, C, ...] of any strides; targets int64 [N, ...] contiguous; weight [C] of x's accumulation type, or None; dtype that of the
# loss. total is what a mean divides by.
_fwd = Op(
    "nll_loss_fwd(Tensor x, Tensor targets, Tensor? weight, int ignore_index, str reduction, ScalarType dtype, str backend)"
    " -> (Tensor loss, Tensor total)",
    outputs=lambda x, targets, weight, ignore_index, reduction, dtype: (
        targets.new_empty(targets.shape if reduction == "none" else (), dtype=dtype),
        x.new_empty((), dtype=acc_dtype(x.dtype)),
    ),
    reference=_reference_fwd,
    differentiable=True,
    triton="pyflash.kernels.loss.nll:nll_loss_fwd",
    cpu="pyflash.ops.loss._cpu_cross_entropy:nll_loss_fwd",
)
# dx of this shape and type, contiguous: a score is not looked at.
_bwd = Op(
    "nll_loss_bwd(Tensor dloss, SymInt[] shape, Tensor targets, Tensor? weight, Tensor total, int ignore_index, str reduction,"
    " ScalarType dtype, str backend) -> Tensor",
    outputs=lambda dloss, shape, targets, weight, total, ignore_index, reduction, dtype: (
        dloss.new_empty(shape, dtype=dtype),
    ),
    reference=_reference_bwd,
    triton="pyflash.kernels.loss.nll:nll_loss_bwd",
    cpu="pyflash.ops.loss._cpu_cross_entropy:nll_loss_bwd",
)


class _NLLLoss(Function):
    @staticmethod
    def forward(x, targets, weight, ignore_index, reduction, dtype, backend):
        return _fwd(x, targets, weight, ignore_index, reduction, dtype, backend)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        x, targets, weight, *ctx.options, _, ctx.backend = inputs
        ctx.shape, ctx.dtype = x.shape, x.dtype
        ctx.mark_non_differentiable(outputs[1])
        ctx.save_for_backward(targets, weight, outputs[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, dloss, _):
        if dloss is None:
            return (None,) * 7
        dx = apply(_NLLLossBwd, dloss, ctx.shape, *ctx.saved_tensors, *ctx.options, ctx.dtype, ctx.backend)
        return dx, *(None,) * 6


class _NLLLossBwd(Function):
    @staticmethod
    def forward(dloss, shape, *args):
        return _bwd(dloss.contiguous(), list(shape), *args)

    @staticmethod
    def setup_context(ctx, inputs, output):
        dloss, ctx.shape, *tensors, ignore_index, reduction, dtype, _ = inputs
        ctx.options = ignore_index, reduction, dtype
        ctx.save_for_backward(dloss, *tensors)

    @staticmethod
    def backward(ctx, ddx):
        dloss, *tensors = ctx.saved_tensors

        def gradient(dloss):
            return _reference_bwd(dloss, ctx.shape, *tensors, *ctx.options)

        return *vjp(gradient, (dloss,), (ddx,)), *(None,) * 8


def _size_of(training, input, *_):
    return (input.numel(), training) if is_plain(input) and input.numel() else None


_refused = Refused(OPERATION, _size_of)


def nll_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """-input[target], as torch.nn.functional.nll_loss.

    Args:
        input: logarithms of probabilities [C], [N, C] or [N, C, d_1, ...] of C classes; float32, float64, bfloat16, float16, any
            strides.
        target: classes, int64 or uint8, [], [N] or [N, d_1, ...].
        weight: [C], what each class counts for.
        size_average, reduce: deprecated, as torch's.
        ignore_index: a class that counts for nothing.
        reduction: "none", "mean" (over the weights of the targets) or "sum".
    Returns:
        A number, or with "none" one for each target; input's type, under autocast float32.
    Raises:
        torch's errors.  IndexError: a target is no class; on a GPU such a target counts for nothing, and PYFLASH_CHECK=1 raises.
    Numerics: sums in float64, rounded once. Deterministic, whatever the number of threads. Differentiable any number of times.
    """
    reduction = reduction_of(size_average, reduce, reduction)

    def torchs():
        return F.nll_loss(input, target, weight, ignore_index=ignore_index, reduction=reduction)

    if _refused.holds(input, target) or not is_asked_right(input, target, weight, ignore_index, reduction):
        return torchs()
    if target.is_floating_point():  # probabilities are cross entropy's
        return torchs()
    training = torch.is_grad_enabled() and input.requires_grad
    size = _size_of(training, input)
    backend = choose(OPERATION, input, (target, weight), size, unserved(input, target, weight))
    if backend is None:
        return torchs()
    x, targets = input, target
    if x.dim() == 1:
        x, targets = x.unsqueeze(0), targets.unsqueeze(0)
    targets = targets.to(torch.int64).contiguous()
    if (targets.is_cpu or CHECK_VALUES) and readable(targets):
        expect_classes("nll_loss", targets, x.shape[1], ignore_index)
    if weight is not None:
        weight = weight.to(acc_dtype(x.dtype)).contiguous()
    loss = apply(_NLLLoss, x, targets, weight, ignore_index, reduction, result_dtype(input), backend)[0]
    return loss.squeeze(0) if input.dim() == 1 and reduction == "none" else loss
