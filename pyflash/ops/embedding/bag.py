"""Sums, means and maxima over bags of a table's rows, and their gradients."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from pyflash.auto import embedding as auto
from pyflash.ops.core.autograd import Function, apply, vjp
from pyflash.ops.core.backends import Operation
from pyflash.ops.core.checks import NOT_PLAIN, is_plain, is_strided, readable
from pyflash.ops.core.choice import Refused, choose
from pyflash.ops.core.dtypes import FLOATS, acc_dtype
from pyflash.ops.core.registry import Op
from pyflash.ops.embedding.bag_checks import expect_bags
from pyflash.ops.embedding.embedding import INDICES, key_of, renormalise, unit_stride

OPERATION = Operation(
    "embedding_bag",
    dtypes={"cpu": FLOATS, "triton": FLOATS},
    rules=auto.bag_rules,
    sizes=auto.BAG_SIZES,
    notes=dict.fromkeys(("cpu", "triton"), "a sparse gradient is torch's"),
)


def _bags_of(indices, bounds, padding_idx, rows):
    """(bag of each place, which places count, rows that there are)."""
    place = torch.arange(indices.shape[0], device=indices.device)
    bag = torch.searchsorted(bounds, place, right=True) - 1
    counts = (indices != padding_idx) & (bag < bounds.shape[0] - 1)
    return bag.clamp(max=max(bounds.shape[0] - 2, 0)), counts, indices.long().clamp(0, max(rows - 1, 0))


def _reference_fwd(weight, indices, bounds, per_sample, mode, padding_idx):
    bags, cols = bounds.shape[0] - 1, weight.shape[1]
    bag, is_counted, rows = _bags_of(indices, bounds, padding_idx, weight.shape[0])
    bag, place = bag[is_counted], is_counted.nonzero().flatten()
    terms = weight[rows[is_counted]].to(acc_dtype(weight.dtype))
    counts = torch.zeros(bags, dtype=torch.int64, device=bag.device).index_add(0, bag, torch.ones_like(bag))
    winners = place.new_full((bags, cols) if mode == "max" else (0, 0), -1)
    if mode == "max":
        y = terms.new_zeros(bags, cols)
        for b in counts.nonzero().flatten().tolist():
            best, first = _first_largest(terms[bag == b])
            y[b], winners[b] = best, place[bag == b][first]
    else:
        if per_sample is not None:
            terms = terms * per_sample[is_counted].to(terms.dtype)[:, None]
        y = terms.new_zeros(bags, cols).index_add(0, bag, terms)
        if mode == "mean":
            y = y / counts.clamp(min=1)[:, None]
    return y.to(weight.dtype), counts, winners


def _first_largest(rows):
    """As torch's loop finds it: the first row, then what is larger, which nothing is than NaN."""
    best, first = rows[0], torch.zeros_like(rows[0], dtype=torch.int64)
    for i in range(1, rows.shape[0]):
        wins = rows[i] > best
        best, first = torch.where(wins, rows[i], best), torch.where(wins, i, first)
    return best, first


def _dweight(dy, per_sample, indices, bounds, counts, winners, rows, mode, padding_idx, scale_grad_by_freq):
    """In torch operations that can be differentiated, in dy and per_sample."""
    bag, is_counted, row = _bags_of(indices, bounds, padding_idx, rows)
    zeros = dy.new_zeros(rows, dy.shape[1], dtype=acc_dtype(dy.dtype))
    if mode == "max":
        won, of_row = winners >= 0, row[winners.clamp(min=0)]
        found = zeros.scatter_add(0, of_row, torch.where(won, dy, 0).to(zeros.dtype))
    else:
        terms = dy[bag].to(zeros.dtype)
        if mode == "mean":
            terms = terms / counts.clamp(min=1)[bag][:, None]
        if per_sample is not None:
            terms = terms * per_sample.to(terms.dtype)[:, None]
        found = zeros.index_add(0, row, torch.where(is_counted[:, None], terms, 0))
        if scale_grad_by_freq:
            found = found / torch.bincount(row[is_counted], minlength=rows).clamp(min=1)[:, None]
    return found.to(dy.dtype)


def _dots(dy, weight, indices, bounds, padding_idx):
    """As _dweight, in dy and weight."""
    bag, is_counted, row = _bags_of(indices, bounds, padding_idx, weight.shape[0])
    wide = acc_dtype(dy.dtype)
    return torch.where(is_counted, (dy[bag].to(wide) * weight[row].to(wide)).sum(1), 0).to(dy.dtype)


def _outputs_fwd(weight, indices, bounds, per_sample, mode, padding_idx):
    bags, cols = bounds.shape[0] - 1, weight.shape[1]
    return (
        weight.new_empty(bags, cols),
        bounds.new_empty(bags),
        bounds.new_empty((bags, cols) if mode == "max" else (0, 0)),
    )


