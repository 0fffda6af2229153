"""Embedding, as torch.nn's."""

import torch
from torch import Tensor

import pyflash.functional as F
from pyflash.nn._twins import twin

__all__ = ["Embedding"]


@twin("embedding")
class Embedding(torch.nn.Embedding):
    """Rows of a table, looked up by index, as torch.nn.Embedding."""

    def forward(self, input: Tensor) -> Tensor:
        return F.embedding(
            input,
            self.weight,
            self.padding_idx,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.sparse,
        )
