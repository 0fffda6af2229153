"""Places sorted by the row that was looked up there: a stable radix sort, 4 bits a pass, without atomics.

A pass counts digits block by block, adds the counts up digit by digit and block by block, and moves each element to where
its digit's elements of its block begin plus how many of them stand before it. Equal rows keep the order of their places, so
what is summed in that order is the same in every run. Source: Blelloch 1990, "Prefix sums and their applications", section 1.3.
"""

import torch
import triton
import triton.language as tl

from pyflash.kernels import launch, tuning

DIGITS = tl.constexpr(16)


@triton.jit
def _digits(keys_ptr, offs, n, shift):
    """The digit of each element, one past the last for none, [BLOCK]."""
    key = tl.load(keys_ptr + offs, mask=offs < n, other=0)
    return tl.where(offs < n, (key >> shift) & (DIGITS - 1), DIGITS).to(tl.int32)


@launch.cached
@triton.jit(do_not_specialize=["shift"])
def _count(keys_ptr, counts_ptr, n, shift, BLOCK: tl.constexpr):
    """counts [DIGITS, blocks] of one block of keys."""
    block = tl.program_id(0).to(tl.int64)
    digit = _digits(keys_ptr, block * BLOCK + tl.arange(0, BLOCK), n, shift)
    digits = tl.arange(0, DIGITS)
    counts = tl.sum((digit[:, None] == digits[None, :]).to(tl.int64), 0)
    tl.store(counts_ptr + digits * tl.num_programs(0) + block, counts)


@launch.cached
@triton.jit
def _add_up(counts_ptr, size, BLOCK: tl.constexpr):
    """Each count becomes the sum of those before it; one program."""
    before = tl.zeros([1], tl.int64)
    for first in range(0, size, BLOCK):
        offs = first + tl.arange(0, BLOCK)
        counts = tl.load(counts_ptr + offs, mask=offs < size, other=0)
        tl.store(counts_ptr + offs, before + tl.cumsum(counts, 0) - counts, mask=offs < size)
        before += tl.sum(counts, 0)


@launch.cached
@triton.jit(do_not_specialize=["shift"])
def _move(keys_ptr, places_ptr, counts_ptr, new_keys_ptr, new_places_ptr, n, shift, BLOCK: tl.constexpr):
    """One block of elements; the first pass, without places_ptr, makes the places."""
    block = tl.program_id(0).to(tl.int64)
    offs = block * BLOCK + tl.arange(0, BLOCK)
    mask = offs < n
    digit = _digits(keys_ptr, offs, n, shift)
    is_digit = (digit[:, None] == tl.arange(0, DIGITS)[None, :]).to(tl.int32)  # [BLOCK, DIGITS]
    before = tl.sum((tl.cumsum(is_digit, 0) - is_digit) * is_digit, 1)
    to = before + tl.load(counts_ptr + digit.to(tl.int64) * tl.num_programs(0) + block, mask=mask, other=0)
    tl.store(new_keys_ptr + to, tl.load(keys_ptr + offs, mask=mask, other=0), mask=mask)
    place = offs if places_ptr is None else tl.load(places_ptr + offs, mask=mask, other=0)
    tl.store(new_places_ptr + to, place, mask=mask)


@launch.cached
@triton.jit
def _keys(indices_ptr, end_ptr, keys_ptr, n, rows, padding, BLOCK: tl.constexpr):
    """Indices as rows that there are; those that get no gradient come after the last row. Nor do places from the one at
    end_ptr on, if there is one."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    index = tl.load(indices_ptr + offs, mask=offs < n, other=0).to(tl.int64)
    row = tl.minimum(tl.maximum(index, 0), rows - 1)
    is_left_out = index == padding
    if end_ptr is not None:
        is_left_out = is_left_out | (offs >= tl.load(end_ptr))
    tl.store(keys_ptr + offs, tl.where(is_left_out, rows, row), mask=offs < n)


@triton.jit
def first_of(keys_ptr, n, row, STEPS: tl.constexpr):
    """The first place in the ascending keys that is `row` or more."""
    low = row * 0
    high = low + n
    for _ in range(STEPS):
        middle = (low + high) // 2
        is_below = tl.load(keys_ptr + middle, mask=low < high, other=0) < row
        low = tl.where((low < high) & is_below, middle + 1, low)
        high = tl.where((low < high) & (is_below == 0), tl.minimum(high, middle), high)
    return low


@launch.cached
@triton.jit
def _bounds(keys_ptr, first_ptr, last_ptr, n, rows, BLOCK: tl.constexpr):
    """Where in the ascending keys each row begins and ends; rows that are not there keep the zeros they have."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(keys_ptr + offs, mask=offs < n, other=rows)
    before = tl.load(keys_ptr + offs - 1, mask=(offs > 0) & (offs < n), other=-1)
    after = tl.load(keys_ptr + offs + 1, mask=offs + 1 < n, other=-1)
    tl.store(first_ptr + row, offs, mask=(row < rows) & (row != before))
    tl.store(last_ptr + row, offs + 1, mask=(row < rows) & (row != after))


def bounds_of_rows(keys, rows):
    """(first, behind the last) of each row's places in what sort_by_row returned, int64 [2, rows]."""
    bounds = torch.zeros(2, rows, dtype=torch.int64, device=keys.device)
    n, block = keys.shape[0], tuning.SORT_BLOCK
    _bounds[(launch.cdiv(n, block),)](keys, bounds[0], bounds[1], n, rows, BLOCK=block)
    return bounds


@launch.cached
@triton.jit
def _bags(bounds_ptr, bags_ptr, n, bags, STEPS: tl.constexpr, BLOCK: tl.constexpr):
    """The bag of each place: the last that begins there or before."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    bag = first_of(bounds_ptr, bags + 1, place + 1, STEPS) - 1
    tl.store(bags_ptr + place, tl.minimum(tl.maximum(bag, 0), bags - 1), mask=place < n)


def bags_of_places(bounds, n):
    """int64 [n]; bounds: [bags + 1], ascending."""
    bags, block = bounds.shape[0] - 1, tuning.SORT_BLOCK
    found = torch.empty(n, dtype=torch.int64, device=bounds.device)
    _bags[(launch.cdiv(n, block),)](bounds, found, n, bags, STEPS=(bags + 1).bit_length(), BLOCK=block)
    return found


def sort_by_row(indices, rows, padding, end=None):
    """(rows that were looked up, ascending; the place of each), both int64 [n]. Places of the row `padding`, and those from
    the number in the tensor `end` on, come last, as those of a row after the last."""
    n = indices.shape[0]
    keys, new_keys, places, new_places = (torch.empty(n, dtype=torch.int64, device=indices.device) for _ in range(4))
    block = tuning.SORT_BLOCK
    blocks = launch.cdiv(n, block)
    counts = torch.empty(DIGITS.value * blocks, dtype=torch.int64, device=indices.device)
    _keys[(blocks,)](indices, end, keys, n, rows, padding, BLOCK=block)
    for shift in range(0, rows.bit_length(), 4):
        _count[(blocks,)](keys, counts, n, shift, BLOCK=block)
        _add_up[(1,)](counts, counts.shape[0], BLOCK=tuning.POINTWISE_BLOCK)
        _move[(blocks,)](keys, places if shift else None, counts, new_keys, new_places, n, shift, BLOCK=block)
        keys, new_keys, places, new_places = new_keys, keys, new_places, places
    return keys, places
