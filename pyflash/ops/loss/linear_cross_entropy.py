"""Cross entropy of a linear layer's results, which are never all in memory: a block of scores becomes sums, or gradients, as soon
as it is computed. Wijmans et al. 2024, arXiv:2411.09009, do so on a GPU."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from pyflash.auto.linear_cross_entropy import linear_cross_entropy_rules
from pyflash.ops.core.autograd import Function, apply, leaf, vjp
from pyflash.ops.core.backends import Operation
from pyflash.ops.core.checks import CHECK_VALUES, NOT_PLAIN, is_plain, is_strided, readable
from pyflash.ops.core.choice import Refused, choose
from pyflash.ops.core.dtypes import ALL_BUT_FLOAT64, FLOATS, acc_dtype, cast_by_autocast
from pyflash.ops.core.registry import Op
from pyflash.ops.loss import cross_entropy as of_scores
from pyflash.ops.loss.arguments import REDUCTIONS, result_dtype
from pyflash.ops.loss.cross_entropy import expect_classes

OPERATION = Operation(
    "linear_cross_entropy",
    dtypes={"cpu": FLOATS, "triton": ALL_BUT_FLOAT64},
    rules=linear_cross_entropy_rules,
    sizes="(rows, classes, features, are gradients needed)",
    notes=dict.fromkeys(("cpu", "triton"), "targets that are classes, and one loss for each row (no out_features)"),
)
IGNORED = -100  # torch's, where none is said


def _reference(x, weight, bias, targets, class_weight, ignore_index, smoothing, reduction, dtype):
    wide = acc_dtype(x.dtype)
    scores = F.linear(x.to(wide), weight.to(wide), None if bias is None else bias.to(wide))
    return of_scores._reference(scores, targets, None, class_weight, ignore_index, smoothing, reduction, dtype)


def _gradients(dloss, x, weight, bias, *rest):
    """Of x, weight and bias, None where there is none."""

    def loss(x, weight, bias):
        return _reference(x, weight, bias, *rest, dloss.dtype)

    return vjp(loss, (leaf(x), leaf(weight), leaf(bias)), (dloss,))


def _those(needs, gradients, x):
    return tuple(g.contiguous() if need else x.new_empty(0) for g, need in zip(gradients, needs))


def _reference_fwd(x, weight, bias, targets, class_weight, ignore_index, smoothing, reduction, dtype, *needs):
    options = ignore_index, smoothing, reduction
    loss = _reference(x, weight, bias, targets, class_weight, *options, dtype)
    wide = acc_dtype(x.dtype)
    scores = F.linear(x.to(wide), weight.to(wide), None if bias is None else bias.to(wide))
    kept = of_scores._statistics(scores, targets, None, class_weight, ignore_index, reduction)
    found = (None,) * 3
    if any(needs):
        found = _gradients(torch.ones_like(loss), x, weight, bias, targets, class_weight, *options)
    return loss, *kept, *_those(needs, found, x)


def _gradient_outputs(x, weight, needs):
    need_dx, need_dweight, need_dbias = needs
    return (
        x.new_empty(x.shape if need_dx else 0),
        x.new_empty(weight.shape if need_dweight else 0),
        x.new_empty(weight.shape[0] if need_dbias else 0),
    )


def _outputs(x, weight, bias, targets, class_weight, ignore_index, smoothing, reduction, dtype, *needs):
    rows, wide = x.shape[0], acc_dtype(x.dtype)
    return (
        x.new_empty(rows if reduction == "none" else (), dtype=dtype),
        x.new_empty(rows, dtype=wide), x.new_empty(rows, dtype=wide), x.new_empty((), dtype=wide),
        *_gradient_outputs(x, weight, needs),
    )  # fmt: skip


def _fwd_flops(x, weight, bias, targets, class_weight, ignore_index, smoothing, reduction, dtype, *needs, **_):
    return 2 * x.shape[0] * weight.numel() * (1 + sum(needs[:2]))


# x [N, K] and weight [C, K] of any strides; bias [C] contiguous, or None; targets int64 [N] contiguous; class_weight [C] of x's
# accumulation type, or None; dtype that of the loss. tops, logs and total as of cross_entropy. The gradients that are asked for
# are those of a loss whose own gradient is 1; the others are empty.
_fwd = Op(
    "linear_cross_entropy_fwd(Tensor x, Tensor weight, Tensor? bias, Tensor targets, Tensor? class_weight, int ignore_index,"
    " float smoothing, str reduction, ScalarType dtype, bool need_dx, bool need_dweight, bool need_dbias, str backend)"
    " -> (Tensor loss, Tensor tops, Tensor logs, Tensor total, Tensor dx, Tensor dweight, Tensor dbias)",
    outputs=_outputs,
    reference=_reference_fwd,
    differentiable=True,
    flops=_fwd_flops,
    triton="pyflash.kernels.loss.linear_cross_entropy:linear_cross_entropy_fwd",
    cpu="pyflash.ops.loss._cpu_linear_cross_entropy:linear_cross_entropy_fwd",
)


def _reference_bwd(dloss, x, weight, bias, targets, class_weight, tops, logs, total, *options):
    *options, need_dx, need_dweight, need_dbias = options
    found = _gradients(dloss, x, weight, bias, targets, class_weight, *options)
    return _those((need_dx, need_dweight, need_dbias), found, x)


_bwd = Op(
    "linear_cross_entropy_bwd(Tensor dloss, Tensor x, Tensor weight, Tensor? bias, Tensor targets, Tensor? class_weight,"
    " Tensor tops, Tensor logs, Tensor total, int ignore_index, float smoothing, str reduction, bool need_dx, bool need_dweight,"
    " bool need_dbias, str backend) -> (Tensor dx, Tensor dweight, Tensor dbias)",
    outputs=lambda dloss, x, weight, *rest: _gradient_outputs(x, weight, rest[-3:]),
    reference=_reference_bwd,
    flops=lambda dloss, x, weight, *rest, **_: 2 * x.shape[0] * weight.numel() * (1 + sum(rest[-4:-2])),
    triton="pyflash.kernels.loss.linear_cross_entropy:linear_cross_entropy_bwd",
    cpu="pyflash.ops.loss._cpu_linear_cross_entropy:linear_cross_entropy_bwd",
)


class _LinearCrossEntropy(Function):
    @staticmethod
    def forward(*args):
        return _fwd(*args)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        tensors, ctx.options, early, ctx.backend = inputs[:5], inputs[5:8], inputs[9:12], inputs[12]
        ctx.mark_non_differentiable(*outputs[1:])
        ctx.save_for_backward(*tensors, *outputs[1:4])
        ctx.set_materialize_grads(False)
        ctx.early = outputs[4:] if any(early) else None

    @staticmethod
    def backward(ctx, dloss, *_):
        if dloss is None:
            return (None,) * 13
        needs = ctx.needs_input_grad[:3]
        tensors = ctx.saved_tensors  # which have not changed since, or this raises
        if ctx.early is not None and not torch.is_grad_enabled():
            found, ctx.early = ctx.early, None  # they become the caller's: a second backward computes its own
            _scale(found, float(dloss))
        else:
            found = apply(_LinearCrossEntropyBwd, dloss, *tensors, *ctx.options, *needs, ctx.backend)
        return *(g if need else None for g, need in zip(found, needs)), *(None,) * 10


def _scale(gradients, by: float) -> None:
    from pyflash.ops.loss._cpu_linear_cross_entropy import scale

    for g in gradients:
        if by != 1 and g.numel():
            scale(g, by)


class _LinearCrossEntropyBwd(Function):
    @staticmethod
    def forward(dloss, *args):
        return _bwd(dloss.contiguous(), *args)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        tensors, ctx.options, ctx.needs = inputs[:6], inputs[9:12], inputs[12:15]
        ctx.mark_non_differentiable(*(t for t, need in zip(outputs, ctx.needs) if not need))
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *dds):
        dloss, x, weight, bias, targets, class_weight = ctx.saved_tensors
        dds = [dd if need else None for dd, need in zip(dds, ctx.needs)]

        def gradients(dloss, x, weight, bias):
            found = _gradients(dloss, x, weight, bias, targets, class_weight, *ctx.options)
            return tuple(g for g in found if g is not None)

        if bias is None:
            dds = dds[:2]
        return *vjp(gradients, (dloss, x, weight, bias), dds), *(None,) * 12


def _are_early(x, weight, bias, reduction, backend) -> tuple[bool, bool, bool]:
    """Which gradients the forward computes, while it has the scores: not of a half type, which would round them before dloss
    scales them, and not with a dloss for each row, or rows so long that few fit into a block."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or reduction == "none" or not x.is_cpu:
        return False, False, False
    if x.dtype not in (torch.float32, torch.float64) or backend == "triton":
        return False, False, False
    from pyflash.ops.loss._cpu_linear_cross_entropy import LEAST_ROWS, rows_of_block

    if rows_of_block(weight.shape[0], x.element_size()) < LEAST_ROWS:
        return False, False, False
    return x.requires_grad, weight.requires_grad, bias is not None and bias.requires_grad


