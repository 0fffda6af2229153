"""One recurrent layer, in one direction or two: RNN, LSTM and GRU, forward and backward.

The input's part of all steps is one product before the loop, and the gradients of x, the weights and the biases are
products and sums after it; only h W_hh^T and its transpose are inside. One kernel a direction of time does that in two
ways (tuning.rnn_fwd and rnn_bwd say which): where one program has all units of its rows it walks all steps in one launch,
with W_hh in shared memory where that is enough (IS_HELD) and else re-read from the caches; otherwise a launch is one
step, over tiles of units.

Orders of (step, row): x, y and what is computed from them lie as the caller has them, [T, B], [B, T] or packed; cells and
gates as [T, B] or packed. Lengths stay on the device: a row runs at step t while its place among the sorted ones is
below steps[t].
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from pyflash.kernels import launch, linear, tuning
from pyflash.kernels.primitives import cast
from pyflash.kernels.recurrent.gates import (
    add_bias,
    below,
    both,
    gru_bwd,
    load,
    load_tiles,
    locate,
    lstm_bwd,
    plain_bwd,
    products,
    rows_of,
    step_fwd,
    store_tiles,
    summed_products,
    zero_tiles,
    zero_unless,
)

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
# Kept of the gates, and gradients of them. gru: r, z, n and the hidden part of n; then those of the input's part of n, and
# of the hidden parts of r, z, n.
SLOTS = {"lstm": 4, "gru": 4, "rnn_tanh": 1, "rnn_relu": 1}

# What depends on the batch and its lengths: a kernel is not compiled again for it.
_SIZES = ["first", "count", "length", "batch", "positions", "t_stride", "b_stride"]


@launch.cached
@triton.jit(do_not_specialize=_SIZES)
def _rnn_fwd(
    x_gates_ptr, w_hh_ptr, b_hh_ptr, h_ptr, c_ptr, y_ptr, cells_ptr, gates_ptr, steps_ptr, offsets_ptr, rows_ptr, first,
    count, length, batch, positions, t_stride, b_stride, CELL: tl.constexpr, GATES: tl.constexpr, X_SLOTS: tl.constexpr,
    HIDDEN: tl.constexpr, IS_HELD: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_U: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Steps first to first + count of BLOCK_M rows and BLOCK_U units.

    h_ptr: [2, D, B, H], the state before step s at s % 2; c_ptr: [D, B, H] float32, in place. x_gates_ptr: [D, positions,
    X_SLOTS, H], may be gates_ptr.
    """
    d = tl.program_id(2).to(tl.int64)
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_u = tl.program_id(1) * BLOCK_U + tl.arange(0, BLOCK_U)
    offs_k = tl.arange(0, BLOCK_K)
    mask_u = below(offs_u, HIDDEN, BLOCK_U)
    mask = both(offs_m < batch, mask_u)
    rows = rows_of(offs_m, rows_ptr, batch)
    state_size = tl.num_programs(2).to(tl.int64) * batch * HIDDEN
    state_rows = (d * batch + rows)[:, None] * HIDDEN
    state = state_rows + offs_u[None, :]
    dtype: tl.constexpr = y_ptr.dtype.element_ty

    h = cast(tl.load(h_ptr + first % 2 * state_size + state, mask=mask, other=0.0), tl.float32)
    c = h
    if CELL == "lstm":
        c = tl.load(c_ptr + state, mask=mask, other=0.0)
    gate_size: tl.constexpr = HIDDEN * HIDDEN
    w_ptrs = w_hh_ptr + d * GATES * gate_size + offs_u[None, :] * HIDDEN + offs_k[:, None]  # [K, units]
    if IS_HELD:
        w = load_tiles(w_ptrs, gate_size, both(below(offs_k, HIDDEN, BLOCK_K), mask_u), GATES)
    if b_hh_ptr is not None:
        bias = load_tiles(b_hh_ptr + d * GATES * HIDDEN + offs_u, HIDDEN, mask_u, GATES)

    for s in range(first, first + count):
        t = tl.where(d == 0, s, length - 1 - s)
        active, position, saved = locate(
            t, offs_m, rows, steps_ptr, offsets_ptr, length, batch, positions, t_stride, b_stride
        )
        mask_t = both(active, mask_u)
        x_ptrs = x_gates_ptr + (d * positions + position)[:, None] * (X_SLOTS * HIDDEN) + offs_u[None, :]
        hidden = zero_tiles(BLOCK_M, BLOCK_U, GATES)
        if IS_HELD:
            x = load_tiles(x_ptrs, HIDDEN, mask_t, GATES)  # on its way while the products are computed
            hidden = products(cast(h, dtype), w, hidden, PRECISION)
        else:
            h_ptrs = h_ptr + s % 2 * state_size + state_rows + offs_k[None, :]
            for k in range(0, HIDDEN, BLOCK_K):
                mask_k = below(k + offs_k, HIDDEN, BLOCK_K)
                h_tile = load(h_ptrs + k, both(offs_m < batch, mask_k))
                w_tiles = load_tiles(w_ptrs + k, gate_size, both(mask_k, mask_u), GATES)
                hidden = products(h_tile, w_tiles, hidden, PRECISION)
            x = load_tiles(x_ptrs, HIDDEN, mask_t, GATES)
        if b_hh_ptr is not None:
            hidden = add_bias(hidden, bias)

        h_next, c_next, gates = step_fwd(x, hidden, h, c, CELL, dtype.primitive_bitwidth == 16)
        h = tl.where(active[:, None], cast(cast(h_next, dtype), tl.float32), h)
        # What lies past the end of a padded row is zero; a packed batch has no such place.
        mask_y = mask_t
        if offsets_ptr is None:
            mask_y = mask
        y_ptrs = y_ptr + (position * tl.num_programs(2) + d)[:, None] * HIDDEN + offs_u[None, :]
        tl.store(y_ptrs, cast(tl.where(active[:, None], h, 0.0), dtype), mask=mask_y)
        saved_offs = (d * positions + saved)[:, None]
        if CELL == "lstm":
            c = tl.where(active[:, None], c_next, c)
            if cells_ptr is not None:
                cell_ptrs = cells_ptr + saved_offs * HIDDEN + offs_u[None, :]
                tl.store(cell_ptrs, tl.where(active[:, None], c, 0.0), mask=mask_y)
        if gates_ptr is not None:
            store_tiles(gates_ptr + saved_offs * (4 * HIDDEN) + offs_u[None, :], HIDDEN, gates, mask_t)
        if not IS_HELD:
            tl.store(h_ptr + (s + 1) % 2 * state_size + state, cast(h, dtype), mask=mask)
            tl.debug_barrier()  # the next step of this launch reads it back, by other threads

    if IS_HELD:
        tl.store(h_ptr + (first + count) % 2 * state_size + state, cast(h, dtype), mask=mask)
    if CELL == "lstm":
        tl.store(c_ptr + state, c, mask=mask)


