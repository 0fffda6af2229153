"""Upsampling, filtering and downsampling of pictures, and a leaky ReLU behind it.

A program computes a tile of rows and columns of the result. Which taps meet places of the source depends on the row for one
axis and on the column for the other; taps that would meet a zero between places are not looked at.
"""

import torch
import triton
import triton.language as tl

from pyflash.kernels import launch, tuning
from pyflash.kernels.primitives import acc_of, cast, scalar

_FUSED_TAPS = 16  # that a result meets; of a separable filter with more the axes go one after another
NOTHING, LEAKY_RELU, ITS_SLOPE = range(3)  # what is done with the sums


@triton.jit
def _meeting(o, up, down, pad, shift):
    """(first tap, place that it meets) of result o; `shift` keeps what is divided above 0."""
    first = o * down - pad
    place = (first + shift * up + up - 1) // up - shift
    return place * up - first, place


@launch.cached
@triton.jit
def _upfirdn2d(
    x_ptr, f_ptr, bias_ptr, v_ptr, y_ptr, rows, in_y, in_x, out_y, out_x, inner, channels, taps_y, taps_x, up_y, up_x, down_y,
    down_x, pad_y, pad_x, shift_y, shift_x, gain, act_gain, slope, clamp, MEET_Y: tl.constexpr, MEET_X: tl.constexpr,
    IS_SEPARABLE: tl.constexpr, IS_FLIPPED: tl.constexpr, ACT: tl.constexpr, IS_CLAMPED: tl.constexpr, ACC: tl.constexpr,
    IS_LARGE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """y [outer, out_y, out_x, inner] from x [outer, in_y, in_x, inner]; a row has out_x * inner elements. A tap meets the
    place, and those up further on places that are one further on; MEET_Y, MEET_X: so many at most. v is as y."""
    pid = tl.program_id(0)
    blocks = tl.cdiv(out_x * inner, BLOCK_C)
    first_row = pid // blocks
    if IS_LARGE:  # divisions of 64 bits take several times as long
        first_row = first_row.to(tl.int64)
    row = first_row * BLOCK_R + tl.arange(0, BLOCK_R)
    mask_r = row < rows
    tap_y, place_y = _meeting((row % out_y).to(tl.int32), up_y, down_y, pad_y, shift_y)
    outer = (row // out_y).to(tl.int64)
    column = pid % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = column < out_x * inner
    tap_x, place_x = _meeting(column // inner, up_x, down_x, pad_x, shift_x)
    channel = column % inner
    acc = tl.zeros([BLOCK_R, BLOCK_C], ACC)
    for i in range(MEET_Y):
        y_tap, y_place = tap_y + i * up_y, place_y + i
        mask_y = mask_r & (y_tap < taps_y) & (y_place >= 0) & (y_place < in_y)
        y_f = y_tap if IS_FLIPPED else taps_y - 1 - y_tap
        x_rows = x_ptr + (outer * in_y + y_place) * (in_x * inner)
        for j in range(MEET_X):
            x_tap, x_place = tap_x + j * up_x, place_x + j
            mask_x = mask_c & (x_tap < taps_x) & (x_place >= 0) & (x_place < in_x)
            x_f = x_tap if IS_FLIPPED else taps_x - 1 - x_tap
            mask = mask_y[:, None] & mask_x[None, :]
            if IS_SEPARABLE:
                of_row = tl.load(f_ptr + y_f, mask=mask_y, other=0.0).to(ACC)
                weight = of_row[:, None] * tl.load(f_ptr + x_f, mask=mask_x, other=0.0).to(ACC)[None, :]
            else:
                weight = tl.load(f_ptr + y_f[:, None] * taps_x + x_f[None, :], mask=mask, other=0.0).to(ACC)
            at = x_place * inner + channel
            x = cast(tl.load(x_rows[:, None] + at[None, :], mask=mask, other=0.0), ACC)  # [BLOCK_R, BLOCK_C]
            if bias_ptr is not None:
                # Channels are rows of the picture, or last in it: outer or inner is channels.
                which = (outer % channels)[:, None] if inner == 1 else channel[None, :]
                bias = cast(
                    tl.load(bias_ptr + which + tl.zeros([BLOCK_R, BLOCK_C], tl.int32), mask=mask, other=0.0), ACC
                )
                x += bias
            acc += weight * x
    acc *= scalar(gain, ACC)
    mask = mask_r[:, None] & mask_c[None, :]
    at = row.to(tl.int64)[:, None] * (out_x * inner) + column[None, :]
    if ACT > 0:
        factor = tl.where(acc > 0, scalar(act_gain, ACC), scalar(act_gain, ACC) * scalar(slope, ACC))
        limit = scalar(clamp, ACC)
        u = acc * factor
        if ACT == 1:
            acc = u
            if IS_CLAMPED:
                acc = tl.where(u > limit, limit, tl.where(u < -limit, -limit, u))
        else:
            acc = factor * cast(tl.load(v_ptr + at, mask=mask, other=0.0), ACC)
            if IS_CLAMPED:
                acc = tl.where(tl.abs(u) <= limit, acc, 0.0)
    tl.store(y_ptr + at, cast(acc, y_ptr.dtype.element_ty), mask=mask)


def _meets(taps, up):
    """How many taps a result meets at most; loops over few are unrolled, longer ones share kernels."""
    n = -(-taps // up)
    return n if n <= 4 else triton.next_power_of_2(n)


def _launch(x, f, of, outer, inner, size, y, bias=None, channels=1, act=NOTHING, numbers=(1.0, 1.0, -1.0), v=None):
    taps_y, taps_x = f.shape[0], f.shape[-1]
    shifts = [-(-max(pad, 0) // up) for pad, up in zip(of.pad, of.up)]
    columns = of.size[1] * inner
    block = tuning.resample_block(columns)
    rows = outer * of.size[0]
    grid = (launch.cdiv(rows, block["BLOCK_R"]) * launch.cdiv(columns, block["BLOCK_C"]),)
    acc = acc_of(y)
    _upfirdn2d[grid](
        x, f, bias, v, y, rows, *size, *of.size, inner, channels, taps_y, taps_x, *of.up, *of.down, *of.pad, *shifts, of.gain,
        *numbers, MEET_Y=_meets(taps_y, of.up[0]), MEET_X=_meets(taps_x, of.up[1]), IS_SEPARABLE=f.dim() == 1,
        IS_FLIPPED=of.flip, ACT=act, IS_CLAMPED=numbers[2] >= 0, ACC=acc,
        IS_LARGE=max(rows * columns, x.numel()) >= 1 << 31, **block,
    )  # fmt: skip


def temporary(x, outer, inner, size):
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.empty(outer * size[0] * size[1] * inner, dtype=dtype, device=x.device)


def upfirdn2d(x, f, of, outer, inner, size, y, **also):
    """Fill y [outer, *of.size, inner] from x [outer, *size, inner], both dense and not empty.

    Args:
        f: float32 [taps] of a separable filter or [height, width], contiguous.
        of: size, up, down, pad, flip and gain, pairs (height, width), as ops/gan/filters.py's Pass.
        also: bias [channels] and channels; act, one of LEAKY_RELU and ITS_SLOPE, its numbers (gain, slope, clamp), clamp
            below 0 for none, and the v, as y, that the slope is multiplied with.
    """
    meet = [_meets(n, up) for n, up in zip((f.shape[0], f.shape[-1]), of.up)]
    if f.dim() == 2 or meet[0] * meet[1] <= _FUSED_TAPS:
        return _launch(x, f, of, outer, inner, size, y, **also)
    of_bias = {name: also.pop(name) for name in ("bias", "channels") if name in also}
    across = of._replace(size=(size[0], of.size[1]), up=(1, of.up[1]), down=(1, of.down[1]), pad=(0, of.pad[1]))
    along = of._replace(up=(of.up[0], 1), down=(of.down[0], 1), pad=(of.pad[0], 0), gain=1.0)
    between = temporary(x, outer, inner, across.size)
    _launch(x, f[None], across, outer, inner, size, between, **of_bias)
    _launch(between, f[:, None], along, outer, inner, across.size, y, **also)
