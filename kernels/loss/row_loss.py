"""Losses of rows of two or three tensors, which are compared by sums over their columns, and their gradients.

A program has whole rows, whose sums are kept in float64 for the gradients; the losses of a program's rows go to a second launch,
where they are summed.
"""

import torch
import triton
import triton.language as tl

from pyflash.kernels import launch, tuning
from pyflash.kernels.primitives import acc_dtype, acc_of, cast, scalar

SUMS = tl.constexpr(3)  # of a row, as csrc/common/row_loss.h says them
COSINE_EPS = tl.constexpr(1e-12)  # as torch adds to each square


@triton.jit
def _differences(a, b, c, eps):
    return a - b + eps, a - c + eps, b - c + eps


@triton.jit
def _terms(a, b, c, eps, LOSS: tl.constexpr, POWER: tl.constexpr):
    """What is summed over a row."""
    if LOSS == "cosine_embedding":
        x, y, z = a * b, a * a, b * b
    else:
        x, y, z = _differences(a, b, c, eps)
        if POWER == 2:
            x, y, z = x * x, y * y, z * z
        else:
            x, y, z = tl.abs(x), tl.abs(y), tl.abs(z)
    return x, y, z


@triton.jit
def _norm(sum, POWER: tl.constexpr):
    return tl.sqrt(sum) if POWER == 2 else sum


@triton.jit
def _missing(x, y, z, margin, POWER: tl.constexpr, IS_SWAPPED: tl.constexpr):
    """What the distances lack of the margin; NaN of any stays."""
    far = _norm(y, POWER)
    if IS_SWAPPED:
        other = _norm(z, POWER)
        far = tl.where((far <= other) | (far != far), far, other)
    return margin + _norm(x, POWER) - far


@triton.jit
def _loss(x, y, z, target, margin, LOSS: tl.constexpr, POWER: tl.constexpr, IS_SWAPPED: tl.constexpr):
    if LOSS == "cosine_embedding":
        cos = x / tl.sqrt((y + COSINE_EPS) * (z + COSINE_EPS))
        above = tl.where(cos - margin < 0, 0.0, cos - margin)
        loss = tl.where(target == 1, 1 - cos, tl.where(target == -1, above, 0.0))
    else:
        loss = _missing(x, y, z, margin, POWER, IS_SWAPPED)
        loss = tl.where(loss < 0, 0.0, loss)
    return loss


@triton.jit
def _over(slope, sum, POWER: tl.constexpr):
    """The gradient of a norm, of the sum that it is of: what multiplies the differences, or their signs."""
    return tl.where(sum == 0, 0.0, slope / tl.sqrt(tl.where(sum == 0, 1.0, sum))) if POWER == 2 else slope


@triton.jit
def _slopes(x, y, z, target, g, margin, LOSS: tl.constexpr, POWER: tl.constexpr, IS_SWAPPED: tl.constexpr):
    if LOSS == "cosine_embedding":
        root = tl.sqrt((y + COSINE_EPS) * (z + COSINE_EPS))
        cos = x / root
        slope = tl.where(target == 1, -g, tl.where((target == -1) & (cos - margin >= 0), g, 0.0))
        of_x, of_y, of_z = slope / root, -slope * cos / (y + COSINE_EPS), -slope * cos / (z + COSINE_EPS)
    else:
        slope = tl.where(_missing(x, y, z, margin, POWER, IS_SWAPPED) >= 0, g, 0.0)
        share = tl.full(x.shape, 1.0, tl.float64)
        if IS_SWAPPED:  # where two are the smallest each has half
            share = tl.where(y < z, 1.0, tl.where(y == z, 0.5, 0.0))
        of_x, of_y, of_z = (
            _over(slope, x, POWER),
            _over(-slope * share, y, POWER),
            _over(-slope * (1 - share), z, POWER),
        )
    return of_x, of_y, of_z


@triton.jit
def _sign(x):
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0))


@triton.jit
def _gradients(
    a, b, c, of_x, of_y, of_z, eps, LOSS: tl.constexpr, POWER: tl.constexpr, IS_SWAPPED: tl.constexpr
):  # fmt: skip
    if LOSS == "cosine_embedding":
        da, db = of_x * b + of_y * a, of_x * a + of_z * b
        dc = da
    else:
        x, y, z = _differences(a, b, c, eps)
        if POWER == 1:
            x, y, z = _sign(x), _sign(y), _sign(z)
        x, y, z = x * of_x, y * of_y, z * of_z
        da, db, dc = x + y, -x, -y
        if IS_SWAPPED:
            db, dc = z - x, -y - z
    return da, db, dc