def _size_of(training, input, weight, *_):
    if weight.dim() != 2 or input.dim() == 0 or not input.numel() or not weight.numel() or not is_plain(input):
        return None
    return math.prod(input.shape[:-1]), *weight.shape, training


def _key_of(input, weight, *_):
    return input.shape, weight.shape, input.dtype, input.is_cpu


_refused = Refused(OPERATION, _size_of, _key_of)


def _is_asked_right(input, weight, target, bias, class_weight, reduction, ignore_index, smoothing) -> bool:
    """Does torch take such arguments? It says itself what is wrong with others."""
    given = [t for t in (input, weight, target, bias, class_weight) if t is not None]
    if not all(isinstance(t, torch.Tensor) for t in given) or not all(t.device == input.device for t in given):
        return False
    if not all(t.is_floating_point() for t in given if t is not target) or reduction not in REDUCTIONS:
        return False
    if not (ignore_index is None or type(ignore_index) is int) or not isinstance(smoothing, (int, float)):
        return False
    if input.dim() not in (1, 2) or weight.dim() < 2 or input.shape[-1] != weight.shape[-1] or not 0 <= smoothing <= 1:
        return False
    if bias is not None and bias.shape != weight.shape[:-1]:
        return False
    if weight.dim() > 2 and input.dim() == 1:
        return False
    x, w, b = cast_by_autocast((input, weight, bias))
    if x.dtype != w.dtype or (b is not None and b.dtype != x.dtype):
        return False
    if class_weight is not None and class_weight.shape != weight.shape[:1]:
        return False
    if target.is_floating_point():
        return ignore_index is None and target.shape == input.shape[:-1] + weight.shape[:-1]
    if target.dtype not in (torch.int64, torch.uint8) or target.shape != input.shape[:-1] + weight.shape[1:-1]:
        return False
    return class_weight is None or class_weight.dtype in (x.dtype, result_dtype(x))


