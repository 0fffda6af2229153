"""Layer normalisation over rows, alone and of x + residual, and its backward: y = xhat weight + bias with
xhat = (x - mean) rstd. Where mean_ptr is None, RMS normalisation (rms_norm.py): the same without a mean and a bias.

A program holds whole rows in registers; rows wider than tuning.row_block's BLOCK_N it walks in blocks, twice, and the
second pass finds them in L2. The parameter gradients are summed in a fixed order: each program over its own rows, then
one reduction over the programs. Source: Ba et al. 2016, arXiv:1607.06450; blocks are merged as in Chan et al. 1979.
"""

import triton
import triton.language as tl

from pyflash.kernels import launch, tuning
from pyflash.kernels.primitives import acc_dtype, cast


@launch.cached
@triton.jit(do_not_specialize=["rows"])
def _layer_norm_fwd(
    x_ptr, residual_ptr, weight_ptr, bias_ptr, y_ptr, summed_ptr, mean_ptr, rstd_ptr, x_row_stride,
    residual_row_stride, rows, cols, EPS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """y, summed [rows, cols] and mean, rstd [rows] of BLOCK_M whole rows; x, residual: [rows, cols]; weight, bias:
    [cols]."""
    ACC: tl.constexpr = acc_dtype(x_ptr.dtype.element_ty)
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N)
    mask_m = offs_m < rows
    mask_n = offs_n < cols
    mask = mask_m[:, None] & mask_n[None, :]
    dense = offs_m[:, None] * cols + offs_n[None, :]
    if weight_ptr is not None:  # on their way while the sums are computed
        weight = tl.load(weight_ptr + offs_n, mask=mask_n, other=0.0)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0)
    x = tl.load(x_ptr + offs_m[:, None] * x_row_stride + offs_n[None, :], mask=mask, other=0.0)
    x = x.to(ACC)  # [BLOCK_M, BLOCK_N]
    if residual_ptr is not None:
        ptrs = residual_ptr + offs_m[:, None] * residual_row_stride + offs_n[None, :]
        x += tl.load(ptrs, mask=mask, other=0.0).to(ACC)
        rounded = cast(x, summed_ptr.dtype.element_ty)
        tl.store(summed_ptr + dense, rounded, mask=mask)
        x = cast(rounded, ACC)  # what is normalised is what the backward will read
    centred = x
    if mean_ptr is not None:
        mean = tl.sum(x, 1) / cols
        centred = tl.where(mask_n[None, :], x - mean[:, None], 0.0)
    rstd = 1 / tl.sqrt(tl.sum(centred * centred, 1) / cols + EPS)
    y = centred * rstd[:, None]
    if weight_ptr is not None:
        y *= weight.to(ACC)[None, :]
    if bias_ptr is not None:
        y += bias.to(ACC)[None, :]
    tl.store(y_ptr + dense, cast(y, y_ptr.dtype.element_ty), mask=mask)
    if mean_ptr is not None:
        tl.store(mean_ptr + offs_m, mean, mask=mask_m)
    tl.store(rstd_ptr + offs_m, rstd, mask=mask_m)


