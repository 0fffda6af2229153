"""Device functions of the recurrent kernels: where a row of a step lies, the tuple of a cell's gates, each cell's formulas.

Gates are tuples of float32 tiles [rows, units]: i, f, g, o of lstm; r, z, n of gru; one of a plain layer. `x` is the
input's part of the pre-activations, `hidden` the recurrent part; both with their bias.
"""

import triton
import triton.language as tl

from pyflash.kernels.primitives import cast, dot, sigmoid, tanh


@triton.jit
def rows_of(offs_m, rows_ptr, batch):
    """The row of the batch at each position of the order of the steps; one that is no row is brought back into it."""
    rows = offs_m
    if rows_ptr is not None:
        rows = tl.load(rows_ptr + offs_m, mask=offs_m < batch, other=0)
        rows = tl.minimum(tl.maximum(rows, 0), batch - 1)
    return rows


@triton.jit
def locate(t, offs_m, rows, steps_ptr, offsets_ptr, length, batch, positions, t_stride, b_stride):
    """(Is the row running at step t?, its position in the order of x and y, its position in [T, B] order.)

    A packed batch has one order, and offsets_ptr. Steps out of range are those of no row.
    """
    active = (offs_m < batch) & (t >= 0) & (t < length)
    t = tl.minimum(tl.maximum(t, 0), length - 1).to(tl.int64)
    if steps_ptr is not None:
        active &= offs_m < tl.load(steps_ptr + t)
    if offsets_ptr is None:
        position = t * t_stride + rows * b_stride
        saved = t * batch + rows
    else:
        position = tl.load(offsets_ptr + t) + offs_m
        active &= (position >= 0) & (position < positions)
        saved = position
    return active, position, saved


@triton.jit
def load(ptrs, mask):
    """Zero where the mask says no; without a mask, everything."""
    if mask is None:
        tile = tl.load(ptrs)
    else:
        tile = tl.load(ptrs, mask=mask, other=0.0)
    return tile


@triton.jit
def load_tiles(ptrs, stride, mask, GATES: tl.constexpr):
    """A tuple of tiles, each `stride` elements after the one before, as they are stored."""
    first = load(ptrs, mask)
    if GATES == 1:
        tiles = (first,)
    elif GATES == 3:
        tiles = (first, load(ptrs + stride, mask), load(ptrs + 2 * stride, mask))
    else:
        tiles = (first, load(ptrs + stride, mask), load(ptrs + 2 * stride, mask), load(ptrs + 3 * stride, mask))
    return tiles


@triton.jit
def add_bias(tiles, bias):
    """A tuple of tiles and one of rows, each [units]."""
    first = tiles[0] + cast(bias[0], tl.float32)[None, :]
    if len(tiles) == 1:
        found = (first,)
    else:
        second = tiles[1] + cast(bias[1], tl.float32)[None, :]
        third = tiles[2] + cast(bias[2], tl.float32)[None, :]
        if len(tiles) == 3:
            found = (first, second, third)
        else:
            found = (first, second, third, tiles[3] + cast(bias[3], tl.float32)[None, :])
    return found


@triton.jit
def zero_unless(condition, tiles):
    first = tl.where(condition, tiles[0], 0.0)
    if len(tiles) == 1:
        found = (first,)
    else:
        second = tl.where(condition, tiles[1], 0.0)
        third = tl.where(condition, tiles[2], 0.0)
        found = (first, second, third, tl.where(condition, tiles[3], 0.0))
    return found


@triton.jit
def both(mask_rows, mask_cols):
    """A mask of a tile from those of its rows and columns, None being all of them."""
    if mask_rows is None and mask_cols is None:
        mask = None
    elif mask_cols is None:
        mask = mask_rows[:, None]
    elif mask_rows is None:
        mask = mask_cols[None, :]
    else:
        mask = mask_rows[:, None] & mask_cols[None, :]
    return mask


@triton.jit
def below(offs, size: tl.constexpr, BLOCK: tl.constexpr):
    """The mask of a block of offsets below size; None where blocks fill it."""
    if size % BLOCK == 0:
        mask = None
    else:
        mask = offs < size
    return mask


@triton.jit
def store_tiles(ptrs, stride, tiles, mask):
    """The inverse of load_tiles, rounded to the type that is pointed to."""
    for g in tl.static_range(len(tiles)):
        tl.store(ptrs + g * stride, cast(tiles[g], ptrs.dtype.element_ty), mask=mask)


