"""Losses that are 0 once a margin is kept, element by element."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pyflash.ops.core.checks import size_mismatch
from pyflash.ops.loss.arguments import REDUCTIONS, reduction_of
from pyflash.ops.loss.elementwise import are_tensors, elementwise_loss, operation

MARGIN_RANKING, _refused_margin_ranking = operation("margin_ranking_loss")
HINGE_EMBEDDING, _refused_hinge_embedding = operation("hinge_embedding_loss")


def as_numbers(target, input):
    """A target of integers, which torch compares and multiplies with the input's numbers, as such numbers."""
    if not isinstance(target, torch.Tensor) or not isinstance(input, torch.Tensor):
        return target
    is_integer = not (target.is_floating_point() or target.is_complex() or target.dtype == torch.bool)
    return target.to(input.dtype) if is_integer and input.is_floating_point() else target


def margin_ranking_loss(
    input1: torch.Tensor,
    input2: torch.Tensor,
    target: torch.Tensor,
    margin: float = 0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """max(0, margin - target (input1 - input2)), as torch.nn.functional.margin_ranking_loss.

    Args:
        input1, input2: float32, float64, bfloat16, float16, of shapes that broadcast, with as many dimensions.
        target: 1 where the first ranks higher, -1 where the second does: of such numbers, or integers. One that requires a
            gradient is torch's.
        size_average, reduce: deprecated, as torch's.
        reduction: "none", "mean" or "sum".
    Returns, Raises, Numerics: as `mse_loss`.
    """
    reduction = reduction_of(size_average, reduce, reduction)

    def torchs():
        return F.margin_ranking_loss(input1, input2, target, margin, reduction=reduction)

    if _refused_margin_ranking.holds(input1, input2, target):
        return torchs()
    sign = as_numbers(target, input1)
    if reduction not in REDUCTIONS or not are_tensors(input1, input2, sign):
        return torchs()
    if not input1.dim() == input2.dim() == sign.dim():
        return torchs()
    x, other = input1, input2
    if not x.shape == other.shape == sign.shape:
        try:
            x, other, sign = torch.broadcast_tensors(x, other, sign)
        except RuntimeError:
            return torchs()
    names = "input1", "input2", "weight", "target"
    return elementwise_loss(
        MARGIN_RANKING, x, other, "margin_ranking", reduction, torchs, parameter=margin, pos_weight=sign, names=names
    )


def hinge_embedding_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    margin: float = 1.0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """input where the target is 1, max(0, margin - input) where it is -1, as torch.nn.functional.hinge_embedding_loss.

    Args:
        input: a distance; float32, float64, bfloat16, float16.
        target: such numbers or integers, of a shape that broadcasts. It has no gradient, as in torch.
        size_average, reduce: deprecated, as torch's.
        reduction: "none", "mean" or "sum".
    Returns, Raises, Numerics: as `mse_loss`.
    """
    reduction = reduction_of(size_average, reduce, reduction)

    def torchs():
        return F.hinge_embedding_loss(input, target, margin, reduction=reduction)

    if _refused_hinge_embedding.holds(input, target):
        return torchs()
    sign = as_numbers(target, input)
    if reduction not in REDUCTIONS or not are_tensors(input, sign):
        return torchs()
    if input.shape != sign.shape and size_mismatch(input.shape, sign.shape, ""):
        return torchs()
    sign = sign.detach() if sign.requires_grad else sign
    return elementwise_loss(HINGE_EMBEDDING, input, sign, "hinge_embedding", reduction, torchs, parameter=margin)
