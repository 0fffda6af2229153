"""Pooling, as torch.nn's."""

import torch
from torch import Tensor

import pyflash.functional as F
from pyflash.nn._twins import twin

__all__ = [
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AdaptiveMaxPool3d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "LPPool1d",
    "LPPool2d",
    "LPPool3d",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "MaxUnpool1d",
    "MaxUnpool2d",
    "MaxUnpool3d",
]


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


@twin("avg_pool1d")
class AvgPool1d(torch.nn.AvgPool1d):
    """The mean of each window of a row, as torch.nn.AvgPool1d."""

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool1d(input, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad)


@twin("avg_pool2d")
class AvgPool2d(torch.nn.AvgPool2d):
    """The mean of each window of an image, as torch.nn.AvgPool2d."""

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool2d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


@twin("avg_pool3d")
class AvgPool3d(torch.nn.AvgPool3d):
    """The mean of each window of a volume, as torch.nn.AvgPool3d."""

    def forward(self, input: Tensor) -> Tensor:
        return F.avg_pool3d(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
            self.divisor_override,
        )


@twin("adaptive_max_pool1d")
class AdaptiveMaxPool1d(torch.nn.AdaptiveMaxPool1d):
    """Largest elements of as many windows of a row as are asked for, as torch.nn.AdaptiveMaxPool1d."""

    def forward(self, input: Tensor):
        return F.adaptive_max_pool1d(input, self.output_size, self.return_indices)


@twin("adaptive_max_pool2d")
class AdaptiveMaxPool2d(torch.nn.AdaptiveMaxPool2d):
    """Largest elements of as many windows of an image as are asked for, as torch.nn.AdaptiveMaxPool2d."""

    def forward(self, input: Tensor):
        return F.adaptive_max_pool2d(input, self.output_size, self.return_indices)


@twin("adaptive_max_pool3d")
class AdaptiveMaxPool3d(torch.nn.AdaptiveMaxPool3d):
    """Largest elements of as many windows of a volume as are asked for, as torch.nn.AdaptiveMaxPool3d."""

    def forward(self, input: Tensor):
        return F.adaptive_max_pool3d(input, self.output_size, self.return_indices)


@twin("adaptive_avg_pool1d")
class AdaptiveAvgPool1d(torch.nn.AdaptiveAvgPool1d):
    """Means of as many windows of a row as are asked for, as torch.nn.AdaptiveAvgPool1d."""

    def forward(self, input: Tensor) -> Tensor:
        return F.adaptive_avg_pool1d(input, self.output_size)


@twin("adaptive_avg_pool2d")
class AdaptiveAvgPool2d(torch.nn.AdaptiveAvgPool2d):
    """Means of as many windows of an image as are asked for, as torch.nn.AdaptiveAvgPool2d."""

    def forward(self, input: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(input, self.output_size)


@twin("adaptive_avg_pool3d")
class AdaptiveAvgPool3d(torch.nn.AdaptiveAvgPool3d):
    """Means of as many windows of a volume as are asked for, as torch.nn.AdaptiveAvgPool3d."""

    def forward(self, input: Tensor) -> Tensor:
        return F.adaptive_avg_pool3d(input, self.output_size)


@twin("avg_pool1d")
class LPPool1d(torch.nn.LPPool1d):
    """Power averages of windows of a row, as torch.nn.LPPool1d; asks for the largest element where the power is infinite."""

    kernel_size: int

    def forward(self, input: Tensor) -> Tensor:
        return F.lp_pool1d(input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode)


@twin("avg_pool2d")
class LPPool2d(torch.nn.LPPool2d):
    """Power averages of windows of an image, as torch.nn.LPPool2d; asks for the largest element where the power is infinite."""

    def forward(self, input: Tensor) -> Tensor:
        return F.lp_pool2d(input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode)


@twin("avg_pool3d")
class LPPool3d(torch.nn.LPPool3d):
    """Power averages of windows of a volume, as torch.nn.LPPool3d; asks for the largest element where the power is infinite."""

    def forward(self, input: Tensor) -> Tensor:
        return F.lp_pool3d(input, float(self.norm_type), self.kernel_size, self.stride, self.ceil_mode)


@twin("max_unpool1d")
class MaxUnpool1d(torch.nn.MaxUnpool1d):
    """The elements of a pooled row back at their places, as torch.nn.MaxUnpool1d."""

    def forward(self, input: Tensor, indices: Tensor, output_size: list[int] | None = None) -> Tensor:
        return F.max_unpool1d(input, indices, self.kernel_size, self.stride, self.padding, output_size)


@twin("max_unpool2d")
class MaxUnpool2d(torch.nn.MaxUnpool2d):
    """The elements of a pooled image back at their places, as torch.nn.MaxUnpool2d."""

    def forward(self, input: Tensor, indices: Tensor, output_size: list[int] | None = None) -> Tensor:
        return F.max_unpool2d(input, indices, self.kernel_size, self.stride, self.padding, output_size)


@twin("max_unpool3d")
class MaxUnpool3d(torch.nn.MaxUnpool3d):
    """The elements of a pooled volume back at their places, as torch.nn.MaxUnpool3d."""

    def forward(self, input: Tensor, indices: Tensor, output_size: list[int] | None = None) -> Tensor:
        return F.max_unpool3d(input, indices, self.kernel_size, self.stride, self.padding, output_size)
