"""The gradient of a convolution's weight: a sum over all samples and places, split among programs. Each writes a sum of its
own, and a second pass adds them in their order: the same bits every time.

Places are counted on by digits (sample, d, h, w), like an odometer, so no division is in a loop.
"""

import torch
import triton
import triton.language as tl

from pyflash.kernels import launch, tuning
from pyflash.kernels.conv import axes
from pyflash.kernels.conv.axes import across, address, is_inside, where_both
from pyflash.kernels.primitives import cast, dot
from pyflash.kernels.strided import Strided, tile_from

_FEW = 16  # channels; of fewer the columns are those of all taps


@triton.jit
def _digits(number, axis_d, axis_h, axis_w):
    """(sample, d, h, w) of numbers of results."""
    return axes.place_of(number, axis_d[1], axis_h[1], axis_w[1])


@triton.jit
def _advance(place, by, axis_d, axis_h, axis_w):
    """The sum of two numbers of results, both as digits (sample, d, h, w)."""
    w = place[3] + by[3]
    carry = w >= axis_w[1]
    w = tl.where(carry, w - axis_w[1], w)
    h = place[2] + by[2] + carry.to(tl.int32)
    carry = h >= axis_h[1]
    h = tl.where(carry, h - axis_h[1], h)
    d = place[1] + by[1] + carry.to(tl.int32)
    carry = d >= axis_d[1]
    d = tl.where(carry, d - axis_d[1], d)
    return place[0] + by[0] + carry.to(tl.int32), d, h, w


