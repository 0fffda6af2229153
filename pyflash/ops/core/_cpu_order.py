"""A gradient in another memory order than the tensor it is the gradient of: what a pooling that flattens, or a norm of torch's
that gives planes for pixels, leaves to the backward of what comes before it."""

from math import prod

import torch

from pyflash import _cpu
from pyflash.ops.core.workspace import take_workspace


def in_order(t: torch.Tensor, channels_last: bool, purpose: str = "order") -> torch.Tensor:
    """t [batch, channels, ...] dense with its channels behind its places, or before them: t itself where it is, else a copy
    in memory of this call. torch's own copy takes ten times as long: it follows one of the two orders element by element."""
    if is_dense(t, channels_last):
        return t
    return copy_in_order(t, in_memory_of_call(t.shape, t.dtype, channels_last, purpose), channels_last)


def in_memory_of_call(shape, dtype, channels_last: bool, purpose: str) -> torch.Tensor:
    """An uninitialised tensor in memory that the next call of this thread with the same purpose takes."""
    batch, channels, *places = shape
    lying = (batch, *places, channels) if channels_last else tuple(shape)
    size = prod(lying) * dtype.itemsize
    memory = take_workspace(size, purpose)[:size].view(dtype).view(lying)
    return memory.movedim(-1, 1) if channels_last else memory


def copy_in_order(t: torch.Tensor, to: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """t in `to`, of the same shape and dense with its channels behind its places, or before them."""
    if not t.numel() or not is_dense(t, not channels_last):
        return to.copy_(t)
    batch, channels = t.shape[:2]
    places = t.numel() // (batch * channels)
    rows, cols = (channels, places) if channels_last else (places, channels)
    problem = t.data_ptr(), to.data_ptr(), batch, rows, cols, t.element_size().bit_length() - 1
    _cpu.transposed(problem, torch.get_num_threads())
    return to


def is_dense(t, channels_last: bool) -> bool:
    return (t.movedim(1, -1) if channels_last else t).is_contiguous()
