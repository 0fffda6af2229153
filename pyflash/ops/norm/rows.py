"""What the normalisations of rows share: matrices of rows for their kernels, types, and what `auto` takes as the size."""

from __future__ import annotations

import torch

from pyflash.ops.core.checks import is_plain
from pyflash.ops.core.dtypes import cast_by_autocast

SIZES = "(rows, columns, are gradients needed)"


def unit_stride(rows):
    """The matrix itself when its columns are adjacent, else a copy."""
    if rows is None or rows.is_contiguous() or rows.stride(1) == 1 or rows.shape[1] == 1:
        return rows
    return rows.contiguous()


def cast_for_autocast(*tensors):
    """torch runs the norm in float32 under autocast on CUDA, and leaves the types alone on the CPU."""
    return cast_by_autocast(tensors, torch.float32) if tensors[0].is_cuda else tensors


def is_served(*tensors):
    for t in tensors:
        if t is not None and not is_plain(t):
            return False
    return True


def paired(operation: str, x, residual):
    """x and residual broadcast and promoted, as `x + residual` does it."""
    if x.device != residual.device:
        raise RuntimeError(f"pyflash.{operation}: x is on {x.device}, residual on {residual.device}; move one of them")
    if x.shape != residual.shape:
        x, residual = torch.broadcast_tensors(x, residual)
    if x.dtype != residual.dtype:
        dtype = torch.promote_types(x.dtype, residual.dtype)
        x, residual = x.to(dtype), residual.to(dtype)
    return x, residual


def size_of(training, input, *_):
    """By the last dimension, which is nearly always the only one that is normalised."""
    if input.dim() == 0 or not is_plain(input):
        return None
    columns = input.shape[-1]
    return input.numel() // max(columns, 1), columns, training


def size(*tensors):
    return size_of(torch.is_grad_enabled() and any([t is not None and t.requires_grad for t in tensors]), *tensors)
