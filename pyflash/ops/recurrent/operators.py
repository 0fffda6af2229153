"""One recurrent layer, in one direction or two: its operators and their derivatives.

LSTM: Hochreiter & Schmidhuber 1997, with forget gate and torch's gate order i, f, g, o; projection Sak et al. 2014.
GRU in torch's form, gates r, z, n: n = tanh(W_in x + b_in + r * (W_hn h + b_hn)), h' = (1 - z) n + z h.
Stacks of layers and packed sequences are in layers.py, single steps in cells.py, torch's checks in checks.py.
"""

from __future__ import annotations

from functools import partial

import torch

from pyflash.ops.core import backends
from pyflash.ops.core.autograd import Function, apply, vjp, way
from pyflash.ops.core.checks import device_type
from pyflash.ops.core.dtypes import ALL_BUT_FLOAT64, acc_dtype
from pyflash.ops.core.registry import Op
from pyflash.ops.recurrent import flops, reference
from pyflash.ops.recurrent.reference import SAVED_GATES


def _outputs_fwd(x, h_0, c_0, weights, rows, steps, cell, batch_first, save_cells, save_gates):
    directions, _, output = h_0.shape
    if x.dim() == 2:
        positions = x.shape[:1]
    else:
        positions = (x.shape[1], x.shape[0]) if batch_first else x.shape[:2]
    cells = gates = (0,)
    if cell == "lstm" and (save_cells or save_gates):
        cells = (directions, *positions, c_0.shape[2])
    if SAVED_GATES[cell] and save_gates:
        hidden = output if c_0 is None else c_0.shape[2]
        gates = (directions, *positions, SAVED_GATES[cell], hidden)
    wide = acc_dtype(x.dtype)
    return (
        x.new_empty((*x.shape[:-1], directions * output)),
        x.new_empty(h_0.shape),
        x.new_empty((0,) if c_0 is None else c_0.shape),
        x.new_empty(cells, dtype=wide),
        x.new_empty(gates, dtype=wide),
    )


def _outputs_bwd(
    x, dy, dh_n, dc_n, dcells, h_0, c_0, weights, rows, steps, y, cells, gates, cell, batch_first, needs
):  # fmt: skip
    return tuple(x.new_empty(t.shape if need else (0,)) for t, need in zip((x, h_0, c_0, *weights), needs))


# x [T, B, I], [B, T, I] when batch_first, or packed [total, I]; features adjacent, other strides any. y like it, with
# D * P features. Everything else contiguous. h_0, h_n [D, B, P]; c_0, c_n [D, B, H] for lstm, else None and empty.
# weights: torch's flat list of the layer, forward direction first (`reference.split`).
# steps: None, or [T] int64, descending: how many sequences are still running at each step; the sorted ones are the
# first. rows: None, or [B] int64: the row of the batch at each sorted position; for padded x only. States keep the order
# of the batch. y and cells are zero past the end of a sequence; one of no steps keeps its h_0 and c_0.
# cells [D, T, B, H] (packed [D, total, H]): c after every step, lstm; gates [D, T, B, 4, H] (packed [D, total, 4, H]):
# i, f, g, o, or r, z, n and W_hn h + b_hn, undefined past the end of a sequence; both in the accumulation type, empty
# when not wanted; gates bring cells along.
_fwd = Op(
    "rnn_fwd(Tensor x, Tensor h_0, Tensor? c_0, Tensor[] weights, Tensor? rows, Tensor? steps, str cell,"
    " bool batch_first, bool save_cells, bool save_gates, str backend)"
    " -> (Tensor y, Tensor h_n, Tensor c_n, Tensor cells, Tensor gates)",
    outputs=_outputs_fwd,
    reference=reference.rnn_fwd,
    differentiable=True,
    flops=flops.rnn_fwd,
    triton="pyflash.kernels.recurrent.layers:rnn_fwd",
    cuda="pyflash.ops.recurrent._cuda:rnn_fwd",
    cpu="pyflash.ops.recurrent._cpu:rnn_fwd",
)
_cached_fwd = Op(  # gradients are off: the native module may keep the packed weights; looked up when it runs
    "rnn_cached_fwd(Tensor x, Tensor h_0, Tensor? c_0, Tensor[] weights, Tensor? rows, Tensor? steps, str cell,"
    " bool batch_first, bool save_cells, str backend)"
    " -> (Tensor y, Tensor h_n, Tensor c_n, Tensor cells, Tensor gates)",
    outputs=partial(_outputs_fwd, save_gates=False),
    reference=partial(reference.rnn_fwd, save_gates=False),
    differentiable=True,
    flops=flops.rnn_fwd,
    cpu="pyflash.ops.recurrent._cpu:rnn_cached_fwd",
)


