"""Many tensors in one launch: a table of their addresses, and of which tensor a program takes which chunk."""

import functools

import torch
import triton
import triton.language as tl

from pyflash.kernels.primitives import INTERPRETED

BLOCK = 4096 if INTERPRETED.value else 1024  # elements of a program
TYPES = {torch.float32: tl.float32, torch.float64: tl.float64, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@functools.lru_cache(maxsize=64)  # from step to step the allocator gives gradients the same places
def _table(device, columns):
    return torch.tensor(columns, dtype=torch.int64, device="cpu").to(device)


@functools.lru_cache(maxsize=64)
def chunks(device, sizes, chunk):
    """(elements of each tensor, the tensor of each chunk, which of its chunks that is, how many there are)"""
    elements = torch.tensor(sizes, dtype=torch.int64, device="cpu")
    each = -(-elements // chunk)
    row = torch.repeat_interleave(torch.arange(len(sizes), device="cpu"), each)
    at = torch.arange(len(row), device="cpu") - (each.cumsum(0) - each)[row]
    return elements.to(device), row.to(device), at.to(device), len(row)


def table(lists, columns):
    """The addresses [columns, tensors], and whether all of them and all sizes are multiples of 16: then a thread moves 16 bytes."""
    columns = tuple(map(tuple, columns))
    is_aligned = not any(number % 16 for numbers in (*columns, lists.sizes) for number in numbers)
    return _table(lists.device, columns), is_aligned


@triton.jit
def pointer(table_ptr, place, DTYPE: tl.constexpr, IS_ALIGNED: tl.constexpr):
    found = tl.load(table_ptr + place).to(tl.pointer_type(DTYPE))
    if IS_ALIGNED:
        found = tl.multiple_of(found, 16)
    return found


@triton.jit
def places(sizes_ptr, row_ptr, at_ptr, CHUNK: tl.constexpr, IS_ALIGNED: tl.constexpr):
    """(this program's tensor, the first element of its chunk, how many elements the tensor has)"""
    row = tl.load(row_ptr + tl.program_id(0))
    n = tl.load(sizes_ptr + row)
    if IS_ALIGNED:
        n = tl.multiple_of(n, 16)
    return row, tl.load(at_ptr + tl.program_id(0)) * CHUNK, n
