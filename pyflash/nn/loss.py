"""Losses, as torch.nn's."""

import torch
from torch import Tensor

import pyflash.functional as F
from pyflash.nn._twins import twin

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "CosineEmbeddingLoss",
    "CrossEntropyLoss",
    "HingeEmbeddingLoss",
    "HuberLoss",
    "KLDivLoss",
    "L1Loss",
    "MSELoss",
    "MarginRankingLoss",
    "NLLLoss",
    "PoissonNLLLoss",
    "SmoothL1Loss",
    "SoftMarginLoss",
    "TripletMarginLoss",
    "TripletMarginWithDistanceLoss",
]
if hasattr(torch.nn, "LinearCrossEntropyLoss"):  # from torch 2.13 on
    __all__ += ["LinearCrossEntropyLoss"]


@twin("cross_entropy")
class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """-log softmax(input)[target], as torch.nn.CrossEntropyLoss; the softmax is never stored."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )


if hasattr(torch.nn, "LinearCrossEntropyLoss"):

    @twin("linear_cross_entropy")
    class LinearCrossEntropyLoss(torch.nn.LinearCrossEntropyLoss):
        """Cross entropy of a linear layer's results, as torch.nn.LinearCrossEntropyLoss; these are never all in memory."""

        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            linear, shape = self.linear, (self.num_classes, *self.out_features)
            return F.linear_cross_entropy(
                input,
                linear.weight.reshape(*shape, linear.in_features),
                target,
                linear_bias=None if linear.bias is None else linear.bias.reshape(shape),
                weight=self.weight,
                reduction=self.reduction,
                ignore_index=self.ignore_index,
                label_smoothing=self.label_smoothing,
                options=self.options,
            )


@twin("nll_loss")
class NLLLoss(torch.nn.NLLLoss):
    """-input[target], as torch.nn.NLLLoss."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.nll_loss(input, target, weight=self.weight, ignore_index=self.ignore_index, reduction=self.reduction)


@twin("binary_cross_entropy")
class BCELoss(torch.nn.BCELoss):
    """-target log(input) - (1 - target) log(1 - input), as torch.nn.BCELoss."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy(input, target, weight=self.weight, reduction=self.reduction)


@twin("binary_cross_entropy_with_logits")
class BCEWithLogitsLoss(torch.nn.BCEWithLogitsLoss):
    """Binary cross entropy of sigmoid(input), as torch.nn.BCEWithLogitsLoss."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(
            input, target, self.weight, pos_weight=self.pos_weight, reduction=self.reduction
        )


@twin("mse_loss")
class MSELoss(torch.nn.MSELoss):
    """(input - target)^2, as torch.nn.MSELoss."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(input, target, reduction=self.reduction)


@twin("l1_loss")
class L1Loss(torch.nn.L1Loss):
    """|input - target|, as torch.nn.L1Loss."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(input, target, reduction=self.reduction)


@twin("smooth_l1_loss")
class SmoothL1Loss(torch.nn.SmoothL1Loss):
    """Squared below beta, absolute above, as torch.nn.SmoothL1Loss. Girshick 2015, arXiv:1504.08083."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.smooth_l1_loss(input, target, reduction=self.reduction, beta=self.beta)


@twin("huber_loss")
class HuberLoss(torch.nn.HuberLoss):
    """Squared below delta, delta times the absolute value above, as torch.nn.HuberLoss. Huber 1964."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.huber_loss(input, target, reduction=self.reduction, delta=self.delta)


@twin("kl_div")
class KLDivLoss(torch.nn.KLDivLoss):
    """target (log(target) - input), as torch.nn.KLDivLoss."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.kl_div(input, target, reduction=self.reduction, log_target=self.log_target)


@twin("poisson_nll_loss")
class PoissonNLLLoss(torch.nn.PoissonNLLLoss):
    """exp(log_input) - target log_input, as torch.nn.PoissonNLLLoss."""

    def forward(self, log_input: Tensor, target: Tensor) -> Tensor:
        return F.poisson_nll_loss(
            log_input, target, log_input=self.log_input, full=self.full, eps=self.eps, reduction=self.reduction
        )


@twin("soft_margin_loss")
class SoftMarginLoss(torch.nn.SoftMarginLoss):
    """log(1 + exp(-target input)), as torch.nn.SoftMarginLoss."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.soft_margin_loss(input, target, reduction=self.reduction)


@twin("margin_ranking_loss")
class MarginRankingLoss(torch.nn.MarginRankingLoss):
    """max(0, margin - target (input1 - input2)), as torch.nn.MarginRankingLoss."""

    def forward(self, input1: Tensor, input2: Tensor, target: Tensor) -> Tensor:
        return F.margin_ranking_loss(input1, input2, target, margin=self.margin, reduction=self.reduction)


@twin("hinge_embedding_loss")
class HingeEmbeddingLoss(torch.nn.HingeEmbeddingLoss):
    """input of similar pairs, max(0, margin - input) of others, as torch.nn.HingeEmbeddingLoss."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.hinge_embedding_loss(input, target, margin=self.margin, reduction=self.reduction)


@twin("cosine_embedding_loss")
class CosineEmbeddingLoss(torch.nn.CosineEmbeddingLoss):
    """1 - cos of similar pairs, max(0, cos - margin) of others, as torch.nn.CosineEmbeddingLoss."""

    def forward(self, input1: Tensor, input2: Tensor, target: Tensor) -> Tensor:
        return F.cosine_embedding_loss(input1, input2, target, margin=self.margin, reduction=self.reduction)


@twin("triplet_margin_loss")
class TripletMarginLoss(torch.nn.TripletMarginLoss):
    """max(0, margin + |anchor - positive| - |anchor - negative|), as torch.nn.TripletMarginLoss."""

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        return F.triplet_margin_loss(
            anchor,
            positive,
            negative,
            margin=self.margin,
            p=self.p,
            eps=self.eps,
            swap=self.swap,
            reduction=self.reduction,
        )


@twin("triplet_margin_loss", "margin_ranking_loss")
class TripletMarginWithDistanceLoss(torch.nn.TripletMarginWithDistanceLoss):
    """A triplet loss of any distances, as torch.nn.TripletMarginWithDistanceLoss."""

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        return F.triplet_margin_with_distance_loss(
            anchor, positive, negative, distance_function=self.distance_function, margin=self.margin, swap=self.swap,
            reduction=self.reduction,
        )  # fmt: skip
