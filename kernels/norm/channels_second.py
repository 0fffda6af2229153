"""The backward of the backward of the norms of tensors with channels: csrc/cpu/norm/channel_second_rows.h has the formulas, and
norm/channels.py how a tensor is cut. One kernel sums over splits of the positions, one merges the sums of a unit, one those of
the parameters, and one writes what arrives at dy, x and the residual."""

import triton
import triton.language as tl

from pyflash.kernels import launch
from pyflash.kernels.norm.channels import _members, _per_channel, _place, _tile, _units_of, _work, _xhat
from pyflash.kernels.pointwise import activations
from pyflash.kernels.primitives import cast

# Of a channel: of ddx, ddx xhat, dz, dz xhat, ddx dz; with a curved activation also of e, e xhat, e xhat^2, e gain and e gain
# xhat, where e = dy act''(z) and gain = weight rstd ddx + ddresidual.
FLAT_SUMS, CURVED_SUMS = 5, 10
UNIT = 5  # numbers of a unit: the means of ddx, ddx xhat and weight dz xhat, and what t has nothing of along 1 and xhat


@triton.jit
def _optional_tile(ptr, offsets, mask, ACC: tl.constexpr):
    if ptr is None:
        found = tl.zeros(offsets.shape, ACC)
    else:
        found = _tile(ptr, offsets, mask, ACC)
    return found