def _unserved(input, weight, target, bias, class_weight) -> str:
    """Of arguments that torch takes, as far as `_is_asked_right` sees."""
    if not all(t is None or is_plain(t) for t in (input, weight, bias, class_weight)) or not is_strided(target):
        return NOT_PLAIN
    if weight.dim() > 2:
        return f"linear_weight has {weight.dim()} dimensions"
    if target.is_floating_point():
        return "target contains probabilities"
    if not input.numel() or not weight.numel():
        return "there is nothing in an empty tensor to compute"
    if class_weight is not None and class_weight.requires_grad and torch.is_grad_enabled():
        return "weight requires a gradient"
    return ""


def unfused(input, linear_weight, target, linear_bias, weight, reduction, ignore_index, label_smoothing):
    """The same in two calls of torch's, which is all that torch has before 2.13; with its errors."""
    shape = tuple(linear_weight.shape)
    if input.dim() not in (1, 2):
        raise RuntimeError(f"expected input with dimensionality 1 or 2, got {input.dim()}")
    if linear_weight.dim() < 2:
        raise RuntimeError(f"expected linear_weight with dimensionality at least 2, got {linear_weight.dim()}")
    if input.shape[-1] != shape[-1]:
        raise RuntimeError(
            "expected equal input and linear_weight last dimensions (in_features), got"
            f" {input.shape[-1]} and {shape[-1]}, respectively"
        )
    if linear_bias is not None and tuple(linear_bias.shape) != shape[:-1]:
        raise RuntimeError(f"expected linear_bias shape {shape[:-1]}, got {tuple(linear_bias.shape)}")
    if len(shape) > 2 and input.dim() == 1:
        raise RuntimeError(
            f"K-dimensional loss defined by linear_weight shape {shape} requires batched input, (N, {shape[-1]}), got unbatched"
            f" input with shape {tuple(input.shape)}"
        )
    scores = F.linear(
        input, linear_weight.reshape(-1, shape[-1]), None if linear_bias is None else linear_bias.reshape(-1)
    )
    scores = scores.reshape(*input.shape[:-1], *shape[:-1])
    if target.shape == scores.shape and ignore_index is not None:
        raise RuntimeError("ignore_index cannot be specified when target contains probabilities")
    return F.cross_entropy(
        scores, target, weight, ignore_index=IGNORED if ignore_index is None else ignore_index, reduction=reduction,
        label_smoothing=label_smoothing,
    )  # fmt: skip


