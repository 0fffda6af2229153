"""Pooling, as torch.nn's."""

import torch
from torch import Tensor

import pyflash.functional as F
from pyflash.nn._twins import twin

__all__ = ["MaxPool1d", "MaxPool2d", "MaxPool3d"]


@twin("max_pool1d")
class MaxPool1d(torch.nn.MaxPool1d):
    """The largest element of each window of a row, as torch.nn.MaxPool1d."""

    def forward(self, input: Tensor):
        return F.max_pool1d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )


@twin("max_pool2d")
class MaxPool2d(torch.nn.MaxPool2d):
    """The largest element of each window of an image, as torch.nn.MaxPool2d."""

    def forward(self, input: Tensor):
        return F.max_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )


@twin("max_pool3d")
class MaxPool3d(torch.nn.MaxPool3d):
    """The largest element of each window of a volume, as torch.nn.MaxPool3d."""

    def forward(self, input: Tensor):
        return F.max_pool3d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )
