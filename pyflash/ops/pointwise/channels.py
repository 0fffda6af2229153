"""A dense tensor with one dimension told apart, as the kernels see it: Channels in csrc/common/pointwise.h."""

from __future__ import annotations

import torch


def channels_of(x: torch.Tensor, dim: int) -> tuple[int, int]:
    """(channels, inner) of a dense tensor: element e in memory belongs to channel e // inner % channels of dimension `dim`."""
    if x.dim() == 0 or x.shape[dim] == 1:
        return one_channel(x)
    return x.shape[dim], max(x.stride(dim), 1)


def one_channel(x: torch.Tensor) -> tuple[int, int]:
    """The same of a value for all elements."""
    return 1, max(x.numel(), 1)


def along(values: torch.Tensor, x: torch.Tensor, dim: int) -> torch.Tensor:
    """[channels] as it broadcasts along dimension `dim` of x."""
    shape = [1] * x.dim()
    shape[dim] = -1
    return values.view(shape)


def over_channels(t: torch.Tensor, dim: int) -> torch.Tensor:
    """[channels]: sums over all dimensions but `dim`."""
    others = [d for d in range(t.dim()) if d != dim]
    return t.sum(others) if others else t


def laid_out_as(t: torch.Tensor, strides) -> torch.Tensor:
    """`t` with the strides of a dense tensor of its shape: itself, or a copy."""
    if t.stride() == strides:
        return t
    return torch.empty_strided(t.shape, strides, dtype=t.dtype, device=t.device).copy_(t)
