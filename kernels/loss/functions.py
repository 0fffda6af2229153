"""What the table of elementwise losses (rows.py) is made of, beside the primitives."""

import triton
import triton.language as tl

from pyflash.kernels.primitives import log1p


@triton.jit
def log_complement(x):
    """log(1 - x)."""
    return log1p(-x)


@triton.jit
def at_least(x, low: tl.constexpr):
    """NaN stays, where tl.maximum would drop it."""
    return tl.where(x < low, low, x)


@triton.jit
def probability(x):
    return tl.where((x >= 0) & (x <= 1), x, float("nan"))
