"""What losses average: functions of one element, with two derivatives, in torch operations.

The same table is in csrc/cpu/loss/terms.h and kernels/loss/terms.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F


class Term(NamedTuple):
    """f(x) as factor * base(x), which leaves the factor to the mean; g f'(x) and g f''(x)."""

    base: Callable[[torch.Tensor], torch.Tensor]
    factor: float
    first: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    second: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _softplus(x):
    return F.softplus(x, 1.0, 40.0)  # torch's default threshold of 20 is off by 2e-9, which float64 has digits for


def _minus_softplus_negative(x):
    return F.softplus(x, -1.0, 40.0)  # log(1 + exp(-x)) / -1: no pass that negates x


def _masked(u, g):
    return g.masked_fill(u <= 0, 0.0)  # relu's derivative, at its corner and of NaN too


def _none(x, g):
    return torch.zeros_like(x)


def _curved(x, g):
    return g * (x.sigmoid() * (-x).sigmoid())


def _minus(term: Term) -> Term:
    return Term(term.base, -term.factor, lambda x, g: term.first(x, -g), lambda x, g: term.second(x, -g))


TERMS = {
    "softplus": Term(_softplus, 1.0, lambda x, g: g * x.sigmoid(), _curved),
    "softplus_negative": Term(_minus_softplus_negative, -1.0, lambda x, g: -g * (-x).sigmoid(), _curved),
    "hinge_below": Term(lambda x: F.relu(1 - x), 1.0, lambda x, g: _masked(1 - x, -g.expand_as(x)), _none),
    "hinge_above": Term(lambda x: F.relu(1 + x), 1.0, lambda x, g: _masked(1 + x, g.expand_as(x)), _none),
    "value": Term(lambda x: x, 1.0, lambda x, g: g.expand_as(x), _none),
    "half_square_to_one": Term(lambda x: (x - 1).square(), 0.5, lambda x, g: g * (x - 1), lambda x, g: g.expand_as(x)),
    "half_square": Term(lambda x: x.square(), 0.5, lambda x, g: g * x, lambda x, g: g.expand_as(x)),
}
TERMS.update({f"minus_{name}": _minus(TERMS[name]) for name in ("softplus", "value")})
