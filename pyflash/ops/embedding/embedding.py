"""Rows of a table, looked up by index, and the gradient of the table."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pyflash.auto import embedding as auto
from pyflash.ops.core.autograd import Function, apply, shaped
from pyflash.ops.core.backends import IN_KERNELS, Operation
from pyflash.ops.core.checks import NOT_PLAIN, expect, expect_indices, is_plain, is_strided, readable, scalar_type
from pyflash.ops.core.choice import Refused, choose
from pyflash.ops.core.dtypes import FLOATS, acc_dtype
from pyflash.ops.core.registry import Op

INDICES = (torch.int64, torch.int32)

OPERATION = Operation(
    "embedding",
    dtypes={"cpu": FLOATS, "triton": FLOATS},
    rules=auto.rules,
    sizes=auto.SIZES,
    notes=dict.fromkeys(("cpu", "triton"), "a sparse gradient is torch's"),
    second_derivative=IN_KERNELS,
)

# A matrix with adjacent columns and a vector of indices, int32 or int64. Values that are no rows: IndexError on the CPU,
# the nearest row on a GPU.
_fwd = Op(
    "embedding_fwd(Tensor weight, Tensor indices, str backend) -> Tensor",
    outputs=lambda weight, indices: (weight.new_empty(indices.shape[0], weight.shape[1]),),
    reference=lambda weight, indices: (weight.index_select(0, indices),),
    differentiable=True,
    triton="pyflash.kernels.embedding.embedding:embedding_fwd",
    cpu="pyflash.ops.embedding._cpu:embedding_fwd",
)


def _reference_bwd(dy, indices, num_embeddings, padding_idx, scale_grad_by_freq):
    wide = dy.to(acc_dtype(dy.dtype))
    found = torch.ops.aten.embedding_dense_backward(wide, indices, num_embeddings, padding_idx, scale_grad_by_freq)
    return (found.to(dy.dtype),)


_bwd = Op(
    "embedding_bwd(Tensor dy, Tensor indices, SymInt num_embeddings, int padding_idx, bool scale_grad_by_freq, str backend)"
    " -> Tensor",
    outputs=lambda dy, indices, num_embeddings, *_: (dy.new_empty(num_embeddings, dy.shape[1]),),
    reference=_reference_bwd,
    triton="pyflash.kernels.embedding.embedding:embedding_bwd",
    cpu="pyflash.ops.embedding._cpu:embedding_bwd",
)


def _reference_renorm(weight, indices, max_norm, norm_type):
    rows = weight.index_select(0, indices)
    norm = torch.linalg.vector_norm(rows, norm_type, 1, dtype=acc_dtype(rows.dtype)).double()
    scale = torch.where(norm > max_norm, max_norm / (norm + 1e-7), 1.0)[:, None]
    return (torch.where(scale == 1, rows, rows * scale).to(rows.dtype),)


_renorm = Op(
    "embedding_renorm(Tensor weight, Tensor indices, float max_norm, float norm_type, str backend) -> Tensor",
    outputs=lambda weight, indices, *_: (weight.new_empty(indices.shape[0], weight.shape[1]),),
    reference=_reference_renorm,
    triton="pyflash.kernels.embedding.embedding:embedding_renorm",
    cpu="pyflash.ops.embedding._cpu:embedding_renorm",
)


class _Embedding(Function):
    @staticmethod
    def forward(weight, indices, padding_idx, scale_grad_by_freq, backend):
        return _fwd(weight, indices, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        weight, indices, *ctx.rest = inputs
        ctx.num_embeddings = weight.shape[0]
        ctx.save_for_backward(indices)

    @staticmethod
    def backward(ctx, dy):
        indices, (padding_idx, *rest) = ctx.saved_tensors[0], ctx.rest
        dweight = apply(_EmbeddingBwd, unit_stride(dy), indices, ctx.num_embeddings, padding_idx, *rest)
        return dweight, None, None, None, None


class _EmbeddingBwd(Function):
    """Linear in dy. Its transpose is the look-up, in the gradient of the gradient."""

    @staticmethod
    def forward(dy, indices, num_embeddings, padding_idx, scale_grad_by_freq, backend):
        return _bwd(dy, indices, num_embeddings, padding_idx, scale_grad_by_freq, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, indices, ctx.num_embeddings, ctx.padding_idx, ctx.scale_grad_by_freq, ctx.backend = inputs
        ctx.save_for_backward(indices)

    @staticmethod
    def backward(ctx, ddweight):
        (indices,) = ctx.saved_tensors
        if ctx.padding_idx >= 0:
            ddweight = ddweight.index_fill(0, indices.new_full((1,), ctx.padding_idx, dtype=torch.int64), 0)
        ddy = apply(_Embedding, unit_stride(ddweight), indices, -1, False, ctx.backend)
        if ctx.scale_grad_by_freq:
            ddy = ddy / torch.bincount(indices, minlength=ctx.num_embeddings)[indices].unsqueeze(1)
        return ddy, None, None, None, None, None


def unit_stride(rows):
    """The matrix itself when its columns are adjacent, else a copy."""
    return rows if rows.is_contiguous() or rows.stride(1) == 1 else rows.contiguous()


def normalised_padding(padding_idx: int | None, rows: int) -> int:
    """-1: none. torch's errors."""
    if padding_idx is None:
        return -1
    if not -rows <= padding_idx < rows and (padding_idx != 0 or rows):
        raise AssertionError("Padding_idx must be within num_embeddings")
    return padding_idx + rows if padding_idx < 0 else padding_idx


