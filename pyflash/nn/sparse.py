"""Embedding and EmbeddingBag, as torch.nn's."""

import torch
from torch import Tensor

import pyflash.functional as F
from pyflash.nn._twins import twin

__all__ = ["Embedding", "EmbeddingBag"]


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


@twin("embedding_bag")
class EmbeddingBag(torch.nn.EmbeddingBag):
    """Sums, means or maxima over bags of rows, as torch.nn.EmbeddingBag."""

    def forward(self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        return F.embedding_bag(
            input,
            self.weight,
            offsets,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.mode,
            self.sparse,
            per_sample_weights,
            self.include_last_offset,
            self.padding_idx,
        )
