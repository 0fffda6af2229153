"""The module of an argument `activation=`, for networks that are built from it."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import torch

from pyflash.activations import ACTIVATIONS, Activation
from pyflash.nn._twins import ORIGINALS, TWINS, class_of, set_class
from pyflash.ops.pointwise.argument import ActivationArgument, resolve

__all__ = ["ActivationArgument", "activation_module"]


def activation_module(operation: str, activation: ActivationArgument, nn: ModuleType) -> torch.nn.Module | None:
    """A new module of the class that `nn` has for this activation; None for None. A module is copied, with its parameters.

    Raises:
        ValueError, TypeError: as `resolve`.
    """
    if isinstance(activation, torch.nn.Module):
        return _copied(activation, nn)
    name, *values = resolve(operation, activation)
    if not name:
        return None
    row = ACTIVATIONS[name]
    options: dict[str, Any] = {}
    if row.module:
        options = {parameter: value for (parameter, _), value in zip(row.parameters, values)}
    if row.attribute is not None:
        options.update([row.attribute])
    return getattr(nn, _class_name(row))(**options)


def _copied(module: torch.nn.Module, nn: ModuleType) -> torch.nn.Module:
    copied, cls = copy.deepcopy(module), class_of(module)
    wanted = getattr(nn, cls.__name__, None)
    if wanted is not None and wanted in (TWINS.get(cls), ORIGINALS.get(cls)):
        set_class(copied, wanted)
    return copied


def _class_name(row: Activation) -> str:
    """Of torch.nn; a row without a class of its own (relu6) is a subclass of another's."""
    if row.module:
        return row.module
    return next(name for other in ACTIVATIONS.values() for name in other.subclasses if name.lower() == row.name)
