"""Convolution and its adjoint as one tiled product over taps and channels: implicit GEMM, nothing is materialised.

Rows are results of a phase (axes.py), columns their channels; the sum goes over taps, and within a tap over channels. Where a
result lies is worked out once, before the loop; a tap adds an offset, and a mask in place of padding.
"""

import triton
import triton.language as tl

from pyflash.kernels import launch, tuning
from pyflash.kernels.conv import axes
from pyflash.kernels.conv.axes import across, address, down, is_inside, where_both
from pyflash.kernels.pointwise import activations
from pyflash.kernels.primitives import cast, dot, scalar
from pyflash.kernels.strided import tile_from


@triton.jit
def finish(acc, scale_ptr, bias_ptr, residual, y, preact, sample, d, h, w, is_row, channel, is_channel, first, second,
           ACTIVATION: tl.constexpr, scale_step=None, gain=1.0, clamp=0.0, BOUNDS: tl.constexpr = ""):  # fmt: skip
    """What follows the sums acc [rows, channels]: scale, bias, residual, activation, gain, clamp, stores.

    sample, d, h, w, is_row: [rows], where each lies in the result and whether it is one; channel, is_channel: [channels].
    scale, bias: [all channels]; residual, y, preact: Strided [batch, all channels, D, H, W]; all but y may be None.
    scale_step: where each sample has a scale of its own, from one to the next. BOUNDS: "", "gain" or "clamp", which is both.
    """
    mask = is_row[:, None] & is_channel[None, :]
    column = channel.to(tl.int64)[None, :]
    if scale_ptr is not None:
        if scale_step is None:
            acc *= cast(tl.load(scale_ptr + channel, mask=is_channel, other=0.0), tl.float32)[None, :]  # [channels]
        else:
            ptrs = scale_ptr + sample.to(tl.int64)[:, None] * scale_step + column
            acc *= cast(tl.load(ptrs, mask=mask, other=0.0), tl.float32)  # [rows, channels]
    if bias_ptr is not None:
        acc += cast(tl.load(bias_ptr + channel, mask=is_channel, other=0.0), tl.float32)[None, :]  # [channels]
    if residual is not None:
        ptrs = residual.ptr + address(residual.strides, sample, d, h, w)[:, None] + column * residual.strides[1]
        acc += cast(tl.load(ptrs, mask=mask, other=0.0), tl.float32)  # [rows, channels]
    if preact is not None:
        ptrs = preact.ptr + address(preact.strides, sample, d, h, w)[:, None] + column * preact.strides[1]
        tl.store(ptrs, cast(acc, preact.ptr.dtype.element_ty), mask=mask)
    acc = activations.fwd(acc, first, second, ACTIVATION, y.ptr.dtype.element_ty.primitive_bitwidth == 16)
    if BOUNDS != "":
        acc *= scalar(gain, acc.dtype)
    if BOUNDS == "clamp":
        most = scalar(clamp, acc.dtype)
        acc = tl.where(acc > most, most, acc)  # NaN stays
        acc = tl.where(acc < -most, -most, acc)
    ptrs = y.ptr + address(y.strides, sample, d, h, w)[:, None] + column * y.strides[1]
    tl.store(ptrs, cast(acc, y.ptr.dtype.element_ty), mask=mask)