def linear_cross_entropy(
    input: torch.Tensor,
    linear_weight: torch.Tensor,
    target: torch.Tensor,
    *,
    linear_bias: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
) -> torch.Tensor:
    """cross_entropy(linear(input, linear_weight, linear_bias), target), as torch.nn.functional.linear_cross_entropy of torch
    2.13. The scores are never all in memory: 4096 rows of 50257 classes take 60 MB beside what is given and returned, and not
    the 819 MB of the scores, three times.

    Args:
        input: [in_features] or [N, in_features]; float32, float64, bfloat16, float16, any strides.
        linear_weight: [C, in_features], any strides; one of more dimensions (torch's K-dimensional loss) is torch's.
        target: classes, int64 or uint8, [] or [N]; probabilities, which are as large as the scores, are torch's.
        linear_bias: [C].
        weight: [C], what each class counts for.
        reduction, label_smoothing: as of `cross_entropy`.
        ignore_index: a class that counts for nothing; None: -100.
        options: torch.nn.LinearCrossEntropyOptions, how torch's cuts the rows; nothing to ours, which always does.
    Returns:
        A number, or with "none" one for each target; input's type, under autocast float32.
    Raises:
        torch's errors.  IndexError: a target is no class; on a GPU such a target counts for nothing, and PYFLASH_CHECK=1 raises.
    Numerics: products as `linear`, losses as `cross_entropy`; gradients of half types add up in float32. Deterministic,
        whatever the number of threads. Second derivatives in torch operations, with all scores.
        On a CPU float32 and float64 compute the gradients with the loss, where it is a number: a backward multiplies them, or a
        second one computes them again. Else the backward computes the scores again, one product of its three.
    """

    def torchs():
        arguments = linear_bias, weight, reduction, ignore_index, label_smoothing
        if not hasattr(F, "linear_cross_entropy"):
            return unfused(input, linear_weight, target, *arguments)
        return F.linear_cross_entropy(
            input, linear_weight, target, linear_bias=linear_bias, weight=weight, reduction=reduction,
            ignore_index=ignore_index, label_smoothing=label_smoothing, options=options,
        )  # fmt: skip

    if _refused.holds(input, linear_weight, target, linear_bias):
        return torchs()
    asked = input, linear_weight, target, linear_bias, weight
    if not _is_asked_right(*asked, reduction, ignore_index, label_smoothing):
        return torchs()
    x, w, b = cast_by_autocast((input, linear_weight, linear_bias))
    reason = _unserved(*asked)
    training = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (input, linear_weight, linear_bias)
    )
    backend = choose(OPERATION, x, asked[1:], None if reason else _size_of(training, x, w), reason)
    if backend is None:
        return torchs()
    x, classes = (x.unsqueeze(0), target.unsqueeze(0)) if input.dim() == 1 else (x, target)
    ignored = IGNORED if ignore_index is None else ignore_index
    classes = classes.to(torch.int64).contiguous()
    if (classes.is_cpu or CHECK_VALUES) and readable(classes):
        expect_classes("linear_cross_entropy", classes, w.shape[0], ignored)
    if weight is not None:
        weight = weight.to(acc_dtype(x.dtype)).contiguous()
    b = b if b is None else b.contiguous()
    early = _are_early(x, w, b, reduction, backend)
    settings = ignored, float(label_smoothing), reduction, result_dtype(input), *early, backend
    loss = apply(_LinearCrossEntropy, x, w, b, classes, weight, *settings)[0]
    return loss.squeeze(0) if input.dim() == 1 and reduction == "none" else loss