def _reference_step(x, h, c, weights, cell):
    states = h.unsqueeze(0), None if c is None else c.unsqueeze(0)
    _, h_n, c_n, _, _ = reference.layer(x.unsqueeze(0), *states, weights, None, None, cell, False)
    return h_n.squeeze(0), x.new_empty(0) if c is None else c_n.squeeze(0)


_step = Op(  # x [B, I], adjacent features; h [B, H] and c contiguous, one direction; gradients are off
    "rnn_step(Tensor x, Tensor h, Tensor? c, Tensor[] weights, str cell, str backend) -> (Tensor h_n, Tensor c_n)",
    outputs=lambda x, h, c, weights, cell: (x.new_empty(h.shape), x.new_empty(0 if c is None else c.shape)),
    reference=_reference_step,
    flops=flops.rnn_step,
    cpu="pyflash.ops.recurrent._cpu_stream:rnn_step",
)
# Gradients of x, h_0, c_0 and each weight, contiguous; empty where not needed. Without gates they are computed again
# from x, y and cells. dcells is the gradient of cells where those were asked for.
_bwd = Op(
    "rnn_bwd(Tensor x, Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor? dcells, Tensor h_0, Tensor? c_0,"
    " Tensor[] weights, Tensor? rows, Tensor? steps, Tensor y, Tensor cells, Tensor gates, str cell, bool batch_first,"
    " bool[] needs, str backend) -> Tensor[]",
    outputs=_outputs_bwd,
    reference=reference.rnn_bwd,
    flops=flops.rnn_bwd,
    triton="pyflash.kernels.recurrent.layers:rnn_bwd",
    cuda="pyflash.ops.recurrent._cuda:rnn_bwd",
    cpu="pyflash.ops.recurrent._cpu:rnn_bwd",
)


def _contiguous(tensor):
    return tensor if tensor is None else tensor.contiguous()


class _Rnn(Function):
    @staticmethod
    def forward(x, h_0, c_0, rows, steps, cell, batch_first, save_cells, save_gates, return_cells, backend, *weights):
        return _fwd(x, h_0, c_0, list(weights), rows, steps, cell, batch_first, save_cells, save_gates, backend)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        x, h_0, c_0, rows, steps, ctx.cell, ctx.batch_first, _, _, return_cells, ctx.backend, *weights = inputs
        y, _, c_n, cells, gates = outputs
        silent = [gates]
        if c_0 is None:
            silent.append(c_n)
        if not return_cells:
            silent.append(cells)
        ctx.mark_non_differentiable(*silent)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, h_0, c_0, rows, steps, y, cells, gates, *weights)

    @staticmethod
    def backward(ctx, dy, dh_n, dc_n, dcells, _):
        x, h_0, c_0, rows, steps, y, cells, gates, *weights = ctx.saved_tensors
        needs = [*ctx.needs_input_grad[:3], *ctx.needs_input_grad[11:]]
        if all(d is None for d in (dy, dh_n, dc_n, dcells)):
            return (None,) * (11 + len(weights))
        grads = apply(
            _RnnBwd, x, *map(_contiguous, (dy, dh_n, dc_n, dcells)), h_0, c_0, rows, steps, y, cells, gates, ctx.cell,
            ctx.batch_first, needs, ctx.backend, *weights,
        )  # fmt: skip
        dx, dh_0, dc_0, *dweights = (grad if need else None for grad, need in zip(grads, needs))
        return dx, dh_0, dc_0, *(None,) * 8, *dweights


