"""The norm of many tensors as of one vector, and all of them times a number: a program has a chunk of one tensor, and a last
one adds up what they found, in order."""

import torch
import triton
import triton.language as tl

from pyflash.kernels import launch
from pyflash.kernels.optim import tables
from pyflash.kernels.optim.tables import places, pointer
from pyflash.kernels.primitives import acc_dtype, cast, maximum, scalar

CHUNK = 4 * tables.BLOCK  # elements of one program


@launch.cached
@triton.jit
def _chunk_norms(
    table_ptr, sizes_ptr, row_ptr, at_ptr, chunks_ptr,
    IS_MAXIMUM: tl.constexpr, DTYPE: tl.constexpr, IS_ALIGNED: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, start, n = places(sizes_ptr, row_ptr, at_ptr, CHUNK, IS_ALIGNED)
    x_ptr = pointer(table_ptr, row, DTYPE, IS_ALIGNED)
    found = tl.zeros([BLOCK], tl.float64)
    for first in tl.static_range(0, CHUNK, BLOCK):
        i = start + first + tl.arange(0, BLOCK)
        # squares of float32 numbers leave its range from 2e19 on
        x = cast(tl.load(x_ptr + i, mask=i < n, other=0.0), acc_dtype(DTYPE)).to(tl.float64)
        found = maximum(found, tl.abs(x)) if IS_MAXIMUM else found + x * x
    total = tl.reduce(found, 0, maximum) if IS_MAXIMUM else tl.sum(found, 0)
    tl.store(chunks_ptr + tl.program_id(0), total)


@launch.cached
@triton.jit
def _norm_of_chunks(chunks_ptr, total_ptr, count, IS_MAXIMUM: tl.constexpr, BLOCK: tl.constexpr):
    found = tl.zeros([BLOCK], tl.float64)
    for start in range(0, count, BLOCK):
        i = start + tl.arange(0, BLOCK)
        x = tl.load(chunks_ptr + i, mask=i < count, other=0.0)
        found = maximum(found, x) if IS_MAXIMUM else found + x
    total = tl.reduce(found, 0, maximum) if IS_MAXIMUM else tl.sqrt(tl.sum(found, 0))
    tl.store(total_ptr, total)


@launch.cached
@triton.jit
def _scale_tensors(
    table_ptr, sizes_ptr, row_ptr, at_ptr, factor_ptr,
    DTYPE: tl.constexpr, IS_ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = acc_dtype(DTYPE)
    row, start, n = places(sizes_ptr, row_ptr, at_ptr, BLOCK, IS_ALIGNED)
    x_ptr = pointer(table_ptr, row, DTYPE, IS_ALIGNED)
    i = start + tl.arange(0, BLOCK)
    x = cast(tl.load(x_ptr + i, mask=i < n, other=0.0), ACC) * scalar(tl.load(factor_ptr), ACC)
    tl.store(x_ptr + i, cast(x, DTYPE), mask=i < n)


def total_norm(every_lists, kind):
    """The norm of the first column of each of `every_lists` as of one vector: a float64 tensor of one element."""
    device, is_maximum = every_lists[0].device, kind == "maximum"
    parts = [(lists, tables.chunks(device, tuple(lists.sizes), CHUNK)) for lists in every_lists]
    count = sum(part[-1] for _, part in parts)
    chunks, start = torch.empty(count, dtype=torch.float64, device=device), 0
    for lists, (sizes, row, at, of_these) in parts:
        table, is_aligned = tables.table(lists, lists.columns[:1])
        if of_these:
            _chunk_norms[(of_these,)](
                table, sizes, row, at, chunks[start:], IS_MAXIMUM=is_maximum, DTYPE=tables.TYPES[lists.dtype],
                IS_ALIGNED=is_aligned, CHUNK=CHUNK, BLOCK=tables.BLOCK,
            )  # fmt: skip
        start += of_these
    total = torch.empty((), dtype=torch.float64, device=device)
    _norm_of_chunks[(1,)](chunks, total, count, IS_MAXIMUM=is_maximum, BLOCK=1024)
    return total


def scale(lists, factor):
    """The first column times factor, a float64 tensor of one element, in place."""
    table, is_aligned = tables.table(lists, lists.columns[:1])
    sizes, row, at, count = tables.chunks(lists.device, tuple(lists.sizes), tables.BLOCK)
    if count:
        _scale_tensors[(count,)](
            table, sizes, row, at, factor, DTYPE=tables.TYPES[lists.dtype], IS_ALIGNED=is_aligned, BLOCK=tables.BLOCK
        )
