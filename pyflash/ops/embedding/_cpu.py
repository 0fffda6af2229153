"""Look-ups in a table and its gradient. bindings/embedding.cpp reads the tuples field by field, in this order."""

import torch

from pyflash import _cpu
from pyflash.ops.core.checks import wrong_index
from pyflash.ops.core.native import DTYPES
from pyflash.ops.core.workspace import take_workspace

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
    n = indices.numel()
    workspace = take_workspace(_cpu.embedding_bwd_workspace(n, num_embeddings) * 8, "embedding")
    problem = (
        dy.data_ptr(), indices.data_ptr(), dweight.data_ptr(), workspace.data_ptr(), n, *dweight.shape, dy.stride(0),
        padding_idx, scale_grad_by_freq, INDEX_TYPES[indices.dtype], DTYPES[dy.dtype],
    )  # fmt: skip
    _expect(_cpu.embedding_bwd(problem, torch.get_num_threads()), indices, num_embeddings)


def embedding_renorm(weight, indices, max_norm, norm_type, y):
    problem = (
        weight.data_ptr(), indices.data_ptr(), y.data_ptr(), indices.numel(), *weight.shape, weight.stride(0), max_norm,
        norm_type, INDEX_TYPES[indices.dtype], DTYPES[weight.dtype],
    )  # fmt: skip
    _expect(_cpu.embedding_renorm(problem, torch.get_num_threads()), indices, weight.shape[0])


def rotary(x, cos, sin, interleaved, inverse, y):
    batch, heads, length, dim = x.shape
    # Rows in the order in which they lie: what is written next to each other is written by one thread.
    order = sorted(range(3), key=lambda d: -x.stride(d))
    if cos.stride() != sin.stride():
        cos, sin = cos.contiguous(), sin.contiguous()
    table = cos.stride(0) if cos.shape[0] > 1 else 0, 0, cos.stride(1)
    sizes = (batch, heads, length), x.stride(), y.stride(), table
    problem = (
        x.data_ptr(), cos.data_ptr(), sin.data_ptr(), y.data_ptr(),
        *(tuple(values[d] for d in order) for values in sizes), dim, cos.shape[-1], interleaved, inverse, DTYPES[x.dtype],
    )  # fmt: skip
    _cpu.rotary(problem, torch.get_num_threads())
