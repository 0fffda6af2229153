"""Linear, as torch.nn.Linear."""

import torch
from torch import Tensor

import pyflash.functional as F
from pyflash.nn._twins import twin


@twin
class Linear(torch.nn.Linear):
    """input weight^T + bias, as torch.nn.Linear."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias)


@twin
class LazyLinear(torch.nn.LazyLinear, Linear):
    """A Linear whose in_features its first input tells, as torch.nn.LazyLinear; from then on it is a Linear of ours."""

    cls_to_become = Linear


@twin
class NonDynamicallyQuantizableLinear(torch.nn.modules.linear.NonDynamicallyQuantizableLinear, Linear):
    """MultiheadAttention's out_proj, whose weights are read there: a Linear of ours to whoever asks for one."""
