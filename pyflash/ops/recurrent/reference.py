"""One recurrent layer in torch operations: differentiable to any order, the slow truth beside the kernels.

A plain loop over the steps, in the accumulation type; what is stored (h, and so y) is rounded to the tensors' type in
every step. Ragged batches are masked, so lengths are never read on the host.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from pyflash.ops.core.autograd import vjp
from pyflash.ops.core.dtypes import acc_dtype

SAVED_GATES = {"lstm": 4, "gru": 4, "rnn_tanh": 0, "rnn_relu": 0}  # gru: r, z, n and the hidden part of n


class Weights(NamedTuple):
    """The weights of one direction; G gates of H units, P outputs (H without a projection)."""

    w_ih: torch.Tensor  # [G * H, I]
    w_hh: torch.Tensor  # [G * H, P]
    b_ih: torch.Tensor | None  # [G * H]
    b_hh: torch.Tensor | None  # [G * H]
    w_hr: torch.Tensor | None  # [P, H]


def has_projection(each: int) -> bool:
    """Is there a projection, of so many weights a direction: 2, 2 biases or none, and it?"""
    return each % 2 == 1


def split(weights, directions, absent=None) -> list[Weights]:
    """What belongs to each direction, from a flat list in torch's order (of tensors, or of their addresses): 2 weights, 2
    biases or none, a projection or none; `absent` for what there is none of."""
    each = len(weights) // directions
    found = []
    for first in range(0, len(weights), each):
        w_ih, w_hh, *rest = weights[first : first + each]
        b_ih, b_hh, *rest = rest if each >= 4 else (absent, absent, *rest)
        found.append(Weights(w_ih, w_hh, b_ih, b_hh, rest[0] if rest else absent))
    return found


class _Layout:
    """Between the tensors' layout and [T, B, ...], with zeros where a sequence has ended."""

    def __init__(self, x, batch, rows, steps, batch_first):
        self.is_packed, self.batch_first = x.dim() == 2, batch_first
        self.active = None  # [T, B]: has this row not ended yet?
        if steps is None:
            return
        steps = steps.to(x.device)
        position = torch.arange(batch, device=x.device)  # of a row among the sorted ones
        if rows is not None:
            position = torch.zeros_like(position).index_copy(0, rows.to(x.device), position)
        self.active = position < steps[:, None]
        if self.is_packed:
            offsets = steps.cumsum(0) - steps
            time = torch.arange(steps.shape[0], device=x.device)
            self.time = torch.repeat_interleave(time, steps, output_size=x.shape[0])
            self.row = torch.arange(x.shape[0], device=x.device) - offsets[self.time]

    def unpack(self, x):
        """x as [T, B, features]."""
        if self.is_packed:
            zeros = x.new_zeros((*self.active.shape, x.shape[-1]))
            return zeros.index_put((self.time, self.row), x)
        x = x.transpose(0, 1) if self.batch_first else x
        return x if self.active is None else torch.where(self.active[..., None], x, 0)

    def pack(self, y):
        """[T, B, features] as the caller has it."""
        if self.is_packed:
            return y[self.time, self.row]
        return y.transpose(0, 1) if self.batch_first else y

    def saved(self, values):
        """A list over directions of [T, B, ...]: cells and gates."""
        return torch.stack([v[self.time, self.row] if self.is_packed else v for v in values])


