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
from pyflash.kernels.recurrent.layout import Layout, stacked


def _slots(count):
    """How many values a unit keeps of its gates, and how many gradients of them there are. gru has 4 of 3 gates: r, z, n and
    the hidden part of n; gradients of the input's part of n, then of the hidden parts of r, z, n."""
    return 4 if count > 1 else 1


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
    """Steps first to first + count of BLOCK_M rows and BLOCK_U units. Grid (tiles of rows, tiles of units, D).

    Args:
        x_gates_ptr: [D, positions, X_SLOTS, H] float32, the input's part of the pre-activations; may be gates_ptr.
        w_hh_ptr: [D, GATES, H, H]; b_hh_ptr: [D, GATES, H] or None.
        h_ptr: [2, D, B, H], the state before step s at s % 2; c_ptr: [D, B, H] float32, in place, lstm.
        y_ptr: [positions, D, H]; cells_ptr: [D, positions, H] float32 or None; gates_ptr: [D, positions, 4, H] float32
            or None.
        steps_ptr, offsets_ptr: [length] int64; rows_ptr: [B] int64; each may be None (gates.py, locate).
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

    h = cast(tl.load(h_ptr + first % 2 * state_size + state, mask=mask, other=0.0), tl.float32)  # [BLOCK_M, BLOCK_U]
    c = h
    if CELL == "lstm":
        c = tl.load(c_ptr + state, mask=mask, other=0.0)  # [BLOCK_M, BLOCK_U]
    gate_size: tl.constexpr = HIDDEN * HIDDEN
    w_ptrs = w_hh_ptr + d * GATES * gate_size + offs_u[None, :] * HIDDEN + offs_k[:, None]
    if IS_HELD:  # GATES of [BLOCK_K, BLOCK_U]
        w = load_tiles(w_ptrs, gate_size, both(below(offs_k, HIDDEN, BLOCK_K), mask_u), GATES)
    if b_hh_ptr is not None:
        bias = load_tiles(b_hh_ptr + d * GATES * HIDDEN + offs_u, HIDDEN, mask_u, GATES)  # GATES of [BLOCK_U]

    for s in range(first, first + count):
        t = tl.where(d == 0, s, length - 1 - s)
        active, position, saved = locate(
            t, offs_m, rows, steps_ptr, offsets_ptr, length, batch, positions, t_stride, b_stride
        )
        mask_t = both(active, mask_u)
        x_ptrs = x_gates_ptr + (d * positions + position)[:, None] * (X_SLOTS * HIDDEN) + offs_u[None, :]
        hidden = zero_tiles(BLOCK_M, BLOCK_U, GATES)
        if IS_HELD:
            # On its way while the products are computed; x and hidden: GATES of [BLOCK_M, BLOCK_U].
            x = load_tiles(x_ptrs, HIDDEN, mask_t, GATES)
            hidden = products(cast(h, dtype), w, hidden, PRECISION)  # [BLOCK_M, BLOCK_K] [BLOCK_K, BLOCK_U]
        else:
            h_ptrs = h_ptr + s % 2 * state_size + state_rows + offs_k[None, :]
            for k in range(0, HIDDEN, BLOCK_K):
                mask_k = below(k + offs_k, HIDDEN, BLOCK_K)
                h_tile = load(h_ptrs + k, both(offs_m < batch, mask_k))  # [BLOCK_M, BLOCK_K]
                # GATES of [BLOCK_K, BLOCK_U]
                w_tiles = load_tiles(w_ptrs + k, gate_size, both(mask_k, mask_u), GATES)
                hidden = products(h_tile, w_tiles, hidden, PRECISION)  # GATES of [BLOCK_M, BLOCK_U]
            x = load_tiles(x_ptrs, HIDDEN, mask_t, GATES)  # GATES of [BLOCK_M, BLOCK_U]
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
    """Gradients of the gates of steps first to first + count from the end. Grid (tiles of rows, tiles of units, D).

    Stepped launches (not IS_HELD) keep dh without the recurrent product; the next launch adds it first, so T + 1 launches
    run.

    Args:
        dy_ptr, y_ptr: [positions, D, H]; dcells_ptr, cells_ptr: [D, positions, H] float32; gates_ptr: [D, positions, 4,
            H] float32; c_0_ptr: [D, B, H]; h_before_ptr: [D, positions, H], gru. Each may be None where nothing reads it.
        w_hh_ptr: [D, GATES, H, H].
        dh_ptr, dc_ptr: [D, B, H] float32, in place.
        dgates_ptr: [D, positions, SLOTS, H], written.
        steps_ptr, offsets_ptr, rows_ptr: as in `_rnn_fwd`.
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

    carry = tl.load(dh_ptr + state, mask=mask, other=0.0)  # [BLOCK_M, BLOCK_U]
    dc = carry
    if CELL == "lstm":
        dc = tl.load(dc_ptr + state, mask=mask, other=0.0)  # [BLOCK_M, BLOCK_U]
    gate_size: tl.constexpr = HIDDEN * HIDDEN
    w_ptrs = w_hh_ptr + d * GATES * gate_size + offs_k[:, None] * HIDDEN + offs_u[None, :]
    if IS_HELD:  # GATES of [BLOCK_K, BLOCK_U]
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
                d_tile = load(d_ptrs + (k + offs_k)[None, :], both(later, mask_k))  # [BLOCK_M, BLOCK_K]
                w_tile = load(w_ptrs + k * HIDDEN, both(mask_k, mask_u))  # [BLOCK_K, BLOCK_U]
                part = summed_products((d_tile,), (w_tile,), part, PRECISION)  # [BLOCK_M, BLOCK_U]
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
            dh += cast(tl.load(dy_ptr + y_offs, mask=mask_t, other=0.0), tl.float32)  # [BLOCK_M, BLOCK_U]
        saved_rows = (d * positions + saved)[:, None]
        if SLOTS == 4:
            gate_rows = saved_rows
            if GATES_LIE_AS_X:
                gate_rows = (d * positions + position)[:, None]
            # 4 of [BLOCK_M, BLOCK_U]
            gates = load_tiles(gates_ptr + gate_rows * (4 * HIDDEN) + offs_u[None, :], HIDDEN, mask_t, 4)
        if CELL == "lstm":
            before, _, saved_before = locate(
                t + back, offs_m, rows, steps_ptr, offsets_ptr, length, batch, positions, t_stride, b_stride
            )
            cell_offs = saved_rows * HIDDEN + offs_u[None, :]
            before_offs = (d * positions + saved_before)[:, None] * HIDDEN + offs_u[None, :]
            c = tl.load(cells_ptr + cell_offs, mask=mask_t, other=0.0)  # [BLOCK_M, BLOCK_U], as all below
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
            # [BLOCK_M, BLOCK_U]
            h_before = cast(tl.load(h_before_ptr + h_offs, mask=mask_t, other=0.0), tl.float32)
            dgates, direct = gru_bwd(dh, gates, h_before)
        else:
            y = cast(tl.load(y_ptr + y_offs, mask=mask_t, other=0.0), tl.float32)  # [BLOCK_M, BLOCK_U]
            dgates = plain_bwd(dh, y, CELL)
            direct = tl.zeros([BLOCK_M, BLOCK_U], tl.float32)
        carry = tl.where(active[:, None], direct, carry)
        dgates = zero_unless(active[:, None], dgates)
        mask_d = mask_t
        if offsets_ptr is None:
            mask_d = mask & (s < length)
        d_offs = (d * positions + position)[:, None] * (SLOTS * HIDDEN) + offs_u[None, :]
        store_tiles(dgates_ptr + d_offs, HIDDEN, dgates, mask_d)
        if IS_HELD:  # [BLOCK_M, BLOCK_K] [BLOCK_K, BLOCK_U], summed over the gates
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
    """Pre-activations without b_hh into gates, in place; gru: r and z whole, n's two parts. Grid (tiles of rows, tiles of
    units).

    Args:
        gates_ptr: [rows, 4, H] float32. b_hh_ptr: [GATES, H] or None.
    """
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_u = tl.program_id(1) * BLOCK_U + tl.arange(0, BLOCK_U)
    mask_u = below(offs_u, HIDDEN, BLOCK_U)
    mask = both(offs_m < rows, mask_u)
    ptrs = gates_ptr + offs_m[:, None] * (4 * HIDDEN) + offs_u[None, :]
    x = load_tiles(ptrs, HIDDEN, mask, 4)  # 4 of [BLOCK_M, BLOCK_U]
    hidden = zero_tiles(BLOCK_M, BLOCK_U, GATES)
    if CELL == "gru":
        hidden = (hidden[0], hidden[1], x[3])
    if b_hh_ptr is not None:
        hidden = add_bias(hidden, load_tiles(b_hh_ptr + offs_u, HIDDEN, mask_u, GATES))
    _, _, gates = step_fwd(x, hidden, x[0], x[0], CELL)
    store_tiles(ptrs, HIDDEN, gates, mask)


