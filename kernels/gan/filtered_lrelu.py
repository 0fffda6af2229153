"""A leaky ReLU at a higher sampling rate, and its derivatives.

Where both rates are 2 and the filters short it is one launch: a lane goes down some neighbouring columns of the result and
keeps, in registers, the rows of the source that a row of the middle meets, and the sums that it goes into. One row of the
source, two of the middle and one of the result make a step. Columns of the middle that two lanes need are computed by both,
so that no lane waits for another. All else is composed of passes by way of memory.
"""

import torch
import triton
import triton.language as tl

from pyflash.kernels import launch, tuning
from pyflash.kernels.gan.upfirdn2d import ITS_SLOPE, LEAKY_RELU, temporary, upfirdn2d
from pyflash.kernels.primitives import cast, scalar

RATE = 2
LEAST_TAPS, MOST_TAPS = 3, 12  # of each filter, each way, in one launch: what is kept fits registers


@triton.jit
def _row(ptr, bias, row, column, in_y, in_x, inner, live, WIDTH: tl.constexpr):
    """WIDTH places of a row from `column` on, where ptr is in row 0; 0 outside of the picture, where there is no bias."""
    ptr += scalar(row, tl.int64) * in_x * inner
    values = ()
    for c in tl.static_range(WIDTH):
        mask = live & (column + c >= 0) & (column + c < in_x) & (row >= 0) & (row < in_y)
        x = cast(tl.load(ptr + c * inner, mask=mask, other=0.0), tl.float32)
        if bias is not None:
            x = tl.where(mask, x + bias, 0.0)
        values += (x,)
    return values


@triton.jit
def _tap(f_ptr, y, x, TAPS_Y: tl.constexpr, TAPS_X: tl.constexpr, FLIP: tl.constexpr):
    """A tap, as a correlation counts them."""
    return tl.load(f_ptr + (y * TAPS_X + x if FLIP else (TAPS_Y - 1 - y) * TAPS_X + TAPS_X - 1 - x))