class _RnnBwd(Function):
    @staticmethod
    def forward(
        x, dy, dh_n, dc_n, dcells, h_0, c_0, rows, steps, y, cells, gates, cell, batch_first, needs, backend, *weights
    ):
        return tuple(
            _bwd(
                x, dy, dh_n, dc_n, dcells, h_0, c_0, list(weights), rows, steps, y, cells, gates, cell, batch_first,
                needs, backend,
            )
        )  # fmt: skip

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        x, *douts, h_0, c_0, rows, steps, _, _, _, ctx.cell, ctx.batch_first, ctx.needs, _ = inputs[:16]
        ctx.save_for_backward(x, *douts, h_0, c_0, rows, steps, *inputs[16:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *grads):
        x, *douts, h_0, c_0, rows, steps = ctx.saved_tensors[:9]
        weights = ctx.saved_tensors[9:]
        grads = [g if need else None for g, need in zip(grads, ctx.needs)]

        def function(x, dy, dh_n, dc_n, dcells, h_0, c_0, *weights):  # what was saved is a function of these
            found = reference.gradients(
                x, h_0, c_0, weights, rows, steps, dy, dh_n, dc_n, dcells, ctx.cell, ctx.batch_first
            )
            return [x.new_zeros(()) if g is None else g for g in found]

        d = vjp(function, (x, *douts, h_0, c_0, *weights), grads)
        return *d[:7], *(None,) * 9, *d[7:]


CUDA_NOTE = "no layer whose recurrent weights are larger than the registers and shared memory of the device"
NO_PROJECTION = "neither triton nor cuda has a kernel for a projection (proj_size)"


def lacking(x, size) -> dict[str, str]:
    """Backend -> why it has no kernel for layers of this size, as `choose` asks."""
    if size.projected:
        return dict.fromkeys(("triton", "cuda"), NO_PROJECTION)
    if backends.why_not("cuda", device_type(x)) or x.dtype not in ALL_BUT_FLOAT64:
        return {}  # which `choose` says itself
    return {"cuda": _why_unfit(size.cell, size.hidden, x.dtype, size.directions, x.device.index or 0)}


def _why_unfit(*of):
    from pyflash.ops.recurrent import _cuda

    return _cuda.unfit(*of)


_why_unfit._dynamo_marked_constant = True  # type: ignore[attr-defined]  # torch.compile asks it, and does not read it


def has_step(x, backend) -> bool:
    """Is `rnn_step` there for x? Elsewhere one step is a sequence of one."""
    return x.is_cpu and backend not in ("triton", "cuda")


def rnn_step(x, h, c, weights, cell, backend):
    """h and c (None unless lstm) after one step of x [B, I], in one direction without projection; no gradients."""
    if not (x.is_contiguous() and h.is_contiguous() and all([w.is_contiguous() for w in weights])):
        x, h, weights = x.contiguous(), h.contiguous(), [w.contiguous() for w in weights]
    h_n, c_n = _step(x, h, _contiguous(c), weights, cell, backend)
    return h_n, None if c is None else c_n


def rnn_layer(x, h_0, c_0, weights, rows, steps, cell, batch_first, backend, return_cells=False, save_gates=False):
    """y, h_n, c_n (None unless lstm) and cells of one layer by one backend; differentiable to any order.

    Args as the operator's; return_cells: give every c as an output with a gradient, else None; save_gates: store the
    gates for the backward rather than compute them again.
    """
    training = torch.is_grad_enabled() and any([t is not None and t.requires_grad for t in (x, h_0, c_0, *weights)])
    h_0, c_0 = h_0.contiguous(), None if c_0 is None else c_0.contiguous()
    weights = [w.contiguous() for w in weights]
    if x.stride(-1) != 1 and x.shape[-1] != 1:
        x = x.contiguous()
    if training:
        args = (
            x, h_0, c_0, rows, steps, cell, batch_first, cell == "lstm", save_gates, return_cells, backend, *weights
        )  # fmt: skip
        call, args = way(_Rnn, args)
        outputs = call(*args)
    elif x.device.type == "cpu" and backend in ("auto", "cpu"):
        outputs = _cached_fwd(x, h_0, c_0, weights, rows, steps, cell, batch_first, return_cells, backend)
    else:
        outputs = _fwd(x, h_0, c_0, weights, rows, steps, cell, batch_first, return_cells, False, backend)
    y, h_n, c_n, cells, _ = outputs
    return y, h_n, None if c_0 is None else c_n, cells if return_cells else None
