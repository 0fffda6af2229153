"""Linear, as torch.nn.Linear."""

from typing import Any

import torch
from torch import Tensor

import pyflash.functional as F
from pyflash.nn._twins import twin

__all__ = ["LazyLinear", "Linear"]


@twin("linear")
class Linear(torch.nn.Linear):
    """input weight^T + bias, as torch.nn.Linear."""

    def forward(self, input: Tensor) -> Tensor:
        held: dict[str, Any] = self._parameters  # Module.__getattr__ takes 0.2 us for each
        try:
            weight, bias = held["weight"], held["bias"]
        except KeyError:  # parametrized, or no parameter any more
            weight, bias = self.weight, self.bias
        return F.linear(input, weight, bias)


@twin("linear")
class LazyLinear(torch.nn.LazyLinear, Linear):
    """A Linear whose in_features its first input tells, as torch.nn.LazyLinear; from then on it is a Linear of ours."""

    cls_to_become = Linear


@twin()
class NonDynamicallyQuantizableLinear(torch.nn.modules.linear.NonDynamicallyQuantizableLinear, Linear):
    """MultiheadAttention's out_proj, whose weights are read there: a Linear of ours to whoever asks for one."""
