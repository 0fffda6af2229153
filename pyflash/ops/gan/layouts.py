"""How a picture lies in memory."""

from __future__ import annotations

import torch


def is_channels_last(x: torch.Tensor) -> bool:
    """Channels, more than one, lie side by side. What is contiguous as it is written is not."""
    return x.dim() == 4 and x.shape[1] > 1 and x.stride(1) == 1 and not x.is_contiguous() and x.stride(3) >= x.shape[1]


def dense(x: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """`x` without holes, channels last or as the dimensions are written; copied only if it is not so already."""
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def empty(like: torch.Tensor, shape, channels_last: bool) -> torch.Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def places(x: torch.Tensor, channels_last: bool) -> tuple[int, int]:
    """(outer, inner): x is [outer, height, width, inner] in memory."""
    batch, channels = x.shape[:2]
    return (batch, channels) if channels_last else (batch * channels, 1)