@launch.cached
@triton.jit
def _layer_norm_fwd_wide(
    x_ptr, residual_ptr, weight_ptr, bias_ptr, y_ptr, summed_ptr, mean_ptr, rstd_ptr, x_row_stride,
    residual_row_stride, cols, EPS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One row a program, block by block [BLOCK_N]: statistics, then what they give. Tensors as in _layer_norm_fwd."""
    ACC: tl.constexpr = acc_dtype(x_ptr.dtype.element_ty)
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCK_N)
    mean = tl.full([1], 0.0, ACC)
    squares = tl.full([1], 0.0, ACC)  # of the deviations from the mean
    for first in range(0, cols, BLOCK_N):
        offs_n = first + block
        mask = offs_n < cols
        x = tl.load(x_ptr + row * x_row_stride + offs_n, mask=mask, other=0.0).to(ACC)
        if residual_ptr is not None:
            x += tl.load(residual_ptr + row * residual_row_stride + offs_n, mask=mask, other=0.0).to(ACC)
            rounded = cast(x, summed_ptr.dtype.element_ty)
            tl.store(summed_ptr + row * cols + offs_n, rounded, mask=mask)
            x = cast(rounded, ACC)
        if mean_ptr is not None:
            count = tl.full([1], 0.0, ACC) + tl.minimum(cols - first, BLOCK_N)
            own_mean = tl.sum(x, 0) / count
            centred = tl.where(mask, x - own_mean, 0.0)
            apart = own_mean - mean
            share = count / (first + count)
            squares += tl.sum(centred * centred, 0) + apart * apart * share * first
            mean += apart * share
        else:
            squares += tl.sum(x * x, 0)
    rstd = 1 / tl.sqrt(squares / cols + EPS)
    source_ptr, source_row = x_ptr, row * x_row_stride
    if residual_ptr is not None:
        tl.debug_barrier()  # what is read below may have been written by other threads of this program
        source_ptr, source_row = summed_ptr, row * cols
    for first in range(0, cols, BLOCK_N):
        offs_n = first + block
        mask = offs_n < cols
        y = cast(tl.load(source_ptr + source_row + offs_n, mask=mask, other=0.0), ACC)
        if mean_ptr is not None:
            y -= mean
        y *= rstd
        if weight_ptr is not None:
            y *= tl.load(weight_ptr + offs_n, mask=mask, other=0.0).to(ACC)
        if bias_ptr is not None:
            y += tl.load(bias_ptr + offs_n, mask=mask, other=0.0).to(ACC)
        tl.store(y_ptr + row * cols + offs_n, cast(y, y_ptr.dtype.element_ty), mask=mask)
    one = tl.arange(0, 1)
    if mean_ptr is not None:
        tl.store(mean_ptr + row + one, mean)
    tl.store(rstd_ptr + row + one, rstd)


@launch.cached
@triton.jit(do_not_specialize=["rows"])
def _layer_norm_bwd(
    dy_ptr, dsummed_ptr, x_ptr, weight_ptr, mean_ptr, rstd_ptr, dx_ptr, dweight_ptr, dbias_ptr, dy_row_stride,
    dsummed_row_stride, x_row_stride, rows, cols, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dx [rows, cols], and this program's share of dweight and dbias [programs, cols]; dy, dsummed, x: [rows, cols];
    weight: [cols]; mean, rstd: [rows]. Tiles are [BLOCK_M, BLOCK_N], here [M, N]."""
    ACC: tl.constexpr = acc_dtype(x_ptr.dtype.element_ty)
    pid = tl.program_id(0)
    programs = tl.num_programs(0)
    offs_n = tl.arange(0, BLOCK_N)
    mask_n = offs_n < cols
    dweight = tl.zeros([BLOCK_N], ACC)
    dbias = tl.zeros([BLOCK_N], ACC)
    weight = tl.full([BLOCK_N], 1.0, ACC)
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + offs_n, mask=mask_n, other=0.0).to(ACC)
    for first in range(pid * BLOCK_M, rows, programs * BLOCK_M):
        offs_m = first + tl.arange(0, BLOCK_M).to(tl.int64)
        mask_m = offs_m < rows
        mask = mask_m[:, None] & mask_n[None, :]
        dy = tl.load(dy_ptr + offs_m[:, None] * dy_row_stride + offs_n[None, :], mask=mask, other=0.0).to(ACC)  # [M, N]
        x = tl.load(x_ptr + offs_m[:, None] * x_row_stride + offs_n[None, :], mask=mask, other=0.0).to(ACC)  # [M, N]
        if mean_ptr is not None:
            mean = tl.load(mean_ptr + offs_m, mask=mask_m, other=0.0)
        rstd = tl.load(rstd_ptr + offs_m, mask=mask_m, other=0.0)
        if mean_ptr is not None:
            x -= mean[:, None]
        xhat = tl.where(mask, x * rstd[:, None], 0.0)
        if dx_ptr is not None:
            dxhat = dy * weight[None, :]
            # The derivative of a normalised row is the projection away from xhat and, where it was centred, from 1.
            if mean_ptr is not None:
                along_one = tl.sum(dxhat, 1) / cols
            along_xhat = tl.sum(dxhat * xhat, 1) / cols
            dx = dxhat
            if mean_ptr is not None:
                dx -= along_one[:, None]
            dx = (dx - xhat * along_xhat[:, None]) * rstd[:, None]
            if dsummed_ptr is not None:
                ptrs = dsummed_ptr + offs_m[:, None] * dsummed_row_stride + offs_n[None, :]
                dx += tl.load(ptrs, mask=mask, other=0.0).to(ACC)
            tl.store(dx_ptr + offs_m[:, None] * cols + offs_n[None, :], cast(dx, dx_ptr.dtype.element_ty), mask=mask)
        dweight += tl.sum(dy * xhat, 0)
        if dbias_ptr is not None:
            dbias += tl.sum(dy, 0)
    tl.store(dweight_ptr + pid * cols + offs_n, dweight, mask=mask_n)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + pid * cols + offs_n, dbias, mask=mask_n)