def expect_table(operation: str, input, weight) -> None:
    """What torch refuses, with its words."""
    expect(
        weight.dim() == 2,
        operation,
        lambda: f"'weight' must be 2-D, and has shape {tuple(weight.shape)}, expected [num_embeddings, embedding_dim]",
        RuntimeError,
    )
    expect(
        input.dtype in INDICES,
        operation,
        lambda: (
            "Expected tensor for argument #1 'indices' to have one of the following scalar types: Long, Int; but got"
            f" {scalar_type(input.dtype)}"
        ),
        RuntimeError,
    )
    expect(
        input.device == weight.device,
        operation,
        lambda: (
            f"Expected all tensors to be on the same device, but input is on {input.device}, weight on"
            f" {weight.device}; move one of them"
        ),
        RuntimeError,
    )


def checked_here(operation: str, indices, weight, backend: str) -> None:
    """Raises IndexError where values can be read and the kernel, Triton's, would not say that they are no rows."""
    if (backend == "triton" or not weight.is_cpu) and readable(indices):
        expect_indices(operation, indices, weight.shape[0])


def renormalise(weight, indices, max_norm, norm_type, backend):
    """Scales the rows that are looked up down to max_norm, in the table itself, as torch does before it looks up."""
    with torch.no_grad():
        table = weight.detach()
        rows = _renorm(unit_stride(table), indices, float(max_norm), float(norm_type), backend)
        table.index_copy_(0, indices.long(), rows)  # where an index comes twice, the same row twice


def _size_of(training, input, weight):
    return (input.numel(), *weight.shape, training) if is_plain(weight) and weight.dim() == 2 else None


def key_of(input, weight):
    return input.shape, weight.shape, weight.dtype, weight.is_cpu


_refused = Refused(OPERATION, _size_of, key_of, decides=1)


def embedding(
    input: torch.Tensor,
    weight: torch.Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> torch.Tensor:
    """weight[input], as torch.nn.functional.embedding.

    Args:
        input: indices of any shape, int32 or int64.
        weight: [num_embeddings, embedding_dim], float32, float64, bfloat16 or float16; copied only if the elements of a
            row are not adjacent.
        padding_idx: a row that gets no gradient.
        max_norm: rows that are looked up and have a larger norm are scaled down to it first, in `weight` itself.
        norm_type: which p-norm.
        scale_grad_by_freq: a row's gradient is the mean over its look-ups, not the sum.
        sparse: a sparse gradient: torch's own.
    Returns:
        [*input.shape, embedding_dim], in weight's type.
    Raises:
        IndexError: an index is no row; on a GPU only under PYFLASH_CHECK=1, the nearest row is taken otherwise.
        RuntimeError, AssertionError: as torch's, where shapes, types, devices or padding_idx are wrong.
    Numerics: the gradient is summed in float32 (float64 for float64) in the order of the indices and rounded once;
        deterministic, whatever the number of threads.
    """
    if max_norm is None and not sparse and _refused.holds(input, weight):
        return F.embedding(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
    if not (isinstance(input, torch.Tensor) and isinstance(weight, torch.Tensor)):
        return F.embedding(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)  # torch's error
    refused = "" if is_plain(weight) and is_strided(input) else NOT_PLAIN
    if not refused:
        expect_table("embedding", input, weight)
        if sparse and torch.is_grad_enabled() and weight.requires_grad:
            refused = "a sparse gradient is torch's"
    elif not torch.is_floating_point(weight):
        return F.embedding(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
    size = _size_of(torch.is_grad_enabled() and weight.requires_grad, input, weight)
    backend = choose(OPERATION, weight, (input,), size if max_norm is None else auto.RENORMALISED, refused)
    if backend is None:
        return F.embedding(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
    padding_idx = normalised_padding(padding_idx, weight.shape[0])
    indices = input.reshape(-1).contiguous()
    checked_here("embedding", indices, weight, backend)
    if max_norm is not None:
        renormalise(weight, indices, max_norm, norm_type, backend)
    y = apply(_Embedding, unit_stride(weight), indices, padding_idx, bool(scale_grad_by_freq), backend)
    return shaped(y, (*input.shape, weight.shape[1]))
