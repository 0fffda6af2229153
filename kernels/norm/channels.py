"""BatchNorm, GroupNorm and InstanceNorm of [batch, channels, positions], channels or positions adjacent in memory: y =
activation(xhat weight + bias + residual) with xhat = (x - mean) rstd, and its backward.

A unit shares mean and rstd: a channel of all samples (GROUPS 0), or one of GROUPS groups of a sample's channels. Programs take
tiles [BLOCK_C, BLOCK_S] of one sample's channels and positions. Sums come in a fixed order: each program leaves those of its
split of the positions in `partial` [splits, batch, channels], one program a unit merges them. Source: Ioffe & Szegedy 2015,
arXiv:1502.03167; Wu & He 2018, arXiv:1803.08494; moments are merged as in Chan et al. 1979.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from pyflash.kernels import launch, tuning
from pyflash.kernels.norm.layer_norm import _sum_programs
from pyflash.kernels.pointwise import activations
from pyflash.kernels.primitives import cast


@triton.jit
def _place(blocks, BLOCK_C: tl.constexpr):
    """(sample, number of the block of positions, channels [BLOCK_C]) of a program; `blocks` to a sample."""
    pid = tl.program_id(0).to(tl.int64)
    return pid // blocks, pid % blocks, tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)


@triton.jit
def _per_channel(ptr, offs_c, channels, ABSENT: tl.constexpr, ACC: tl.constexpr):
    """[BLOCK_C, 1] of a [channels] tensor, or ABSENT where there is none."""
    if ptr is None:
        found = tl.full([offs_c.shape[0]], ABSENT, ACC)
    else:
        found = tl.load(ptr + offs_c, mask=offs_c < channels, other=0.0).to(ACC)
    return found[:, None]


@triton.jit
def _units_of(sample, offs_c, channels, GROUPS: tl.constexpr):
    """The units of channels of a sample."""
    if GROUPS == 0:
        units = offs_c.to(tl.int64)
    else:
        units = sample * GROUPS + offs_c // (channels // GROUPS)
    return units


@triton.jit
def _tile(ptr, offsets, mask, ACC: tl.constexpr):
    return cast(tl.load(ptr + offsets, mask=mask, other=0.0), ACC)


@triton.jit
def _xhat(x_ptr, mean_ptr, rstd_ptr, offsets, mask, units, mask_c, ACC: tl.constexpr):
    """xhat [BLOCK_C, BLOCK_S] and rstd [BLOCK_C, 1]."""
    mean = tl.load(mean_ptr + units, mask=mask_c, other=0.0)[:, None]
    rstd = tl.load(rstd_ptr + units, mask=mask_c, other=0.0)[:, None]
    return tl.where(mask, (_tile(x_ptr, offsets, mask, ACC) - mean) * rstd, 0.0), rstd


@launch.cached
@triton.jit
def _channel_moments(
    x_ptr, reference_ptr, mean_ptr, squares_ptr, stride_n, stride_c, stride_s, batch, channels, positions, splits, chunk,
    BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Mean, as a reference and what it lacks, and squared deviations of each channel of a sample over a chunk of its
    positions: [splits, batch, channels]."""
    ACC: tl.constexpr = mean_ptr.dtype.element_ty
    sample, split, offs_c = _place(splits, BLOCK_C)
    mask_c = offs_c < channels
    x_ptr += sample * stride_n
    mean = tl.zeros([BLOCK_C], ACC)
    squares = tl.zeros([BLOCK_C], ACC)
    start = split * chunk
    end = tl.minimum(start + chunk, positions)
    # Deviations from about the mean, that of the first tile: the sum of large numbers is off by more than they are.
    offs_s = start + tl.arange(0, BLOCK_S)
    mask = mask_c[:, None] & (offs_s < end)[None, :]
    x = _tile(x_ptr, offs_c.to(tl.int64)[:, None] * stride_c + offs_s[None, :] * stride_s, mask, ACC)
    reference = tl.sum(x, 1) / tl.minimum(end - start, BLOCK_S)
    for first in range(start, end, BLOCK_S):
        offs_s = first + tl.arange(0, BLOCK_S)
        mask = mask_c[:, None] & (offs_s < end)[None, :]
        x = _tile(x_ptr, offs_c.to(tl.int64)[:, None] * stride_c + offs_s[None, :] * stride_s, mask, ACC)
        x = tl.where(mask, x - reference[:, None], 0.0)
        count = tl.full([1], 0.0, ACC) + tl.minimum(end - first, BLOCK_S)
        own_mean = tl.sum(x, 1) / count
        centred = tl.where(mask, x - own_mean[:, None], 0.0)
        apart = own_mean - mean
        share = count / (first - start + count)
        squares += tl.sum(centred * centred, 1) + apart * apart * share * (first - start)
        mean += apart * share
    at = (split * batch + sample) * channels + offs_c
    tl.store(reference_ptr + at, reference, mask=mask_c)
    tl.store(mean_ptr + at, mean, mask=mask_c)
    tl.store(squares_ptr + at, squares, mask=mask_c)


