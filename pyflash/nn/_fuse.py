"""When two modules may run as one kernel: only where both are bare (nn/_twins.py)."""

from __future__ import annotations

import torch

import pyflash.functional as F
from pyflash.activations import Activation, rows_by
from pyflash.nn import _activations
from pyflash.nn._twins import ORIGINALS, class_of, is_bare
from pyflash.ops.pointwise import argument
from pyflash.ops.pointwise.argument import MODULES, ActivationArgument, described

_FUNCTIONS = {  # of a function that several rows share, the one that its default gives
    function: rows[0].name
    for name, rows in rows_by("function").items()
    for function in (getattr(torch.nn.functional, name), getattr(F, name), *rows[0].torch_functions)
}
_ACTIVATIONS = tuple(getattr(_activations, name) for name in _activations.__all__)
MODULES.update({ours: MODULES[ORIGINALS[ours]] for ours in _ACTIVATIONS})


def is_activation(cls: type) -> bool:
    """Is this class, ours or torch's, in the activation table?"""
    return cls in MODULES


def row_of(module: torch.nn.Module) -> Activation | None:
    """The row of the activation table that a module of ours computes."""
    return argument.row_of(module, class_of(module))


def activation_of(activation) -> ActivationArgument:
    """What this callable is as an argument `activation=`; None when it is none of the table."""
    if isinstance(activation, torch.nn.Module):
        cls = type(activation)
        row = argument.row_of(activation, cls) if is_bare(activation, cls) else None
        return None if row is None else described(row, activation)
    try:
        return _FUNCTIONS.get(activation)
    except TypeError:  # without a hash
        return None
