"""LayerNorm, as torch.nn.LayerNorm."""

import torch
from torch import Tensor

import pyflash.functional as F
from pyflash.nn._twins import twin

__all__ = ["LayerNorm"]


@twin("layer_norm")
class LayerNorm(torch.nn.LayerNorm):
    """Normalises over the last dimensions, as torch.nn.LayerNorm. Ba et al. 2016, arXiv:1607.06450."""

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)
