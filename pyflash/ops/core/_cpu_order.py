"""A gradient in another memory order than the tensor it is the gradient of: what a pooling that flattens, or a norm of torch's
that gives planes for pixels, leaves to the backward of what comes before it."""

import torch

from pyflash import _cpu
from pyflash.ops.core.workspace import take_workspace


def in_order(t: torch.Tensor, channels_last: bool, purpose: str = "order") -> torch.Tensor:
    """t [batch, channels, ...] dense with its channels behind its places, or before them: t itself where it is, else a copy
    in memory of this call. torch's own copy takes ten times as long: it follows one of the two orders element by element."""
    if _is_dense(t, channels_last):
        return t
    shape = t.movedim(1, -1).shape if channels_last else t.shape
    memory = take_workspace(t.numel() * t.element_size(), purpose).view(t.dtype)[: t.numel()].view(shape)
    copy = memory.movedim(-1, 1) if channels_last else memory
    if not t.numel() or not _is_dense(t, not channels_last):
        return copy.copy_(t)
    batch, channels = t.shape[:2]
    places = t.numel() // (batch * channels)
    rows, cols = (channels, places) if channels_last else (places, channels)
    problem = t.data_ptr(), memory.data_ptr(), batch, rows, cols, t.element_size().bit_length() - 1
    _cpu.transposed(problem, torch.get_num_threads())
    return copy


def _is_dense(t, channels_last):
    return (t.movedim(1, -1) if channels_last else t).is_contiguous()
