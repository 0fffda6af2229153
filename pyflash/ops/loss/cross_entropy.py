"""Cross entropy of scores, with classes or probabilities as targets. The softmax is never stored: the forward keeps the largest
score and the logarithm of the sum of each, and the backward computes the exponentials again."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from pyflash.auto.cross_entropy import cross_entropy_rules
from pyflash.ops.core.autograd import Function, apply, leaf, vjp
from pyflash.ops.core.backends import Operation
from pyflash.ops.core.checks import CHECK_VALUES, NOT_PLAIN, is_plain, is_strided, readable
from pyflash.ops.core.choice import Refused, choose
from pyflash.ops.core.dtypes import FLOATS, acc_dtype
from pyflash.ops.core.registry import Op
from pyflash.ops.loss.arguments import REDUCTIONS, reduction_of, result_dtype

MOST_CLASSES = 1 << 24  # which float32 still tells apart: columns compare their numbers as such

OPERATION = Operation(
    "cross_entropy",
    dtypes={"cpu": FLOATS, "triton": FLOATS},
    rules=cross_entropy_rules,
    sizes="(softmaxes, classes of each, elements in memory from one of these to the next, are gradients needed)",
    notes=dict.fromkeys(("cpu", "triton"), f"input and probabilities of one type, at most {MOST_CLASSES} classes"),
)


def _reference(x, targets, probabilities, weight, ignore_index, smoothing, reduction, dtype):
    wide = x.to(acc_dtype(x.dtype))
    if weight is not None:
        weight = weight.to(wide.dtype)
    target = targets if probabilities is None else probabilities.to(wide.dtype)
    if probabilities is None:
        target = target.masked_fill((target < 0) | (target >= x.shape[1]), ignore_index)
    loss = F.cross_entropy(
        wide, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=smoothing
    )
    return loss.to(dtype)


def _statistics(x, targets, probabilities, weight, ignore_index, reduction):
    """What the kernels save beside the loss: tops, logs, total."""
    wide = x.to(acc_dtype(x.dtype))
    tops = wide.amax(1)
    logs = (wide - tops.unsqueeze(1)).exp().sum(1).log()
    if reduction != "mean":
        total = wide.new_ones(())
    elif probabilities is not None:
        total = wide.new_full((), tops.numel())
    else:
        counts = (targets != ignore_index) & (targets >= 0) & (targets < x.shape[1])
        of_each = 1 if weight is None else weight.to(wide.dtype)[targets.where(counts, 0)]
        total = (counts * of_each).sum().to(wide.dtype)
    return tops, logs, total


def _reference_fwd(x, targets, probabilities, weight, ignore_index, smoothing, reduction, dtype):
    loss = _reference(x, targets, probabilities, weight, ignore_index, smoothing, reduction, dtype)
    return loss, *_statistics(x, targets, probabilities, weight, ignore_index, reduction)


def _outputs(x, targets, probabilities, weight, ignore_index, smoothing, reduction, dtype):
    wide, shape = acc_dtype(x.dtype), (*x.shape[:1], *x.shape[2:])
    return (
        x.new_empty(shape if reduction == "none" else (), dtype=dtype),
        x.new_empty(shape, dtype=wide), x.new_empty(shape, dtype=wide), x.new_empty((), dtype=wide),
    )  # fmt: skip


def _outputs_bwd(
    dloss, x, targets, probabilities, weight, tops, logs, total, ignore_index, smoothing, reduction, *needs
):
    return tuple(x.new_empty(x.shape if need else 0) for need in needs)


def _gradients(dloss, x, targets, probabilities, weight, *options):
    """Of x and of the probabilities, None where there are none."""

    def loss(x, probabilities):
        return _reference(x, targets, probabilities, weight, *options, dloss.dtype)

    return vjp(loss, (leaf(x), leaf(probabilities)), (dloss,))


def _reference_bwd(dloss, x, targets, probabilities, weight, tops, logs, total, *options):
    *options, need_dx, need_dprobabilities = options
    found = _gradients(dloss, x, targets, probabilities, weight, *options)
    return tuple(g.contiguous() if need else x.new_empty(0) for g, need in zip(found, (need_dx, need_dprobabilities)))


# x [N, C, ...] of any strides; targets int64 [N, ...] contiguous, or None; probabilities like x, contiguous, or None; weight [C] of
# x's accumulation type; dtype that of the loss. tops and logs are of each softmax, total is what a mean divides by.
_fwd = Op(
    "cross_entropy_fwd(Tensor x, Tensor? targets, Tensor? probabilities, Tensor? weight, int ignore_index, float smoothing,"
    " str reduction, ScalarType dtype, str backend) -> (Tensor loss, Tensor tops, Tensor logs, Tensor total)",
    outputs=_outputs,
    reference=_reference_fwd,
    differentiable=True,
    triton="pyflash.kernels.loss.cross_entropy:cross_entropy_fwd",
    cpu="pyflash.ops.loss._cpu_cross_entropy:cross_entropy_fwd",
)
# What is not needed is empty.
_bwd = Op(
    "cross_entropy_bwd(Tensor dloss, Tensor x, Tensor? targets, Tensor? probabilities, Tensor? weight, Tensor tops, Tensor logs,"
    " Tensor total, int ignore_index, float smoothing, str reduction, bool need_dx, bool need_dprobabilities, str backend)"
    " -> (Tensor dx, Tensor dprobabilities)",
    outputs=_outputs_bwd,
    reference=_reference_bwd,
    triton="pyflash.kernels.loss.cross_entropy:cross_entropy_bwd",
    cpu="pyflash.ops.loss._cpu_cross_entropy:cross_entropy_bwd",
)


class _CrossEntropy(Function):
    @staticmethod
    def forward(x, targets, probabilities, weight, ignore_index, smoothing, reduction, dtype, backend):
        return _fwd(x, targets, probabilities, weight, ignore_index, smoothing, reduction, dtype, backend)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        *tensors, ctx.ignore_index, ctx.smoothing, ctx.reduction, _, ctx.backend = inputs
        ctx.mark_non_differentiable(*outputs[1:])
        ctx.save_for_backward(*tensors, *outputs[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, dloss, *_):
        if dloss is None:
            return (None,) * 9
        needs = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
        options = ctx.ignore_index, ctx.smoothing, ctx.reduction
        dx, dp = apply(_CrossEntropyBwd, dloss, *ctx.saved_tensors, *options, *needs, ctx.backend)
        return dx if needs[0] else None, None, dp if needs[1] else None, *(None,) * 6


class _CrossEntropyBwd(Function):
    @staticmethod
    def forward(dloss, *args):
        return _bwd(dloss.contiguous(), *args)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        *tensors, ctx.ignore_index, ctx.smoothing, ctx.reduction, need_dx, need_dp, _ = inputs
        ctx.needs = need_dx, need_dp
        ctx.mark_non_differentiable(*(t for t, need in zip(outputs, ctx.needs) if not need))
        ctx.save_for_backward(*tensors[:5])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *dds):
        dloss, x, targets, probabilities, weight = ctx.saved_tensors
        dds = [dd if need else None for dd, need in zip(dds, ctx.needs)]
        options = ctx.ignore_index, ctx.smoothing, ctx.reduction

        def gradients(dloss, x, probabilities):
            found = _gradients(dloss, x, targets, probabilities, weight, *options)
            return found if probabilities is not None else found[0]

        found = vjp(gradients, (dloss, x, probabilities), dds if probabilities is not None else dds[:1])
        return found[0], found[1], None, found[2], *(None,) * 10


def _size_of(training, input, *_):
    if input.dim() < 2 or not input.numel() or not is_plain(input):
        return None
    classes = input.shape[1]
    return input.numel() // classes, classes, math.prod(input.shape[2:]), training


_refused = Refused(OPERATION, _size_of)


def is_asked_right(input, target, weight, ignore_index, reduction, smoothing=0.0) -> bool:
    """Does torch take such arguments? It says itself what is wrong with others."""
    if not (isinstance(input, torch.Tensor) and isinstance(target, torch.Tensor)):
        return False
    if (
        input.dim() == 0
        or not input.is_floating_point()
        or reduction not in REDUCTIONS
        or target.device != input.device
    ):
        return False
    if type(ignore_index) is not int or not isinstance(smoothing, (int, float)) or not 0.0 <= smoothing <= 1.0:
        return False
    dim = min(input.dim() - 1, 1)
    classes = input.shape[dim]
    if target.is_floating_point():
        if target.shape != input.shape or ignore_index >= 0:
            return False
    elif target.dtype not in (torch.int64, torch.uint8) or target.shape != input.shape[:dim] + input.shape[dim + 1 :]:
        return False
    return weight is None or (
        isinstance(weight, torch.Tensor)
        and weight.shape == (classes,)
        and weight.device == input.device
        and (target.is_floating_point() or weight.dtype in (input.dtype, result_dtype(input)))
    )


def unserved(input, target, weight) -> str:
    if not (is_plain(input) and is_strided(target) and (weight is None or is_plain(weight))):
        return NOT_PLAIN
    if not input.numel():
        return "there is nothing in an empty tensor to compute"
    if target.is_floating_point() and target.dtype != input.dtype:
        return f"target is {target.dtype}, input {input.dtype}"
    if weight is not None and weight.dtype not in (input.dtype, result_dtype(input)):
        return f"weight is {weight.dtype}, input {input.dtype}"
    if weight is not None and weight.requires_grad and torch.is_grad_enabled():
        return "weight requires a gradient"
    return ""


def expect_classes(operation: str, target, classes: int, ignore_index: int) -> None:
    low, high = (int(value) for value in target.aminmax())
    if low >= 0 and high < classes:
        return
    wrong = target[(target != ignore_index) & ((target < 0) | (target >= classes))]
    if wrong.numel():
        raise IndexError(
            f"Target {int(wrong[0])} is out of bounds: pyflash.{operation} has {classes} classes, 0 to {classes - 1};"
            f" a target that counts for nothing is ignore_index, {ignore_index}"
        )


def cross_entropy(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """-log softmax(input)[target], as torch.nn.functional.cross_entropy. The softmax is never stored: the gradient reads input
    again, and beside it only the result is as large.

    Args:
        input: scores [C], [N, C] or [N, C, d_1, ...] of C classes; float32, float64, bfloat16, float16, any strides.
        target: classes, int64 or uint8, [], [N] or [N, d_1, ...]; or probabilities, of input's shape and type.
        weight: [C], what each class counts for.
        size_average, reduce: deprecated, as torch's.
        ignore_index: a class that counts for nothing; not with probabilities.
        reduction: "none", "mean" (over the weights of the targets; of probabilities over their number) or "sum".
        label_smoothing: 0 to 1, how much of a target goes to all classes alike. Szegedy et al. 2016, arXiv:1512.00567.
    Returns:
        A number, or with "none" one for each target; input's type, under autocast float32.
    Raises:
        torch's errors.  IndexError: a target is no class; on a GPU such a target counts for nothing, and PYFLASH_CHECK=1 raises.
    Numerics: exponentials in float32 (float64 for float64) from the largest score, sums in float64, rounded once.
        Deterministic, whatever the number of threads. Second derivatives in torch operations.
    Source: Milakov & Gimelshein 2018, arXiv:1805.02867, for the sum in one read.
    """
    reduction = reduction_of(size_average, reduce, reduction)

    def torchs():
        return F.cross_entropy(
            input, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
        )

    if _refused.holds(input, target):
        return torchs()
    if not is_asked_right(input, target, weight, ignore_index, reduction, label_smoothing):
        return torchs()
    x, targets = input, target
    if x.dim() == 1:
        x, targets = x.unsqueeze(0), targets.unsqueeze(0)
    training = torch.is_grad_enabled() and (input.requires_grad or target.requires_grad)
    size = _size_of(training, x)
    reason = unserved(input, target, weight)
    if not reason and x.shape[1] > MOST_CLASSES:
        reason = f"more than {MOST_CLASSES} classes"
    backend = choose(OPERATION, input, (target, weight), size, reason)
    if backend is None:
        return torchs()
    dtype, classes, probabilities = result_dtype(input), None, None
    if targets.is_floating_point():
        probabilities = targets.contiguous()
    else:
        classes = targets.to(torch.int64).contiguous()
        if (classes.is_cpu or CHECK_VALUES) and readable(classes):
            expect_classes("cross_entropy", classes, x.shape[1], ignore_index)
    if weight is not None:
        weight = weight.to(acc_dtype(x.dtype)).contiguous()
    options = ignore_index, float(label_smoothing), reduction, dtype, backend
    loss = apply(_CrossEntropy, x, classes, probabilities, weight, *options)[0]
    return loss.squeeze(0) if input.dim() == 1 and reduction == "none" else loss
