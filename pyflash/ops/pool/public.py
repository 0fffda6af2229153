"""What the family offers in pyflash.functional, and which of torch's functions that stands for."""

import torch
import torch.nn.functional as F

from pyflash.ops.core.public import stands_for
from pyflash.ops.pool.max_pool import (
    max_pool1d,
    max_pool1d_with_indices,
    max_pool2d,
    max_pool2d_with_indices,
    max_pool3d,
    max_pool3d_with_indices,
)

__all__ = [
    "max_pool1d",
    "max_pool1d_with_indices",
    "max_pool2d",
    "max_pool2d_with_indices",
    "max_pool3d",
    "max_pool3d_with_indices",
]

stands_for({getattr(F, name): globals()[name] for name in __all__})
stands_for({getattr(torch, f"max_pool{n}d"): globals()[f"max_pool{n}d"] for n in (1, 2, 3)})
