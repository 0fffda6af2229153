"""Losses, as torch.nn's."""

import torch
from torch import Tensor

import pyflash.functional as F
from pyflash.nn._twins import twin

__all__ = ["CrossEntropyLoss"]


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