@launch.cached
@triton.jit
def _conv(
    a, weight, scale_ptr, bias_ptr, residual, y, preact, depth, height, width, batch, groups, K, N, phases,
    first: "fp64", second: "fp64", scale_step, gain: "fp64", clamp: "fp64",  # noqa: F821
    ACTIVATION: tl.constexpr, BOUNDS: tl.constexpr, IS_ADJOINT: tl.constexpr, LEAVES_D: tl.constexpr, LEAVES_H: tl.constexpr,
    LEAVES_W: tl.constexpr, IS_LARGE: tl.constexpr, ONE_TAP: tl.constexpr, FOLDS: tl.constexpr, EVEN_K: tl.constexpr, PART: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y = activation(scale (sum over taps and channels of a * weight) + bias + residual): a tile [BLOCK_M results of a phase,
    BLOCK_N channels of a group] a program.

    a: Strided [batch, groups * K, *in]; weight: Strided with the strides of (N, K, taps of each axis, groups);
    scale, bias: [groups * N]; residual, y, preact: Strided [batch, groups * N, *out]; all of these but y may be None.
    FOLDS: the sum goes over taps * K at once, for few channels. PART: so many steps are a sum of their own; 0: all.
    """
    pid = tl.program_id(0)
    tiles_n = tl.cdiv(N, BLOCK_N)
    offs_n = pid % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    group = pid // tiles_n % groups
    phase_d, phase_h, phase_w = axes.phases_at(pid // (tiles_n * groups) % phases, depth, height, width)
    tile_m = pid // (tiles_n * groups * phases)
    if IS_LARGE:  # divisions of 64 bits take several times as long
        tile_m = tile_m.to(tl.int64)
    results_d, scale_d, first_d, step_d, taps_d, tap_d, tap_step_d, stride_d = axes.walk(depth, phase_d, IS_ADJOINT)
    results_h, scale_h, first_h, step_h, taps_h, tap_h, tap_step_h, stride_h = axes.walk(height, phase_h, IS_ADJOINT)
    results_w, scale_w, first_w, step_w, taps_w, tap_w, tap_step_w, stride_w = axes.walk(width, phase_w, IS_ADJOINT)
    start_m = tile_m * BLOCK_M
    M = (start_m * 0 + batch) * results_d * results_h * results_w
    offs_m = start_m + tl.arange(0, BLOCK_M)

    # Rows and columns past the end read the first ones again, and are not stored.
    sample, d, h, w = axes.place_of(offs_m % M, results_d, results_h, results_w)
    d, h, w = d * scale_d + first_d, h * scale_h + first_h, w * scale_w + first_w  # of the first tap, each [BLOCK_M]
    a_rows = a.ptr + address(a.strides, sample, d, h, w)[:, None] + (group * K).to(tl.int64) * a.strides[1]
    b_cols = (
        weight.ptr + group.to(tl.int64) * weight.strides[5] + (offs_n % N).to(tl.int64)[None, :] * weight.strides[0]
    )
    if FOLDS:
        steps = tl.cdiv(K * taps_d * taps_h * taps_w, BLOCK_K)
    else:
        steps = tl.cdiv(K, BLOCK_K) * taps_d * taps_h * taps_w
    steps = tl.where(start_m < M, steps, 0)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    part = acc
    next_k, next_d, next_h, next_w = group * 0, group * 0, group * 0, group * 0
    for i in range(steps):
        if FOLDS:  # each element of the sum has a tap of its own: td, th, tw are [BLOCK_K]
            offs_k = i * BLOCK_K + tl.arange(0, BLOCK_K)
            channel = offs_k % K
            td, th, tw = offs_k // K // taps_w // taps_h, offs_k // K // taps_w % taps_h, offs_k // K % taps_w
            is_k = td < taps_d
        else:
            channel = tile_from(next_k, BLOCK_K)
            td, th, tw = next_d, next_h, next_w
            if EVEN_K:
                is_k = None
            else:
                is_k = channel < K
            next_k += BLOCK_K
            if not ONE_TAP:  # without a division; and where there is one, the compiler sees where it is
                wraps = next_k >= K
                next_k = tl.where(wraps, 0, next_k)
                next_w += wraps.to(tl.int32)
                wraps = next_w >= taps_w
                next_w = tl.where(wraps, 0, next_w)
                next_h += wraps.to(tl.int32)
                wraps = next_h >= taps_h
                next_h = tl.where(wraps, 0, next_h)
                next_d += wraps.to(tl.int32)
        channel = channel.to(tl.int64)
        away = address(a.strides, td * 0, td * step_d, th * step_h, tw * step_w)
        a_ptrs = a_rows + (channel[None, :] * a.strides[1] + across(away, FOLDS))
        along = address(
            weight.strides, td * 0, td * tap_step_d + tap_d, th * tap_step_h + tap_h, tw * tap_step_w + tap_w
        )
        b_ptrs = b_cols + (channel[:, None] * weight.strides[1] + down(along, FOLDS))
        mask = across(is_k, True)
        mask = where_both(is_inside(d[:, None] + across(td * step_d, FOLDS), depth, LEAVES_D), mask)
        mask = where_both(is_inside(h[:, None] + across(th * step_h, FOLDS), height, LEAVES_H), mask)
        mask = where_both(is_inside(w[:, None] + across(tw * step_w, FOLDS), width, LEAVES_W), mask)
        a_tile = axes.load(a_ptrs, mask)  # [BLOCK_M, BLOCK_K]
        b_tile = axes.load(b_ptrs, down(is_k, True))  # [BLOCK_K, BLOCK_N]
        part = dot(a_tile, b_tile, part, PRECISION)  # [BLOCK_M, BLOCK_N]
        if PART > 0:
            is_whole = (i + 1) % PART == 0
            acc += tl.where(is_whole, part, 0.0)
            part = tl.where(is_whole, 0.0, part)
    if PART > 0:
        acc += part
    else:
        acc = part

    sample, d, h, w = axes.place_of(offs_m, results_d, results_h, results_w)
    if IS_ADJOINT:
        d, h, w = d * stride_d + phase_d, h * stride_h + phase_h, w * stride_w + phase_w
    finish(
        acc, scale_ptr, bias_ptr, residual, y, preact, sample, d, h, w, offs_m < M, group * N + offs_n, offs_n < N, first, second,
        ACTIVATION, scale_step, gain, clamp, BOUNDS,
    )  # fmt: skip


def conv(
    shape, a, weight, scale, bias, residual, activation, y, preact, scale_step=None, gain=1.0, clamp=0.0, bounds=""
):
    """Fills y for an axes.Shape; `activation` is a name and the values of its parameters; the last ones are finish's."""
    precision, folds = tuning.convolution_precision(), shape.K < 16 and shape.taps > 1
    # The error of a sum grows with the root of its length: long exact ones are sums of parts, as in linear.
    is_long = shape.K * shape.taps > 512 and precision == "ieee" and a.itemsize == 4
    weight = weight if folds or shape.taps == 1 else axes.channels_adjacent(weight)
    dtype, device = a.dtype, a.device
    places, (a, residual, y, preact) = axes.in_a_row(shape.axes, [axes.strided(t) for t in (a, residual, y, preact)])
    length = shape.K * shape.taps if folds else shape.K
    is_gathered = folds or (shape.K > 1 and not axes.are_adjacent(places, a))
    config = tuning.conv(tuning.arch(device), dtype, shape.results, shape.N, length, is_gathered)
    tiles = launch.cdiv(shape.results, config["BLOCK_M"]) * launch.cdiv(shape.N, config["BLOCK_N"])
    grid = (tiles * shape.groups * shape.phases,)
    block_k = config["BLOCK_K"]
    _conv[grid](
        a, shape.weight_of(weight), scale, bias, residual, y, preact, *places, shape.batch, shape.groups, shape.K, shape.N,
        shape.phases, *activation[1:], scale_step, gain, clamp, ACTIVATION=activation[0],
        BOUNDS=bounds, **shape.constants(), ONE_TAP=shape.taps == 1,
        FOLDS=folds, EVEN_K=shape.K % block_k == 0, PART=512 // block_k if is_long else 0, PRECISION=precision, **config,
    )  # fmt: skip