@launch.cached
@triton.jit(do_not_specialize=_SIZES)
def _rnn_bwd(
    dy_ptr, dcells_ptr, gates_ptr, cells_ptr, c_0_ptr, y_ptr, h_before_ptr, w_hh_ptr, dh_ptr, dc_ptr, dgates_ptr,
    steps_ptr, offsets_ptr, rows_ptr, first, count, length, batch, positions, t_stride, b_stride, CELL: tl.constexpr,
    GATES: tl.constexpr, SLOTS: tl.constexpr, HIDDEN: tl.constexpr, GATES_LIE_AS_X: tl.constexpr,
    IS_HELD: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Gradients of the gates, dgates_ptr [D, positions, SLOTS, H], of steps first to first + count from the end.

    dh_ptr, dc_ptr: [D, B, H] float32, in place. With IS_HELD the gradient of h after as many steps; else, less the part
    that comes through the gates of the last one: the step behind it adds that first, and step T (of no row) comes last.
    """
    d = tl.program_id(2).to(tl.int64)
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_u = tl.program_id(1) * BLOCK_U + tl.arange(0, BLOCK_U)
    offs_k = tl.arange(0, BLOCK_K)
    mask_u = below(offs_u, HIDDEN, BLOCK_U)
    mask = both(offs_m < batch, mask_u)
    rows = rows_of(offs_m, rows_ptr, batch)
    state = (d * batch + rows)[:, None] * HIDDEN + offs_u[None, :]
    back = tl.where(d == 0, -1, 1)  # to the step before
    products_from: tl.constexpr = (SLOTS - GATES) * HIDDEN  # gru keeps the input's part of n in front

    carry = tl.load(dh_ptr + state, mask=mask, other=0.0)
    dc = carry
    if CELL == "lstm":
        dc = tl.load(dc_ptr + state, mask=mask, other=0.0)
    gate_size: tl.constexpr = HIDDEN * HIDDEN
    w_ptrs = w_hh_ptr + d * GATES * gate_size + offs_k[:, None] * HIDDEN + offs_u[None, :]
    if IS_HELD:
        w = load_tiles(w_ptrs, gate_size, both(below(offs_k, HIDDEN, BLOCK_K), mask_u), GATES)

    for s in range(first, first + count):
        t = tl.where(d == 0, length - 1 - s, s)
        dh = carry
        if not IS_HELD:
            later, later_position, _ = locate(
                t - back, offs_m, rows, steps_ptr, offsets_ptr, length, batch, positions, t_stride, b_stride
            )
            d_ptrs = dgates_ptr + (d * positions + later_position)[:, None] * (SLOTS * HIDDEN) + products_from
            part = tl.zeros([BLOCK_M, BLOCK_U], tl.float32)
            for k in range(0, tl.where(s > 0, GATES * HIDDEN, 0), BLOCK_K):
                mask_k = below(k + offs_k, GATES * HIDDEN, BLOCK_K)
                d_tile = load(d_ptrs + (k + offs_k)[None, :], both(later, mask_k))
                w_tile = load(w_ptrs + k * HIDDEN, both(mask_k, mask_u))
                part = summed_products((d_tile,), (w_tile,), part, PRECISION)
                if w_tile.dtype == tl.float32 and GATES * HIDDEN > 256:  # the error of a sum grows with its length
                    is_whole = (k + BLOCK_K) % 256 == 0
                    dh += tl.where(is_whole, part, 0.0)
                    part = tl.where(is_whole, 0.0, part)
            dh += part

        active, position, saved = locate(
            t, offs_m, rows, steps_ptr, offsets_ptr, length, batch, positions, t_stride, b_stride
        )
        mask_t = both(active, mask_u)
        carry = dh  # of a row that does not run now
        y_offs = (position * tl.num_programs(2) + d)[:, None] * HIDDEN + offs_u[None, :]
        if dy_ptr is not None:
            dh += cast(tl.load(dy_ptr + y_offs, mask=mask_t, other=0.0), tl.float32)
        saved_rows = (d * positions + saved)[:, None]
        if SLOTS == 4:
            gate_rows = saved_rows
            if GATES_LIE_AS_X:
                gate_rows = (d * positions + position)[:, None]
            gates = load_tiles(gates_ptr + gate_rows * (4 * HIDDEN) + offs_u[None, :], HIDDEN, mask_t, 4)
        if CELL == "lstm":
            before, _, saved_before = locate(
                t + back, offs_m, rows, steps_ptr, offsets_ptr, length, batch, positions, t_stride, b_stride
            )
            cell_offs = saved_rows * HIDDEN + offs_u[None, :]
            before_offs = (d * positions + saved_before)[:, None] * HIDDEN + offs_u[None, :]
            c = tl.load(cells_ptr + cell_offs, mask=mask_t, other=0.0)
            c_before = tl.load(cells_ptr + before_offs, mask=mask_t & before[:, None], other=0.0)
            first_mask = mask_t & (before == 0)[:, None]
            c_before += cast(tl.load(c_0_ptr + state, mask=first_mask, other=0.0), tl.float32)
            dc_now = dc
            if dcells_ptr is not None:
                dc_now += tl.load(dcells_ptr + cell_offs, mask=mask_t, other=0.0)
            dgates, dc_now = lstm_bwd(
                dh, dc_now, gates, c, c_before, dgates_ptr.dtype.element_ty.primitive_bitwidth == 16
            )
            dc = tl.where(active[:, None], dc_now, dc)
            direct = tl.zeros([BLOCK_M, BLOCK_U], tl.float32)
        elif CELL == "gru":
            h_offs = (d * positions + position)[:, None] * HIDDEN + offs_u[None, :]
            h_before = cast(tl.load(h_before_ptr + h_offs, mask=mask_t, other=0.0), tl.float32)
            dgates, direct = gru_bwd(dh, gates, h_before)
        else:
            y = cast(tl.load(y_ptr + y_offs, mask=mask_t, other=0.0), tl.float32)
            dgates = plain_bwd(dh, y, CELL)
            direct = tl.zeros([BLOCK_M, BLOCK_U], tl.float32)
        carry = tl.where(active[:, None], direct, carry)
        dgates = zero_unless(active[:, None], dgates)
        mask_d = mask_t
        if offsets_ptr is None:
            mask_d = mask & (s < length)
        d_offs = (d * positions + position)[:, None] * (SLOTS * HIDDEN) + offs_u[None, :]
        store_tiles(dgates_ptr + d_offs, HIDDEN, dgates, mask_d)
        if IS_HELD:
            if CELL == "gru":
                carry = summed_products((dgates[1], dgates[2], dgates[3]), w, carry, PRECISION)
            else:
                carry = summed_products(dgates, w, carry, PRECISION)
        else:
            tl.debug_barrier()  # the next step of this launch reads dgates, by other threads

    tl.store(dh_ptr + state, carry, mask=mask)
    if CELL == "lstm":
        tl.store(dc_ptr + state, dc, mask=mask)


@launch.cached
@triton.jit(do_not_specialize=["rows"])
def _activate(gates_ptr, b_hh_ptr, rows, CELL: tl.constexpr, GATES: tl.constexpr, HIDDEN: tl.constexpr,
              BLOCK_M: tl.constexpr, BLOCK_U: tl.constexpr):  # fmt: skip
    """Pre-activations [rows, 4, H] without b_hh into gates; gru: r and z whole, n's two parts."""
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_u = tl.program_id(1) * BLOCK_U + tl.arange(0, BLOCK_U)
    mask_u = below(offs_u, HIDDEN, BLOCK_U)
    mask = both(offs_m < rows, mask_u)
    ptrs = gates_ptr + offs_m[:, None] * (4 * HIDDEN) + offs_u[None, :]
    x = load_tiles(ptrs, HIDDEN, mask, 4)
    hidden = zero_tiles(BLOCK_M, BLOCK_U, GATES)
    if CELL == "gru":
        hidden = (hidden[0], hidden[1], x[3])
    if b_hh_ptr is not None:
        hidden = add_bias(hidden, load_tiles(b_hh_ptr + offs_u, HIDDEN, mask_u, GATES))
    _, _, gates = step_fwd(x, hidden, x[0], x[0], CELL)
    store_tiles(ptrs, HIDDEN, gates, mask)


@launch.cached
@triton.jit(do_not_specialize=["length", "batch", "positions", "t_stride", "b_stride"])
def _gather(
    source_ptr, initial_ptr, out_ptr, steps_ptr, offsets_ptr, rows_ptr, source_stride, length, batch, positions,
    t_stride, b_stride, COLS: tl.constexpr, BACK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out [D, positions, cols]: zero past the end of a row, else the source's row of that step (BACK = 0), or that of the
    step before in the direction's time, and the initial state where there is none. source [positions, D, cols]."""
    tiles = tl.cdiv(batch, BLOCK_M)
    t = tl.program_id(0) // tiles
    d = tl.program_id(1).to(tl.int64)
    offs_m = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = rows_of(offs_m, rows_ptr, batch)
    active, position, _ = locate(t, offs_m, rows, steps_ptr, offsets_ptr, length, batch, positions, t_stride, b_stride)
    before, origin, _ = locate(
        t + BACK * tl.where(d == 0, -1, 1), offs_m, rows, steps_ptr, offsets_ptr, length, batch, positions, t_stride, b_stride
    )  # fmt: skip
    mask_out = active
    if offsets_ptr is None:
        mask_out = offs_m < batch
    for first in range(0, COLS, BLOCK_N):
        offs_n = first + tl.arange(0, BLOCK_N)
        mask_n = (offs_n < COLS)[None, :]
        ptrs = source_ptr + origin[:, None] * source_stride + d * COLS + offs_n[None, :]
        tile = tl.load(ptrs, mask=(active & before)[:, None] & mask_n, other=0.0)
        if BACK:
            ptrs = initial_ptr + (d * batch + rows)[:, None] * COLS + offs_n[None, :]
            initial = tl.load(ptrs, mask=(active & (before == 0))[:, None] & mask_n, other=0.0)
            tile = tl.where(before[:, None], tile, initial)
        out_ptrs = out_ptr + (d * positions + position)[:, None] * COLS + offs_n[None, :]
        tl.store(out_ptrs, tile, mask=mask_out[:, None] & mask_n)


def _contiguous(*tensors):
    """A compiled graph comes here without the public function, and may have changed strides; kernels go by sizes."""
    return (t if t is None else t.contiguous() for t in tensors)


def _product(a, b, c, bias=None):
    """c = a b + bias; bias of a row, or as large as c."""
    linear.product(a, b, c, bias, precision=tuning.recurrent_precision())


class _Weights(NamedTuple):
    """Of all directions, stacked: [D, ...]; one direction is a view."""

    w_ih: list
    w_hh: torch.Tensor
    b_ih: list
    b_hh: torch.Tensor | None


def _stacked(weights, directions):
    each = len(weights) // directions
    if each not in (2, 4):
        raise NotImplementedError("pyflash: triton has no recurrent kernel with a projection")

    def of(i):
        return [weights[d * each + i].contiguous() for d in range(directions)]

    def stack(tensors):
        return tensors[0].unsqueeze(0) if directions == 1 else torch.stack(tensors)

    has_bias = each == 4
    return _Weights(of(0), stack(of(1)), of(2) if has_bias else [None] * directions, stack(of(3)) if has_bias else None)


class _Layout:
    """Sizes of a call and the tensors that say which row runs when, as the kernels take them."""

    def __init__(self, x, h_0, rows, steps, batch_first):
        self.directions, self.batch, self.hidden = h_0.shape
        self.is_packed = x.dim() == 2
        self.offsets = self.steps = self.rows = None
        if steps is not None:
            self.length = steps.shape[0]
            if self.is_packed:  # PackedSequence keeps them on the CPU
                self.offsets = (steps.cumsum(0) - steps).to(x.device, non_blocking=True)
            self.steps = steps.to(x.device, non_blocking=True)
            self.rows = None if rows is None else rows.to(x.device, non_blocking=True)
        else:
            self.length = x.shape[1 if batch_first else 0]
        self.positions = x.shape[0] if self.is_packed else self.length * self.batch
        self.strides = (1, self.length) if batch_first else (self.batch, 1)
        self.is_time_first = self.is_packed or not batch_first
        self.ragged = self.steps, self.offsets, self.rows
        self.sizes = self.length, self.batch, self.positions, *self.strides

    def flat(self, x):
        """[positions, features]; a view where strides allow."""
        return x.reshape(self.positions, x.shape[-1])

    def empty(self, like, *shape, dtype=None):
        return like.new_empty(self.directions, self.positions, *shape, dtype=dtype)

    def gather(self, source, initial):
        """`source` [positions, D * cols] as [D, positions, cols], the step before each (the initial state at first); or,
        without `initial`, of each step, and zero past the end of a row."""
        directions = 1 if initial is None else self.directions
        cols = source.shape[1] // directions
        out = source.new_empty(directions, self.positions, cols)
        block_m, block_n = 16, min(128, max(16, triton.next_power_of_2(cols)))
        _gather[(self.length * launch.cdiv(self.batch, block_m), directions)](
            source, initial, out, *self.ragged, source.stride(0), *self.sizes, COLS=cols, BACK=int(initial is not None),
            BLOCK_M=block_m, BLOCK_N=block_n,
        )  # fmt: skip
        return out


def _launches(layout, config, steps):
    """(grid, first step, steps) of each launch: all in one where a program has all units."""
    tiles = launch.cdiv(layout.hidden, config["BLOCK_U"])
    grid = (launch.cdiv(layout.batch, config["BLOCK_M"]), tiles, layout.directions)
    each = steps if tiles == 1 else 1
    return ((grid, first, each) for first in range(0, steps, each))


def rnn_fwd(
    x, h_0, c_0, weights, rows, steps, cell, batch_first, save_cells, save_gates, y, h_n, c_n, cells, gates
):  # fmt: skip
    """Fill y, h_n, c_n and, where they are wanted, cells and gates. Arguments as the operator's; no projection."""
    layout, w = _Layout(x, h_0, rows, steps, batch_first), _stacked(weights, h_0.shape[0])
    if layout.batch == 0:
        return
    hidden, count = layout.hidden, GATES[cell]
    x, (h_0, c_0) = layout.flat(x), _contiguous(h_0, c_0)
    x_gates = gates if gates.numel() and layout.is_time_first else layout.empty(x, count, hidden, dtype=torch.float32)
    x_slots = x_gates.shape[-2]
    x_gates = x_gates.view(layout.directions, layout.positions, x_slots * hidden)
    for d in range(layout.directions):
        _product(x, w.w_ih[d].t(), x_gates[d, :, : count * hidden], w.b_ih[d])

    states = h_0.new_empty(2, *h_0.shape)
    states[0].copy_(h_0)
    c = None if c_0 is None else torch.empty_like(c_0, dtype=torch.float32).copy_(c_0)
    config = tuning.rnn_fwd(tuning.arch(x.device), x.dtype, count, hidden)
    for grid, first, launched in _launches(layout, config, layout.length):
        _rnn_fwd[grid](
            x_gates, w.w_hh, w.b_hh, states, c, y, cells if cells.numel() else None, gates if gates.numel() else None,
            *layout.ragged, first, launched, *layout.sizes, CELL=cell, GATES=count, X_SLOTS=x_slots, HIDDEN=hidden,
            PRECISION=tuning.recurrent_precision(), **config,
        )  # fmt: skip
    h_n.copy_(states[layout.length % 2])
    if c is not None:
        c_n.copy_(c)


def _gates_again(layout, w, x, h_before, cell):
    """Activated gates [D, positions, 4, H] from x and the h before each step: two products and a pass over them."""
    hidden, count = layout.hidden, GATES[cell]
    gates = layout.empty(x, 4 * hidden, dtype=torch.float32)
    for d, own in enumerate(gates):
        _product(x, w.w_ih[d].t(), own[:, : count * hidden], w.b_ih[d])
        whole = own[:, : (2 if cell == "gru" else 4) * hidden]  # gates whose two parts are simply added
        _product(h_before[d], w.w_hh[d, : whole.shape[1]].t(), whole, whole)
        if cell == "gru":
            _product(h_before[d], w.w_hh[d, 2 * hidden :].t(), own[:, 3 * hidden :])
        block_u = min(128, tuning.feature_block(hidden))
        _activate[(launch.cdiv(layout.positions, 8), launch.cdiv(hidden, block_u))](
            own, None if w.b_hh is None else w.b_hh[d], layout.positions, CELL=cell, GATES=count, HIDDEN=hidden,
            BLOCK_M=8, BLOCK_U=block_u,
        )  # fmt: skip
    return gates


def rnn_bwd(
    x, dy, dh_n, dc_n, dcells, h_0, c_0, weights, rows, steps, y, cells, gates, cell, batch_first, needs, *grads
):  # fmt: skip
    """Fill the gradients that are needed: of x, h_0, c_0 and each weight. Arguments as the operator's; no projection."""
    layout, w = _Layout(x, h_0, rows, steps, batch_first), _stacked(weights, h_0.shape[0])
    if layout.batch == 0:
        for grad in grads:
            grad.zero_()
        return
    hidden, count, slots = layout.hidden, GATES[cell], SLOTS[cell]
    x = layout.flat(x)
    dy, dcells, h_0, c_0, y, cells, gates = _contiguous(dy, dcells, h_0, c_0, y, cells, gates)
    each = len(weights) // layout.directions
    needs_w_hh = any(needs[3 + d * each + 1] for d in range(layout.directions))
    is_again = slots == 4 and gates.numel() == 0
    h_before = None
    if is_again or needs_w_hh or cell == "gru":
        h_before = layout.gather(layout.flat(y), h_0)
    if is_again:
        gates = _gates_again(layout, w, x, h_before, cell)

    dh = torch.empty_like(h_0, dtype=torch.float32)
    dh.zero_() if dh_n is None else dh.copy_(dh_n)
    dc = None
    if c_0 is not None:
        dc = torch.empty_like(dh)
        dc.zero_() if dc_n is None else dc.copy_(dc_n)
    dgates = layout.empty(x, slots * hidden)
    config = tuning.rnn_bwd(tuning.arch(x.device), x.dtype, count, hidden)
    last = layout.length + (not config["IS_HELD"])
    for grid, first, launched in _launches(layout, config, last):
        _rnn_bwd[grid](
            dy, dcells, gates, cells, c_0, y, h_before, w.w_hh, dh, dc, dgates, *layout.ragged, first, launched,
            *layout.sizes, CELL=cell, GATES=count, SLOTS=slots, HIDDEN=hidden, GATES_LIE_AS_X=is_again,
            PRECISION=tuning.recurrent_precision(), **config,
        )  # fmt: skip
    dx, dh_0, dc_0, *dweights = grads
    if needs[1]:
        dh_0.copy_(dh)
    if needs[2]:
        dc_0.copy_(dc)
    if needs[0]:
        _fill_dx(layout, w, dgates, cell, dx)
    if layout.steps is not None and not layout.is_packed and any(needs[3::each]):
        x = layout.gather(x.contiguous(), None)[0]  # what lies past the end of a row may be NaN
    for d, own in enumerate(dgates):
        for i, grad in enumerate(dweights[d * each : (d + 1) * each]):
            if needs[3 + d * each + i]:
                source = (x, None if h_before is None else h_before[d])[i % 2]
                parts = _input_parts(own, cell) if i % 2 == 0 else [(own[:, (slots - count) * hidden :], slice(None))]
                for part, own_rows in parts:
                    if i < 2:
                        _product(part.t(), source, grad[own_rows])
                    else:
                        torch.sum(part, 0, out=grad[own_rows])


def _input_parts(dgates, cell):
    """(columns of dgates [positions, slots * H], rows of W_ih they belong to)."""
    if cell != "gru":
        return [(dgates, slice(None))]
    hidden = dgates.shape[1] // 4
    return [(dgates[:, hidden : 3 * hidden], slice(0, 2 * hidden)), (dgates[:, :hidden], slice(2 * hidden, None))]


def _fill_dx(layout, w, dgates, cell, dx):
    """The sum over directions and parts, in float32 until the last."""
    dx = dx.view(layout.positions, dx.shape[-1])
    parts = [(part, w.w_ih[d][own_rows]) for d, own in enumerate(dgates) for part, own_rows in _input_parts(own, cell)]
    total = None
    for i, (part, weight) in enumerate(parts):
        target = dx if i == len(parts) - 1 else torch.empty_like(dx, dtype=torch.float32) if total is None else total
        _product(part, weight, target, total)
        total = target
