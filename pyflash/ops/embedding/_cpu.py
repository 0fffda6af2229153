"""Look-ups in a table and its gradient. bindings/embedding.cpp reads the tuples field by field, in this order."""

import operator

import torch

from pyflash import _cpu
from pyflash.ops.core.checks import wrong_index
from pyflash.ops.core.native import DTYPES
from pyflash.ops.core.workspace import take_workspace
from pyflash.ops.embedding.bag_checks import wrong_bounds, wrong_index_of_bag

INDEX_TYPES = {getattr(torch, name): number for name, number in _cpu.INDEX_TYPES.items()}


def _expect(place: int, indices, rows: int) -> None:
    """The kernels follow no index that is not a row, and say where one is."""
    if place >= 0:
        raise IndexError(wrong_index("embedding", int(indices[place]), rows))


def embedding_fwd(weight, indices, y):
    size = weight.element_size()
    problem = (
        weight.data_ptr(), indices.data_ptr(), y.data_ptr(), indices.numel(), weight.shape[0], weight.shape[1] * size,
        weight.stride(0) * size, INDEX_TYPES[indices.dtype],
    )  # fmt: skip
    _expect(_cpu.embedding_fwd(problem, torch.get_num_threads()), indices, weight.shape[0])


def embedding_bwd(dy, indices, num_embeddings, padding_idx, scale_grad_by_freq, dweight):
    _bwd(dy, indices, num_embeddings, padding_idx, scale_grad_by_freq, None, None, None, None, dweight)


def _bwd(dy, indices, rows, padding_idx, scale_grad_by_freq, bounds, per_sample, counts, winners, dweight):
    n, has_bags = indices.numel(), bounds is not None
    workspace = take_workspace(_cpu.embedding_bwd_workspace(n, rows, has_bags) * 8, "embedding")
    problem = (
        dy.data_ptr(), indices.data_ptr(), dweight.data_ptr(), workspace.data_ptr(), n, *dweight.shape, dy.stride(0),
        padding_idx, scale_grad_by_freq, _address(bounds), _address(per_sample), _address(counts), _address(winners),
        bounds.shape[0] - 1 if has_bags else 0, INDEX_TYPES[indices.dtype], DTYPES[dy.dtype],
    )  # fmt: skip
    place, bag = _cpu.embedding_bwd(problem, torch.get_num_threads())
    if has_bags:
        _expect_bags(place, bag, indices, bounds, rows)
    else:
        _expect(place, indices, rows)


def _address(tensor):
    return 0 if tensor is None else tensor.data_ptr()


def _expect_bags(place: int, bag: int, indices, bounds, rows: int) -> None:
    if bag >= 0:
        raise RuntimeError(wrong_bounds(bounds.tolist(), indices.numel()))
    if place >= 0:
        raise RuntimeError(wrong_index_of_bag(int(indices[place]), rows))


def embedding_bag_fwd(weight, indices, bounds, per_sample, mode, padding_idx, y, counts, winners):
    problem = (
        weight.data_ptr(), indices.data_ptr(), bounds.data_ptr(), _address(per_sample), y.data_ptr(), counts.data_ptr(),
        winners.data_ptr(), indices.numel(), *weight.shape, y.shape[0], weight.stride(0), padding_idx,
        _cpu.BAG_MODES.index(mode), INDEX_TYPES[indices.dtype], DTYPES[weight.dtype],
    )  # fmt: skip
    wrong = _cpu.embedding_bag_fwd(problem, torch.get_num_threads())
    _expect_bags(*wrong, indices, bounds, weight.shape[0])


def embedding_bag_bwd(
    dy, indices, bounds, per_sample, counts, winners, rows, mode, padding_idx, scale_grad_by_freq, dweight
):  # fmt: skip
    counts, winners = counts if mode == "mean" else None, winners if mode == "max" else None
    _bwd(dy, indices, rows, padding_idx, scale_grad_by_freq, bounds, per_sample, counts, winners, dweight)


def embedding_bag_dots(dy, weight, indices, bounds, padding_idx, dper_sample):
    problem = (
        dy.data_ptr(), weight.data_ptr(), indices.data_ptr(), bounds.data_ptr(), dper_sample.data_ptr(), indices.numel(),
        *weight.shape, dy.shape[0], dy.stride(0), weight.stride(0), padding_idx, INDEX_TYPES[indices.dtype],
        DTYPES[dy.dtype],
    )  # fmt: skip
    wrong = _cpu.embedding_bag_dots(problem, torch.get_num_threads())
    _expect_bags(*wrong, indices, bounds, weight.shape[0])


def embedding_renorm(weight, indices, max_norm, norm_type, y):
    problem = (
        weight.data_ptr(), indices.data_ptr(), y.data_ptr(), indices.numel(), *weight.shape, weight.stride(0), max_norm,
        norm_type, INDEX_TYPES[indices.dtype], DTYPES[weight.dtype],
    )  # fmt: skip
    _expect(_cpu.embedding_renorm(problem, torch.get_num_threads()), indices, weight.shape[0])


_first = operator.itemgetter(0)


def rotary(x, cos, sin, interleaved, inverse, y):
    batch, heads, length, dim = x.shape
    if cos.stride() != sin.stride():
        cos, sin = cos.contiguous(), sin.contiguous()
    of_x, of_y, of_table = x.stride(), y.stride(), cos.stride()
    axes = [  # of batch, heads and length: strides and size
        (-of_x[0], of_y[0], of_table[0] if cos.shape[0] > 1 else 0, batch),
        (-of_x[1], of_y[1], 0, heads),
        (-of_x[2], of_y[2], of_table[1], length),
    ]
    # In the order in which they lie: what is written next to each other is written by one thread.
    axes.sort(key=_first)
    (x0, y0, t0, n0), (x1, y1, t1, n1), (x2, y2, t2, n2) = axes
    problem = (
        x.data_ptr(), cos.data_ptr(), sin.data_ptr(), y.data_ptr(), (n0, n1, n2), (-x0, -x1, -x2), (y0, y1, y2),
        (t0, t1, t2), dim, cos.shape[-1], interleaved, inverse, DTYPES[x.dtype],
    )  # fmt: skip
    _cpu.rotary(problem, torch.get_num_threads())
