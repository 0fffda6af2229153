"""What the arguments of torch's losses have in common."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pyflash.ops.core.checks import device_type
from pyflash.ops.core.dtypes import HALVES

REDUCTIONS = "none", "mean", "sum"
SIZES = "(elements of the input, are gradients needed)"  # of the rules of a loss of an input and a target


def reduction_of(size_average, reduce, reduction: str) -> str:
    """The reduction that torch's deprecated arguments say, or else the one that is said."""
    if size_average is None and reduce is None:
        return reduction
    return F._Reduction.legacy_get_string(size_average, reduce)  # type: ignore[attr-defined]


def result_dtype(input: torch.Tensor) -> torch.dtype:
    """Under autocast float32, as of torch's losses."""
    device = device_type(input)
    if input.dtype in HALVES and device != "meta" and torch.is_autocast_enabled(device):
        return torch.float32
    return input.dtype
