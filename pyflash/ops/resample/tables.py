"""What each place of an axis reads: the one thing in which interpolation, padding and their gradients differ.

A table lists, for every place of the output, the places of the input that it is a sum of, and their weights. It is made
in NumPy, in the type and the order of torch's own arithmetic, so that places at a border are torch's, and remembered; the
kernels of every backend read the same one. The gradient's table is the transpose.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch


class Table(NamedTuple):
    """An axis of `size_in` places on one of `size_out`: place o is the sum of weight[e] * input[index[e]] over the entries
    e of [first[o], first[o + 1])."""

    first: torch.Tensor  # [size_out + 1] int32
    index: torch.Tensor  # type: ignore[assignment]  # [entries] int32, each in [0, size_in); not the tuple's own method
    weight: torch.Tensor | None  # [entries] float32, or float64 for float64; None: all are 1
    size_in: int
    size_out: int
    taps: int  # the most entries that a place has
    addresses: tuple[int, int, int]  # of the three tensors, 0 for None


KEPT = 1024  # tables, of some KB
LARGEST = 1 << 28  # places of an axis: entries are counted in int32


def _table(first, index, weight, size_in: int, size_out: int) -> Table:
    taps = int(np.diff(first).max(initial=0))
    firsts, indices = (torch.from_numpy(np.ascontiguousarray(array.astype(np.int32))) for array in (first, index))
    weights = None if weight is None else torch.from_numpy(np.ascontiguousarray(weight))
    addresses = firsts.data_ptr(), indices.data_ptr(), 0 if weights is None else weights.data_ptr()
    return Table(firsts, indices, weights, size_in, size_out, taps, addresses)


def _of(index, weight, size_in: int, transposed: bool, there=None) -> Table:
    """The table of index [out, taps] and weight [out, taps] or None, where `there` [out, taps] holds, or its transpose."""
    size_out, taps = index.shape
    place = np.repeat(np.arange(size_out), taps)
    index, weight = index.reshape(-1), None if weight is None else weight.reshape(-1)
    if there is not None:
        there = there.reshape(-1)
        place, index, weight = place[there], index[there], None if weight is None else weight[there]
    if transposed:
        order = np.argsort(index, kind="stable")
        place, index, weight = index[order], place[order], None if weight is None else weight[order]
        size_in, size_out = size_out, size_in
    first = np.zeros(size_out + 1, np.int64)
    np.cumsum(np.bincount(place, minlength=size_out), out=first[1:])
    return _table(first, index, weight, size_in, size_out)


@lru_cache(KEPT)
def identity(size: int) -> Table:
    return _of(np.arange(size)[:, None], None, size, False)


_products: dict[
    tuple, tuple
] = {}  # addresses of two tables -> their product, and the two, whose addresses no other gets


def product(rows: Table, columns: Table) -> Table:
    """The table of both axes as one, a place of which is a row and a column."""
    key = rows.addresses + columns.addresses
    found = _products.get(key)
    if found is None:
        if len(_products) >= KEPT:
            _products.clear()
        found = _products[key] = _product(rows, columns), rows, columns
    return found[0]


def _product(rows, columns):
    counts = [np.diff(t.first.numpy()) for t in (rows, columns)]
    first = np.zeros(rows.size_out * columns.size_out + 1, np.int64)
    np.cumsum(np.outer(*counts).reshape(-1), out=first[1:])
    weights = None if rows.weight is None and columns.weight is None else []
    dtype = next((t.weight.numpy().dtype for t in (rows, columns) if t.weight is not None), None)
    row_weight, column_weight = (
        np.ones(len(t.index), dtype) if t.weight is None else t.weight.numpy() for t in (rows, columns)
    )
    index = []
    column_first, row_first = columns.first.numpy(), rows.first.numpy()
    for row in range(rows.size_out):
        of_row = slice(row_first[row], row_first[row + 1])
        for column in range(columns.size_out):
            of_column = slice(column_first[column], column_first[column + 1])
            index.append(np.add.outer(rows.index.numpy()[of_row] * columns.size_in, columns.index.numpy()[of_column]))
            if weights is not None:
                weights.append(np.multiply.outer(row_weight[of_row], column_weight[of_column]))
    index, weight = (
        None if part is None else np.concatenate([a.reshape(-1) for a in part]) for part in (index, weights)
    )
    return _table(first, index, weight, rows.size_in * columns.size_in, rows.size_out * columns.size_out)


# ---- interpolation --------------------------------------------------------------------------------------------------

# Keys' convolution with a = -0.75, and -0.5 where torch filters; a triangle; Lanczos' window of three lobes.


def _near_cubic(x, a):
    return ((a + 2) * x - (a + 3)) * x * x + 1


def _far_cubic(x, a):
    return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a


def _triangle(x):
    x = np.abs(x)
    return np.where(x < 1, 1 - x, 0)


def _cubic(x):
    x = np.abs(x)
    return np.where(x < 1, _near_cubic(x, -0.5), np.where(x < 2, _far_cubic(x, -0.5), 0))


def _lanczos(x):
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)


FILTERS = {"bilinear": (_triangle, 1.0), "bicubic": (_cubic, 2.0), "lanczos": (_lanczos, 3.0)}  # and their support
LINEAR = ("linear", "bilinear", "trilinear")


def _ratio(size_in: int, size_out: int, scale: float, align_corners: bool, dtype):
    """Places of the input to one of the output; `scale` 0: from the sizes."""
    if align_corners:
        return dtype(size_in - 1) / dtype(size_out - 1) if size_out > 1 else dtype(0)
    return dtype(1.0 / scale) if scale > 0 else dtype(size_in) / dtype(size_out)


def _nearest(size_in, size_out, scale, is_exact):
    out = np.arange(size_out)
    ratio = _ratio(size_in, size_out, scale, False, np.float32)  # whatever the type of the values
    if is_exact:
        return np.minimum(np.floor(((out + 0.5) * float(ratio)).astype(np.float32)), size_in - 1).astype(np.int64)
    return np.minimum(np.floor(out.astype(np.float32) * ratio), size_in - 1).astype(np.int64)


def _source(size_in, size_out, scale, align_corners, dtype):
    """Where in the input the places of the output lie."""
    ratio, out = _ratio(size_in, size_out, scale, align_corners, dtype), np.arange(size_out).astype(dtype)
    return ratio * out if align_corners else ratio * (out + dtype(0.5)) - dtype(0.5)


def _linear(size_in, size_out, scale, align_corners, dtype):
    if size_in == size_out:
        below, ahead = np.arange(size_out), np.zeros(size_out, dtype)
        above = below
    else:
        source = np.maximum(_source(size_in, size_out, scale, align_corners, dtype), dtype(0))
        below = np.minimum(np.floor(source), size_in - 1).astype(np.int64)
        above = np.minimum(below + 1, size_in - 1)
        ahead = np.clip(source - below.astype(dtype), dtype(0), dtype(1))
    return np.stack([below, above], 1), np.stack([dtype(1) - ahead, ahead], 1)


def _bicubic(size_in, size_out, scale, align_corners, dtype):
    source = _source(size_in, size_out, scale, align_corners, dtype)
    below = np.minimum(np.floor(source), size_in - 1).astype(np.int64)
    ahead = np.clip(source - below.astype(dtype), dtype(0), dtype(1))
    behind, a = dtype(1) - ahead, dtype(-0.75)
    weights = [_far_cubic(ahead + 1, a), _near_cubic(ahead, a), _near_cubic(behind, a), _far_cubic(behind + 1, a)]
    return np.clip(below[:, None] + np.arange(-1, 3), 0, size_in - 1), np.stack(weights, 1).astype(dtype)


def _filtered(mode, size_in, size_out, scale, align_corners, dtype):
    """With a filter as wide as a place of the output, where that is wider than one of the input."""
    function, support = FILTERS[mode]
    ratio = _ratio(size_in, size_out, scale, align_corners, dtype)
    support, sharpness = dtype(support), dtype(1)
    if ratio >= 1:
        support, sharpness = dtype(support * ratio), dtype(1.0 / float(ratio))
    centre = (float(ratio) * (np.arange(size_out) + 0.5)).astype(dtype)
    taps = math.ceil(support) * 2 + 1
    low = np.maximum(np.trunc((centre - support).astype(np.float64) + 0.5), 0).astype(np.int64)
    high = np.minimum(np.trunc((centre + support).astype(np.float64) + 0.5), size_in).astype(np.int64)
    index = low[:, None] + np.arange(taps)
    there = np.arange(taps) < np.clip(high - low, 0, taps)[:, None]
    apart = (index.astype(dtype) - centre[:, None]).astype(np.float64) + 0.5
    weight = np.where(there, function((apart * float(sharpness)).astype(dtype)), 0).astype(dtype)
    total = weight.sum(1, keepdims=True, dtype=dtype)
    return np.minimum(index, size_in - 1), weight / np.where(total == 0, dtype(1), total), there


@lru_cache(KEPT)
def interpolated(
    mode: str, antialias: bool, size_in: int, size_out: int, scale: float, align_corners: bool, is_double: bool,
    transposed: bool,
) -> Table:  # fmt: skip
    """The table of an axis as torch.nn.functional.interpolate resizes it; `scale` 0: not given."""
    dtype, weight, there = np.float64 if is_double else np.float32, None, None
    if mode.startswith("nearest"):
        index = _nearest(size_in, size_out, scale, mode == "nearest-exact")[:, None]
    elif antialias:
        index, weight, there = _filtered(mode, size_in, size_out, scale, align_corners, dtype)
    elif mode in LINEAR:
        index, weight = _linear(size_in, size_out, scale, align_corners, dtype)
    else:
        index, weight = _bicubic(size_in, size_out, scale, align_corners, dtype)
    return _of(index, weight, size_in, transposed, there)


# ---- padding --------------------------------------------------------------------------------------------------------


@lru_cache(KEPT)
def padded(mode: str, size: int, before: int, after: int, transposed: bool) -> Table:
    """The table of an axis as torch.nn.functional.pad pads it; negative numbers take away."""
    place, there = np.arange(-before, size + after), None
    if mode == "constant":
        there = (place >= 0) & (place < size)
    elif mode == "reflect":
        place = np.abs(place)
        place = np.where(place >= size, 2 * (size - 1) - place, place)
    elif mode == "circular":  # of what is left where something is taken away
        begin, end = max(-before, 0), size - max(-after, 0)
        place = begin + (place - begin) % (end - begin)
    index = np.clip(place, 0, max(size - 1, 0))[:, None]
    return _of(index, None, size, transposed, None if there is None else there[:, None])
