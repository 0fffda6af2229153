"""Convolution and its adjoint of groups of few channels, such as depthwise: no matrix product, each result sums its taps."""

import triton
import triton.language as tl

from pyflash.kernels import launch, tuning
from pyflash.kernels.conv import axes
from pyflash.kernels.conv.axes import address, is_inside, where_both
from pyflash.kernels.conv.product import finish
from pyflash.kernels.primitives import cast


@launch.cached
@triton.jit
def _conv_direct(
    a, weight, bias_ptr, residual, y, preact, depth, height, width, batch, groups, K, N, phases,
    first: "fp64", second: "fp64",  # noqa: F821
    ACTIVATION: tl.constexpr, IS_ADJOINT: tl.constexpr, LEAVES_D: tl.constexpr, LEAVES_H: tl.constexpr,
    LEAVES_W: tl.constexpr, IS_LARGE: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """As product._conv: a tile [BLOCK_S results of a phase, BLOCK_C channels of any groups] a program."""
    pid = tl.program_id(0)
    channels = groups * N
    tiles_c = tl.cdiv(channels, BLOCK_C)
    channel = pid % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    phase_d, phase_h, phase_w = axes.phases_at(pid // tiles_c % phases, depth, height, width)
    tile = pid // (tiles_c * phases)
    if IS_LARGE:
        tile = tile.to(tl.int64)
    results_d, scale_d, first_d, step_d, taps_d, tap_d, tap_step_d, stride_d = axes.walk(depth, phase_d, IS_ADJOINT)
    results_h, scale_h, first_h, step_h, taps_h, tap_h, tap_step_h, stride_h = axes.walk(height, phase_h, IS_ADJOINT)
    results_w, scale_w, first_w, step_w, taps_w, tap_w, tap_step_w, stride_w = axes.walk(width, phase_w, IS_ADJOINT)
    start = tile * BLOCK_S
    count = (start * 0 + batch) * results_d * results_h * results_w
    offs = start + tl.arange(0, BLOCK_S)
    is_row, is_channel = offs < count, channel < channels
    is_there = is_row[:, None] & is_channel[None, :]

    sample, out_d, out_h, out_w = axes.place_of(offs, results_d, results_h, results_w)
    d, h, w = out_d * scale_d + first_d, out_h * scale_h + first_h, out_w * scale_w + first_w  # of the first tap, [BLOCK_S]
    group = (channel // N).to(tl.int64)
    a_ptrs = a.ptr + address(a.strides, sample, d, h, w)[:, None] + (group * K * a.strides[1])[None, :]
    weight_ptrs = weight.ptr + group * weight.strides[5] + (channel % N).to(tl.int64) * weight.strides[0]
    acc = tl.zeros([BLOCK_S, BLOCK_C], tl.float32)
    taps_d = tl.where(start < count, taps_d, 0)
    for td in range(taps_d):
        mask_d = where_both(is_inside(d + td * step_d, depth, LEAVES_D), is_row)
        for th in range(taps_h):
            mask_h = where_both(is_inside(h + th * step_h, height, LEAVES_H), mask_d)
            for tw in range(taps_w):
                mask = where_both(is_inside(w + tw * step_w, width, LEAVES_W), mask_h)
                mask = mask[:, None] & is_channel[None, :]
                zero = start * 0
                away = address(a.strides, zero, zero + td * step_d, zero + th * step_h, zero + tw * step_w)
                along = address(
                    weight.strides, zero, zero + td * tap_step_d + tap_d, zero + th * tap_step_h + tap_h,
                    zero + tw * tap_step_w + tap_w,
                )  # fmt: skip
                for k in range(K):
                    at_k = (zero + k).to(tl.int64)
                    x = tl.load(a_ptrs + (away + at_k * a.strides[1]), mask=mask, other=0.0)  # [BLOCK_S, BLOCK_C]
                    tap_ptrs = weight_ptrs + (along + at_k * weight.strides[1])
                    tap = tl.load(tap_ptrs, mask=is_channel, other=0.0)  # [BLOCK_C]
                    acc += cast(x, tl.float32) * cast(tap, tl.float32)[None, :]
    if IS_ADJOINT:
        out_d, out_h, out_w = out_d * stride_d + phase_d, out_h * stride_h + phase_h, out_w * stride_w + phase_w
    finish(
        acc, bias_ptr, residual, y, preact, sample, out_d, out_h, out_w, is_row, channel, is_channel, first, second,
        ACTIVATION,
    )  # fmt: skip


def conv(shape, a, weight, bias, residual, activation, y, preact):
    """Fills y for an axes.Shape; `activation` is a name and the values of its parameters."""
    channels = y.shape[1]
    config = tuning.channel_block(tuning.arch(a.device), channels, shape.results, y.stride(1) == 1)
    grid = (launch.cdiv(shape.results, config["BLOCK_S"]) * launch.cdiv(channels, config["BLOCK_C"]) * shape.phases,)
    _conv_direct[grid](
        axes.strided(a), shape.weight_of(weight), bias, axes.strided(residual), axes.strided(y), axes.strided(preact),
        *shape.axes, shape.batch, shape.groups, shape.K, shape.N, shape.phases, *activation[1:],
        ACTIVATION=activation[0], **shape.constants, **config,
    )  # fmt: skip