@launch.cached
@triton.jit
def _weight_grad(
    dy, x, parts, depth, height, width, batch, groups, K, N, part_stride, each,
    LEAVES_D: tl.constexpr, LEAVES_H: tl.constexpr, LEAVES_W: tl.constexpr, IS_LARGE: tl.constexpr,
    IS_ROW: tl.constexpr, FOLDS: tl.constexpr, PART: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The sum of dy * x over `each` blocks of places: a tile [BLOCK_M channels of dy, BLOCK_N of x at one tap] of a group.

    dy: Strided [batch, groups * N, *out]; x: [batch, groups * K, *in]; parts: [groups * N, K, *taps], one for each
    program along axis 1, part_stride after the one before. IS_ROW: as axes.is_row. FOLDS: columns are of taps * K, for few
    channels.
    """
    pid = tl.program_id(0)
    taps_d, taps_h, taps_w = depth[2], height[2], width[2]
    taps = taps_d * taps_h * taps_w
    if FOLDS:
        tiles_n = tl.cdiv(taps * K, BLOCK_N)
        offs_n = pid % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
        is_n = offs_n < taps * K  # [BLOCK_N]; all of these
        channel, tap = offs_n % (taps * K) % K, offs_n % (taps * K) // K
        rest = pid // tiles_n
    else:
        tiles_n = tl.cdiv(K, BLOCK_N)
        channel = pid % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
        tap = pid // tiles_n % taps
        is_n = channel < K
        rest = pid // (tiles_n * taps)
    tiles_m = tl.cdiv(N, BLOCK_M)
    offs_m = rest % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)
    group = rest // tiles_m
    td, th, tw = tap // taps_w // taps_h, tap // taps_w % taps_h, tap % taps_w
    away_d, away_h, away_w = td * depth[5] - depth[4], th * height[5] - height[4], tw * width[5] - width[4]

    # Columns past the end read the first ones again, and are not stored.
    x_cols = x.ptr + across(address(x.strides, td * 0, away_d, away_h, away_w), FOLDS)
    x_cols += ((group * K + channel % K).to(tl.int64) * x.strides[1])[None, :]
    dy_cols = dy.ptr + ((group * N + offs_m % N).to(tl.int64) * dy.strides[1])[None, :]
    split = tl.program_id(1)
    if IS_LARGE:
        split = split.to(tl.int64)
    start = split * each * BLOCK_K
    count = (start * 0 + batch) * depth[1] * height[1] * width[1]
    number = start + tl.arange(0, BLOCK_K)
    place = _digits(number, depth, height, width)
    by = _digits(start * 0 + BLOCK_K, depth, height, width)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    part = acc
    for i in range(tl.minimum(each, tl.cdiv(tl.maximum(count - start, 0), BLOCK_K))):
        if IS_ROW:  # divides, and so the compiler sees that neighbours are neighbours
            number = tile_from(start + i * BLOCK_K, BLOCK_K)
            place = _digits(number, depth, height, width)
        sample, d, h, w = place
        is_row = (number < count)[:, None]
        dy_ptrs = dy_cols + address(dy.strides, sample, d, h, w)[:, None]
        dy_tile = tl.load(dy_ptrs, mask=is_row, other=0.0)  # [BLOCK_K, BLOCK_M]
        d, h, w = d * depth[3], h * height[3], w * width[3]
        mask = where_both(is_inside(d[:, None] + across(away_d, FOLDS), depth, LEAVES_D), is_row)
        mask = where_both(is_inside(h[:, None] + across(away_h, FOLDS), height, LEAVES_H), mask)
        mask = where_both(is_inside(w[:, None] + across(away_w, FOLDS), width, LEAVES_W), mask)
        x_ptrs = x_cols + address(x.strides, sample, d, h, w)[:, None]
        x_tile = tl.load(x_ptrs, mask=mask, other=0.0)  # [BLOCK_K, BLOCK_N]
        part = dot(tl.trans(dy_tile), x_tile, part, PRECISION)  # [BLOCK_M, BLOCK_N]
        if PART > 0:
            is_whole = (i + 1) % PART == 0
            acc += tl.where(is_whole, part, 0.0)
            part = tl.where(is_whole, 0.0, part)
        if not IS_ROW:
            number += BLOCK_K
            place = _advance(place, by, depth, height, width)
    if PART > 0:
        acc += part
    else:
        acc = part
    rows = parts.ptr + split.to(tl.int64) * part_stride + (group * N + offs_m).to(tl.int64)[:, None] * parts.strides[0]
    cols = channel.to(tl.int64)[None, :] * parts.strides[1]
    ptrs = rows + (cols + across(address(parts.strides, td * 0, td, th, tw), FOLDS))
    tl.store(ptrs, cast(acc, parts.ptr.dtype.element_ty), mask=(offs_m < N)[:, None] & is_n[None, :])


@launch.cached
@triton.jit
def _weight_grad_direct(
    dy, x, parts, depth, height, width, batch, groups, K, N, part_stride, each,
    LEAVES_D: tl.constexpr, LEAVES_H: tl.constexpr, LEAVES_W: tl.constexpr, IS_LARGE: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The same for groups of few channels: BLOCK_C channels of dy, each with one of x, at BLOCK_T taps along the width; so dy
    is read once for all of them, and x stays in the first cache."""
    pid = tl.program_id(0)
    channels = groups * N
    tiles_c = tl.cdiv(channels, BLOCK_C)
    tiles_t = tl.cdiv(width[2], BLOCK_T)
    channel = pid % tiles_c * BLOCK_C + tl.arange(0, BLOCK_C)
    row = pid // tiles_c
    tw = row % tiles_t * BLOCK_T + tl.arange(0, BLOCK_T)
    row = row // tiles_t
    th, td, k = row % height[2], row // height[2] % depth[2], row // (height[2] * depth[2]) % K
    is_channel, is_tap = channel < channels, tw < width[2]
    away_d, away_h = td * depth[5] - depth[4], th * height[5] - height[4]
    away_w = (tw * width[5] - width[4])[:, None]  # [BLOCK_T, 1]

    # Tiles of x are [BLOCK_T, BLOCK_S, BLOCK_C].
    x_cols = x.ptr + ((channel // N * K + k).to(tl.int64) * x.strides[1])[None, None, :]
    x_cols += address(x.strides, td * 0, away_d, away_h, away_w)[:, :, None]
    dy_cols = dy.ptr + (channel.to(tl.int64) * dy.strides[1])[None, :]
    split = tl.program_id(1)
    if IS_LARGE:
        split = split.to(tl.int64)
    start = split * each * BLOCK_S
    count = (start * 0 + batch) * depth[1] * height[1] * width[1]
    number = start + tl.arange(0, BLOCK_S)
    place = _digits(number, depth, height, width)
    by = _digits(start * 0 + BLOCK_S, depth, height, width)
    acc = tl.zeros([BLOCK_T, BLOCK_S, BLOCK_C], tl.float32)
    for _ in range(tl.minimum(each, tl.cdiv(tl.maximum(count - start, 0), BLOCK_S))):
        sample, d, h, w = place
        is_row = number < count
        mask = is_row[:, None] & is_channel[None, :]
        dy_ptrs = dy_cols + address(dy.strides, sample, d, h, w)[:, None]
        dy_tile = tl.load(dy_ptrs, mask=mask, other=0.0)  # [BLOCK_S, BLOCK_C]
        d, h, w = d * depth[3], h * height[3], w * width[3]
        inside = where_both(is_inside(d + away_d, depth, LEAVES_D), is_row)
        inside = where_both(is_inside(h + away_h, height, LEAVES_H), inside)[None, :] & is_tap[:, None]
        inside = where_both(is_inside(w[None, :] + away_w, width, LEAVES_W), inside)  # [BLOCK_T, BLOCK_S]
        ptrs = x_cols + address(x.strides, sample, d, h, w)[None, :, None]
        x_tile = tl.load(ptrs, mask=inside[:, :, None] & is_channel[None, None, :], other=0.0)
        acc += cast(x_tile, tl.float32) * cast(dy_tile, tl.float32)[None, :, :]
        number += BLOCK_S
        place = _advance(place, by, depth, height, width)
    total = tl.sum(acc, 1)  # [BLOCK_T, BLOCK_C]
    ptrs = parts.ptr + split.to(tl.int64) * part_stride + channel.to(tl.int64)[None, :] * parts.strides[0]
    ptrs += k.to(tl.int64) * parts.strides[1] + address(parts.strides, tw * 0, tw * 0 + td, tw * 0 + th, tw)[:, None]
    tl.store(ptrs, cast(total, parts.ptr.dtype.element_ty), mask=is_tap[:, None] & is_channel[None, :])


@launch.cached
@triton.jit
def _sum_parts(parts_ptr, dweight_ptr, count, splits, BLOCK: tl.constexpr):
    """dweight [count] = the sum of parts [splits, count], from the first to the last."""
    first = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = first < count
    offs = first
    total = tl.zeros([BLOCK], tl.float32)
    for _ in range(splits):
        total += tl.load(parts_ptr + offs, mask=mask, other=0.0)  # [BLOCK]
        offs += count
    tl.store(dweight_ptr + first, cast(total, dweight_ptr.dtype.element_ty), mask=mask)


def product(shape, dy, x, dweight):
    """Fills dweight for the axes.Shape of the forward, by matrix products."""
    folds = shape.K < _FEW and shape.taps > 1
    columns = shape.K * shape.taps if folds else shape.K
    places, (rows, cols) = axes.in_a_row(shape.axes, [axes.strided(dy), axes.strided(x)])
    is_gathered = folds or (shape.K > 1 and not axes.are_adjacent(places, cols))
    is_gathered = is_gathered or (shape.N > 1 and not axes.are_adjacent(places, rows))
    config = tuning.conv_weight_grad(tuning.arch(x.device), x.dtype, shape.N, columns, is_gathered)
    tiles = launch.cdiv(shape.N, config["BLOCK_M"]) * launch.cdiv(columns, config["BLOCK_N"]) * shape.groups
    precision = tuning.convolution_precision()
    is_exact = precision == "ieee" and x.itemsize == 4
    _launch(
        _weight_grad, shape, places, rows, cols, dweight, tiles if folds else tiles * shape.taps, config["BLOCK_K"],
        IS_ROW=axes.is_row(places), FOLDS=folds, PART=512 // config["BLOCK_K"] if is_exact else 0, PRECISION=precision,
        **config,
    )  # fmt: skip


def direct(shape, dy, x, dweight):
    """The same without one, for groups of few channels."""
    channels = shape.groups * shape.N
    depth, height, width = (axis[2] for axis in shape.axes)
    block_t, is_last = min(launch.power_of_two(width), 8), x.stride(1) == dy.stride(1) == 1
    share = max(2, block_t) if is_last else max(8, 2 * block_t)  # where memory is apart an element has its own address
    config = tuning.conv_block(tuning.arch(x.device), channels, shape.results, is_last, share)
    tiles = launch.cdiv(channels, config["BLOCK_C"]) * launch.cdiv(width, block_t) * height * depth * shape.K
    _launch(
        _weight_grad_direct, shape, shape.axes, axes.strided(dy), axes.strided(x), dweight, tiles, config["BLOCK_S"],
        BLOCK_T=block_t, **config,
    )  # fmt: skip


def _launch(kernel, shape, places, dy, x, dweight, tiles, block, **settings):
    """The kernel over (tiles, parts of the sum), and the sum of the parts, which are laid out as dweight, a dense tensor."""
    arch, count = tuning.arch(dweight.device), dweight.numel()
    splits, each = tuning.sum_splits(arch, tiles, launch.cdiv(shape.results, block))
    parts = dweight if splits == 1 else torch.empty(splits * count, dtype=torch.float32, device=dweight.device)
    constants = {name: value for name, value in shape.constants().items() if name != "IS_ADJOINT"}
    kernel[tiles, splits](
        dy, x, Strided(parts, axes.five(dweight.stride())), *places, shape.batch, shape.groups, shape.K, shape.N, count,
        each, **constants, **settings,
    )  # fmt: skip
    if splits > 1:
        block = tuning.POINTWISE_BLOCK
        _sum_parts[launch.cdiv(count, block),](parts, dweight, count, splits, BLOCK=block)
