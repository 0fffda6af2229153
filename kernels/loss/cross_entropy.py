"""Cross entropy of softmaxes over one dimension, of a class each or of probabilities, and its gradients.

A tile is [BLOCK_M, BLOCK_N] with the classes along N, whether their scores are adjacent in memory (rows) or those of M are
(columns). A program walks over N once, with the maximum and the sums that are counted from it, corrected as the maximum grows
(Milakov & Gimelshein 2018, arXiv:1805.02867). With q of a class, see csrc/common/cross_entropy.h, a softmax of scores x loses
sum q (log sum exp x - x). Sums over the softmaxes of a program go to a second launch, in float64.
"""

import torch
import triton
import triton.language as tl

from pyflash.kernels import launch, tuning
from pyflash.kernels.grouped import grouped
from pyflash.kernels.primitives import acc_dtype, acc_of, cast, exp, lowest, scalar


@triton.jit
def _place(blocks, M, BLOCK_M: tl.constexpr):
    """This program's group, its places in M, and the numbers of its softmaxes."""
    pid = tl.program_id(0)
    group = (pid // blocks).to(tl.int64)
    offs_m = ((pid % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    return group, offs_m, group * M + offs_m


@triton.jit
def _tile(ptr, offs_m, m_stride, offs_n, n_stride, mask, OTHER: tl.constexpr, ACC: tl.constexpr):
    ptrs = ptr + offs_m[:, None] * m_stride + offs_n[None, :] * n_stride
    return tl.where(mask, cast(tl.load(ptrs, mask=mask, other=0.0), ACC), OTHER)


@triton.jit
def _weigh(
    q_ptr, weight_ptr, offs_m, q_m_stride, offs_n, q_n_stride, mask, mask_n, keep, share, SPREAD: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """q of a tile, 0 outside."""
    if SPREAD == "probabilities":
        q = _tile(q_ptr, offs_m, q_m_stride, offs_n, q_n_stride, mask, 0.0, ACC) * keep + share
    else:
        q = tl.zeros_like(mask.to(ACC)) + share
    if HAS_WEIGHT:
        q *= tl.load(weight_ptr + offs_n, mask=mask_n, other=0.0)[None, :]
    return tl.where(mask, q, 0.0)


@triton.jit
def _targets(targets_ptr, weight_ptr, softmax, mask_m, ignore_index, N, HAS_WEIGHT: tl.constexpr, ACC: tl.constexpr):
    """The targets, whether each counts, and what for."""
    target = tl.load(targets_ptr + softmax, mask=mask_m, other=-1)
    counts = (target != ignore_index) & (target >= 0) & (target < N)
    target = tl.where(counts, target, 0)
    weight = tl.where(counts, 1.0, 0.0).to(ACC)
    if HAS_WEIGHT:
        weight = tl.load(weight_ptr + target, mask=counts, other=0.0)
    return target, counts, weight


@launch.cached
@triton.jit(do_not_specialize=["blocks", "ignore_index"])
def _cross_entropy_fwd(
    x_ptr, targets_ptr, q_ptr, weight_ptr, loss_ptr, tops_ptr, logs_ptr, sums_ptr, x_group_stride, x_m_stride, x_n_stride,
    q_group_stride, q_m_stride, q_n_stride, blocks, M, N, ignore_index, keep: "fp64", share: "fp64",  # noqa: F821
    SPREAD: tl.constexpr, HAS_WEIGHT: tl.constexpr, IS_NONE: tl.constexpr, ACC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """tops and logs of BLOCK_M softmaxes; their losses, or the sums of those and of what they count for in a mean."""
    group, offs_m, softmax = _place(blocks, M, BLOCK_M)
    mask_m = offs_m < M
    x_ptr += group * x_group_stride
    q_ptr += group * q_group_stride
    keep, share = scalar(keep, ACC), scalar(share, ACC)
    top = tl.full([BLOCK_M], lowest(ACC), ACC)
    total = tl.zeros([BLOCK_M], ACC)
    mass = tl.zeros([BLOCK_M], ACC)
    moment = tl.zeros([BLOCK_M], ACC)
    for first in range(0, N, BLOCK_N):
        offs_n = first + tl.arange(0, BLOCK_N).to(tl.int64)
        mask_n = offs_n < N
        mask = mask_m[:, None] & mask_n[None, :]
        x = _tile(x_ptr, offs_m, x_m_stride, offs_n, x_n_stride, mask, float("-inf"), ACC)
        own = tl.maximum(top, tl.max(x, 1))
        x -= own[:, None]
        total = total * exp(top - own) + tl.sum(exp(x), 1)
        if SPREAD != "nothing":
            q = _weigh(
                q_ptr,
                weight_ptr,
                offs_m,
                q_m_stride,
                offs_n,
                q_n_stride,
                mask,
                mask_n,
                keep,
                share,
                SPREAD,
                HAS_WEIGHT,
                ACC,
            )
            moment += tl.where(first > 0, (top - own) * mass, 0.0) + tl.sum(tl.where(mask, q * x, 0.0), 1)
            mass += tl.sum(q, 1)
        top = own
    log_sum = tl.log(tl.where(mask_m, total, 1.0))
    tl.store(tops_ptr + softmax, top, mask=mask_m)
    tl.store(logs_ptr + softmax, log_sum, mask=mask_m)
    loss = log_sum * mass - moment
    counted = tl.where(mask_m, 1.0, 0.0).to(ACC)
    if SPREAD != "probabilities":
        target, counts, counted = _targets(targets_ptr, weight_ptr, softmax, mask_m, ignore_index, N, HAS_WEIGHT, ACC)
        score = cast(tl.load(x_ptr + offs_m * x_m_stride + target * x_n_stride, mask=counts, other=0.0), ACC)
        loss += keep * counted * (log_sum - (score - top))
        mask_m = counts
    loss = tl.where(mask_m, loss, 0.0)
    if IS_NONE:
        tl.store(loss_ptr + softmax, cast(loss, loss_ptr.dtype.element_ty), mask=offs_m < M)
    else:
        pid, programs = tl.program_id(0).to(tl.int64), tl.num_programs(0)
        tl.store(sums_ptr + pid, tl.sum(loss.to(tl.float64)))
        tl.store(sums_ptr + programs + pid, tl.sum(counted.to(tl.float64)))


@launch.cached
@triton.jit
def _finish(loss_ptr, total_ptr, sums_ptr, programs, IS_MEAN: tl.constexpr, BLOCK: tl.constexpr):
    """The loss and what its mean divides by, of the sums of all programs."""
    loss = tl.zeros([BLOCK], tl.float64)
    counted = tl.zeros([BLOCK], tl.float64)
    for first in range(0, programs, BLOCK):
        i = first + tl.arange(0, BLOCK)
        loss += tl.load(sums_ptr + i, mask=i < programs, other=0.0)
        counted += tl.load(sums_ptr + programs + i, mask=i < programs, other=0.0)
    y = tl.sum(loss)
    total = tl.sum(counted) if IS_MEAN else 1.0 + 0.0 * tl.sum(counted)
    tl.store(total_ptr, total.to(total_ptr.dtype.element_ty))
    tl.store(loss_ptr, cast((y / total).to(acc_dtype(loss_ptr.dtype.element_ty)), loss_ptr.dtype.element_ty))


@launch.cached
@triton.jit(do_not_specialize=["blocks", "ignore_index"])
def _cross_entropy_bwd(
    dloss_ptr, x_ptr, targets_ptr, q_ptr, weight_ptr, tops_ptr, logs_ptr, total_ptr, dx_ptr, dq_ptr,
    x_group_stride, x_m_stride, x_n_stride, q_group_stride, q_m_stride, q_n_stride, blocks, M, N, ignore_index,
    keep: "fp64", share: "fp64",  # noqa: F821
    SPREAD: tl.constexpr, HAS_WEIGHT: tl.constexpr, IS_NONE: tl.constexpr, NEED_DX: tl.constexpr, NEED_DQ: tl.constexpr,
    ACC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dx = g (mass softmax(x) - q) and dq = g keep weight (log sum exp x - x), both with the strides of q."""
    group, offs_m, softmax = _place(blocks, M, BLOCK_M)
    mask_m = offs_m < M
    x_ptr += group * x_group_stride
    q_ptr += group * q_group_stride
    dx_ptr += group * q_group_stride
    dq_ptr += group * q_group_stride
    keep, share = scalar(keep, ACC), scalar(share, ACC)
    top = tl.load(tops_ptr + softmax, mask=mask_m, other=0.0)
    log_sum = tl.load(logs_ptr + softmax, mask=mask_m, other=0.0)
    if IS_NONE:
        g = cast(tl.load(dloss_ptr + softmax, mask=mask_m, other=0.0), ACC)
    else:
        g = tl.zeros([BLOCK_M], ACC) + cast(tl.load(dloss_ptr), ACC) / tl.load(total_ptr)
    mass = tl.zeros([BLOCK_M], ACC)
    if SPREAD == "smoothing" and not HAS_WEIGHT:
        mass += share * N
    elif SPREAD != "nothing":
        for first in range(0, N, BLOCK_N):
            offs_n = first + tl.arange(0, BLOCK_N).to(tl.int64)
            mask_n = offs_n < N
            mask = mask_m[:, None] & mask_n[None, :]
            mass += tl.sum(
                _weigh(
                    q_ptr, weight_ptr, offs_m, q_m_stride, offs_n, q_n_stride, mask, mask_n, keep, share, SPREAD, HAS_WEIGHT,
                    ACC,
                ), 1,
            )  # fmt: skip
    counts = mask_m
    target = tl.zeros([BLOCK_M], tl.int64)
    at_target = tl.zeros([BLOCK_M], ACC)
    if SPREAD != "probabilities":
        target, counts, weight = _targets(targets_ptr, weight_ptr, softmax, mask_m, ignore_index, N, HAS_WEIGHT, ACC)
        at_target = keep * weight
        mass += at_target
    for first in range(0, N, BLOCK_N):
        offs_n = first + tl.arange(0, BLOCK_N).to(tl.int64)
        mask_n = offs_n < N
        mask = mask_m[:, None] & mask_n[None, :]
        places = offs_m[:, None] * q_m_stride + offs_n[None, :] * q_n_stride
        x = _tile(x_ptr, offs_m, x_m_stride, offs_n, x_n_stride, mask, 0.0, ACC) - top[:, None]
        if NEED_DX:
            d = mass[:, None] * exp(x - log_sum[:, None])
            if SPREAD != "nothing":
                d -= _weigh(
                    q_ptr, weight_ptr, offs_m, q_m_stride, offs_n, q_n_stride, mask, mask_n, keep, share, SPREAD, HAS_WEIGHT,
                    ACC,
                )  # fmt: skip
            if SPREAD != "probabilities":
                d -= tl.where(offs_n[None, :] == target[:, None], at_target[:, None], 0.0)
            d = tl.where(counts[:, None], g[:, None] * d, 0.0)
            tl.store(dx_ptr + places, cast(d, dx_ptr.dtype.element_ty), mask=mask)
        if NEED_DQ:
            d = (g * keep)[:, None] * (log_sum[:, None] - x)
            if HAS_WEIGHT:
                d *= tl.load(weight_ptr + offs_n, mask=mask_n, other=0.0)[None, :]
            tl.store(dq_ptr + places, cast(d, dq_ptr.dtype.element_ty), mask=mask)


def _plan(x, probabilities, weight, ignore_index, smoothing, reduction):
    """x as [outer, n, inner], how many programs, and what both kernels take behind their tensors: numbers, and settings."""
    x = grouped(x, 1)
    outer, n, inner = x.shape
    arch = tuning.arch(x.device)
    if inner == 1:
        config, groups, M = tuning.row_block(arch, n), 1, outer
        strides = 0, x.stride(0), x.stride(1), 0, n, 1
    else:
        config, groups, M = tuning.column_block(arch, n), outer, inner
        strides = x.stride(0), x.stride(2), x.stride(1), n * inner, 1, inner
    blocks = launch.cdiv(M, config["BLOCK_M"])
    spread = "nothing" if smoothing == 0 else "smoothing"
    settings = dict(
        SPREAD="probabilities" if probabilities is not None else spread, HAS_WEIGHT=weight is not None,
        IS_NONE=reduction == "none", ACC=acc_of(x), **config,
    )  # fmt: skip
    return x, groups * blocks, (*strides, blocks, M, n, ignore_index, 1 - smoothing, smoothing / n), settings


def _present(x, *tensors):
    """x in the place of a tensor that there is not, which nobody reads."""
    return (x if t is None else t for t in tensors)


def cross_entropy_fwd(
    x, targets, probabilities, weight, ignore_index, smoothing, reduction, dtype, loss, tops, logs, total
):
    """Fill loss, tops and logs of each softmax over dimension 1, and total. No tensor is empty."""
    x, programs, sizes, settings = _plan(x, probabilities, weight, ignore_index, smoothing, reduction)
    sums = torch.empty(2 * programs, dtype=torch.float64, device=x.device)
    _cross_entropy_fwd[(programs,)](
        x, *_present(x, targets, probabilities, weight), loss, tops, logs, sums, *sizes, **settings,
    )  # fmt: skip
    if reduction == "none":
        total.fill_(1)
    else:
        _finish[(1,)](loss, total, sums, programs, IS_MEAN=reduction == "mean", BLOCK=1024)


def cross_entropy_bwd(
    dloss, x, targets, probabilities, weight, tops, logs, total, ignore_index, smoothing, reduction, need_dx,
    need_dprobabilities, dx, dprobabilities,
):  # fmt: skip
    """Fill dx and dprobabilities, contiguous, where they are needed."""
    x, programs, sizes, settings = _plan(x, probabilities, weight, ignore_index, smoothing, reduction)
    _cross_entropy_bwd[(programs,)](
        dloss, x, *_present(x, targets, probabilities, weight), tops, logs, total, dx, dprobabilities, *sizes,
        NEED_DX=need_dx, NEED_DQ=need_dprobabilities, **settings,
    )  # fmt: skip
