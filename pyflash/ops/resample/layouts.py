"""How an image lies in memory, and what of it the axes of a kernel are."""

from __future__ import annotations

import torch

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the number of dimensions


def is_channels_last(x: torch.Tensor) -> bool:
    """Would torch give the result of an operation on `x` channels last? Its rule reads the order of the strides, so that
    parts of such a tensor count as well."""
    if x.dim() not in CHANNELS_LAST:
        return False
    sizes, strides, smallest = x.shape, x.stride(), 0
    if strides[1] == 0:
        return False
    for dim in (1, *range(x.dim() - 1, 1, -1), 0):
        if sizes[dim] == 0 or strides[dim] < smallest or (dim == 0 and smallest == strides[1]):
            return False
        smallest = strides[dim] * max(sizes[dim], 1) if sizes[dim] > 1 else strides[dim]
    return True


def dense(x: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """`x` without holes, channels last or as the dimensions are written; copied only if it is not so already."""
    return x.contiguous(memory_format=CHANNELS_LAST[x.dim()] if channels_last else torch.contiguous_format)


def empty(like: torch.Tensor, shape, channels_last: bool) -> torch.Tensor:
    layout = CHANNELS_LAST[len(shape)] if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def in_memory(values, channels_last: bool) -> list:
    """One value of each dimension, in the order in which the dimensions lie in memory."""
    return [values[0], *values[2:], values[1]] if channels_last else [*values]
