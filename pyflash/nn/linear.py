"""Linear, as torch.nn.Linear."""

import torch
from torch import Tensor

import pyflash.functional as F
from pyflash.nn._twins import twin, weight_and_bias

__all__ = ["LazyLinear", "Linear"]


def by_torch(self, input: Tensor) -> Tensor:
    """The forward of a call that `auto` leaves to torch."""
    weight, bias = weight_and_bias(self)
    return torch.nn.functional.linear(input, weight, bias)


@twin("linear")
class Linear(torch.nn.Linear):
    """input weight^T + bias, as torch.nn.Linear."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = weight_and_bias(self)
        return F.linear(input, weight, bias)


@twin("linear")
class LazyLinear(torch.nn.LazyLinear, Linear):
    """A Linear whose in_features its first input tells, as torch.nn.LazyLinear; from then on it is a Linear of ours."""

    cls_to_become = Linear


@twin()
class NonDynamicallyQuantizableLinear(torch.nn.modules.linear.NonDynamicallyQuantizableLinear, Linear):
    """MultiheadAttention's out_proj, whose weights are read there: a Linear of ours to whoever asks for one."""