@launch.cached
@triton.jit
def _layer_norm_bwd_wide(
    dy_ptr, dsummed_ptr, x_ptr, weight_ptr, mean_ptr, rstd_ptr, dx_ptr, dy_row_stride, dsummed_row_stride,
    x_row_stride, cols, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dx of one row a program, block by block [BLOCK_N]: the two projections, then what they leave. Tensors as in
    _layer_norm_bwd."""
    ACC: tl.constexpr = acc_dtype(x_ptr.dtype.element_ty)
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCK_N)
    mean = None
    if mean_ptr is not None:
        mean = tl.load(mean_ptr + row)
    rstd = tl.load(rstd_ptr + row)
    along_one = tl.full([1], 0.0, ACC)
    along_xhat = tl.full([1], 0.0, ACC)
    for first in range(0, cols, BLOCK_N):
        dxhat, xhat, _ = _differentials(dy_ptr + row * dy_row_stride, x_ptr + row * x_row_stride, weight_ptr, mean, rstd,
                                        first + block, cols, ACC)  # fmt: skip
        if mean_ptr is not None:
            along_one += tl.sum(dxhat, 0)
        along_xhat += tl.sum(dxhat * xhat, 0)
    along_one /= cols
    along_xhat /= cols
    for first in range(0, cols, BLOCK_N):
        offs_n = first + block
        dxhat, xhat, mask = _differentials(dy_ptr + row * dy_row_stride, x_ptr + row * x_row_stride, weight_ptr, mean,
                                           rstd, offs_n, cols, ACC)  # fmt: skip
        if mean_ptr is not None:
            dxhat -= along_one
        dx = (dxhat - xhat * along_xhat) * rstd
        if dsummed_ptr is not None:
            dx += tl.load(dsummed_ptr + row * dsummed_row_stride + offs_n, mask=mask, other=0.0).to(ACC)
        tl.store(dx_ptr + row * cols + offs_n, cast(dx, dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _differentials(dy_ptr, x_ptr, weight_ptr, mean, rstd, offs_n, cols, ACC: tl.constexpr):
    """(dxhat, xhat, mask) of a block of one row, [BLOCK_N] each."""
    mask = offs_n < cols
    dxhat = cast(tl.load(dy_ptr + offs_n, mask=mask, other=0.0), ACC)
    if weight_ptr is not None:
        dxhat *= cast(tl.load(weight_ptr + offs_n, mask=mask, other=0.0), ACC)
    x = cast(tl.load(x_ptr + offs_n, mask=mask, other=0.0), ACC)
    if mean is not None:
        x -= mean
    return dxhat, tl.where(mask, x * rstd, 0.0), mask


@launch.cached
@triton.jit(do_not_specialize=["rows"])
def _layer_norm_bwd_parameters(
    dy_ptr, x_ptr, mean_ptr, rstd_ptr, dweight_ptr, dbias_ptr, dy_row_stride, x_row_stride, rows, cols,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A share of dweight and dbias [programs, cols], of one block of columns and every programs-th row."""
    ACC: tl.constexpr = acc_dtype(x_ptr.dtype.element_ty)
    pid = tl.program_id(1).to(tl.int64)
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    dweight = tl.zeros([BLOCK_N], ACC)
    dbias = tl.zeros([BLOCK_N], ACC)
    for row in range(pid, rows, tl.num_programs(1)):
        mean = None
        if mean_ptr is not None:
            mean = tl.load(mean_ptr + row)
        dy, xhat, _ = _differentials(dy_ptr + row * dy_row_stride, x_ptr + row * x_row_stride, None, mean,
                                     tl.load(rstd_ptr + row), offs_n, cols, ACC)  # fmt: skip
        dweight += dy * xhat
        dbias += dy
    ptrs = pid * cols + offs_n
    tl.store(dweight_ptr + ptrs, dweight, mask=offs_n < cols)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + ptrs, dbias, mask=offs_n < cols)


