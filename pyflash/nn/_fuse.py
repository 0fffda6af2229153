"""When two modules may run as one kernel: only where calling them would run their forwards and nothing else."""

from __future__ import annotations

import torch
from torch.nn.modules import module as _torch_module

import pyflash.functional as F
from pyflash.nn.activation import GELU, ReLU, Sigmoid, SiLU, Tanh


def is_bare(module: torch.nn.Module, *classes: type) -> bool:
    """Would calling `module` run the forward of one of `classes` and nothing else?"""
    return type(module) in classes and "forward" not in module.__dict__ and not (
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
        or _torch_module._global_forward_pre_hooks
        or _torch_module._global_forward_hooks
        or _torch_module._global_backward_pre_hooks
        or _torch_module._global_backward_hooks
    )  # fmt: skip


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
