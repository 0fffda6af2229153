"""Losses of an input and a target, element by element, summed or not, and their gradients; the rows of the table: rows.py.

A program of a sum has CHUNK elements, whose sum goes to a second launch in float64; a tensor of one chunk needs only that program.
Weights may have fewer elements than there are: element i has number i // inner % count of them.
"""

import torch
import triton
import triton.language as tl

from pyflash.kernels import launch
from pyflash.kernels.loss import rows
from pyflash.kernels.periods import period_of
from pyflash.kernels.primitives import INTERPRETED, acc_dtype, acc_of, cast, scalar

BLOCK = 16384 if INTERPRETED.value else 1024
CHUNK = 16384


@triton.jit
def _factors(ptr, i, count, inner, mask, IS_FULL: tl.constexpr, ACC: tl.constexpr):
    place = i if IS_FULL else i // inner % count
    return cast(tl.load(ptr + place, mask=mask, other=0.0), ACC)


@triton.jit
def _arguments(
    x_ptr, target_ptr, positive_ptr, i, mask, positives, positive_inner, HAS_POSITIVE: tl.constexpr,
    IS_POSITIVE_FULL: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    x = cast(tl.load(x_ptr + i, mask=mask, other=0.0), ACC)
    t = cast(tl.load(target_ptr + i, mask=mask, other=0.0), ACC)
    p = x
    if HAS_POSITIVE:
        p = _factors(positive_ptr, i, positives, positive_inner, mask, IS_POSITIVE_FULL, ACC)
    return x, t, p


@triton.jit
def _put(ptr, y):
    """One number of float64."""
    tl.store(ptr, cast(y.to(acc_dtype(ptr.dtype.element_ty)), ptr.dtype.element_ty))


@launch.cached
@triton.jit
def _elementwise_loss_fwd(
    x_ptr, target_ptr, weight_ptr, positive_ptr, loss_ptr, sums_ptr, n, weights, weight_inner, positives, positive_inner,
    parameter: "fp64",  # noqa: F821
    LOSS: tl.constexpr, HAS_WEIGHT: tl.constexpr, IS_WEIGHT_FULL: tl.constexpr, HAS_POSITIVE: tl.constexpr,
    IS_POSITIVE_FULL: tl.constexpr, IS_REDUCED: tl.constexpr, ACC: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The losses of a chunk; or their sum, and that of the weights."""
    parameter = scalar(parameter, ACC)
    chunk, chunks = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    total = tl.zeros([BLOCK], ACC)
    counted = tl.zeros([BLOCK], ACC)
    for start in range(0, CHUNK, BLOCK):
        i = chunk * CHUNK + start + tl.arange(0, BLOCK)
        mask = i < n
        x, t, p = _arguments(
            x_ptr, target_ptr, positive_ptr, i, mask, positives, positive_inner, HAS_POSITIVE, IS_POSITIVE_FULL, ACC
        )
        loss = rows.forward(x, t, p, parameter, LOSS)
        if HAS_WEIGHT:
            weight = _factors(weight_ptr, i, weights, weight_inner, mask, IS_WEIGHT_FULL, ACC)
            loss *= weight
            counted += weight
        if IS_REDUCED:
            total += tl.where(mask, loss, 0.0)
        else:
            tl.store(loss_ptr + i, cast(loss, loss_ptr.dtype.element_ty), mask=mask)
    if IS_REDUCED:
        tl.store(sums_ptr + chunk, tl.sum(total).to(tl.float64))
        tl.store(sums_ptr + chunks + chunk, tl.sum(counted).to(tl.float64))


@launch.cached
@triton.jit
def _elementwise_loss_finish(
    loss_ptr, total_ptr, sums_ptr, chunks, divisor: "fp64",  # noqa: F821
    IS_REDUCED: tl.constexpr, IS_WEIGHTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sum of all chunks over what it is divided by."""
    loss = tl.zeros([BLOCK], tl.float64)
    counted = tl.zeros([BLOCK], tl.float64)
    for first in range(0, chunks, BLOCK):
        i = first + tl.arange(0, BLOCK)
        loss += tl.load(sums_ptr + i, mask=i < chunks, other=0.0)
        counted += tl.load(sums_ptr + chunks + i, mask=i < chunks, other=0.0)
    total = tl.sum(counted) if IS_WEIGHTED else scalar(divisor, tl.float64)
    tl.store(total_ptr, total)
    if IS_REDUCED:
        _put(loss_ptr, tl.sum(loss) / total)


@launch.cached
@triton.jit
def _elementwise_loss_bwd(
    dloss_ptr, x_ptr, target_ptr, weight_ptr, positive_ptr, total_ptr, dx_ptr, dtarget_ptr, n, weights, weight_inner,
    positives, positive_inner, parameter: "fp64",  # noqa: F821
    LOSS: tl.constexpr, HAS_WEIGHT: tl.constexpr, IS_WEIGHT_FULL: tl.constexpr, HAS_POSITIVE: tl.constexpr,
    IS_POSITIVE_FULL: tl.constexpr, IS_REDUCED: tl.constexpr, NEED_DX: tl.constexpr, NEED_DTARGET: tl.constexpr,
    ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    parameter = scalar(parameter, ACC)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    x, t, p = _arguments(
        x_ptr, target_ptr, positive_ptr, i, mask, positives, positive_inner, HAS_POSITIVE, IS_POSITIVE_FULL, ACC
    )
    if IS_REDUCED:
        dloss = cast(tl.load(dloss_ptr), acc_dtype(dloss_ptr.dtype.element_ty)).to(tl.float64)
        g = tl.zeros([BLOCK], ACC) + (dloss / tl.load(total_ptr)).to(ACC)
    else:
        g = cast(tl.load(dloss_ptr + i, mask=mask, other=0.0), ACC)
    if HAS_WEIGHT:
        g *= _factors(weight_ptr, i, weights, weight_inner, mask, IS_WEIGHT_FULL, ACC)
    if NEED_DX:
        dx = rows.by_input(g, x, t, p, parameter, LOSS)
        tl.store(dx_ptr + i, cast(dx, dx_ptr.dtype.element_ty), mask=mask)
    if NEED_DTARGET:
        dtarget = rows.by_target(g, x, t, p, parameter, LOSS)
        tl.store(dtarget_ptr + i, cast(dtarget, dtarget_ptr.dtype.element_ty), mask=mask)


def _plan(x, weight, pos_weight, loss, reduction):
    """The tensors that take the place of weights that are not there, the sizes of those that are, and settings."""
    settings = dict(
        LOSS=loss, HAS_WEIGHT=weight is not None, IS_WEIGHT_FULL=weight is not None and weight.shape == x.shape,
        HAS_POSITIVE=loss in rows.WITH_POS_WEIGHT,
        IS_POSITIVE_FULL=pos_weight is not None and pos_weight.shape == x.shape,
        IS_REDUCED=reduction != "none", ACC=acc_of(x), BLOCK=BLOCK,
    )  # fmt: skip
    periods = [n for of in (weight, pos_weight) for n in ((1, 1) if of is None else period_of(of.shape, x.shape))]
    return [x if of is None else of for of in (weight, pos_weight)], (x.numel(), *periods), settings


def elementwise_loss_fwd(x, target, weight, pos_weight, loss, parameter, reduction, divisor, dtype, y, total):
    """Fill y, one number or like x, and total. x and target dense in the same order; weights contiguous."""
    weights, sizes, settings = _plan(x, weight, pos_weight, loss, reduction)
    chunks = launch.cdiv(x.numel(), CHUNK)
    sums = torch.empty(2 * chunks if reduction != "none" else 0, dtype=torch.float64, device=x.device)
    if chunks:
        _elementwise_loss_fwd[(chunks,)](x, target, *weights, y, sums, *sizes, parameter, **settings, CHUNK=CHUNK)
    chunks = chunks if reduction != "none" else 0
    is_reduced, is_weighted = reduction != "none", reduction == "weighted"
    _elementwise_loss_finish[(1,)](
        y, total, sums, chunks, divisor, IS_REDUCED=is_reduced, IS_WEIGHTED=is_weighted, BLOCK=BLOCK
    )


def elementwise_loss_bwd(
    dloss, x, target, weight, pos_weight, total, loss, parameter, reduction, need_dx, need_dtarget, dx, dtarget
):
    """Fill dx and dtarget, like x, where they are needed."""
    weights, sizes, settings = _plan(x, weight, pos_weight, loss, reduction)
    blocks = launch.cdiv(x.numel(), BLOCK)
    if blocks and (need_dx or need_dtarget):
        _elementwise_loss_bwd[(blocks,)](
            dloss, x, target, *weights, total, dx, dtarget, *sizes, parameter, NEED_DX=need_dx, NEED_DTARGET=need_dtarget,
            **settings,
        )  # fmt: skip