@triton.jit
def zero_tiles(BLOCK_M: tl.constexpr, BLOCK_U: tl.constexpr, GATES: tl.constexpr):
    zero = tl.zeros([BLOCK_M, BLOCK_U], tl.float32)
    if GATES == 1:
        tiles = (zero,)
    elif GATES == 3:
        tiles = (zero, zero, zero)
    else:
        tiles = (zero, zero, zero, zero)
    return tiles


@triton.jit
def products(h, w, acc, PRECISION: tl.constexpr):
    """acc + h w for each gate: h [BLOCK_M, BLOCK_K], w a tuple of [BLOCK_K, BLOCK_U], acc one of [BLOCK_M, BLOCK_U]."""
    first = dot(h, w[0], acc[0], PRECISION)
    if len(w) == 1:
        found = (first,)
    elif len(w) == 3:
        found = (first, dot(h, w[1], acc[1], PRECISION), dot(h, w[2], acc[2], PRECISION))
    else:
        found = (
            first,
            dot(h, w[1], acc[1], PRECISION),
            dot(h, w[2], acc[2], PRECISION),
            dot(h, w[3], acc[3], PRECISION),
        )
    return found


@triton.jit
def summed_products(d, w, acc, PRECISION: tl.constexpr):
    """acc + the sum over the gates of d w: d a tuple of [BLOCK_M, BLOCK_K], w of [BLOCK_K, BLOCK_U], acc [BLOCK_M, BLOCK_U]."""
    for g in tl.static_range(len(w)):
        acc = dot(cast(d[g], w[g].dtype), w[g], acc, PRECISION)
    return acc


@triton.jit
def step_fwd(x, hidden, h, c, CELL: tl.constexpr, COARSE: tl.constexpr = False):
    """(h, c, what the backward wants of the gates) after a step; c is passed on where there is none. COARSE: h will be
    rounded to 16 bits (primitives.py).
    """
    if CELL == "lstm":
        i = sigmoid(x[0] + hidden[0], COARSE)
        f = sigmoid(x[1] + hidden[1], COARSE)
        g = tanh(x[2] + hidden[2], COARSE)
        o = sigmoid(x[3] + hidden[3], COARSE)
        c = f * c + i * g
        h = o * tanh(c, COARSE)
        saved = (i, f, g, o)
    elif CELL == "gru":
        r = sigmoid(x[0] + hidden[0], COARSE)
        z = sigmoid(x[1] + hidden[1], COARSE)
        n = tanh(x[2] + r * hidden[2], COARSE)
        h = n + z * (h - n)
        saved = (r, z, n, hidden[2])
    elif CELL == "rnn_tanh":
        h = tanh(x[0] + hidden[0], COARSE)
        saved = (h,)
    else:
        z = x[0] + hidden[0]
        h = tl.where(z > 0, z, tl.where(z != z, z, 0.0))  # as torch's relu, NaN stays
        saved = (h,)
    return h, c, saved


@triton.jit
def lstm_bwd(dh, dc, gates, c, c_before, COARSE: tl.constexpr):
    """(gradients of the pre-activations, of the c before) from those of h and c after the step."""
    i, f, g, o = gates
    tanh_c = tanh(c, COARSE)
    dc += dh * o * (1 - tanh_c * tanh_c)
    d = (
        dc * g * i * (1 - i),
        dc * c_before * f * (1 - f),
        dc * i * (1 - g * g),
        dh * tanh_c * o * (1 - o),
    )
    return d, dc * f


@triton.jit
def gru_bwd(dh, gates, h_before):
    """(gradients of the input's part of n, and of the hidden parts of r, z and n; what h before gets beside them)."""
    r, z, n, hidden_n = gates
    dn = dh * (1 - z) * (1 - n * n)
    d = (
        dn,
        dn * hidden_n * r * (1 - r),
        dh * (h_before - n) * z * (1 - z),
        dn * r,
    )
    return d, dh * z


@triton.jit
def plain_bwd(dh, y, CELL: tl.constexpr):
    """The gradient of the pre-activation of a plain layer, from what it gave."""
    if CELL == "rnn_tanh":
        d = dh * (1 - y * y)
    else:
        d = tl.where(y > 0, dh, 0.0)
    return (d,)
