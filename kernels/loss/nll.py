"""The negative of the score of each target, and its gradient: places [outer, inner] of scores [outer, n, inner], of each of which one
score is read. Sums over the places of a program go to a second launch, in float64."""

import torch
import triton
import triton.language as tl

from pyflash.kernels import launch, tuning
from pyflash.kernels.grouped import grouped
from pyflash.kernels.loss.cross_entropy import _finish, _targets
from pyflash.kernels.primitives import INTERPRETED, acc_dtype, acc_of, cast

BLOCK = 16384 if INTERPRETED.value else 1024


@launch.cached
@triton.jit(do_not_specialize=["ignore_index"])
def _nll_loss_fwd(
    x_ptr, targets_ptr, weight_ptr, loss_ptr, sums_ptr, outer_stride, step, places, inner, N, ignore_index,
    HAS_WEIGHT: tl.constexpr, IS_NONE: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The losses of BLOCK places, or the sums of those and of what they count for in a mean."""
    pid = tl.program_id(0).to(tl.int64)
    place = pid * BLOCK + tl.arange(0, BLOCK)
    mask = place < places
    target, counts, counted = _targets(targets_ptr, weight_ptr, place, mask, ignore_index, N, HAS_WEIGHT, ACC)
    at = place // inner * outer_stride + target * step + place % inner
    loss = tl.where(counts, -counted * cast(tl.load(x_ptr + at, mask=counts, other=0.0), ACC), 0.0)
    if IS_NONE:
        tl.store(loss_ptr + place, cast(loss, loss_ptr.dtype.element_ty), mask=mask)
    else:
        tl.store(sums_ptr + pid, tl.sum(loss.to(tl.float64)))
        tl.store(sums_ptr + tl.num_programs(0) + pid, tl.sum(counted.to(tl.float64)))


@launch.cached
@triton.jit(do_not_specialize=["blocks", "ignore_index"])
def _nll_loss_bwd(
    dloss_ptr, targets_ptr, weight_ptr, total_ptr, dx_ptr, group_stride, m_stride, n_stride, blocks, M, N, ignore_index,
    HAS_WEIGHT: tl.constexpr, IS_NONE: tl.constexpr, ACC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A tile of dx: -g at the target of each place, 0 beside it."""
    pid = tl.program_id(0)
    group = (pid // blocks).to(tl.int64)
    offs_m = ((pid % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    offs_n = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_m = offs_m < M
    place = group * M + offs_m
    target, counts, counted = _targets(targets_ptr, weight_ptr, place, mask_m, ignore_index, N, HAS_WEIGHT, ACC)
    if IS_NONE:
        g = cast(tl.load(dloss_ptr + place, mask=mask_m, other=0.0), ACC)
    else:
        g = tl.zeros([BLOCK_M], ACC) + cast(tl.load(dloss_ptr), acc_dtype(dloss_ptr.dtype.element_ty)) / tl.load(
            total_ptr
        )
    is_target = counts[:, None] & (offs_n[None, :] == target[:, None])
    dx = tl.where(is_target, (-g * counted)[:, None], 0.0)
    ptrs = dx_ptr + group * group_stride + offs_m[:, None] * m_stride + offs_n[None, :] * n_stride
    tl.store(ptrs, cast(dx, dx_ptr.dtype.element_ty), mask=mask_m[:, None] & (offs_n < N)[None, :])


def nll_loss_fwd(x, targets, weight, ignore_index, reduction, dtype, loss, total):
    """Fill loss and total. No tensor is empty."""
    x = grouped(x, 1)
    outer, n, inner = x.shape
    programs = launch.cdiv(outer * inner, BLOCK)
    sums = torch.empty(2 * programs, dtype=torch.float64, device=x.device)
    _nll_loss_fwd[(programs,)](
        x, targets, x if weight is None else weight, loss, sums, x.stride(0), x.stride(1), outer * inner, inner, n,
        ignore_index, HAS_WEIGHT=weight is not None, IS_NONE=reduction == "none", ACC=acc_of(x), BLOCK=BLOCK,
    )  # fmt: skip
    if reduction == "none":
        total.fill_(1)
    else:
        _finish[(1,)](loss, total, sums, programs, IS_MEAN=reduction == "mean", BLOCK=1024)


def nll_loss_bwd(dloss, shape, targets, weight, total, ignore_index, reduction, dtype, dx):
    """Fill dx, contiguous."""
    outer, n, inner = grouped(dx, 1).shape
    arch = tuning.arch(dx.device)
    if inner == 1:
        config, groups, M, strides = tuning.row_block(arch, n), 1, outer, (0, n, 1)
    else:
        config, groups, M, strides = tuning.column_block(arch, n), outer, inner, (n * inner, 1, inner)
    blocks = launch.cdiv(M, config["BLOCK_M"])
    _nll_loss_bwd[(groups * blocks, launch.cdiv(n, config["BLOCK_N"]))](
        dloss, targets, dloss if weight is None else weight, total, dx, *strides, blocks, M, n, ignore_index,
        HAS_WEIGHT=weight is not None, IS_NONE=reduction == "none", ACC=acc_of(dx), **config,
    )  # fmt: skip
