"""Dropout and its forms, as torch.nn's."""

import torch
from torch import Tensor

import pyflash.functional as F
from pyflash.nn._twins import twin

__all__ = ["AlphaDropout", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "FeatureAlphaDropout"]


@twin("dropout")
class Dropout(torch.nn.Dropout):
    """Zeroes elements with probability p in training, as torch.nn.Dropout; the mask is recomputed, never stored."""

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout(input, self.p, self.training, self.inplace)


@twin("dropout1d")
class Dropout1d(torch.nn.Dropout1d):
    """Zeroes whole channels with probability p in training, as torch.nn.Dropout1d."""

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout1d(input, self.p, self.training, self.inplace)


@twin("dropout2d")
class Dropout2d(torch.nn.Dropout2d):
    """Zeroes whole channels with probability p in training, as torch.nn.Dropout2d."""

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout2d(input, self.p, self.training, self.inplace)


@twin("dropout3d")
class Dropout3d(torch.nn.Dropout3d):
    """Zeroes whole channels with probability p in training, as torch.nn.Dropout3d."""

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout3d(input, self.p, self.training, self.inplace)


@twin("alpha_dropout")
class AlphaDropout(torch.nn.AlphaDropout):
    """Dropout that keeps mean and variance of what SELU gives, as torch.nn.AlphaDropout."""

    def forward(self, input: Tensor) -> Tensor:
        return F.alpha_dropout(input, self.p, self.training)  # torch's ignores `inplace`, too


@twin("feature_alpha_dropout")
class FeatureAlphaDropout(torch.nn.FeatureAlphaDropout):
    """AlphaDropout of whole channels, as torch.nn.FeatureAlphaDropout."""

    def forward(self, input: Tensor) -> Tensor:
        return F.feature_alpha_dropout(input, self.p, self.training)
