"""When two modules may run as one kernel: only where both are bare (nn/_twins.py)."""

from __future__ import annotations

import torch

import pyflash.functional as F
from pyflash.nn._twins import is_bare
from pyflash.nn.activation import GELU, ReLU, Sigmoid, SiLU, Tanh

_FUNCTIONS = (
    (torch.nn.functional.relu, "relu"),
    (torch.relu, "relu"),
    (F.relu, "relu"),
    (torch.nn.functional.gelu, "gelu"),
    (F.gelu, "gelu"),
    (torch.nn.functional.silu, "silu"),
    (F.silu, "silu"),
    (torch.nn.functional.tanh, "tanh"),
    (torch.tanh, "tanh"),
    (F.tanh, "tanh"),
    (torch.nn.functional.sigmoid, "sigmoid"),
    (torch.sigmoid, "sigmoid"),
    (F.sigmoid, "sigmoid"),
)
_MODULES = (
    (ReLU, "relu"),
    (GELU, "gelu"),
    (SiLU, "silu"),
    (Tanh, "tanh"),
    (Sigmoid, "sigmoid"),
)


def activation_name(activation) -> str:
    """The row of the activation table that this callable is; empty when it is another one."""
    for function, name in _FUNCTIONS:
        if activation is function:
            return name
    for cls, name in _MODULES:
        if isinstance(activation, torch.nn.Module) and is_bare(activation, cls, *cls.__bases__):
            return "gelu_tanh" if name == "gelu" and activation.approximate == "tanh" else name
    return ""
