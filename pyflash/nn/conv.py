"""Convolution and transposed convolution, as torch.nn's. Unfold and Fold are torch's own."""

import torch
from torch import Tensor

import pyflash.functional as F
from pyflash.nn._twins import twin, weight_and_bias

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "LazyConv1d",
    "LazyConv2d",
    "LazyConv3d",
    "LazyConvTranspose1d",
    "LazyConvTranspose2d",
    "LazyConvTranspose3d",
]

_FUNCTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TORCHS = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d, 3: torch.nn.functional.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def _forward(self, input: Tensor) -> Tensor:
    weight, bias = weight_and_bias(self)
    return self._conv_forward(input, weight, bias)


def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What subclasses of torch's call, with weights of their own."""
    function = _FUNCTIONS[len(self.kernel_size)]
    if self.padding_mode != "zeros":
        return convolve(self, function, input, weight, bias)
    return function(input, weight, bias, self.stride, self.padding, self.dilation, self.groups)


def convolve(conv, function, input: Tensor, weight: Tensor, bias: Tensor | None, **behind) -> Tensor:
    """`function`, with the options of the module `conv` and its padding mode; `behind` are further keywords."""
    padding = conv.padding
    if conv.padding_mode != "zeros":
        input, padding = F.pad(input, conv._reversed_padding_repeated_twice, conv.padding_mode), 0
    return function(input, weight, bias, conv.stride, padding, conv.dilation, conv.groups, **behind)


def by_torch(self, input: Tensor) -> Tensor:
    """The forward of a convolution that `auto` leaves to torch."""
    weight, bias = weight_and_bias(self)
    return convolve(self, _TORCHS[len(self.kernel_size)], input, weight, bias)


def _transposed_forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
    n = len(self.kernel_size)
    if self.padding_mode != "zeros":
        raise ValueError(f"Only `zeros` padding mode is supported for ConvTranspose{n}d")
    options = self.stride, self.padding, self.kernel_size, n, self.dilation
    output_padding = self._output_padding(input, output_size, *options)
    weight, bias = weight_and_bias(self)
    return _TRANSPOSED[n](input, weight, bias, self.stride, self.padding, output_padding, self.groups, self.dilation)


@twin("conv1d")
class Conv1d(torch.nn.Conv1d):
    """Weighted sums of the windows of a row, as torch.nn.Conv1d."""

    forward, _conv_forward = _forward, _conv_forward


@twin("conv2d")
class Conv2d(torch.nn.Conv2d):
    """Weighted sums of the windows of an image, as torch.nn.Conv2d."""

    forward, _conv_forward = _forward, _conv_forward


@twin("conv3d")
class Conv3d(torch.nn.Conv3d):
    """Weighted sums of the windows of a volume, as torch.nn.Conv3d."""

    forward, _conv_forward = _forward, _conv_forward


@twin("conv_transpose1d")
class ConvTranspose1d(torch.nn.ConvTranspose1d):
    """The gradient of a convolution of rows in its input, as torch.nn.ConvTranspose1d."""

    forward = _transposed_forward


@twin("conv_transpose2d")
class ConvTranspose2d(torch.nn.ConvTranspose2d):
    """The gradient of a convolution of images in its input, as torch.nn.ConvTranspose2d."""

    forward = _transposed_forward


@twin("conv_transpose3d")
class ConvTranspose3d(torch.nn.ConvTranspose3d):
    """The gradient of a convolution of volumes in its input, as torch.nn.ConvTranspose3d."""

    forward = _transposed_forward


# torch declares a lazy module's parameters otherwise than those of what it becomes; so does its own class: hence the ignored.
@twin("conv1d")
class LazyConv1d(torch.nn.LazyConv1d, Conv1d):  # type: ignore[misc]
    """A Conv1d whose in_channels its first input tells, as torch.nn.LazyConv1d; from then on it is one of ours."""

    cls_to_become = Conv1d


@twin("conv2d")
class LazyConv2d(torch.nn.LazyConv2d, Conv2d):  # type: ignore[misc]
    """A Conv2d whose in_channels its first input tells, as torch.nn.LazyConv2d; from then on it is one of ours."""

    cls_to_become = Conv2d


@twin("conv3d")
class LazyConv3d(torch.nn.LazyConv3d, Conv3d):  # type: ignore[misc]
    """A Conv3d whose in_channels its first input tells, as torch.nn.LazyConv3d; from then on it is one of ours."""

    cls_to_become = Conv3d


@twin("conv_transpose1d")
class LazyConvTranspose1d(torch.nn.LazyConvTranspose1d, ConvTranspose1d):  # type: ignore[misc]
    """A ConvTranspose1d whose in_channels its first input tells, as torch.nn.LazyConvTranspose1d; from then on one of ours."""

    cls_to_become = ConvTranspose1d


@twin("conv_transpose2d")
class LazyConvTranspose2d(torch.nn.LazyConvTranspose2d, ConvTranspose2d):  # type: ignore[misc]
    """A ConvTranspose2d whose in_channels its first input tells, as torch.nn.LazyConvTranspose2d; from then on one of ours."""

    cls_to_become = ConvTranspose2d


@twin("conv_transpose3d")
class LazyConvTranspose3d(torch.nn.LazyConvTranspose3d, ConvTranspose3d):  # type: ignore[misc]
    """A ConvTranspose3d whose in_channels its first input tells, as torch.nn.LazyConvTranspose3d; from then on one of ours."""

    cls_to_become = ConvTranspose3d