@triton.jit
def _bent(dy, q, xhat, residual_ptr, weight, bias, offsets, mask, first, second, ACTIVATION: tl.constexpr,
          FROM_OUTPUT: tl.constexpr, IS_CURVED: tl.constexpr, COARSE: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """dz, s and ddy of dy and q; s is linear in q: of 1 it is e."""
    dz = dy
    s = tl.zeros_like(dy)
    ddy = q
    if ACTIVATION != "":
        saved = xhat * weight + bias
        if residual_ptr is not None:
            saved += _tile(residual_ptr, offsets, mask, ACC)
        if FROM_OUTPUT:
            saved = activations.fwd(saved, first, second, ACTIVATION, COARSE)
        dz = tl.where(mask, activations.bwd(dy, saved, first, second, ACTIVATION, COARSE), 0.0)
        ddy = activations.bwd(q, saved, first, second, ACTIVATION, COARSE)
        if IS_CURVED:
            s = activations.bwd_bwd(q, dy, saved, first, second, ACTIVATION, COARSE)
            if FROM_OUTPUT:
                s = activations.bwd(s, saved, first, second, ACTIVATION, COARSE)
            s = tl.where(mask, s, 0.0)
    return dz, s, ddy


@launch.cached
@triton.jit
def _second_sums(
    ddx_ptr, ddresidual_ptr, dy_ptr, x_ptr, residual_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, sums_ptr, stride,
    stride_n, stride_c, stride_s, batch, channels, positions, splits, chunk, first_value: "fp64", second_value: "fp64",  # noqa: F821
    GROUPS: tl.constexpr, ACTIVATION: tl.constexpr, FROM_OUTPUT: tl.constexpr, IS_CURVED: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """The sums of each channel of a sample over a chunk of its positions: [sums, splits, batch, channels]; from one to the
    next it is `stride`."""
    ACC: tl.constexpr = mean_ptr.dtype.element_ty
    sample, split, offs_c = _place(splits, BLOCK_C)
    mask_c = offs_c < channels
    units = _units_of(sample, offs_c, channels, GROUPS)
    weight = _per_channel(weight_ptr, offs_c, channels, 1.0, ACC)
    bias = _per_channel(bias_ptr, offs_c, channels, 0.0, ACC)
    coarse: tl.constexpr = x_ptr.dtype.element_ty.primitive_bitwidth == 16
    of_g = tl.zeros([BLOCK_C], ACC)
    of_gx = tl.zeros([BLOCK_C], ACC)
    of_dz = tl.zeros([BLOCK_C], ACC)
    of_dzx = tl.zeros([BLOCK_C], ACC)
    of_gdz = tl.zeros([BLOCK_C], ACC)
    of_e = tl.zeros([BLOCK_C], ACC)
    of_ex = tl.zeros([BLOCK_C], ACC)
    of_exx = tl.zeros([BLOCK_C], ACC)
    of_egain = tl.zeros([BLOCK_C], ACC)
    of_egainx = tl.zeros([BLOCK_C], ACC)
    start = split * chunk
    end = tl.minimum(start + chunk, positions)
    for first in range(start, end, BLOCK_S):
        offs_s = first + tl.arange(0, BLOCK_S)
        mask = mask_c[:, None] & (offs_s < end)[None, :]
        offsets = sample * stride_n + offs_c.to(tl.int64)[:, None] * stride_c + offs_s[None, :] * stride_s
        xhat, rstd = _xhat(x_ptr, mean_ptr, rstd_ptr, offsets, mask, units, mask_c, ACC)
        dy = _tile(dy_ptr, offsets, mask, ACC)
        g = _optional_tile(ddx_ptr, offsets, mask, ACC)
        dz, e, _ = _bent(
            dy, tl.full(dy.shape, 1.0, ACC), xhat, residual_ptr, weight, bias, offsets, mask, first_value, second_value,
            ACTIVATION, FROM_OUTPUT, IS_CURVED, coarse, ACC,
        )  # fmt: skip
        of_g += tl.sum(g, 1)
        of_gx += tl.sum(g * xhat, 1)
        of_dz += tl.sum(dz, 1)
        of_dzx += tl.sum(dz * xhat, 1)
        of_gdz += tl.sum(g * dz, 1)
        if IS_CURVED:
            gain = weight * rstd * g + _optional_tile(ddresidual_ptr, offsets, mask, ACC)
            of_e += tl.sum(e, 1)
            of_ex += tl.sum(e * xhat, 1)
            of_exx += tl.sum(e * xhat * xhat, 1)
            of_egain += tl.sum(e * gain, 1)
            of_egainx += tl.sum(e * gain * xhat, 1)
    at = (split * batch + sample) * channels + offs_c
    tl.store(sums_ptr + at, of_g, mask=mask_c)
    tl.store(sums_ptr + stride + at, of_gx, mask=mask_c)
    tl.store(sums_ptr + 2 * stride + at, of_dz, mask=mask_c)
    tl.store(sums_ptr + 3 * stride + at, of_dzx, mask=mask_c)
    tl.store(sums_ptr + 4 * stride + at, of_gdz, mask=mask_c)
    if IS_CURVED:
        tl.store(sums_ptr + 5 * stride + at, of_e, mask=mask_c)
        tl.store(sums_ptr + 6 * stride + at, of_ex, mask=mask_c)
        tl.store(sums_ptr + 7 * stride + at, of_exx, mask=mask_c)
        tl.store(sums_ptr + 8 * stride + at, of_egain, mask=mask_c)
        tl.store(sums_ptr + 9 * stride + at, of_egainx, mask=mask_c)


@triton.jit
def _sum(sums_ptr, i: tl.constexpr, stride, offsets, mask):
    return tl.load(sums_ptr + i * stride + offsets, mask=mask, other=0.0)


@triton.jit
def _sums_of_s(sums_ptr, stride, offsets, mask, fixed, slope, IS_CURVED: tl.constexpr):
    """Of s and of s xhat, where q = gain + fixed + slope xhat."""
    of_s = tl.zeros_like(fixed)
    of_sx = tl.zeros_like(fixed)
    if IS_CURVED:
        of_ex = _sum(sums_ptr, 6, stride, offsets, mask)
        of_s = _sum(sums_ptr, 8, stride, offsets, mask) + slope * of_ex
        of_s += fixed * _sum(sums_ptr, 5, stride, offsets, mask)
        of_sx = _sum(sums_ptr, 9, stride, offsets, mask) + fixed * of_ex
        of_sx += slope * _sum(sums_ptr, 7, stride, offsets, mask)
    return of_s, of_sx


@triton.jit
def _at_channels(ptr, channel, channels, ABSENT: tl.constexpr, ACC: tl.constexpr):
    """[BLOCK] of a [channels] tensor."""
    found = tl.full(channel.shape, ABSENT, ACC)
    if ptr is not None:
        found = tl.load(ptr + channel, mask=channel < channels, other=0.0).to(ACC)
    return found


@launch.cached
@triton.jit
def _second_units(
    sums_ptr, stride, weight_ptr, ddweight_ptr, ddbias_ptr, rstd_ptr, units_ptr, units, batch, channels, positions, splits,
    chunk, rows, total, GROUPS: tl.constexpr, IS_CURVED: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """The numbers of a unit, [UNIT, units], from the sums of its `rows` members, `total` elements."""
    ACC: tl.constexpr = sums_ptr.dtype.element_ty
    unit = tl.program_id(0).to(tl.int64)
    rstd = tl.load(rstd_ptr + unit)
    g = tl.zeros([BLOCK_I, BLOCK_J], ACC)
    g_xhat = tl.zeros([BLOCK_I, BLOCK_J], ACC)
    h = tl.zeros([BLOCK_I, BLOCK_J], ACC)
    h_xhat = tl.zeros([BLOCK_I, BLOCK_J], ACC)
    g_h = tl.zeros([BLOCK_I, BLOCK_J], ACC)
    for i in range(0, rows, BLOCK_I):
        offsets, mask, _, channel = _members(
            unit, i, batch, channels, splits, positions, chunk, GROUPS, BLOCK_I, BLOCK_J
        )
        weight = _at_channels(weight_ptr, channel, channels, 1.0, ACC)[None, :]
        g += _sum(sums_ptr, 0, stride, offsets, mask)
        g_xhat += _sum(sums_ptr, 1, stride, offsets, mask)
        h += _sum(sums_ptr, 2, stride, offsets, mask) * weight
        h_xhat += _sum(sums_ptr, 3, stride, offsets, mask) * weight
        g_h += _sum(sums_ptr, 4, stride, offsets, mask) * weight
    mean_g = tl.sum(tl.sum(g, 1), 0) / total
    mean_gx = tl.sum(tl.sum(g_xhat, 1), 0) / total
    mean_h = tl.sum(tl.sum(h, 1), 0) / total
    mean_hx = tl.sum(tl.sum(h_xhat, 1), 0) / total
    mean_gh = tl.sum(tl.sum(g_h, 1), 0) / total
    of_one = tl.zeros([BLOCK_I, BLOCK_J], ACC)
    of_xhat = tl.zeros([BLOCK_I, BLOCK_J], ACC)
    for i in range(0, rows, BLOCK_I):
        offsets, mask, _, channel = _members(
            unit, i, batch, channels, splits, positions, chunk, GROUPS, BLOCK_I, BLOCK_J
        )
        weight = _at_channels(weight_ptr, channel, channels, 1.0, ACC)[None, :]
        fixed = _at_channels(ddbias_ptr, channel, channels, 0.0, ACC)[None, :] - weight * rstd * mean_g
        slope = _at_channels(ddweight_ptr, channel, channels, 0.0, ACC)[None, :] - weight * rstd * mean_gx
        of_s, of_sx = _sums_of_s(sums_ptr, stride, offsets, mask, fixed, slope, IS_CURVED)
        of_one += weight * of_s + slope * _sum(sums_ptr, 2, stride, offsets, mask)
        of_xhat += weight * of_sx + slope * _sum(sums_ptr, 3, stride, offsets, mask)
    along_one = tl.sum(tl.sum(of_one, 1), 0) / total - rstd * mean_hx * mean_g
    along_xhat = tl.sum(tl.sum(of_xhat, 1), 0) / total - rstd * mean_hx * mean_gx
    along_xhat += rstd * (mean_gh - mean_g * mean_h - mean_gx * mean_hx)
    tl.store(units_ptr + unit, mean_g)
    tl.store(units_ptr + units + unit, mean_gx)
    tl.store(units_ptr + 2 * units + unit, mean_hx)
    tl.store(units_ptr + 3 * units + unit, along_one)
    tl.store(units_ptr + 4 * units + unit, along_xhat)


@triton.jit
def _of_unit(units_ptr, i: tl.constexpr, units, unit, mask, ACC: tl.constexpr):
    """One number of units, 0 where the statistics were not of x."""
    found = tl.zeros(unit.shape, ACC)
    if units_ptr is not None:
        found = tl.load(units_ptr + i * units + unit, mask=mask, other=0.0)
    return found


@launch.cached
@triton.jit
def _second_parameters(
    sums_ptr, stride, units_ptr, weight_ptr, ddweight_ptr, ddbias_ptr, rstd_ptr, dweight_ptr, dbias_ptr, units, batch,
    channels, rows, GROUPS: tl.constexpr, IS_CURVED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dweight and dbias from the sums [rows, channels], row i of which is sample i % batch's."""
    ACC: tl.constexpr = sums_ptr.dtype.element_ty
    offs_c = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_c = offs_c < channels
    weight = _at_channels(weight_ptr, offs_c, channels, 1.0, ACC)[None, :]
    of_bias = _at_channels(ddbias_ptr, offs_c, channels, 0.0, ACC)[None, :]
    of_weight = _at_channels(ddweight_ptr, offs_c, channels, 0.0, ACC)[None, :]
    dweight = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    dbias = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    for i in range(0, rows, BLOCK_M):
        offs_i = i + tl.arange(0, BLOCK_M).to(tl.int64)
        mask = (offs_i < rows)[:, None] & mask_c[None, :]
        offsets = offs_i[:, None] * channels + offs_c[None, :]
        unit = _units_of((offs_i % batch)[:, None], offs_c[None, :], channels, GROUPS)
        unit = tl.broadcast_to(unit, mask.shape)
        rstd = tl.load(rstd_ptr + unit, mask=mask, other=0.0)
        mean_g = _of_unit(units_ptr, 0, units, unit, mask, ACC)
        mean_gx = _of_unit(units_ptr, 1, units, unit, mask, ACC)
        fixed = of_bias - weight * rstd * mean_g
        slope = of_weight - weight * rstd * mean_gx
        of_s, of_sx = _sums_of_s(sums_ptr, stride, offsets, mask, fixed, slope, IS_CURVED)
        projected = _sum(sums_ptr, 4, stride, offsets, mask) - mean_g * _sum(sums_ptr, 2, stride, offsets, mask)
        projected -= mean_gx * _sum(sums_ptr, 3, stride, offsets, mask)
        dweight += rstd * projected + of_sx
        dbias += of_s
    if dweight_ptr is not None:
        tl.store(dweight_ptr + offs_c, tl.sum(dweight, 0), mask=mask_c)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + offs_c, tl.sum(dbias, 0), mask=mask_c)


@launch.cached
@triton.jit
def _second_apply(
    ddx_ptr, ddresidual_ptr, ddweight_ptr, ddbias_ptr, dy_ptr, x_ptr, residual_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr,
    units_ptr, ddy_ptr, dx_ptr, dresidual_ptr, stride_n, stride_c, stride_s, units, channels, positions, blocks,
    first: "fp64", second: "fp64", GROUPS: tl.constexpr, ACTIVATION: tl.constexpr, FROM_OUTPUT: tl.constexpr,  # noqa: F821
    IS_CURVED: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """ddy, dx and dresidual of a tile."""
    ACC: tl.constexpr = mean_ptr.dtype.element_ty
    sample, block, offs_c = _place(blocks, BLOCK_C)
    offs_s = block * BLOCK_S + tl.arange(0, BLOCK_S)
    mask_c = offs_c < channels
    mask = mask_c[:, None] & (offs_s < positions)[None, :]
    offsets = sample * stride_n + offs_c.to(tl.int64)[:, None] * stride_c + offs_s[None, :] * stride_s
    unit = _units_of(sample, offs_c, channels, GROUPS)
    weight = _per_channel(weight_ptr, offs_c, channels, 1.0, ACC)
    bias = _per_channel(bias_ptr, offs_c, channels, 0.0, ACC)
    xhat, rstd = _xhat(x_ptr, mean_ptr, rstd_ptr, offsets, mask, unit, mask_c, ACC)
    dy = _tile(dy_ptr, offsets, mask, ACC)
    g = _optional_tile(ddx_ptr, offsets, mask, ACC)
    slope = _per_channel(ddweight_ptr, offs_c, channels, 0.0, ACC)
    slope -= weight * rstd * _of_unit(units_ptr, 1, units, unit, mask_c, ACC)[:, None]
    fixed = _per_channel(ddbias_ptr, offs_c, channels, 0.0, ACC)
    fixed -= weight * rstd * _of_unit(units_ptr, 0, units, unit, mask_c, ACC)[:, None]
    q = weight * rstd * g + _optional_tile(ddresidual_ptr, offsets, mask, ACC) + fixed + slope * xhat
    coarse: tl.constexpr = x_ptr.dtype.element_ty.primitive_bitwidth == 16
    dz, s, ddy = _bent(
        dy, q, xhat, residual_ptr, weight, bias, offsets, mask, first, second, ACTIVATION, FROM_OUTPUT, IS_CURVED, coarse,
        ACC,
    )  # fmt: skip
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    if ddy_ptr is not None:
        tl.store(ddy_ptr + offsets, cast(ddy, dtype), mask=mask)
    if dresidual_ptr is not None:
        tl.store(dresidual_ptr + offsets, cast(s, dtype), mask=mask)
    if dx_ptr is not None:
        t = weight * s + slope * dz
        t -= g * (rstd * _of_unit(units_ptr, 2, units, unit, mask_c, ACC)[:, None])
        t -= _of_unit(units_ptr, 3, units, unit, mask_c, ACC)[:, None]
        t -= xhat * _of_unit(units_ptr, 4, units, unit, mask_c, ACC)[:, None]
        tl.store(dx_ptr + offsets, cast(t * rstd, dtype), mask=mask)


def channel_norm_bwd_bwd(
    dy, x, residual, weight, bias, mean, rstd, ddx, ddresidual, ddweight, ddbias, groups, uses_input, activation, first,
    second, need_ddy, need_dx, need_dresidual, need_dweight, need_dbias, ddy, dx, dresidual, dweight, dbias,
):  # fmt: skip
    """Fill those of ddy, dx, dresidual, dweight, dbias that are needed; the first three like x, the others like mean."""
    dweight, dbias = (grad if need else None for grad, need in ((dweight, need_dweight), (dbias, need_dbias)))
    if x.numel() == 0:
        for grad in (dweight, dbias):
            if grad is not None:
                grad.zero_()
        return
    work, channels = _work(x, groups), x.shape[1]
    is_last = x.stride(1) == 1 and channels > 1
    ddx, ddresidual, dy = (None if t is None else launch.in_order(t, is_last) for t in (ddx, ddresidual, dy))
    is_curved = activation in activations.CURVED
    # A product that is added at once is not rounded: see layer_norm_bwd.
    options = dict(GROUPS=groups, IS_CURVED=is_curved, enable_fp_fusion=False)
    of_activation = dict(ACTIVATION=activation, FROM_OUTPUT=activation in activations.FROM_OUTPUT)
    units, rows = None, work.splits * work.batch
    if uses_input or need_dweight or need_dbias:
        sums = mean.new_empty(CURVED_SUMS if is_curved else FLAT_SUMS, rows, channels)
        _second_sums[(work.batch * work.splits, work.c_blocks)](
            ddx, ddresidual, dy, x, residual, weight, bias, mean, rstd, sums, sums.stride(0), *work.strides, *work.sizes, first, second,
            **of_activation, **options, **work.block,
        )  # fmt: skip
        if uses_input:
            units = mean.new_empty(UNIT, mean.numel())
            members, elements, merged = work.members
            _second_units[(mean.numel(),)](
                sums, sums.stride(0), weight, ddweight, ddbias, rstd, units, mean.numel(), *work.sizes, members, elements, **options,
                **merged,
            )  # fmt: skip
        if need_dweight or need_dbias:
            _second_parameters[(launch.cdiv(channels, 16),)](
                sums, sums.stride(0), units, weight, ddweight, ddbias, rstd, dweight, dbias, mean.numel(), work.batch, channels, rows,
                **options, BLOCK_M=64, BLOCK_N=16,
            )  # fmt: skip
    if need_ddy or need_dx or need_dresidual:
        _second_apply[(work.batch * work.s_blocks, work.c_blocks)](
            ddx, ddresidual, ddweight, ddbias, dy, x, residual, weight, bias, mean, rstd, units, ddy if need_ddy else None,
            dx if need_dx else None, dresidual if need_dresidual else None, *work.strides, mean.numel(), channels,
            work.positions, work.s_blocks, first, second, **of_activation, **options, **work.block,
        )  # fmt: skip
