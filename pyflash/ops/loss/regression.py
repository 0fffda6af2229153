"""Losses of a difference: its square, its absolute value, and what changes from one to the other. Poisson's, and the soft margin."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pyflash.ops.core.checks import size_mismatch
from pyflash.ops.loss.arguments import REDUCTIONS, reduction_of, result_dtype
from pyflash.ops.loss.elementwise import are_tensors, elementwise_loss, operation

MSE, _refused_mse = operation("mse_loss")
L1, _refused_l1 = operation("l1_loss")
SMOOTH_L1, _refused_smooth_l1 = operation("smooth_l1_loss")
HUBER, _refused_huber = operation("huber_loss")
POISSON, _refused_poisson = operation("poisson_nll_loss")
SOFT_MARGIN, _refused_soft_margin = operation("soft_margin_loss")


def _is_asked_right(input, target, reduction, weight=None) -> bool:
    """Does torch take such arguments? It says itself what is wrong with others."""
    if reduction not in REDUCTIONS or not are_tensors(input, target, optional=(weight,)):
        return False
    if weight is not None and weight.shape != input.shape:
        return False
    return input.shape == target.shape or not size_mismatch(input.shape, target.shape, "")


def _warning(input, target) -> str:
    """torch's, where sizes differ."""
    if target.shape == input.shape:
        return ""
    return (
        f"Using a target size ({target.shape}) that is different to the input size ({input.shape}). "
        "This will likely lead to incorrect results due to broadcasting. Please ensure they have the same size."
    )


def _weighing(input, target, weight, reduction) -> dict:
    """What a weight changes, where a mean is over the weights: torch's are operations one by one, to which autocast does nothing."""
    if weight is None:
        return {"reduction": reduction}
    refused = ""
    if result_dtype(input) != input.dtype:
        refused = "weight under autocast"
    elif input.shape != target.shape:
        refused = "weight and a target of another size"
    return {"reduction": "weighted" if reduction == "mean" else reduction, "weight": weight, "refused": refused}


def mse_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """(input - target)^2, as torch.nn.functional.mse_loss, in one pass.

    Args:
        input, target: of one shape, or of such as broadcast, with torch's warning; float32, float64, bfloat16, float16.
        size_average, reduce: deprecated, as torch's.
        reduction: "none", "mean" or "sum".
        weight: like input, what each element counts for, in the mean too. One that requires a gradient is torch's.
    Returns:
        A number, or with "none" one for each element; input's type, under autocast float32.
    Raises:
        torch's errors.
    Numerics: in float32 (float64 for float64), sums of 1024 elements in float64, rounded once. Deterministic, whatever the
        number of threads. Second derivatives in torch operations.
    """
    reduction = reduction_of(size_average, reduce, reduction)

    def torchs():
        return F.mse_loss(input, target, reduction=reduction, weight=weight)

    if _refused_mse.holds(input, target, weight) or not _is_asked_right(input, target, reduction, weight):
        return torchs()
    weighing = _weighing(input, target, weight, reduction)
    return elementwise_loss(MSE, input, target, "mse", torchs=torchs, warning=_warning(input, target), **weighing)


def l1_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """|input - target|, as torch.nn.functional.l1_loss; all else as of `mse_loss`."""
    reduction = reduction_of(size_average, reduce, reduction)

    def torchs():
        return F.l1_loss(input, target, reduction=reduction, weight=weight)

    if _refused_l1.holds(input, target, weight) or not _is_asked_right(input, target, reduction, weight):
        return torchs()
    weighing = _weighing(input, target, weight, reduction)
    return elementwise_loss(L1, input, target, "l1", torchs=torchs, warning=_warning(input, target), **weighing)


def smooth_l1_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    beta: float = 1.0,
) -> torch.Tensor:
    """(input - target)^2 / (2 beta), and from a difference of beta on its absolute value less beta / 2, as
    torch.nn.functional.smooth_l1_loss; all else as of `mse_loss`. Girshick 2015, arXiv:1504.08083."""
    reduction = reduction_of(size_average, reduce, reduction)

    def torchs():
        return F.smooth_l1_loss(input, target, reduction=reduction, beta=beta)

    if _refused_smooth_l1.holds(input, target) or not _is_asked_right(input, target, reduction) or not beta >= 0:
        return torchs()
    loss = "smooth_l1" if beta else "l1"
    return elementwise_loss(
        SMOOTH_L1, input, target, loss, reduction, torchs, parameter=beta, warning=_warning(input, target)
    )


def huber_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """(input - target)^2 / 2, and from a difference of delta on delta times its absolute value less delta / 2, as
    torch.nn.functional.huber_loss; all else as of `mse_loss`, but that a mean is over the number of elements, weighed or not.
    Huber 1964."""

    def torchs():
        return F.huber_loss(input, target, reduction=reduction, delta=delta, weight=weight)

    if _refused_huber.holds(input, target, weight) or not _is_asked_right(input, target, reduction, weight):
        return torchs()
    if not delta > 0:
        return torchs()
    weighing = {**_weighing(input, target, weight, reduction), "reduction": reduction}
    return elementwise_loss(
        HUBER, input, target, "huber", torchs=torchs, parameter=delta, warning=_warning(input, target), **weighing
    )


def poisson_nll_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    log_input: bool = True,
    full: bool = False,
    size_average: bool | None = None,
    eps: float = 1e-8,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """exp(input) - target input, or, where log_input is False, input - target log(input + eps), as
    torch.nn.functional.poisson_nll_loss; with `full` also Stirling's approximation of log(target!) where the target is above 1.
    All else as of `mse_loss`."""
    reduction = reduction_of(size_average, reduce, reduction)

    def torchs():
        return F.poisson_nll_loss(input, target, log_input, full, eps=eps, reduction=reduction)

    if _refused_poisson.holds(input, target) or not _is_asked_right(input, target, reduction):
        return torchs()
    loss = "poisson_nll" + ("_full" if full else "") + ("" if log_input else "_of_rate")
    return elementwise_loss(POISSON, input, target, loss, reduction, torchs, parameter=0.0 if log_input else eps)


def soft_margin_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """log(1 + exp(-target input)), as torch.nn.functional.soft_margin_loss, which overflows where this does not; all else as of
    `mse_loss`. The target, 1 or -1, has no gradient, as in torch."""
    reduction = reduction_of(size_average, reduce, reduction)

    def torchs():
        return F.soft_margin_loss(input, target, reduction=reduction)

    if _refused_soft_margin.holds(input, target) or not _is_asked_right(input, target, reduction):
        return torchs()
    return elementwise_loss(SOFT_MARGIN, input, target, "soft_margin", reduction, torchs)
