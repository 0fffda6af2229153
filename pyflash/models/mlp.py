"""A feed-forward net."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from types import ModuleType

import torch

import pyflash.nn
from pyflash.nn._named import ActivationArgument, activation_module

NORMS = {"layer": "LayerNorm", "batch": "BatchNorm1d"}  # the argument -> the class


def MLP(
    sizes: Sequence[int],
    activation: ActivationArgument = "relu",
    dropout: float = 0.0,
    norm: str | None = None,
    bias: bool = True,
    *,
    nn: ModuleType = pyflash.nn,
) -> torch.nn.Sequential:
    """Linear layers from each size to the next; behind each but the last a norm, an activation and a dropout, where asked for.

    It is an nn.Sequential of just these modules: with the keys of one that is written out, and what pyflash.nn.Sequential
    runs as one kernel, a Linear and its activation, runs as one here.

    Args:
        sizes: features of the input, of each hidden layer, of the output; at least two numbers. (2, 1) is a linear model.
        activation: a name of torch.nn.functional ("gelu_tanh" beside "gelu"), a pair (name, {parameter: value}) as
            ("leaky_relu", {"negative_slope": 0.2}), a torch.nn module, of which every layer gets its own, or None.
        dropout: the probability of a 0; without it there is no such module.
        norm: "layer", "batch" or None.
        bias: of the linear layers.
        nn: torch.nn for the twin.
    Shape:
        x [..., sizes[0]] to [..., sizes[-1]]; with norm="batch" [N, sizes[0]].
    Raises:
        ValueError: fewer than two sizes or one below 1, an unknown norm or activation, dropout is no probability.
        TypeError: a size is no integer, dropout no number.
    """
    widths = _widths(sizes)
    if norm is not None and norm not in NORMS:
        raise ValueError(f"pyflash.models.MLP: norm is {norm!r}, expected None or one of {', '.join(map(repr, NORMS))}")
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)):
        raise TypeError(f"pyflash.models.MLP: dropout is {dropout!r}, expected a number")
    if not 0 <= dropout <= 1:
        raise ValueError(f"pyflash.models.MLP: dropout is {dropout!r}, expected a probability, 0 to 1")
    layers: list[torch.nn.Module] = []
    for number, (wide, narrow) in enumerate(pairwise(widths), 1):
        layers.append(nn.Linear(wide, narrow, bias=bias))
        behind = activation_module(
            "models.MLP", activation, nn
        )  # also of the only layer: what is wrong with it is said
        if number == len(widths) - 1:
            break
        if norm is not None:
            layers.append(getattr(nn, NORMS[norm])(narrow))
        if behind is not None:
            layers.append(behind)
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)


def _widths(sizes) -> list[int]:
    if isinstance(sizes, str) or not isinstance(sizes, Sequence):
        raise TypeError(f"pyflash.models.MLP: sizes is {sizes!r}, expected a sequence of integers")
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"pyflash.models.MLP: sizes has {size!r} in it, expected integers")
        if size < 1:
            raise ValueError(f"pyflash.models.MLP: sizes has {size} in it, expected features from 1 on")
    if len(sizes) < 2:
        raise ValueError(
            f"pyflash.models.MLP: sizes is {tuple(sizes)}, expected at least two: the features that come in, and go out"
        )
    return list(sizes)
