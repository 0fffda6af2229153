"""Power-average pooling: (sum of x^p over a window)^(1/p), of torch's operations and our windows, as torch composes it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pyflash.ops.pool.avg_pool import avg_pool1d, avg_pool2d, avg_pool3d
from pyflash.ops.pool.max_pool import max_pool1d, max_pool2d, max_pool3d
from pyflash.ops.pool.windows import Size, spread

_AVERAGE, _LARGEST = (avg_pool1d, avg_pool2d, avg_pool3d), (max_pool1d, max_pool2d, max_pool3d)


def _lp_pool(n, input, norm_type, kernel_size, stride, ceil_mode):
    kernel = spread(kernel_size, n)
    if not isinstance(input, Tensor) or kernel is None or (n == 1 and type(kernel_size) is not int):
        return getattr(F, f"lp_pool{n}d")(input, norm_type, kernel_size, stride, ceil_mode)
    if isinstance(norm_type, (int, float)):
        largest = _LARGEST[n - 1]
        if norm_type == float("inf"):
            return largest(input.abs(), kernel_size, stride, 0, 1, ceil_mode)
        if norm_type == -float("inf"):
            return -largest(-input.abs(), kernel_size, stride, 0, 1, ceil_mode)
    elements = 1
    for size in kernel:
        elements *= size
    out = _AVERAGE[n - 1](input.pow(norm_type), kernel_size, stride, 0, ceil_mode)
    return (torch.sign(out) * F.relu(torch.abs(out))).mul(elements).pow(1.0 / norm_type)


def lp_pool1d(
    input: Tensor, norm_type: int | float, kernel_size: int, stride: Size | None = None, ceil_mode: bool = False
) -> Tensor:
    """As `lp_pool2d`, of [N, C, L]."""
    return _lp_pool(1, input, norm_type, kernel_size, stride, ceil_mode)


def lp_pool2d(
    input: Tensor, norm_type: int | float, kernel_size: Size, stride: Size | None = None, ceil_mode: bool = False
) -> Tensor:
    """(sum of x^norm_type)^(1 / norm_type) of each window, as torch.nn.functional.lp_pool2d.

    Args:
        input, kernel_size, stride, ceil_mode: as those of `avg_pool2d`.
        norm_type: the power; infinity is the largest magnitude, its negative the smallest.
    """
    return _lp_pool(2, input, norm_type, kernel_size, stride, ceil_mode)


def lp_pool3d(
    input: Tensor, norm_type: int | float, kernel_size: Size, stride: Size | None = None, ceil_mode: bool = False
) -> Tensor:
    """As `lp_pool2d`, of [N, C, D, H, W]."""
    return _lp_pool(3, input, norm_type, kernel_size, stride, ceil_mode)
