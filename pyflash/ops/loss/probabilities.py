"""Losses of probabilities: binary cross entropy, of them and of logits, and the Kullback-Leibler divergence."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from pyflash.ops.core.checks import CHECK_VALUES, readable, size_mismatch
from pyflash.ops.loss.arguments import REDUCTIONS, reduction_of
from pyflash.ops.loss.elementwise import are_tensors, elementwise_loss, operation

BCE, _refused_bce = operation("binary_cross_entropy")
BCE_WITH_LOGITS, _refused_bce_with_logits = operation("binary_cross_entropy_with_logits")
KL_DIV, _refused_kl_div = operation("kl_div")


def _fits(weight, input) -> bool:
    """Is a weight broadcast to the input, which does not grow by it?"""
    return weight is None or (
        weight.dim() <= input.dim()
        and all(own in (1, size) for own, size in zip(reversed(weight.shape), reversed(input.shape)))
    )


def _is_asked_right(input, target, reduction, *weights) -> bool:
    """Does torch take such arguments? It says itself what is wrong with others."""
    if reduction not in REDUCTIONS or not are_tensors(input, target, optional=weights) or input.shape != target.shape:
        return False
    return all(_fits(weight, input) for weight in weights)


def _expect_probabilities(loss, input, target) -> None:
    """torch's errors. A loss of the kernel is NaN where an element is no probability, so that the tensors are read again only
    where there is one."""
    if not math.isnan(loss.detach().sum().item() if loss.dim() else loss.item()):
        return
    for name, t in (("input", input), ("target", target)):
        if not ((t >= 0) & (t <= 1)).all():
            raise RuntimeError(f"all elements of {name} should be between 0 and 1: of pyflash.binary_cross_entropy's")


def binary_cross_entropy(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """-target log(input) - (1 - target) log(1 - input), each logarithm at least -100, as
    torch.nn.functional.binary_cross_entropy, in one pass.

    Args:
        input: probabilities of any shape; float32, float64, bfloat16, float16.
        target: like input, within 0 and 1.
        weight: of a shape that broadcasts to input's, what each element counts for.
        size_average, reduce: deprecated, as torch's.
        reduction: "none", "mean" (over the elements) or "sum".
    Returns:
        A number, or with "none" one for each element; input's type, under autocast float32.
    Raises:
        torch's errors, on a CPU of numbers that are no probabilities, too; on a GPU those make the loss NaN, and PYFLASH_CHECK=1
        raises.
    Numerics: in float32 (float64 for float64), sums of 1024 elements in float64, rounded once. Deterministic, whatever the
        number of threads. Second derivatives in torch operations.
    """
    reduction = reduction_of(size_average, reduce, reduction)

    def torchs():
        return F.binary_cross_entropy(input, target, weight, reduction=reduction)

    if _refused_bce.holds(input, target, weight) or not _is_asked_right(input, target, reduction, weight):
        return torchs()
    loss = elementwise_loss(BCE, input, target, "binary_cross_entropy", reduction, torchs, weight=weight)
    if input.is_cpu or CHECK_VALUES:
        if readable(input, target, loss) and not torch._C._are_functorch_transforms_active():
            _expect_probabilities(loss, input, target)
    return loss


def binary_cross_entropy_with_logits(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """-pos_weight target log(sigmoid(input)) - (1 - target) log(1 - sigmoid(input)), as
    torch.nn.functional.binary_cross_entropy_with_logits, in one pass.

    Args:
        input: logits of any shape; float32, float64, bfloat16, float16.
        target: like input.
        weight, pos_weight: of shapes that broadcast to input's: what each element counts for, and its positive part beside.
        size_average, reduce, reduction: as of `binary_cross_entropy`.
    Returns, Numerics: as `binary_cross_entropy`.
    Raises:
        torch's errors.
    """
    reduction = reduction_of(size_average, reduce, reduction)

    def torchs():
        return F.binary_cross_entropy_with_logits(input, target, weight, reduction=reduction, pos_weight=pos_weight)

    if _refused_bce_with_logits.holds(input, target, weight, pos_weight):
        return torchs()
    if not _is_asked_right(input, target, reduction, weight, pos_weight):
        return torchs()
    loss = "binary_cross_entropy_with_logits" if pos_weight is None else "binary_cross_entropy_with_pos_weight"
    return elementwise_loss(
        BCE_WITH_LOGITS, input, target, loss, reduction, torchs, weight=weight, pos_weight=pos_weight
    )


def kl_div(
    input: torch.Tensor,
    target: torch.Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> torch.Tensor:
    """target (log(target) - input), or, of targets that are logarithms, exp(target) (target - input), as
    torch.nn.functional.kl_div, in one pass. Kullback & Leibler 1951.

    Args:
        input: logarithms of probabilities, of any shape; float32, float64, bfloat16, float16.
        target: probabilities, or their logarithms where log_target says so, of a shape that broadcasts with input's.
        size_average, reduce: deprecated, as torch's.
        reduction: "none", "mean" (over the elements, with torch's warning), "batchmean" (over the first dimension) or "sum".
    Returns, Numerics: as `binary_cross_entropy`.
    Raises:
        torch's errors.
    """
    is_legacy = size_average is not None or reduce is not None
    said, reduction = reduction, reduction_of(size_average, reduce, reduction)

    def torchs():
        return F.kl_div(input, target, size_average, reduce, said, log_target)

    if _refused_kl_div.holds(input, target):
        return torchs()
    if reduction not in (*REDUCTIONS, "batchmean") or not are_tensors(input, target):
        return torchs()
    if size_mismatch(input.shape, target.shape, "") if input.shape != target.shape else False:
        return torchs()
    if (reduction == "batchmean" and input.dim() == 0) or (is_legacy and said == "batchmean"):
        return torchs()
    loss = "kl_div_log_target" if log_target else "kl_div"
    warning = "" if is_legacy or reduction != "mean" else _OF_MEANS
    return elementwise_loss(KL_DIV, input, target, loss, reduction, torchs, warning=warning)


_OF_MEANS = (
    "reduction: 'mean' divides the total loss by both the batch size and the support size."
    "'batchmean' divides only by the batch size, and aligns with the KL div math definition."
    "'mean' will be changed to behave the same as 'batchmean' in the next major release."
)