def _contiguous(*tensors):
    """A compiled graph comes here without the public function, and may have changed strides; kernels go by sizes."""
    return (t if t is None else t.contiguous() for t in tensors)


def _product(a, b, c, bias=None):
    """c = a b + bias; bias of a row, or as large as c."""
    linear.product(a, b, c, bias, precision=tuning.recurrent_precision())


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
    layout, w = Layout(x, h_0, rows, steps, batch_first), stacked(weights, h_0.shape[0])
    if not (layout.batch and layout.hidden):
        return
    hidden, count = layout.hidden, w.gates
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
    hidden, count = layout.hidden, w.gates
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
    layout, w = Layout(x, h_0, rows, steps, batch_first), stacked(weights, h_0.shape[0])
    if not (layout.batch and layout.hidden):
        for grad in grads:
            grad.zero_()
        return
    hidden, count, slots = layout.hidden, w.gates, _slots(w.gates)
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
        of_input, of_hidden = _input_parts(own, cell), [(own[:, (slots - count) * hidden :], slice(None))]
        before = None if h_before is None else h_before[d]
        sources = {
            "w_ih": (of_input, x),
            "w_hh": (of_hidden, before),
            "b_ih": (of_input, None),
            "b_hh": (of_hidden, None),
        }
        for i, (name, (parts, source)) in enumerate(sources.items()):
            if i >= each or not needs[3 + d * each + i]:
                continue
            grad = dweights[d * each + i]
            for part, own_rows in parts:
                if name.startswith("w"):
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
