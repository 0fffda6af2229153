"""Convolution and its adjoint of groups of few channels, such as depthwise: no matrix product, each result sums its taps.

A program goes along the width: it has RUN neighbouring results of every row, and reads each column of the input once for
all of them that it is a tap of. Results are numbered down the columns; where not channels but columns are adjacent in memory,
height and width change places, and neighbours in a program read neighbours in memory.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from pyflash.kernels import launch, tuning
from pyflash.kernels.conv import axes
from pyflash.kernels.conv.axes import address, is_inside, where_both
from pyflash.kernels.conv.product import finish
from pyflash.kernels.primitives import cast
from pyflash.kernels.strided import Strided

_LONGEST_RUN = 4
_MOST_COLUMNS = 32  # that a run unrolls


@triton.constexpr_function
def _tap_of(column, result, scale, step, taps):
    """The tap of a result whose place is that column, counted from the first that any tap of any result has; -1: none."""
    distance = column + min(step, 0) * (taps - 1) - result * scale
    tap = distance // step if step else 0
    return tap if distance % abs(step or 1) == 0 and 0 <= tap < taps else -1


@triton.constexpr_function
def _first_column(step, taps):
    """From the place of the first tap of the first result."""
    return min(step, 0) * (taps - 1)


@triton.constexpr_function
def _columns(run, scale, step, taps):
    """From the first one of any tap of any result to the last."""
    return (run - 1) * scale + (taps - 1) * abs(step) + 1


@triton.constexpr_function
def _is_used(column, run, scale, step, taps):
    return any(_tap_of(column, result, scale, step, taps) >= 0 for result in range(run))


@triton.jit
def _replaced(values, AT: tl.constexpr, value):
    """The tuple with another value at a place."""
    return values[:AT] + (value,) + values[AT + 1 :]  # noqa: RUF005, Triton knows no starred values


@launch.cached
@triton.jit
def _conv_direct(
    a, weight, scale_ptr, bias_ptr, residual, y, preact, depth, height, width, batch, groups, K, N, phases,
    first: "fp64", second: "fp64",  # noqa: F821
    ACTIVATION: tl.constexpr, IS_ADJOINT: tl.constexpr, LEAVES_D: tl.constexpr, LEAVES_H: tl.constexpr,
    LEAVES_W: tl.constexpr, IS_LARGE: tl.constexpr, RUN: tl.constexpr, SCALE: tl.constexpr, STEP: tl.constexpr,
    TAPS: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """As product._conv, but a program has BLOCK_S runs of results of a phase, BLOCK_C channels of any groups.

    weight: [K, *taps, groups * N], contiguous, with the strides of the taps. RUN: results one after another along the
    width, which have TAPS taps each, STEP apart, and SCALE from a result to the next; of 1 the width is walked as the
    other axes are.
    """
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
    zero = start * 0
    runs = tl.cdiv(zero + results_w, RUN)
    count = runs * batch * results_d * results_h
    offs = start + tl.arange(0, BLOCK_S)
    is_row, is_channel = offs < count, channel < channels

    sample, out_d, out_w, out_h = axes.place_of(offs, results_d, runs, results_h)
    out_w *= RUN
    # Of the first tap, each [BLOCK_S].
    d, h, w = out_d * scale_d + first_d, out_h * scale_h + first_h, out_w * scale_w + first_w
    a_ptrs = a.ptr + address(a.strides, sample, d, h, w)[:, None]
    a_ptrs += ((channel // N * K).to(tl.int64) * a.strides[1])[None, :]
    weight_ptrs = weight.ptr + channel  # of the first tap, [BLOCK_C]
    k_stride = depth[2] * height[2] * width[2] * channels
    acc = (tl.zeros([BLOCK_S, BLOCK_C], tl.float32),) * RUN
    taps_d = tl.where(start < count, zero + taps_d, 0)
    for td in range(taps_d):
        mask_d = where_both(is_inside(d + td * step_d, depth, LEAVES_D), is_row)
        for th in range(taps_h):
            mask_h = where_both(is_inside(h + th * step_h, height, LEAVES_H), mask_d)
            away = address(a.strides, zero, zero + td * step_d, zero + th * step_h, zero)
            for k in range(K):
                row_ptrs = a_ptrs + (away + (zero + k).to(tl.int64) * a.strides[1])
                tap_ptrs = weight_ptrs + (zero + k).to(tl.int64) * k_stride
                tap_ptrs += (td * tap_step_d + tap_d) * weight.strides[0]
                tap_ptrs += (th * tap_step_h + tap_h) * weight.strides[1]
                if RUN == 1:
                    for tw in range(taps_w):
                        at = tw * step_w
                        mask = where_both(is_inside(w + at, width, LEAVES_W), mask_h)[:, None] & is_channel[None, :]
                        x = tl.load(row_ptrs + (zero + at).to(tl.int64) * a.strides[4], mask=mask, other=0.0)
                        along = (tw * tap_step_w + tap_w) * weight.strides[2]
                        tap = tl.load(tap_ptrs + along, mask=is_channel, other=0.0)  # [BLOCK_C]
                        acc = (acc[0] + cast(x, tl.float32) * cast(tap, tl.float32)[None, :],)  # [BLOCK_S, BLOCK_C]
                else:
                    taps = ()
                    for tw in tl.static_range(TAPS):
                        tap = tl.load(tap_ptrs + tw * weight.strides[2], mask=is_channel, other=0.0)  # [BLOCK_C]
                        taps = taps + (cast(tap, tl.float32)[None, :],)  # noqa: RUF005
                    for column in tl.static_range(_columns(RUN, SCALE, STEP, TAPS)):
                        if _is_used(column, RUN, SCALE, STEP, TAPS):
                            at = zero + (column + _first_column(STEP, TAPS))
                            mask = where_both(is_inside(w + at, width, True), mask_h)[:, None] & is_channel[None, :]
                            x = tl.load(row_ptrs + at.to(tl.int64) * a.strides[4], mask=mask, other=0.0)
                            x = cast(x, tl.float32)  # [BLOCK_S, BLOCK_C]
                            for r in tl.static_range(RUN):
                                if _tap_of(column, r, SCALE, STEP, TAPS) >= 0:
                                    tap = taps[_tap_of(column, r, SCALE, STEP, TAPS)]
                                    acc = _replaced(acc, r, acc[r] + x * tap)
    if IS_ADJOINT:
        out_d, out_h, out_w = out_d * stride_d + phase_d, out_h * stride_h + phase_h, out_w * stride_w + phase_w
    for r in tl.static_range(RUN):
        finish(
            acc[r], scale_ptr, bias_ptr, residual, y, preact, sample, out_d, out_h, out_w + r,
            is_row & (out_w + r < width[1]), channel, is_channel, first, second, ACTIVATION,
        )  # fmt: skip


def conv(shape, a, weight, scale, bias, residual, activation, y, preact):
    """Fills y for an axes.Shape; `activation` is a name and the values of its parameters."""
    channels, is_last = y.shape[1], y.stride(1) == 1
    weight = _channels_last(shape, weight)
    order = (0, 1, 2) if is_last else (0, 2, 1)
    depth, height, width = (shape.axes[i] for i in order)
    run = _run(shape, width)
    results = shape.results // max(run.count, 1) * launch.cdiv(run.count, run.length)
    share = 1 if run.length == 1 else 2 if is_last else 4
    config = tuning.conv_block(tuning.arch(a.device), channels, results, is_last, share)
    grid = (launch.cdiv(results, config["BLOCK_S"]) * launch.cdiv(channels, config["BLOCK_C"]) * shape.phases,)
    tensors = (axes.strided(t, order) for t in (residual, y, preact))
    _conv_direct[grid](
        axes.strided(a, order), Strided(weight, tuple(weight.stride(1 + i) for i in order)), scale, bias, *tensors,
        depth, height, width, shape.batch, shape.groups, shape.K, shape.N, shape.phases, *activation[1:],
        ACTIVATION=activation[0], **shape.constants(order), RUN=run.length, SCALE=run.scale, STEP=run.step, TAPS=run.taps,
        **config,
    )  # fmt: skip


class _Run(NamedTuple):
    """Results one after another along an axis of `count`, as _conv_direct says."""

    count: int
    length: int = 1
    scale: int = 1
    step: int = 1
    taps: int = 1


def _run(shape, axis):
    _, size_out, taps, stride, _, dilation, _ = axis
    if shape.is_adjoint and stride > 1:  # each phase has taps of its own
        return _Run(launch.cdiv(size_out, stride))
    columns = (_LONGEST_RUN - 1) * stride + (taps - 1) * dilation + 1
    if taps == 1 or size_out == 1 or columns > _MOST_COLUMNS:
        return _Run(size_out)
    return _Run(size_out, _LONGEST_RUN, stride, -dilation if shape.is_adjoint else dilation, taps)


def _channels_last(shape, weight):
    """The weight as [K, D, H, W, groups * N], so that the channels of a result are adjacent: one small copy."""
    weight = weight.reshape(*weight.shape[:2], *(axis[2] for axis in shape.axes))
    weight = weight.unflatten(0, (shape.groups, -1))  # [groups, N, K, D, H, W], or K before N
    ends = (2, 1) if shape.is_adjoint else (1, 2)
    return weight.permute(ends[1], 3, 4, 5, 0, ends[0]).flatten(4).contiguous()