@launch.cached
@triton.jit
def _sum_programs(
    partial_ptr, dweight_ptr, dbias_ptr, programs, cols, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """dweight, dbias = partial.sum(1), those that are wanted; partial [2, programs, cols], or [1, programs, cols] without
    dbias."""
    which = tl.program_id(1)
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < cols
    acc = tl.zeros([BLOCK_M, BLOCK_N], partial_ptr.dtype.element_ty)
    for first in range(0, programs, BLOCK_M):
        offs_m = (first + tl.arange(0, BLOCK_M)).to(tl.int64)
        mask = (offs_m < programs)[:, None] & mask_n[None, :]
        acc += tl.load(
            partial_ptr + (which * programs + offs_m)[:, None] * cols + offs_n[None, :], mask=mask, other=0.0
        )
    total = tl.sum(acc, 0)
    if dweight_ptr is not None:
        tl.store(dweight_ptr + offs_n, cast(total, dweight_ptr.dtype.element_ty), mask=mask_n & (which == 0))
    if dbias_ptr is not None:
        tl.store(dbias_ptr + offs_n, cast(total, dbias_ptr.dtype.element_ty), mask=mask_n & (which == 1))


def layer_norm_fwd(x, residual, weight, bias, eps, y, summed, mean, rstd):
    """Fill y, mean, rstd and, with a residual, summed = x + residual.

    Args:
        x, residual: [rows, cols], any row stride, columns adjacent; residual may be None.
        weight, bias: [cols], contiguous; or None.
        y, summed: [rows, cols], contiguous. Without a residual summed is not written.
        mean, rstd: [rows], float32 (float64 for float64). With mean None rows are not centred: RMSNorm, without bias.
    """
    rows, cols = x.shape
    if rows * cols == 0:
        return
    config = tuning.row_block(tuning.arch(x.device), cols)
    tensors = (
        x,
        residual,
        weight,
        bias,
        y,
        summed,
        mean,
        rstd,
        x.stride(0),
        0 if residual is None else residual.stride(0),
    )
    if cols > config["BLOCK_N"]:
        block = dict(BLOCK_N=config["BLOCK_N"], num_warps=config["num_warps"])
        _layer_norm_fwd_wide[(rows,)](*tensors, cols, EPS=eps, **block)
    else:
        grid = (launch.cdiv(rows, config["BLOCK_M"]),)
        _layer_norm_fwd[grid](*tensors, rows, cols, EPS=eps, **config)


def layer_norm_bwd(
    dy, dsummed, x, weight, mean, rstd, need_dx, need_dweight, need_dbias, dx, dweight, dbias
):  # fmt: skip
    """Fill those of dx, dweight, dbias that are needed; dx is the gradient of x and of residual alike.

    Args:
        dy: gradient of y; dsummed: gradient of the sum, or None; [rows, cols], columns adjacent.
        x: [rows, cols]: what was normalised, the sum where there is a residual.
        mean: None for RMSNorm, which has no bias either.
        dweight, dbias: [cols], any floating type.
    """
    rows, cols = dy.shape
    wanted = [grad if need else None for grad, need in ((dweight, need_dweight), (dbias, need_dbias))]
    if rows * cols == 0:
        for grad in wanted:
            if grad is not None:
                grad.zero_()
        return
    arch = tuning.arch(dy.device)
    config = tuning.row_block(arch, cols)
    strides = dy.stride(0), 0 if dsummed is None else dsummed.stride(0), x.stride(0)
    # A product that is added at once is not rounded: dy weight would differ from its own mean in a row of one element.
    options = dict(enable_fp_fusion=False)
    parts = 1 if mean is None else 2  # dweight, and dbias
    if cols > config["BLOCK_N"]:
        options |= dict(BLOCK_N=config["BLOCK_N"], num_warps=config["num_warps"])
        if need_dx:
            _layer_norm_bwd_wide[(rows,)](dy, dsummed, x, weight, mean, rstd, dx, *strides, cols, **options)
        if not (need_dweight or need_dbias):
            return
        blocks = launch.cdiv(cols, config["BLOCK_N"])
        programs = tuning.row_programs(arch, config["num_warps"], rows, blocks)
        partial = rstd.new_empty(parts, programs, cols)
        _layer_norm_bwd_parameters[(blocks, programs)](
            dy, x, mean, rstd, *_pair(partial), dy.stride(0), x.stride(0), rows, cols, **options
        )
    else:
        programs = tuning.row_programs(arch, config["num_warps"], launch.cdiv(rows, config["BLOCK_M"]))
        partial = rstd.new_empty(parts, programs, cols)
        _layer_norm_bwd[(programs,)](
            dy, dsummed, x, weight, mean, rstd, dx if need_dx else None, *_pair(partial), *strides, rows, cols,
            **options, **config,
        )  # fmt: skip
    if need_dweight or need_dbias:
        _sum_programs[(launch.cdiv(cols, 16), parts)](partial, *wanted, programs, cols, BLOCK_M=128, BLOCK_N=16)


def _pair(partial):
    """The shares of dweight, and those of dbias or None."""
    return partial if len(partial) == 2 else (*partial, None)
