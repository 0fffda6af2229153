"""The rows of the activation table as tests call them: with torch's values of their parameters, and with others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

import pyflash.functional as PF
from pyflash.activations import ACTIVATIONS, Activation

OTHER_VALUES = {  # than torch's own, which a row that has them is called with first
    "leaky_relu": [{"negative_slope": 0.3}, {"negative_slope": -0.7}],
    "elu": [{"alpha": 0.3}, {"alpha": -1.7}],
    "celu": [{"alpha": 0.25}, {"alpha": -8.0}],  # torch's float64 gradient has 1 / alpha as a float
    "hardtanh": [{"min_val": -0.3, "max_val": 2.2}, {"min_val": 0.0, "max_val": 6.0}],
    "hardshrink": [{"lambd": 0.3}, {"lambd": 0.0}],
    "softshrink": [{"lambd": 0.3}, {"lambd": 0.0}],
    "softplus": [{"beta": 2.0, "threshold": 3.0}, {"beta": -0.5, "threshold": 20.0}],
    "threshold": [{"threshold": 0.3, "value": 20.0}, {"threshold": -1.0, "value": -0.1}],
}


@dataclass(frozen=True)
class Call:
    row: Activation
    given: dict[str, float]

    @property
    def ours(self) -> Callable:
        """The public function of one tensor."""
        return partial(
            getattr(PF, self.row.function), **self.given, **dict([self.row.attribute] if self.row.attribute else [])
        )

    @property
    def reference(self) -> Callable:
        """torch's function of one tensor."""
        return partial(self.row.reference, **self.given)

    def in_type(self, dtype: torch.dtype) -> Call:
        """With the values that a type has of the parameters."""
        values = dict(self.row.parameters) | self.given
        return Call(self.row, {name: torch.tensor(value, dtype=dtype).item() for name, value in values.items()})

    @property
    def argument(self):
        """The same as an argument `activation=`."""
        return (self.row.name, self.given) if self.given else self.row.name


CALLS = {
    "-".join([row.name, *map(str, given.values())]): Call(row, given)
    for row in ACTIVATIONS.values()
    for given in [*([] if None in dict(row.parameters).values() else [{}]), *OTHER_VALUES.get(row.name, ())]
}

MODULES = [  # name in torch.nn, arguments of its constructor; each that an attribute tells apart, and each with parameters
    (row.module, (*values, *([row.attribute[1]] if row.attribute else [])))
    for row in ACTIVATIONS.values()
    if row.module
    for values in [
        *([] if None in dict(row.parameters).values() else [()]),
        *(tuple(given.values()) for given in OTHER_VALUES.get(row.name, ())),
    ]
]


def borders(name, dtype):
    """Every parameter, whole numbers around 0, and the values next to each."""
    values = [*CALLS[name].given.values(), *(v for _, v in CALLS[name].row.parameters if v is not None), *range(-8, 9)]
    x = torch.tensor([*values, *(-v for v in values), 0.1, 0.5, -0.5], dtype=torch.float64).to(dtype)
    up, down = (torch.nextafter(x, torch.full_like(x, bound)) for bound in (float("inf"), -float("inf")))
    return torch.cat([x, up, down]).repeat_interleave(40)  # torch's vectors and its single elements may differ