@triton.jit
def _members(unit, i, batch, channels, splits, positions, chunk, GROUPS: tl.constexpr, BLOCK_I: tl.constexpr,
             BLOCK_J: tl.constexpr):  # fmt: skip
    """What of `partial` belongs to a unit, from row i on: offsets, mask [BLOCK_I, BLOCK_J], positions of each [BLOCK_I],
    channels [BLOCK_J]."""
    offs_i = i + tl.arange(0, BLOCK_I).to(tl.int64)
    offs_j = tl.arange(0, BLOCK_J)
    if GROUPS == 0:
        channel = unit + offs_j
        mask = (offs_i < splits * batch)[:, None] & (offs_j < 1)[None, :]
        offsets = offs_i[:, None] * channels + channel[None, :]
        split = offs_i // batch
    else:
        width = channels // GROUPS
        channel = (unit % GROUPS) * width + offs_j
        mask = (offs_i < splits)[:, None] & (offs_j < width)[None, :]
        offsets = (offs_i * batch + unit // GROUPS)[:, None] * channels + channel[None, :]
        split = offs_i
    return offsets, mask, tl.minimum(positions - split * chunk, chunk), channel


@launch.cached
@triton.jit
def _channel_statistics(
    reference_ptr, mean_in_ptr, squares_in_ptr, mean_ptr, rstd_ptr, variance_ptr, batch, channels, positions, splits, chunk, rows, total,
    EPS: tl.constexpr, GROUPS: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """mean, rstd and variance [units] from the moments of a unit's members; `rows` of them, `total` elements."""
    ACC: tl.constexpr = mean_ptr.dtype.element_ty
    unit = tl.program_id(0).to(tl.int64)
    first = _members(unit, 0, batch, channels, splits, positions, chunk, GROUPS, 1, 1)[0]
    reference = tl.load(reference_ptr + tl.sum(tl.sum(first, 1), 0))  # all means as deviations from it
    apart_sum = tl.zeros([BLOCK_I, BLOCK_J], ACC)
    for i in range(0, rows, BLOCK_I):
        offsets, mask, count, _ = _members(unit, i, batch, channels, splits, positions, chunk, GROUPS, BLOCK_I, BLOCK_J)
        apart = (tl.load(reference_ptr + offsets, mask=mask, other=0.0) - reference) + tl.load(
            mean_in_ptr + offsets, mask=mask, other=0.0
        )
        apart_sum += tl.where(mask, apart * count.to(ACC)[:, None], 0.0)
    mean = tl.sum(tl.sum(apart_sum, 1), 0) / total
    squares = tl.zeros([BLOCK_I, BLOCK_J], ACC)
    for i in range(0, rows, BLOCK_I):
        offsets, mask, count, _ = _members(unit, i, batch, channels, splits, positions, chunk, GROUPS, BLOCK_I, BLOCK_J)
        apart = (tl.load(reference_ptr + offsets, mask=mask, other=0.0) - reference) + tl.load(
            mean_in_ptr + offsets, mask=mask, other=0.0
        )
        apart -= mean
        squares += tl.load(squares_in_ptr + offsets, mask=mask, other=0.0)
        squares += tl.where(mask, apart * apart * count.to(ACC)[:, None], 0.0)
    variance = tl.sum(tl.sum(squares, 1), 0) / total
    tl.store(mean_ptr + unit, reference + mean)
    tl.store(rstd_ptr + unit, 1 / tl.sqrt(variance + EPS))
    if variance_ptr is not None:
        tl.store(variance_ptr + unit, variance)


@launch.cached
@triton.jit
def _channel_track(
    mean_ptr, variance_ptr, running_mean_ptr, running_var_ptr, new_mean_ptr, new_var_ptr, samples, channels, unbiased,
    momentum: "fp64", BLOCK: tl.constexpr,  # noqa: F821
):  # fmt: skip
    """The running statistics moved towards those of the batch: the average of `samples` units, [samples, channels].
    `unbiased`: n, of variances of n elements, of which torch tracks n / (n - 1)."""
    ACC: tl.constexpr = mean_ptr.dtype.element_ty
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < channels
    mean = tl.zeros([BLOCK], tl.float64)
    variance = tl.zeros([BLOCK], tl.float64)
    for sample in range(samples):
        at = tl.full([1], 0, tl.int64) + sample
        mean += tl.load(mean_ptr + at * channels + offs, mask=mask, other=0.0)
        variance += tl.load(variance_ptr + at * channels + offs, mask=mask, other=0.0)
    count = tl.full([1], 0.0, tl.float64) + unbiased
    mean = mean / samples * momentum + tl.load(running_mean_ptr + offs, mask=mask, other=0.0).to(tl.float64) * (
        1 - momentum
    )
    variance = variance / samples * (count / (count - 1)) * momentum
    variance += tl.load(running_var_ptr + offs, mask=mask, other=0.0).to(tl.float64) * (1 - momentum)
    tl.store(new_mean_ptr + offs, mean.to(ACC), mask=mask)
    tl.store(new_var_ptr + offs, variance.to(ACC), mask=mask)


@launch.cached
@triton.jit
def _channel_given(
    running_mean_ptr, running_var_ptr, mean_ptr, rstd_ptr, channels, EPS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """mean and rstd [channels] of what was tracked."""
    ACC: tl.constexpr = mean_ptr.dtype.element_ty
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < channels
    tl.store(mean_ptr + offs, cast(tl.load(running_mean_ptr + offs, mask=mask, other=0.0), ACC), mask=mask)
    variance = cast(tl.load(running_var_ptr + offs, mask=mask, other=1.0), ACC)
    tl.store(rstd_ptr + offs, 1 / tl.sqrt(variance + EPS), mask=mask)


@launch.cached
@triton.jit
def _channel_apply(
    x_ptr, residual_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, y_ptr, stride_n, stride_c, stride_s, channels,
    positions, blocks, first: "fp64", second: "fp64", GROUPS: tl.constexpr, ACTIVATION: tl.constexpr,  # noqa: F821
    BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """y of a tile; x, residual and y lie alike."""
    ACC: tl.constexpr = mean_ptr.dtype.element_ty
    sample, block, offs_c = _place(blocks, BLOCK_C)
    offs_s = block * BLOCK_S + tl.arange(0, BLOCK_S)
    mask_c = offs_c < channels
    mask = mask_c[:, None] & (offs_s < positions)[None, :]
    offsets = sample * stride_n + offs_c.to(tl.int64)[:, None] * stride_c + offs_s[None, :] * stride_s
    units = _units_of(sample, offs_c, channels, GROUPS)
    z, _ = _xhat(x_ptr, mean_ptr, rstd_ptr, offsets, mask, units, mask_c, ACC)
    z = z * _per_channel(weight_ptr, offs_c, channels, 1.0, ACC) + _per_channel(bias_ptr, offs_c, channels, 0.0, ACC)
    if residual_ptr is not None:
        z += _tile(residual_ptr, offsets, mask, ACC)
    coarse: tl.constexpr = y_ptr.dtype.element_ty.primitive_bitwidth == 16
    y = activations.fwd(z, first, second, ACTIVATION, coarse)
    tl.store(y_ptr + offsets, cast(y, y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _dz(dy, xhat, residual_ptr, weight, bias, offsets, mask, first, second, ACTIVATION: tl.constexpr,
        SAVES_OUTPUT: tl.constexpr, COARSE: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """The gradient before the activation."""
    dz = dy
    if ACTIVATION != "":
        saved = xhat * weight + bias
        if residual_ptr is not None:
            saved += _tile(residual_ptr, offsets, mask, ACC)
        if SAVES_OUTPUT:
            saved = activations.fwd(saved, first, second, ACTIVATION, COARSE)
        dz = tl.where(mask, activations.bwd(dy, saved, first, second, ACTIVATION, COARSE), 0.0)
    return dz


@launch.cached
@triton.jit
def _channel_reduce(
    dy_ptr, x_ptr, residual_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, dresidual_ptr, product_ptr, dz_ptr, stride_n,
    stride_c, stride_s, batch, channels, positions, splits, chunk, first_value: "fp64", second_value: "fp64",  # noqa: F821
    GROUPS: tl.constexpr, ACTIVATION: tl.constexpr, SAVES_OUTPUT: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """Sums of dz xhat and of dz of each channel of a sample over a chunk of its positions, [splits, batch, channels]; dz
    itself goes to dresidual."""
    ACC: tl.constexpr = mean_ptr.dtype.element_ty
    sample, split, offs_c = _place(splits, BLOCK_C)
    mask_c = offs_c < channels
    units = _units_of(sample, offs_c, channels, GROUPS)
    weight = _per_channel(weight_ptr, offs_c, channels, 1.0, ACC)
    bias = _per_channel(bias_ptr, offs_c, channels, 0.0, ACC)
    products = tl.zeros([BLOCK_C], ACC)
    sums = tl.zeros([BLOCK_C], ACC)
    start = split * chunk
    end = tl.minimum(start + chunk, positions)
    for first in range(start, end, BLOCK_S):
        offs_s = first + tl.arange(0, BLOCK_S)
        mask = mask_c[:, None] & (offs_s < end)[None, :]
        offsets = sample * stride_n + offs_c.to(tl.int64)[:, None] * stride_c + offs_s[None, :] * stride_s
        xhat, _ = _xhat(x_ptr, mean_ptr, rstd_ptr, offsets, mask, units, mask_c, ACC)
        coarse: tl.constexpr = x_ptr.dtype.element_ty.primitive_bitwidth == 16
        dz = _dz(_tile(dy_ptr, offsets, mask, ACC), xhat, residual_ptr, weight, bias, offsets, mask, first_value,
                 second_value, ACTIVATION, SAVES_OUTPUT, coarse, ACC)  # fmt: skip
        if dresidual_ptr is not None:
            tl.store(dresidual_ptr + offsets, cast(dz, dresidual_ptr.dtype.element_ty), mask=mask)
        products += tl.sum(dz * xhat, 1)
        sums += tl.sum(dz, 1)
    at = (split * batch + sample) * channels + offs_c
    tl.store(product_ptr + at, products, mask=mask_c)
    tl.store(dz_ptr + at, sums, mask=mask_c)


@launch.cached
@triton.jit
def _channel_slopes(
    product_ptr, dz_ptr, weight_ptr, along_xhat_ptr, along_one_ptr, batch, channels, positions, splits, chunk, rows, total,
    GROUPS: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """The means of dz weight xhat and of dz weight over a unit: what its dx has nothing of."""
    ACC: tl.constexpr = product_ptr.dtype.element_ty
    unit = tl.program_id(0).to(tl.int64)
    along_xhat = tl.zeros([BLOCK_I, BLOCK_J], ACC)
    along_one = tl.zeros([BLOCK_I, BLOCK_J], ACC)
    for i in range(0, rows, BLOCK_I):
        offsets, mask, _, channel = _members(
            unit, i, batch, channels, splits, positions, chunk, GROUPS, BLOCK_I, BLOCK_J
        )
        weight = tl.full([BLOCK_J], 1.0, ACC)
        if weight_ptr is not None:
            weight = tl.load(weight_ptr + channel, mask=channel < channels, other=0.0).to(ACC)
        along_xhat += tl.load(product_ptr + offsets, mask=mask, other=0.0) * weight[None, :]
        along_one += tl.load(dz_ptr + offsets, mask=mask, other=0.0) * weight[None, :]
    tl.store(along_xhat_ptr + unit, tl.sum(tl.sum(along_xhat, 1), 0) / total)
    tl.store(along_one_ptr + unit, tl.sum(tl.sum(along_one, 1), 0) / total)


@launch.cached
@triton.jit
def _channel_dx(
    dy_ptr, x_ptr, residual_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, along_xhat_ptr, along_one_ptr, dx_ptr, stride_n,
    stride_c, stride_s, channels, positions, blocks, first: "fp64", second: "fp64", GROUPS: tl.constexpr,  # noqa: F821
    ACTIVATION: tl.constexpr, SAVES_OUTPUT: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):  # fmt: skip
    """dx of a tile; without slopes the statistics were not of x."""
    ACC: tl.constexpr = mean_ptr.dtype.element_ty
    sample, block, offs_c = _place(blocks, BLOCK_C)
    offs_s = block * BLOCK_S + tl.arange(0, BLOCK_S)
    mask_c = offs_c < channels
    mask = mask_c[:, None] & (offs_s < positions)[None, :]
    offsets = sample * stride_n + offs_c.to(tl.int64)[:, None] * stride_c + offs_s[None, :] * stride_s
    units = _units_of(sample, offs_c, channels, GROUPS)
    weight = _per_channel(weight_ptr, offs_c, channels, 1.0, ACC)
    bias = _per_channel(bias_ptr, offs_c, channels, 0.0, ACC)
    xhat, rstd = _xhat(x_ptr, mean_ptr, rstd_ptr, offsets, mask, units, mask_c, ACC)
    coarse: tl.constexpr = dx_ptr.dtype.element_ty.primitive_bitwidth == 16
    dz = _dz(_tile(dy_ptr, offsets, mask, ACC), xhat, residual_ptr, weight, bias, offsets, mask, first, second, ACTIVATION,
             SAVES_OUTPUT, coarse, ACC)  # fmt: skip
    dx = dz * weight
    if along_one_ptr is not None:
        dx -= tl.load(along_one_ptr + units, mask=mask_c, other=0.0)[:, None]
        dx -= xhat * tl.load(along_xhat_ptr + units, mask=mask_c, other=0.0)[:, None]
    tl.store(dx_ptr + offsets, cast(dx * rstd, dx_ptr.dtype.element_ty), mask=mask)


class _Work(NamedTuple):
    """How a tensor is cut. Of BatchNorm with the channels last, samples are rows of one matrix."""

    batch: int
    channels: int
    positions: int
    strides: tuple
    block: dict
    c_blocks: int
    s_blocks: int
    splits: int
    chunk: int
    groups: int

    @property
    def sizes(self):
        return self.batch, self.channels, self.positions, self.splits, self.chunk

    @property
    def members(self):
        """(rows of `partial` that belong to a unit, its elements, the blocks in which it is merged)."""
        width = self.channels // self.groups if self.groups else 1
        rows = self.splits if self.groups else self.splits * self.batch
        elements = width * self.positions * (1 if self.groups else self.batch)
        block_j = triton.next_power_of_2(width)
        block_i = max(1, min(triton.next_power_of_2(rows), 1024 // block_j))
        return rows, elements, dict(BLOCK_I=block_i, BLOCK_J=block_j)


def _work(x, groups):
    batch, channels, positions = x.shape
    strides = x.stride()
    if strides[1] == 1 and channels > 1:
        if not groups:
            batch, positions, strides = 1, batch * positions, (0, 1, channels)
        block = tuning.channel_block(tuning.arch(x.device), channels, positions, True)
    else:
        strides = channels * positions, positions, 1
        block = tuning.channel_block(tuning.arch(x.device), channels, positions, False)
    c_blocks, s_blocks = launch.cdiv(channels, block["BLOCK_C"]), launch.cdiv(positions, block["BLOCK_S"])
    splits = tuning.row_programs(tuning.arch(x.device), block["num_warps"], s_blocks, batch * c_blocks)
    each = launch.cdiv(s_blocks, splits)
    return _Work(batch, channels, positions, strides, block, c_blocks, s_blocks, launch.cdiv(s_blocks, each),
                 each * block["BLOCK_S"], groups)  # fmt: skip


def channel_norm_fwd(
    x, residual, weight, bias, running_mean, running_var, groups, uses_input, momentum, eps, activation, first, second,
    y, mean, rstd, new_running_mean, new_running_var,
):  # fmt: skip
    """Fill y, mean, rstd and, where they are tracked, the new running statistics.

    Args:
        x, residual, y: [batch, channels, positions], dense, of one memory order.
        weight, bias, running_mean, running_var: [channels], or None.
        groups: 0 for BatchNorm, channels for InstanceNorm.
        mean, rstd: [units], float32 (float64 for float64).
    """
    if x.numel() == 0:
        return
    work, channels = _work(x, groups), x.shape[1]
    if uses_input:
        partial = mean.new_empty(3, work.splits, work.batch, channels)
        _channel_moments[(work.batch * work.splits, work.c_blocks)](
            x, *partial, *work.strides, *work.sizes, **work.block
        )
        tracks = running_mean is not None
        variance = torch.empty_like(mean) if tracks else None
        rows, elements, merged = work.members
        _channel_statistics[(mean.numel(),)](
            *partial, mean, rstd, variance, *work.sizes, rows, elements, EPS=eps, GROUPS=groups,
            **merged,
        )  # fmt: skip
        if tracks:
            _channel_track[(launch.cdiv(channels, 128),)](
                mean, variance, running_mean, running_var, new_running_mean, new_running_var,
                x.shape[0] if groups else 1, channels, elements, momentum, BLOCK=128,
            )  # fmt: skip
    else:
        _channel_given[(launch.cdiv(channels, 128),)](
            running_mean, running_var, mean, rstd, channels, EPS=eps, BLOCK=128
        )
    _channel_apply[(work.batch * work.s_blocks, work.c_blocks)](
        x, residual, weight, bias, mean, rstd, y, *work.strides, channels, work.positions, work.s_blocks, first, second,
        GROUPS=groups, ACTIVATION=activation, **work.block,
    )  # fmt: skip


def channel_norm_bwd(
    dy, x, residual, weight, bias, mean, rstd, groups, uses_input, activation, first, second, saves_output, need_dx,
    need_dresidual, need_dweight, need_dbias, dx, dresidual, dweight, dbias,
):  # fmt: skip
    """Fill those of dx, dresidual, dweight, dbias that are needed; dx and dresidual like x, dweight and dbias like mean."""
    wanted = [grad if need else None for grad, need in ((dweight, need_dweight), (dbias, need_dbias))]
    if x.numel() == 0:
        for grad in wanted:
            if grad is not None:
                grad.zero_()
        return
    work, channels = _work(x, groups), x.shape[1]
    dy = launch.in_order(dy, x.stride(1) == 1 and channels > 1)
    of_activation = dict(ACTIVATION=activation, SAVES_OUTPUT=saves_output)
    # A product that is added at once is not rounded: see layer_norm_bwd.
    options = dict(GROUPS=groups, enable_fp_fusion=False)
    slopes = None, None
    if (need_dx and uses_input) or need_dresidual or need_dweight or need_dbias:
        partial = mean.new_empty(2, work.splits * work.batch, channels)
        _channel_reduce[(work.batch * work.splits, work.c_blocks)](
            dy, x, residual, weight, bias, mean, rstd, dresidual if need_dresidual else None, partial[0], partial[1],
            *work.strides, *work.sizes, first, second, **of_activation, **options, **work.block,
        )  # fmt: skip
        if need_dweight or need_dbias:
            _sum_programs[(launch.cdiv(channels, 16), 2)](
                partial, *wanted, work.splits * work.batch, channels, BLOCK_M=128, BLOCK_N=16
            )
        if need_dx and uses_input:
            slopes = torch.empty_like(mean), torch.empty_like(mean)
            rows, elements, merged = work.members
            _channel_slopes[(mean.numel(),)](
                partial[0], partial[1], weight, *slopes, *work.sizes, rows, elements, **options, **merged
            )
    if need_dx:
        _channel_dx[(work.batch * work.s_blocks, work.c_blocks)](
            dy, x, residual, weight, bias, mean, rstd, *slopes, dx, *work.strides, channels, work.positions,
            work.s_blocks, first, second, **of_activation, **options, **work.block,
        )  # fmt: skip
