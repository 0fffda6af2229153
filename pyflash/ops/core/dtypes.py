"""The types that kernels take, what they accumulate in, and autocast."""

from __future__ import annotations

import torch

from pyflash.ops.core.checks import device_type

HALVES = (torch.bfloat16, torch.float16)
FLOATS = (torch.float32, torch.float64, *HALVES)
BY_ALL: dict[str, tuple[torch.dtype, ...]] = {"cpu": FLOATS, "triton": FLOATS, "cuda": FLOATS}  # what each serves
ALL_BUT_FLOAT64 = (torch.float32, *HALVES)  # what Triton's products take


def acc_dtype(dtype: torch.dtype) -> torch.dtype:
    """What sums of such numbers are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def cast_by_autocast(tensors, to: torch.dtype | None = None):
    """What torch's functions do under autocast: all floating-point tensors but float64 in the autocast type, or in `to`
    where a function has a type of its own. None stays None."""
    device = device_type(tensors[0])
    if device == "meta" or not torch.is_autocast_enabled(device) or not tensors[0].is_floating_point():
        return tensors
    dtype = to or torch.get_autocast_dtype(device)
    return [t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors]
