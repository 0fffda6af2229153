"""When two modules may run as one kernel: only where both are bare (nn/_twins.py)."""

from __future__ import annotations

import torch

import pyflash.functional as F
from pyflash.activations import Activation, rows_by
from pyflash.nn import _activations
from pyflash.nn._twins import ORIGINALS, class_of, is_bare

_FUNCTIONS = {  # of a function that several rows share, the one that its default gives
    function: rows[0].name
    for name, rows in rows_by("function").items()
    for function in (getattr(torch.nn.functional, name), getattr(F, name), *rows[0].torch_functions)
}
_MODULES = {getattr(_activations, name): rows for name, rows in rows_by("module").items()}


def is_activation(cls: type) -> bool:
    """Is this class, ours or torch's, in the activation table?"""
    return cls in _MODULES or any(ORIGINALS[ours] is cls for ours in _MODULES)


def row_of(module: torch.nn.Module) -> Activation | None:
    """The row of the activation table that a module of ours computes."""
    for row in _MODULES.get(class_of(module), ()):
        if row.attribute is None or getattr(module, row.attribute[0]) == row.attribute[1]:
            return row
    return None


def activation_name(activation) -> str:
    """The row of the activation table that this callable is; empty when it is another one."""
    if isinstance(activation, torch.nn.Module):
        for cls, rows in _MODULES.items():
            if is_bare(activation, cls, ORIGINALS[cls]):
                return next(
                    (r.name for r in rows if not r.attribute or getattr(activation, r.attribute[0]) == r.attribute[1]),
                    "",
                )
        return ""
    try:
        return _FUNCTIONS.get(activation, "")
    except TypeError:  # without a hash
        return ""
