"""Forwards that stand for those of other libraries' classes. Each is in front of a class that has its parameters and children."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import pyflash.functional as F
from pyflash.nn._fuse import activation_of

if TYPE_CHECKING:
    Part = torch.nn.Module
else:
    Part = object  # the class behind is a Module

HALVES = torch.float16, torch.bfloat16


class GELU(Part):
    """GELU by the error function, as pyflash.nn.GELU."""

    def forward(self, input: Tensor) -> Tensor:
        return F.gelu(input)


class GELUTanh(Part):
    """GELU by the hyperbolic tangent, as pyflash.nn.GELU(approximate="tanh")."""

    def forward(self, input: Tensor) -> Tensor:
        return F.gelu(input, approximate="tanh")


class SiLU(Part):
    """x sigmoid(x), as pyflash.nn.SiLU."""

    def forward(self, input: Tensor) -> Tensor:
        return F.silu(input)


class Mish(Part):
    """x tanh(softplus(x)), as pyflash.nn.Mish."""

    def forward(self, input: Tensor) -> Tensor:
        return F.mish(input)


def gated(x: Tensor, gate: Any, value: Any, activation: Any) -> Tensor:
    """activation(gate(x)) value(x)"""
    fused = activation_of(activation)
    return activation(gate(x)) * value(x) if fused is None else F.gated_act(gate(x), value(x), fused)
