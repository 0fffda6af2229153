"""How an image lies in memory, and what of it the axes of a kernel are."""

from __future__ import annotations

import torch

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the number of dimensions


def is_channels_last(x: torch.Tensor) -> bool:
    """What torch's `suggest_memory_format` says, in steps that torch.compile follows into a backward: its rule reads the
    order of the strides, so that parts of such a tensor count as well. Three dimensions have no such format."""
    if x.dim() not in CHANNELS_LAST:
        return False
    sizes, strides = x.shape, x.stride()
    if strides[-1] < strides[1] * sizes[1] or strides[1] == 0:  # most of the others
        return False
    least = 0
    for dim in (1, *range(x.dim() - 1, 1, -1), 0):
        if sizes[dim] == 0 or strides[dim] < least or (dim == 0 and least == strides[1]):
            return False
        least = strides[dim] * sizes[dim]
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