def _lstm(gates_x, h, c, w):
    z = gates_x + h @ w.w_hh.t()
    i, f, g, o = z.chunk(4, -1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    c = f * c + i * g
    h = o * c.tanh()
    return (h if w.w_hr is None else h @ w.w_hr.t()), c, (i, f, g, o)


def _gru(gates_x, h, c, w):
    r_x, z_x, n_x = gates_x.chunk(3, -1)
    r_h, z_h, n_h = (h @ w.w_hh.t() if w.b_hh is None else torch.addmm(w.b_hh, h, w.w_hh.t())).chunk(3, -1)
    r, z = (r_x + r_h).sigmoid(), (z_x + z_h).sigmoid()
    n = (n_x + r * n_h).tanh()
    return n + z * (h - n), c, (r, z, n, n_h)


def _tanh(gates_x, h, c, w):
    return (gates_x + h @ w.w_hh.t()).tanh(), c, ()


def _relu(gates_x, h, c, w):
    return (gates_x + h @ w.w_hh.t()).relu(), c, ()


_STEPS = {"lstm": _lstm, "gru": _gru, "rnn_tanh": _tanh, "rnn_relu": _relu}


def _direction(x, h, c, w, active, cell, dtype, times):
    """One direction over [T, B, I]: y, h_n, c_n, every c, every gate, in the accumulation type."""
    gates_x = x @ w.w_ih.t()
    if w.b_ih is not None:
        gates_x = gates_x + (w.b_ih if cell == "gru" else w.b_ih + w.b_hh)
    ys, cells, gates = {}, {}, {}
    for t in times:
        h_next, c_next, gates[t] = _STEPS[cell](gates_x[t], h, c, w)
        h_next = h_next.to(dtype).to(x.dtype)
        if active is None:
            h, c = h_next, c_next
            ys[t], cells[t] = h, c
        else:
            running = active[t][:, None]
            h = torch.where(running, h_next, h)
            c = c if c is None else torch.where(running, c_next, c)
            ys[t] = torch.where(running, h, 0)
            cells[t] = c if c is None else torch.where(running, c, 0)

    def stacked(steps):
        return torch.stack([steps[t] for t in range(len(steps))])

    has_gates = SAVED_GATES[cell] > 0
    return (
        stacked(ys),
        h,
        c,
        stacked(cells) if c is not None else None,
        stacked({t: torch.stack(g, -2) for t, g in gates.items()}) if has_gates else None,
    )


def layer(x, h_0, c_0, weights, rows, steps, cell, batch_first):
    """y, h_n, c_n, cells, gates of one layer in one direction or two, shaped as the operator's; None where it has none.

    Arguments as the operator `rnn_fwd` has them.
    """
    wide = acc_dtype(x.dtype)
    layout = _Layout(x, h_0.shape[1], rows, steps, batch_first)
    x_wide = layout.unpack(x).to(wide)
    outputs = []
    for d, w in enumerate(split(weights, h_0.shape[0])):
        w = Weights(*(t if t is None else t.to(wide) for t in w))
        times = range(x_wide.shape[0])
        outputs.append(
            _direction(
                x_wide, h_0[d].to(wide), None if c_0 is None else c_0[d].to(wide), w, layout.active, cell, x.dtype,
                times if d == 0 else reversed(times),
            )
        )  # fmt: skip
    y, h_n, c_n, cells, gates = zip(*outputs)
    return (
        layout.pack(torch.cat(y, -1)).to(x.dtype),
        torch.stack(h_n).to(x.dtype),
        None if c_0 is None else torch.stack(c_n).to(x.dtype),
        None if c_0 is None else layout.saved(cells),
        None if gates[0] is None else layout.saved(gates),
    )


def rnn_fwd(x, h_0, c_0, weights, rows, steps, cell, batch_first, save_cells, save_gates):
    y, h_n, c_n, cells, gates = layer(x, h_0, c_0, weights, rows, steps, cell, batch_first)
    none = h_n.new_empty(0, dtype=acc_dtype(x.dtype))
    return (
        y,
        h_n,
        x.new_empty(0) if c_n is None else c_n,
        cells if cells is not None and (save_cells or save_gates) else none,
        gates if gates is not None and save_gates else none.clone(),
    )


def gradients(x, h_0, c_0, weights, rows, steps, dy, dh_n, dc_n, dcells, cell, batch_first):
    """Gradients of x, h_0, c_0 and each weight, None for those that require none; differentiable again."""

    def function(x, h_0, c_0, *weights):
        y, h_n, c_n, cells, _ = layer(x, h_0, c_0, weights, rows, steps, cell, batch_first)
        return (y, h_n) if c_n is None else (y, h_n, c_n, cells)

    return vjp(function, (x, h_0, c_0, *weights), (dy, dh_n, dc_n, dcells))


def rnn_bwd(
    x, dy, dh_n, dc_n, dcells, h_0, c_0, weights, rows, steps, y, cells, gates, cell, batch_first, needs
):  # fmt: skip
    inputs = [
        t if t is None else t.detach().requires_grad_(need) for t, need in zip((x, h_0, c_0, *weights), needs)
    ]  # fmt: skip
    found = gradients(*inputs[:3], inputs[3:], rows, steps, dy, dh_n, dc_n, dcells, cell, batch_first)
    outputs = []
    for t, grad, need in zip(inputs, found, needs):
        if not need:
            grad = x.new_empty(0)
        elif grad is None:
            grad = torch.zeros_like(t)
        elif any(grad is other for other in (dy, dh_n, dc_n, *outputs)):  # both biases have one gradient
            grad = grad.clone()
        outputs.append(grad)
    return tuple(outputs)