@triton.jit
def _tiles(
    a_ptr, b_ptr, c_ptr, rows, offs_n, a_stride, b_stride, c_stride, mask, HAS_THIRD: tl.constexpr, ACC: tl.constexpr
):
    a = cast(tl.load(a_ptr + (rows * a_stride)[:, None] + offs_n[None, :], mask=mask, other=0.0), ACC)
    b = cast(tl.load(b_ptr + (rows * b_stride)[:, None] + offs_n[None, :], mask=mask, other=0.0), ACC)
    c = b
    if HAS_THIRD:
        c = cast(tl.load(c_ptr + (rows * c_stride)[:, None] + offs_n[None, :], mask=mask, other=0.0), ACC)
    return a, b, c


@triton.jit
def _target(target_ptr, rows, mask, LOSS: tl.constexpr, ACC: tl.constexpr):
    target = tl.zeros(rows.shape, ACC)
    if LOSS == "cosine_embedding":
        target = cast(tl.load(target_ptr + rows, mask=mask, other=0.0), ACC)
    return target


@launch.cached
@triton.jit
def _row_loss_fwd(
    a_ptr, b_ptr, c_ptr, target_ptr, loss_ptr, sums_ptr, totals_ptr, n, columns, a_stride, b_stride, c_stride,
    margin: "fp64", eps: "fp64",  # noqa: F821
    LOSS: tl.constexpr, POWER: tl.constexpr, IS_SWAPPED: tl.constexpr, IS_REDUCED: tl.constexpr, ACC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    rows = pid.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    mask_m = rows < n
    x = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    y = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    z = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    for start in range(0, columns, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        mask = mask_m[:, None] & (offs_n < columns)[None, :]
        a, b, c = _tiles(
            a_ptr, b_ptr, c_ptr, rows, offs_n, a_stride, b_stride, c_stride, mask, LOSS == "triplet_margin", ACC
        )
        of_x, of_y, of_z = _terms(a, b, c, scalar(eps, ACC), LOSS, POWER)
        x += tl.where(mask, of_x, 0.0)
        y += tl.where(mask, of_y, 0.0)
        z += tl.where(mask, of_z, 0.0)
    x, y, z = tl.sum(x, 1).to(tl.float64), tl.sum(y, 1).to(tl.float64), tl.sum(z, 1).to(tl.float64)
    if LOSS == "triplet_margin" and not IS_SWAPPED:
        z = tl.zeros_like(z)
    tl.store(sums_ptr + rows * SUMS, x, mask=mask_m)
    tl.store(sums_ptr + rows * SUMS + 1, y, mask=mask_m)
    tl.store(sums_ptr + rows * SUMS + 2, z, mask=mask_m)
    target = _target(target_ptr, rows, mask_m, LOSS, ACC)
    loss = _loss(x, y, z, target, scalar(margin, tl.float64), LOSS, POWER, IS_SWAPPED)
    if IS_REDUCED:
        tl.store(totals_ptr + pid, tl.sum(tl.where(mask_m, loss, 0.0)))
    else:
        loss = cast(loss.to(acc_dtype(loss_ptr.dtype.element_ty)), loss_ptr.dtype.element_ty)
        tl.store(loss_ptr + rows, loss, mask=mask_m)


@launch.cached
@triton.jit
def _row_loss_finish(loss_ptr, totals_ptr, programs, divisor: "fp64", BLOCK: tl.constexpr):  # noqa: F821
    """The sum of all programs' over what it is divided by."""
    total = tl.zeros([BLOCK], tl.float64)
    for first in range(0, programs, BLOCK):
        i = first + tl.arange(0, BLOCK)
        total += tl.load(totals_ptr + i, mask=i < programs, other=0.0)
    loss = tl.sum(total) / scalar(divisor, tl.float64)
    tl.store(loss_ptr, cast(loss.to(acc_dtype(loss_ptr.dtype.element_ty)), loss_ptr.dtype.element_ty))


@launch.cached
@triton.jit
def _row_loss_bwd(
    dloss_ptr, a_ptr, b_ptr, c_ptr, target_ptr, sums_ptr, da_ptr, db_ptr, dc_ptr, n, columns, a_stride, b_stride, c_stride,
    margin: "fp64", eps: "fp64", divisor: "fp64",  # noqa: F821
    LOSS: tl.constexpr, POWER: tl.constexpr, IS_SWAPPED: tl.constexpr, IS_REDUCED: tl.constexpr, NEED_A: tl.constexpr,
    NEED_B: tl.constexpr, NEED_C: tl.constexpr, ACC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_m = rows < n
    mask = mask_m[:, None] & (offs_n < columns)[None, :]
    ACC_OF_LOSS: tl.constexpr = acc_dtype(dloss_ptr.dtype.element_ty)
    if IS_REDUCED:
        g = tl.zeros([BLOCK_M], tl.float64) + cast(tl.load(dloss_ptr), ACC_OF_LOSS).to(tl.float64) / divisor
    else:
        g = cast(tl.load(dloss_ptr + rows, mask=mask_m, other=0.0), ACC_OF_LOSS).to(tl.float64)
    x = tl.load(sums_ptr + rows * SUMS, mask=mask_m, other=1.0)
    y = tl.load(sums_ptr + rows * SUMS + 1, mask=mask_m, other=1.0)
    z = tl.load(sums_ptr + rows * SUMS + 2, mask=mask_m, other=1.0)
    target = _target(target_ptr, rows, mask_m, LOSS, ACC)
    of_x, of_y, of_z = _slopes(x, y, z, target, g, scalar(margin, tl.float64), LOSS, POWER, IS_SWAPPED)
    of_x, of_y, of_z = of_x.to(ACC)[:, None], of_y.to(ACC)[:, None], of_z.to(ACC)[:, None]
    a, b, c = _tiles(
        a_ptr, b_ptr, c_ptr, rows, offs_n, a_stride, b_stride, c_stride, mask, LOSS == "triplet_margin", ACC
    )
    da, db, dc = _gradients(a, b, c, of_x, of_y, of_z, scalar(eps, ACC), LOSS, POWER, IS_SWAPPED)
    to = (rows * columns)[:, None] + offs_n[None, :]
    if NEED_A:
        tl.store(da_ptr + to, cast(da, da_ptr.dtype.element_ty), mask=mask)
    if NEED_B:
        tl.store(db_ptr + to, cast(db, db_ptr.dtype.element_ty), mask=mask)
    if NEED_C:
        tl.store(dc_ptr + to, cast(dc, dc_ptr.dtype.element_ty), mask=mask)


def _plan(a, b, c, target, loss, power, is_swapped, reduction):
    """The tensors, of which those that are not there have another's place; their sizes; settings."""
    n, columns = a.shape
    tensors = a, b, b if c is None else c, a if target is None else target
    settings = dict(
        LOSS=loss, POWER=power, IS_SWAPPED=is_swapped, IS_REDUCED=reduction != "none", ACC=acc_of(a),
        **tuning.row_block(tuning.arch(a.device), max(columns, 1)),
    )  # fmt: skip
    return tensors, (n, columns, *(t.stride(0) for t in tensors[:3])), settings


def row_loss_fwd(a, b, c, target, loss, margin, eps, power, is_swapped, reduction, divisor, dtype, y, sums):
    """Fill y, one number or one a row, and sums."""
    tensors, sizes, settings = _plan(a, b, c, target, loss, power, is_swapped, reduction)
    programs = launch.cdiv(a.shape[0], settings["BLOCK_M"])
    totals = torch.empty(programs if reduction != "none" else 0, dtype=torch.float64, device=a.device)
    if programs:
        _row_loss_fwd[(programs,)](*tensors, y, sums, totals, *sizes, margin, eps, **settings)
    if reduction != "none":
        _row_loss_finish[(1,)](y, totals, programs, divisor, BLOCK=1024)


def row_loss_bwd(
    dloss,
    a,
    b,
    c,
    target,
    sums,
    loss,
    margin,
    eps,
    power,
    is_swapped,
    reduction,
    divisor,
    need_a,
    need_b,
    need_c,
    da,
    db,
    dc,
):
    """Fill the gradients that are needed, contiguous."""
    tensors, sizes, settings = _plan(a, b, c, target, loss, power, is_swapped, reduction)
    grid = launch.cdiv(a.shape[0], settings["BLOCK_M"]), launch.cdiv(a.shape[1], settings["BLOCK_N"])
    if all(grid) and (need_a or need_b or need_c):
        _row_loss_bwd[grid](
            dloss, *tensors, sums, da, db, dc, *sizes, margin, eps, divisor, NEED_A=need_a, NEED_B=need_b,
            NEED_C=need_c and c is not None, **settings,
        )  # fmt: skip
