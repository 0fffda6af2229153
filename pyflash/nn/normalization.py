"""GroupNorm, LayerNorm, LocalResponseNorm and RMSNorm, as torch.nn's."""

import torch
from torch import Tensor

import pyflash.functional as F
from pyflash.nn._twins import twin, weight_and_bias

__all__ = ["GroupNorm", "LayerNorm", "LocalResponseNorm", "RMSNorm"]


@twin("group_norm")
class GroupNorm(torch.nn.GroupNorm):
    """Normalises groups of a sample's channels, as torch.nn.GroupNorm. Wu & He 2018, arXiv:1803.08494."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = weight_and_bias(self)
        return F.group_norm(input, self.num_groups, weight, bias, self.eps)


@twin("layer_norm")
class LayerNorm(torch.nn.LayerNorm):
    """Normalises over the last dimensions, as torch.nn.LayerNorm. Ba et al. 2016, arXiv:1607.06450."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = weight_and_bias(self)
        return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


@twin("local_response_norm")
class LocalResponseNorm(torch.nn.LocalResponseNorm):
    """Divides by what neighbouring channels amount to, as torch.nn.LocalResponseNorm. Krizhevsky et al. 2012."""

    def forward(self, input: Tensor) -> Tensor:
        return F.local_response_norm(input, self.size, self.alpha, self.beta, self.k)


@twin("rms_norm")
class RMSNorm(torch.nn.RMSNorm):
    """Divides by the root of the mean square, as torch.nn.RMSNorm. Zhang & Sennrich 2019, arXiv:1910.07467."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)