@triton.jit
def _upsampled(
    rows, f_ptr, gain, Y: tl.constexpr, X: tl.constexpr, WIDTH: tl.constexpr, COUNT: tl.constexpr, TAPS_Y: tl.constexpr,
    TAPS_X: tl.constexpr, SEPARABLE: tl.constexpr, FLIP: tl.constexpr,
):  # fmt: skip
    """COUNT places of a row of the middle, from rows of WIDTH places of the source.

    Y is the row and X the first column, counted from where tap 0 meets the source's first place. Place 2 r meets taps 0, 2,
    ... at r, r + 1, ... of the source, and place 2 r - 1 taps 1, 3, ... there.
    """
    r: tl.constexpr = (Y + 1) // 2
    odd: tl.constexpr = Y % 2
    values = ()
    if SEPARABLE:
        columns = ()
        for c in tl.static_range(WIDTH):
            total = rows[r * WIDTH + c] * _tap(f_ptr, 0, odd, 1, TAPS_Y, FLIP)
            for i in tl.static_range(1, (TAPS_Y - odd + 1) // 2):
                total += rows[(r + i) * WIDTH + c] * _tap(f_ptr, 0, 2 * i + odd, 1, TAPS_Y, FLIP)
            columns += (total * gain,)
        for c in tl.static_range(COUNT):
            total = columns[(X + c + 1) // 2] * _tap(f_ptr, 0, (X + c) % 2, 1, TAPS_X, FLIP)
            for j in tl.static_range(1, (TAPS_X - (X + c) % 2 + 1) // 2):
                total += columns[(X + c + 1) // 2 + j] * _tap(f_ptr, 0, 2 * j + (X + c) % 2, 1, TAPS_X, FLIP)
            values += (total,)
    else:
        for c in tl.static_range(COUNT):
            total = tl.zeros(rows[0].shape, tl.float32)
            for i in tl.static_range((TAPS_Y - odd + 1) // 2):
                for j in tl.static_range((TAPS_X - (X + c) % 2 + 1) // 2):
                    tap = _tap(f_ptr, 2 * i + odd, 2 * j + (X + c) % 2, TAPS_Y, TAPS_X, FLIP)
                    total += rows[(r + i) * WIDTH + (X + c + 1) // 2 + j] * tap
            values += (total * gain,)
    return values


@triton.jit
def _added(
    sums, middle, f_ptr, TAP: tl.constexpr, WIDTH: tl.constexpr, COUNT: tl.constexpr, TAPS_Y: tl.constexpr,
    TAPS_X: tl.constexpr, SEPARABLE: tl.constexpr, FLIP: tl.constexpr,
):  # fmt: skip
    """The COUNT sums, WIDTH of each row of the result, and what a row of the middle adds: by tap TAP in the first row, whose sums have
    begun last, TAP + 2 in the next."""
    across = ()
    if SEPARABLE:
        for w in tl.static_range(WIDTH):
            total = middle[2 * w] * _tap(f_ptr, 0, 0, 1, TAPS_X, FLIP)
            for j in tl.static_range(1, TAPS_X):
                total += middle[2 * w + j] * _tap(f_ptr, 0, j, 1, TAPS_X, FLIP)
            across += (total,)
    found = ()
    for at in tl.static_range(COUNT):
        total = sums[at]
        tap = TAP + at // WIDTH * 2
        if tap >= 0 and tap < TAPS_Y:
            if SEPARABLE:
                total += across[at % WIDTH] * _tap(f_ptr, 0, tap, 1, TAPS_Y, FLIP)
            else:
                for j in tl.static_range(TAPS_X):
                    total += middle[at % WIDTH * 2 + j] * _tap(f_ptr, tap, j, TAPS_Y, TAPS_X, FLIP)
        found += (total,)
    return found


@launch.cached
@triton.jit
def _filtered_lrelu(
    x_ptr, fu_ptr, bias_ptr, v_ptr, fv_ptr, fd_ptr, y_ptr, lanes, groups, inner, channels, band, in_y, in_x, v_in_y, v_in_x,
    middle_y, middle_x, out_y, out_x, pad_y, pad_x, begin_y, begin_x, begin_v_y, begin_v_x, gain, v_gain, down_gain, act_gain,
    slope, clamp, FU: tl.constexpr, FV: tl.constexpr, FD: tl.constexpr, ODD_Y: tl.constexpr, ODD_X: tl.constexpr,
    V_ODD_Y: tl.constexpr, V_ODD_X: tl.constexpr, IS_INSIDE: tl.constexpr, IS_CLAMPED: tl.constexpr, IS_LARGE: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y [outer, out_y, out_x, inner] from x [outer, in_y, in_x, inner] and perhaps v [outer, v_in_y, v_in_x, inner].

    In step i row i of x is where the middle's rows 2 i - 1 + pad and 2 i + pad meet their first taps; what is added to, in the
    first of them, is row i + begin of the result, by tap ODD - 1. v's rows are begin_v further on, and the middle's lie V_ODD
    further among them. Of columns the same holds.
    FU, FV, FD: (rows, columns, is separable, is flipped) of the filters. IS_INSIDE: no tap of fd misses the middle.
    """
    COUNT: tl.constexpr = 2 * (WIDTH - 1) + FD[1]  # columns of the middle that a lane needs
    X_WIDTH: tl.constexpr = (COUNT - ODD_X) // 2 + (FU[1] + 1) // 2
    KEPT: tl.constexpr = (FU[0] + 1) // 2 - 1
    V_WIDTH: tl.constexpr = (COUNT - ODD_X + V_ODD_X) // 2 + (FV[1] + 1) // 2
    V_KEPT: tl.constexpr = 0 if v_ptr is None else (FV[0] + 1) // 2 - 1 + V_ODD_Y
    LAST: tl.constexpr = (FD[0] - ODD_Y) // 2  # a row of the result is done so many steps after its first
    SUMS: tl.constexpr = (LAST + 1) * WIDTH
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if IS_LARGE:
        lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = lane < lanes
    channel, group = (lane % inner).to(tl.int32), (lane // inner % groups).to(tl.int32)
    outer = (lane // inner // groups).to(tl.int64)
    column = group * WIDTH - begin_x
    x_ptr += outer * in_y * in_x * inner + column.to(tl.int64) * inner + channel
    y_ptr += outer * out_y * out_x * inner + group.to(tl.int64) * (WIDTH * inner) + channel
    bias = None
    if bias_ptr is not None:  # channels are rows of the picture, or last in it: outer or inner is channels
        which = tl.where(inner == 1, outer % channels, channel)
        bias = cast(tl.load(bias_ptr + which, mask=live, other=0.0), tl.float32)
    first_row = tl.program_id(1) * band
    last_row = min(first_row + band, out_y)
    first = first_row - begin_y
    nothing = tl.zeros([BLOCK], tl.float32)
    sums, rows, v_rows = (nothing,) * SUMS, (nothing,) * (KEPT * X_WIDTH), ()
    EARLY: tl.constexpr = KEPT if V_KEPT < KEPT else V_KEPT
    if v_ptr is not None:
        v_column = column + begin_v_x
        v_ptr += outer * v_in_y * v_in_x * inner + v_column.to(tl.int64) * inner + channel
        v_rows = (nothing,) * (V_KEPT * V_WIDTH)
    # The first steps only fill what is kept. Loads of their own for it, unrolled, would take most of a minute to compile.
    for i in range(first - EARLY, last_row - begin_y + LAST):
        rows = rows + _row(x_ptr, bias, i + KEPT, column, in_y, in_x, inner, live, X_WIDTH)
        if v_ptr is not None:
            v_rows = v_rows + _row(v_ptr, None, i + begin_v_y + V_KEPT, v_column, v_in_y, v_in_x, inner, live, V_WIDTH)
        if i >= first:
            for half in tl.static_range(2):
                u = _upsampled(rows, fu_ptr, gain, half - 1, -ODD_X, X_WIDTH, COUNT, FU[0], FU[1], FU[2], FU[3])
                if v_ptr is not None:
                    v = _upsampled(
                        v_rows,
                        fv_ptr,
                        v_gain,
                        half - 1 + V_ODD_Y,
                        V_ODD_X - ODD_X,
                        V_WIDTH,
                        COUNT,
                        FV[0],
                        FV[1],
                        FV[2],
                        FV[3],
                    )
                middle = ()
                for c in tl.static_range(COUNT):
                    factor = tl.where(u[c] > 0, act_gain, slope)
                    value = u[c] * factor
                    if v_ptr is not None:
                        is_free = tl.abs(value) <= clamp
                        value = v[c] * factor
                        if IS_CLAMPED:
                            value = tl.where(is_free, value, 0.0)
                    elif IS_CLAMPED:
                        value = tl.where(value > clamp, clamp, tl.where(value < -clamp, -clamp, value))
                    if not IS_INSIDE:
                        row_m, column_m = 2 * i + pad_y + half - 1, 2 * column + pad_x + c - ODD_X
                        is_there = (row_m >= 0) & (row_m < middle_y) & (column_m >= 0) & (column_m < middle_x)
                        value = tl.where(is_there, value, 0.0)
                    middle += (value,)
                sums = _added(sums, middle, fd_ptr, half - 1 + ODD_Y, WIDTH, SUMS, FD[0], FD[1], FD[2], FD[3])
            row = i + begin_y - LAST
            to = y_ptr + scalar(row, tl.int64) * out_x * inner
            for w in tl.static_range(WIDTH):
                mask = live & (group * WIDTH + w < out_x) & (row >= first_row)
                value = cast(sums[LAST * WIDTH + w] * down_gain, y_ptr.dtype.element_ty)
                tl.store(to + w * inner, value, mask=mask)
            sums = (nothing,) * WIDTH + sums[: LAST * WIDTH]
        rows = rows[X_WIDTH:]
        if v_ptr is not None:
            v_rows = v_rows[V_WIDTH:]


def _is_short(f):
    return all(LEAST_TAPS <= n <= MOST_TAPS for n in f.shape)


def _form(f, of):
    return f.shape[0], f.shape[-1], f.dim() == 1, of.flip


def is_fused(x, *passes):
    """Is it one launch, by these (filter, pass)? The last pass takes places away, the others put zeros in."""
    *above, below = passes
    return (
        x.dtype != torch.float64
        and all(_is_short(f) for f, _ in passes)
        and all(of.up == (RATE, RATE) and of.down == (1, 1) for _, of in above)
        and below[1].down == (RATE, RATE)
        and below[1].up == (1, 1)
    )


def _fused(x, up, bias, v, of_v, down, numbers, outer, inner, channels, size, size_v, y):
    (fu, above), (fd, below) = up, down
    fv, beside = of_v or up
    out_y, out_x = below.size
    begins, odds = zip(*(divmod(a + b, 2) for a, b in zip(above.pad, below.pad)))
    v_begins, v_odds = zip(*(divmod(a - b, 2) for a, b in zip(above.pad, beside.pad)))
    gain, slope, clamp = numbers
    block = tuning.filtered_lrelu_block(tuning.arch(x.device), outer * inner, out_y, out_x, v is not None)
    groups = launch.cdiv(out_x, block["WIDTH"])
    lanes, band = outer * groups * inner, block.pop("BAND")
    _filtered_lrelu[(launch.cdiv(lanes, block["BLOCK"]), launch.cdiv(out_y, band))](
        x, fu, bias, v, fv, fd, y, lanes, groups, inner, channels, band, *size, *(size_v or size), *above.size, out_y, out_x,
        *above.pad, *begins, *v_begins, above.gain, beside.gain, below.gain, gain, gain * slope, clamp, FU=_form(fu, above),
        FV=_form(fv, beside), FD=_form(fd, below), ODD_Y=odds[0], ODD_X=odds[1], V_ODD_Y=v_odds[0], V_ODD_X=v_odds[1],
        IS_INSIDE=below.pad == (0, 0), IS_CLAMPED=clamp >= 0, IS_LARGE=lanes + block["BLOCK"] >= 1 << 31, num_stages=1,
        **block,
    )  # fmt: skip


def filtered_lrelu(x, up, bias, v, of_v, down, numbers, outer, inner, channels, size, size_v, y):
    """Fill y [outer, *down's size, inner] from x [outer, *size, inner] and v [outer, *size_v, inner] or None.

    Args:
        up, of_v, down: (filter, pass) as upfirdn2d takes them.
        numbers: gain, slope and clamp, below 0 for none.
    """
    if is_fused(x, up, *([] if v is None else [of_v]), down):
        return _fused(x, up, bias, v, of_v, down, numbers, outer, inner, channels, size, size_v, y)
    middle = up[1].size
    between = temporary(x, outer, inner, middle)
    also = dict(bias=bias, channels=channels, act=LEAKY_RELU, numbers=numbers)
    if v is not None:
        at_v = temporary(x, outer, inner, middle)
        upfirdn2d(v, *of_v, outer, inner, size_v, at_v)
        also.update(act=ITS_SLOPE, v=at_v)
    upfirdn2d(x, *up, outer, inner, size, between, **also)
    upfirdn2d(between, *down, outer, inner, middle, y)
