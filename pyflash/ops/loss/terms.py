"""What losses average: functions of one element, with two derivatives, in torch operations.

The same table is in csrc/cpu/loss/terms.h and kernels/loss/terms.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F


class Term(NamedTuple):
    """f(x), g f'(x) and g f''(x)."""

    value: Callable[[torch.Tensor], torch.Tensor]
    first: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    second: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _softplus(x):
    return F.softplus(x, threshold=40.0)  # torch's default of 20 is off by 2e-9, which float64 has digits for


def _masked(u, g):
    return g.masked_fill(u <= 0, 0.0)  # relu's derivative, at its corner and of NaN too


def _none(x, g):
    return torch.zeros_like(x)


def _minus(term: Term) -> Term:
    return Term(lambda x: -term.value(x), lambda x, g: term.first(x, -g), lambda x, g: term.second(x, -g))


TERMS = {
    "softplus": Term(_softplus, lambda x, g: g * x.sigmoid(), lambda x, g: g * (x.sigmoid() * (-x).sigmoid())),
    "softplus_negative": Term(
        lambda x: _softplus(-x), lambda x, g: -g * (-x).sigmoid(), lambda x, g: g * (x.sigmoid() * (-x).sigmoid())
    ),
    "hinge_below": Term(lambda x: F.relu(1 - x), lambda x, g: _masked(1 - x, -g.expand_as(x)), _none),
    "hinge_above": Term(lambda x: F.relu(1 + x), lambda x, g: _masked(1 + x, g.expand_as(x)), _none),
    "value": Term(lambda x: x, lambda x, g: g.expand_as(x), _none),
    "half_square_to_one": Term(lambda x: (x - 1).square() / 2, lambda x, g: g * (x - 1), lambda x, g: g.expand_as(x)),
    "half_square": Term(lambda x: x.square() / 2, lambda x, g: g * x, lambda x, g: g.expand_as(x)),
}
for _name in ("softplus", "value"):
    TERMS[f"minus_{_name}"] = _minus(TERMS[_name])
