"""Tensors of any strides in a kernel's arguments, and tiles of them."""

from typing import NamedTuple

import triton
import triton.language as tl

from pyflash.kernels import primitives


class Strided(NamedTuple):
    """A tensor in a kernel's arguments."""

    ptr: object
    strides: tuple


def strided(tensor):
    """Strided(tensor), or None for None."""
    return None if tensor is None else Strided(tensor, tensor.stride())


@triton.jit
def rows_of(x, batch, head, start):
    """x from one head's first row on; 64-bit, since whole tensors pass 2^31 elements."""
    ptr = x.ptr + batch.to(tl.int64) * x.strides[0] + head.to(tl.int64) * x.strides[1]
    return Strided(ptr + start.to(tl.int64) * x.strides[2], x.strides)


@triton.jit
def tile_from(first, BLOCK: tl.constexpr):
    """first, first + 1, ...: BLOCK numbers from a multiple of BLOCK on, which the compiler cannot know of a loop's
    variable, and without which it moves half types two bytes at a time. A hint on `first` itself is lost on the way."""
    return tl.max_contiguous(tl.multiple_of(first + tl.arange(0, BLOCK), BLOCK), BLOCK)


@triton.jit
def load_tile(x, offs_m, limit_m, offs_d, limit_d):
    """[len(offs_m), len(offs_d)] of x, zero from the limits on; a limit of None is known to hold."""
    ptrs = x.ptr + offs_m.to(tl.int64)[:, None] * x.strides[2] + offs_d.to(tl.int64)[None, :] * x.strides[3]  # [M, D]
    if limit_m is None and limit_d is None:
        tile = tl.load(ptrs)
    elif limit_d is None:
        tile = tl.load(ptrs, mask=offs_m[:, None] < limit_m, other=0.0)
    elif limit_m is None:
        tile = tl.load(ptrs, mask=offs_d[None, :] < limit_d, other=0.0)
    else:
        tile = tl.load(ptrs, mask=(offs_m[:, None] < limit_m) & (offs_d[None, :] < limit_d), other=0.0)
    return tile


@triton.jit
def store_tile(x, tile, offs_m, limit_m, offs_d, limit_d):
    """The reverse: tile [len(offs_m), len(offs_d)] into x, in its type, up to the limits."""
    ptrs = x.ptr + offs_m.to(tl.int64)[:, None] * x.strides[2] + offs_d.to(tl.int64)[None, :] * x.strides[3]
    mask = offs_m[:, None] < limit_m
    if limit_d is not None:
        mask = mask & (offs_d[None, :] < limit_d)
    tl.store(ptrs, primitives.cast(tile, x.ptr.dtype.element_ty), mask=mask)


@triton.jit
def load_rows(x, offs_m, limit_m, other):
    """One number per row, such as lse: [len(offs_m)], `other` from the limit on."""
    return tl.load(x.ptr + offs_m.to(tl.int64) * x.strides[2], mask=offs_m < limit_m, other=other)


@triton.jit
def store_rows(x, value, offs_m, limit_m):
    """value [len(offs_m)], one number per row, up to the limit."""
    tl.store(x.ptr + offs_m.to(tl.int64) * x.strides[2], value, mask=offs_m < limit_m)