# A matrix with adjacent columns; indices [n], int32 or int64; bounds [bags + 1], int64: where bags begin and the last one
# ends; per_sample [n], of a sum. counts: places of a bag that are no padding; winners: which place gave each maximum.
_fwd = Op(
    "embedding_bag_fwd(Tensor weight, Tensor indices, Tensor bounds, Tensor? per_sample, str mode, int padding_idx,"
    " str backend) -> (Tensor y, Tensor counts, Tensor winners)",
    outputs=_outputs_fwd,
    reference=_reference_fwd,
    differentiable=True,
    triton="pyflash.kernels.embedding.bag:embedding_bag_fwd",
    cpu="pyflash.ops.embedding._cpu:embedding_bag_fwd",
)
_bwd = Op(
    "embedding_bag_bwd(Tensor dy, Tensor indices, Tensor bounds, Tensor? per_sample, Tensor counts, Tensor winners,"
    " SymInt rows, str mode, int padding_idx, bool scale_grad_by_freq, str backend) -> Tensor",
    outputs=lambda dy, indices, bounds, per_sample, counts, winners, rows, *_: (dy.new_empty(rows, dy.shape[1]),),
    reference=lambda dy, indices, bounds, per_sample, *rest: (_dweight(dy, per_sample, indices, bounds, *rest),),
    triton="pyflash.kernels.embedding.bag:embedding_bag_bwd",
    cpu="pyflash.ops.embedding._cpu:embedding_bag_bwd",
)
_bwd_per_sample = Op(
    "embedding_bag_dots(Tensor dy, Tensor weight, Tensor indices, Tensor bounds, int padding_idx, str backend) -> Tensor",
    outputs=lambda dy, weight, indices, *_: (dy.new_empty(indices.shape[0]),),
    reference=lambda *args: (_dots(*args),),
    triton="pyflash.kernels.embedding.bag:embedding_bag_dots",
    cpu="pyflash.ops.embedding._cpu:embedding_bag_dots",
)


class _Bag(Function):
    @staticmethod
    def forward(weight, per_sample, indices, bounds, mode, padding_idx, scale_grad_by_freq, backend):
        return _fwd(weight, indices, bounds, per_sample, mode, padding_idx, backend)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        weight, per_sample, indices, bounds, ctx.mode, ctx.padding_idx, ctx.scale_grad_by_freq, ctx.backend = inputs
        ctx.rows = weight.shape[0]
        # The rows are asked for by the gradient of per_sample alone.
        ctx.save_for_backward(None if per_sample is None else weight, per_sample, indices, bounds, *outputs[1:])
        ctx.mark_non_differentiable(*outputs[1:])

    @staticmethod
    def backward(ctx, dy, *_):
        weight, per_sample, indices, bounds, counts, winners = ctx.saved_tensors
        dy, dweight, dper_sample = unit_stride(dy), None, None
        if ctx.needs_input_grad[0]:
            dweight = apply(
                _BagBwd, dy, per_sample, indices, bounds, counts, winners, ctx.rows, ctx.mode, ctx.padding_idx,
                ctx.scale_grad_by_freq, ctx.backend,
            )  # fmt: skip
        if ctx.needs_input_grad[1]:
            dper_sample = apply(_BagBwdPerSample, dy, weight, indices, bounds, ctx.padding_idx, ctx.backend)
        return dweight, dper_sample, *(None,) * 6


class _BagBwd(Function):
    @staticmethod
    def forward(dy, per_sample, indices, bounds, counts, winners, rows, mode, padding_idx, scale_grad_by_freq, backend):
        return _bwd(
            dy, indices, bounds, per_sample, counts, winners, rows, mode, padding_idx, scale_grad_by_freq, backend
        )  # fmt: skip

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.rows, ctx.mode, ctx.padding_idx, ctx.scale_grad_by_freq, _ = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, ddweight):
        dy, per_sample, *others = ctx.saved_tensors

        def function(dy, per_sample):
            rest = ctx.rows, ctx.mode, ctx.padding_idx, ctx.scale_grad_by_freq
            return _dweight(dy, per_sample, *others, *rest)

        return *vjp(function, (dy, per_sample), (ddweight,)), *(None,) * 9


class _BagBwdPerSample(Function):
    @staticmethod
    def forward(dy, weight, indices, bounds, padding_idx, backend):
        return _bwd_per_sample(dy, weight, indices, bounds, padding_idx, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.padding_idx, _ = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, ddots):
        dy, weight, indices, bounds = ctx.saved_tensors

        def function(dy, weight):
            return _dots(dy, weight, indices, bounds, ctx.padding_idx)

        return *vjp(function, (dy, weight), (ddots,)), *(None,) * 4


