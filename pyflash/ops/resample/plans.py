"""From an operation's arguments to what a kernel reads: (outer, tables of three axes, inner, fill), the tensor being
[outer, axis, axis, axis, inner] in memory, and `fill` what a place becomes that reads nothing."""

from __future__ import annotations

import torch

from pyflash.ops.core.layouts import in_memory
from pyflash.ops.resample.tables import identity, interpolated, padded

AXES = 3


def three(tables) -> tuple:
    return (*[identity(1)] * (AXES - len(tables)), *tables)


def interpolation(x, sizes, scales, mode, align_corners, antialias, transposed, channels_last):
    size_in, size_out = (sizes, x.shape[2:]) if transposed else (x.shape[2:], sizes)
    is_double = x.dtype == torch.float64
    tables = [
        interpolated(mode, antialias, *axis, align_corners, is_double, transposed)
        for axis in zip(size_in, size_out, scales)
    ]
    batch, channels = x.shape[:2]
    return (batch, three(tables), channels, 0.0) if channels_last else (batch * channels, three(tables), 1, 0.0)


def padded_dims(shape, pads, channels_last):
    """(outer, [(size, before, after) of each axis], inner): dimensions that are not padded are one with their neighbours.
    `shape` is that of what is padded."""
    apart = [(0, 0)] * (len(shape) - len(pads) // 2) + [*zip(pads[::2], pads[1::2])][::-1]
    axes = [(1, 0, 0)]
    for size, (before, after) in zip(in_memory(shape, channels_last), in_memory(apart, channels_last)):
        if before or after or axes[-1][1:] != (0, 0):
            axes.append((size, before, after))
        else:
            axes[-1] = (axes[-1][0] * size, 0, 0)
    outer = axes.pop(0)[0]
    inner = axes.pop()[0] if axes and axes[-1][1:] == (0, 0) else 1
    return outer, axes, inner


def padding(x, pads, mode, value, transposed, channels_last):
    shape = [*x.shape]
    for i, (before, after) in enumerate(zip(pads[::2], pads[1::2]), 1):
        shape[-i] -= (before + after) * transposed
    outer, axes, inner = padded_dims(shape, pads, channels_last)
    tables = [
        padded(mode, size, before, after, transposed) if before or after else identity(size)
        for size, before, after in axes
    ]
    return outer, three(tables), inner, 0.0 if transposed else value
