"""Softmax, LogSoftmax, Softmin and Softmax2d, as in torch.nn."""

from __future__ import annotations

import torch
from torch import Tensor

import pyflash.functional as F
from pyflash.nn._twins import leaf, twin

__all__ = ["LogSoftmax", "Softmax", "Softmax2d", "Softmin"]

_CALLER = 5  # frames from the warning of a missing `dim` to the module's call, as torch.nn counts them


@twin("softmax")
class Softmax(torch.nn.Softmax):
    """exp(x) / sum(exp(x)) over one dimension, as torch.nn.Softmax."""

    def forward(self, input: Tensor) -> Tensor:
        return F.softmax(input, self.dim, _stacklevel=_CALLER)


@twin("log_softmax")
class LogSoftmax(torch.nn.LogSoftmax):
    """x - log(sum(exp(x))) over one dimension, as torch.nn.LogSoftmax."""

    def forward(self, input: Tensor) -> Tensor:
        return F.log_softmax(input, self.dim, _stacklevel=_CALLER)


@twin("softmin")
class Softmin(torch.nn.Softmin):
    """Softmax of -x, as torch.nn.Softmin."""

    def forward(self, input: Tensor) -> Tensor:
        return F.softmin(input, self.dim, _stacklevel=_CALLER)


@twin("softmax")
@leaf  # torch.fx knows no number of dimensions
class Softmax2d(torch.nn.Softmax2d):
    """Softmax over the channels of [N, C, H, W] or [C, H, W], as torch.nn.Softmax2d."""

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() not in (3, 4):
            raise ValueError(f"Softmax2d: expected input to be 3D or 4D, got {input.dim()}D instead")
        return F.softmax(input, -3, _stacklevel=_CALLER)