def _size_of(mode, training, input, weight):
    return (input.numel(), *weight.shape, training, mode) if is_plain(weight) and weight.dim() == 2 else None


_refused = {mode: Refused(OPERATION, partial(_size_of, mode), key_of, decides=1) for mode in auto.BAG_MODES}


def _is_as_torch_wants(input, weight, offsets, mode, per_sample_weights, padding_idx, is_special) -> bool:
    """Does torch take these shapes, types and options?"""
    tensors = [t for t in (input, weight, offsets, per_sample_weights) if t is not None]
    if not all(isinstance(t, torch.Tensor) for t in tensors) or weight.dim() != 2 or input.dtype not in INDICES:
        return False
    if len({t.device for t in tensors}) > 1 or mode not in auto.BAG_MODES or (mode == "max" and is_special):
        return False
    if per_sample_weights is not None:
        if mode != "sum" or per_sample_weights.shape != input.shape or per_sample_weights.dtype != weight.dtype:
            return False
    if padding_idx is not None and not -weight.shape[0] <= padding_idx < weight.shape[0]:
        return False
    if input.dim() == 2:
        return offsets is None and input.shape[1] > 0
    return (
        input.dim() == 1
        and offsets is not None
        and offsets.dim() == 1
        and offsets.dtype in INDICES
        and len(offsets) > 0
    )


def embedding_bag(
    input: torch.Tensor,
    weight: torch.Tensor,
    offsets: torch.Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: torch.Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> torch.Tensor:
    """Sums, means or maxima over bags of the rows weight[input], as torch.nn.functional.embedding_bag.

    Args:
        input: indices, int32 or int64: [bags, places], or [n] with `offsets`.
        weight: [num_embeddings, embedding_dim], float32, float64, bfloat16 or float16; copied only if the elements of a
            row are not adjacent.
        offsets: [bags], int32 or int64, ascending from 0: where bags begin; with include_last_offset [bags + 1].
        max_norm, norm_type, scale_grad_by_freq: as `embedding`'s.
        mode: "sum", "mean" or "max"; 0 for an empty bag.
        sparse: a sparse gradient: torch's own.
        per_sample_weights: like input, of weight's type: what rows are multiplied by; for a sum.
        padding_idx: a row that is left out, and gets no gradient.
    Returns:
        [bags, embedding_dim], in weight's type.
    Raises:
        RuntimeError, ValueError, NotImplementedError: as torch's; on a GPU values are read only under PYFLASH_CHECK=1.
    Numerics: summed in float32 (float64 for float64) and rounded once; deterministic, whatever the number of threads.
    """
    args = (
        input, weight, offsets, max_norm, norm_type, scale_grad_by_freq, mode, sparse, per_sample_weights,
        include_last_offset, padding_idx,
    )  # fmt: skip
    if max_norm is None and not sparse and mode in _refused and _refused[mode].holds(input, weight):
        return F.embedding_bag(*args)
    is_special = scale_grad_by_freq or sparse  # of which there is no maximum
    if not _is_as_torch_wants(input, weight, offsets, mode, per_sample_weights, padding_idx, is_special):
        return F.embedding_bag(*args)  # its error
    given = [t for t in (offsets, per_sample_weights) if t is not None]
    refused = "" if is_plain(weight) and all(map(is_strided, (input, *given))) else NOT_PLAIN
    training = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (weight, per_sample_weights))
    if not refused and sparse and training:
        refused = "a sparse gradient is torch's"
    size = auto.RENORMALISED if max_norm is not None else _size_of(mode, training, input, weight)
    backend = choose(OPERATION, weight, (input, *given), size, refused)
    if backend is None:
        return F.embedding_bag(*args)
    n, rows = input.numel(), weight.shape[0]
    indices = input.reshape(-1).contiguous()
    if offsets is None:
        bounds = torch.arange(0, n + 1, input.shape[1], device=input.device)
    elif include_last_offset:
        bounds = offsets.long().contiguous()
    else:
        bounds = torch.cat((offsets.long(), offsets.new_full((1,), n, dtype=torch.int64)))
    per_sample = None if per_sample_weights is None else per_sample_weights.reshape(-1).contiguous()
    if (backend == "triton" or not weight.is_cpu) and readable(indices, bounds):
        expect_bags(indices, bounds, rows)
    if max_norm is not None:
        renormalise(weight, indices, max_norm, norm_type, backend)
    padding = -1 if padding_idx is None else padding_idx % rows
    y, _, _ = apply(
        _Bag, unit_stride(weight), per_sample, indices, bounds, mode, padding, bool(scale_grad_by_freq), backend
    )
    return y
