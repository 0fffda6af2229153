"""What an argument `activation=` may be, and what the operators are told of it."""

from __future__ import annotations

import numbers
from typing import Any

import torch

from pyflash.activations import ACTIVATIONS, Activation, rows_by
from pyflash.ops.core.checks import expect

ActivationArgument = str | tuple[str, dict[str, float]] | torch.nn.Module | None
# A row's name and the values of its parameters; its fields follow each other in a schema.
Resolved = tuple[str, float, float]

NO_ACTIVATION: Resolved = ("", 0.0, 0.0)

# Rows that a class computes; pyflash.nn adds its own. Of several, the module's attribute tells.
MODULES: dict[type, list[Activation]] = {getattr(torch.nn, name): rows for name, rows in rows_by("module").items()}

_BY_NAME: dict[str | None, Resolved] = {None: NO_ACTIVATION} | {
    row.name: (row.name, *row.values(default for _, default in row.parameters))
    for row in ACTIVATIONS.values()
    if None not in (default for _, default in row.parameters)
}


def row_of(module: torch.nn.Module, cls: type) -> Activation | None:
    """The row of the activation table that a module of this class computes, as its attributes are now."""
    for row in MODULES.get(cls, ()):
        if row.attribute is None or getattr(module, row.attribute[0]) == row.attribute[1]:
            return row
    return None


def described(row: Activation, module: torch.nn.Module) -> ActivationArgument:
    """The module of this row as an argument: its name, with the values of its parameters where it has some."""
    if not row.parameters:
        return row.name
    return row.name, {name: getattr(module, name) for name, _ in row.parameters}


def resolve(operation: str, activation: ActivationArgument) -> Resolved:
    """
    Raises:
        ValueError: no activation of the table, no parameter of it, or one that must be given is not.  TypeError: a value
            that is no number.
    """
    if activation is None or type(activation) is str:
        found = _BY_NAME.get(activation)
        if found is not None:
            return found
    if isinstance(activation, torch.nn.Module):
        cls = type(activation)
        computed = row_of(activation, cls)
        if computed is None:
            raise ValueError(f"pyflash.{operation}: {_unknown(f'a {cls.__name__}')}")
        activation = described(computed, activation)
        if type(activation) is str:
            return _BY_NAME[activation]
    name: Any = activation
    given: dict[str, float] = {}
    if isinstance(activation, (tuple, list)) and len(activation) == 2 and isinstance(activation[1], dict):
        name, given = activation
    expect(isinstance(name, str) and name in ACTIVATIONS, operation, lambda: _unknown(repr(activation)))
    row = ACTIVATIONS[name]
    values = {**dict(row.parameters), **given}
    known = ", ".join(parameter for parameter, _ in row.parameters) or "none"
    expect(
        len(values) == len(row.parameters),
        operation,
        lambda: f"activation {name!r} is given {', '.join(map(repr, given))}; its parameters are {known}",
    )
    for parameter, value in values.items():
        expect(
            value is not None,
            operation,
            lambda parameter=parameter: (
                f"activation {name!r} has no default for {parameter!r}; pass ({name!r}, {{{parameter!r}: ...}})"
            ),
        )
        expect(
            isinstance(value, numbers.Real),
            operation,
            lambda parameter=parameter, value=value: (
                f"{parameter} of activation {name!r} is {value!r}, expected a number"
            ),
            TypeError,
        )
    expect(
        row.allowed is None or row.allowed(*values.values()),
        operation,
        lambda: f"activation {name!r} is given {values}, which torch refuses, too",
    )
    return name, *row.values(values.values())


def _unknown(what: str) -> str:
    return (
        f"activation is {what}, expected None or one of {', '.join(ACTIVATIONS)}, alone or in a pair (name, {{parameter:"
        " value}), or a torch.nn module that computes one"
    )


def activated(z: torch.Tensor, of: Resolved) -> torch.Tensor:
    """torch's result."""
    name, *values = of
    return ACTIVATIONS[name].of(z, (values[0], values[1])) if name else z
