"""The feed-forward part of GPT's and T5's blocks, plain or gated."""

from __future__ import annotations

from collections import OrderedDict
from types import ModuleType

import torch
from torch import Tensor

from pyflash.models._functional import functional_of
from pyflash.nn._named import ActivationArgument, activation_module


class Gated(torch.nn.Module):
    """down(activation(gate) value); one product, `up`, makes gate and value. Shazeer 2020, arXiv:2002.05202."""

    def __init__(
        self, width: int, inner: int, activation: torch.nn.Module | None, bias: bool, dropout: float, nn: ModuleType
    ):
        super().__init__()
        self.up = nn.Linear(width, 2 * inner, bias=bias)
        self.activation = activation
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Linear(inner, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, -1)
        return self.down(self.dropout(functional_of(self.down).gated_act(gate, value, self.activation)))


def feed_forward(
    model: str,
    width: int,
    inner: int,
    activation: ActivationArgument,
    nn: ModuleType,
    *,
    gated: bool,
    bias: bool,
    dropout: float = 0.0,
) -> torch.nn.Module:
    """down(dropout(activation(up(x)))), or Gated: with the same names inside."""
    computed = activation_module(f"models.{model}", activation, nn)
    if gated:
        return Gated(width, inner, computed, bias, dropout, nn)
    parts: OrderedDict[str, torch.nn.Module] = OrderedDict(up=nn.Linear(width, inner, bias=bias))
    if computed is not None:
        parts["activation"] = computed
    if dropout:
        parts["dropout"] = nn.Dropout(dropout)
    parts["down"] = nn.Linear(inner, width, bias=bias)
    return nn.Sequential(parts)
