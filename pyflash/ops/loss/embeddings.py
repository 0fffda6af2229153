"""Losses of embeddings that are to be alike, or apart."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from pyflash.ops.loss.arguments import REDUCTIONS, reduction_of
from pyflash.ops.loss.elementwise import are_tensors
from pyflash.ops.loss.margins import as_numbers, margin_ranking_loss
from pyflash.ops.loss.row_loss import operation, row_loss

COSINE_EMBEDDING, _refused_cosine_embedding = operation("cosine_embedding_loss")
TRIPLET_MARGIN, _refused_triplet_margin = operation("triplet_margin_loss")


def _broadcast(*shapes) -> torch.Size | None:
    """None where torch says what is wrong."""
    try:
        return torch.Size(torch.broadcast_shapes(*shapes))
    except RuntimeError:
        return None


def cosine_embedding_loss(
    input1: torch.Tensor,
    input2: torch.Tensor,
    target: torch.Tensor,
    margin: float = 0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """1 - cos(input1, input2) where the target is 1, max(0, cos - margin) where it is -1, as
    torch.nn.functional.cosine_embedding_loss.

    Args:
        input1, input2: [N, D] or [D]; float32, float64, bfloat16, float16, any strides.
        target: [N] or []; such numbers or integers. It has no gradient, as in torch.
        margin: of the cosine of pairs that are not alike.
        size_average, reduce: deprecated, as torch's.
        reduction: "none", "mean" or "sum".
    Returns:
        A number, or with "none" one for each pair; input1's type, under autocast float32.
    Raises:
        torch's errors.
    Numerics: products and sums in float32 (float64 for float64), the cosine in float64, rounded once. Deterministic, whatever
        the number of threads. Second derivatives in torch operations.
    """
    reduction = reduction_of(size_average, reduce, reduction)

    def torchs():
        return F.cosine_embedding_loss(input1, input2, target, margin, reduction=reduction)

    if _refused_cosine_embedding.holds(input1, input2, target):
        return torchs()
    sign = as_numbers(target, input1)
    if reduction not in REDUCTIONS or not are_tensors(input1, input2, sign):
        return torchs()
    if sign.dim() > 1 or not input1.dim() == input2.dim() == sign.dim() + 1:
        return torchs()
    shape = _broadcast(input1.shape[:-1], input2.shape[:-1], sign.shape)
    if shape is None or _broadcast(input1.shape, input2.shape) is None:
        return torchs()
    tensors = {"input1": input1, "input2": input2, "target": sign.detach()}
    return row_loss(COSINE_EMBEDDING, tensors, shape, "cosine_embedding", reduction, torchs, margin=margin)


def triplet_margin_loss(
    anchor: torch.Tensor,
    positive: torch.Tensor,
    negative: torch.Tensor,
    margin: float = 1.0,
    p: float = 2,
    eps: float = 1e-6,
    swap: bool = False,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """max(0, margin + |anchor - positive| - |anchor - negative|), as torch.nn.functional.triplet_margin_loss. Balntas et al. 2016.

    Args:
        anchor, positive, negative: [..., D] of shapes that broadcast; float32, float64, bfloat16, float16, any strides.
        margin: above 0.
        p: of the norm; 1 and 2 are ours.
        eps: added to each difference.
        swap: the smaller one of |anchor - negative| and |positive - negative| counts.
        size_average, reduce: deprecated, as torch's.
        reduction: "none", "mean" or "sum".
    Returns, Raises, Numerics: as `cosine_embedding_loss`.
    """
    reduction = reduction_of(size_average, reduce, reduction)

    def torchs():
        return F.triplet_margin_loss(anchor, positive, negative, margin, p, eps, swap, reduction=reduction)

    if _refused_triplet_margin.holds(anchor, positive, negative):
        return torchs()
    if reduction not in REDUCTIONS or not are_tensors(anchor, positive, negative) or not margin > 0:
        return torchs()
    if not anchor.dim() == positive.dim() == negative.dim() > 0:
        return torchs()
    shape = _broadcast(anchor.shape, positive.shape, negative.shape)
    if shape is None:
        return torchs()
    tensors = {"anchor": anchor, "positive": positive, "negative": negative}
    refused = "" if p in (1, 2) else f"p is {p}"
    return row_loss(
        TRIPLET_MARGIN, tensors, shape[:-1], "triplet_margin", reduction, torchs, margin=margin, eps=eps,
        power=int(p) if not refused else 2, is_swapped=bool(swap), refused=refused,
    )  # fmt: skip


def triplet_margin_with_distance_loss(
    anchor: torch.Tensor,
    positive: torch.Tensor,
    negative: torch.Tensor,
    *,
    distance_function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    margin: float = 1.0,
    swap: bool = False,
    reduction: str = "mean",
) -> torch.Tensor:
    """max(0, margin + distance(anchor, positive) - distance(anchor, negative)), as
    torch.nn.functional.triplet_margin_with_distance_loss.

    Args:
        anchor, positive, negative: what the distance takes, of as many dimensions.
        distance_function: (x, y) -> their distances; None: the Euclidean one, as in `triplet_margin_loss`. What is made of its
            results is `margin_ranking_loss`.
        margin, swap, reduction: as of `triplet_margin_loss`.
    """

    def torchs():
        return F.triplet_margin_with_distance_loss(
            anchor,
            positive,
            negative,
            distance_function=distance_function,
            margin=margin,
            swap=swap,
            reduction=reduction,
        )

    if reduction not in REDUCTIONS or not margin > 0 or not are_tensors(anchor, positive, negative):
        return torchs()
    if not anchor.dim() == positive.dim() == negative.dim():
        return torchs()
    if distance_function is None:
        return triplet_margin_loss(anchor, positive, negative, margin, swap=swap, reduction=reduction)
    near, far = distance_function(anchor, positive), distance_function(anchor, negative)
    if swap:
        far = torch.minimum(far, distance_function(positive, negative))
    farther = near.new_full((1,) * near.dim(), -1.0)  # which of the two is to be smaller
    return margin_ranking_loss(near, far, farther, margin, reduction=reduction)
