"""Dropout, as torch.nn.Dropout."""

import torch
from torch import Tensor

import pyflash.functional as F
from pyflash.nn._twins import twin

__all__ = ["Dropout"]


@twin("dropout")
class Dropout(torch.nn.Dropout):
    """Zeroes elements with probability p in training, as torch.nn.Dropout; the mask is recomputed, never stored."""

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout(input, self.p, self.training, self.inplace)
