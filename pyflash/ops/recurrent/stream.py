"""Cells and layers in one direction on the CPU with gradients off, told by one look at each tensor.

A step of a stream costs little more than these looks. Whatever is not as usual, errors too, is None here: the caller
looks closer.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import _VF
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

from pyflash.auto import recurrent as auto
from pyflash.ops.core import backends
from pyflash.ops.core.checks import PLAIN_TYPES
from pyflash.ops.core.dtypes import FLOATS
from pyflash.ops.core.registry import Op, expect_guards, poisoned

TORCH_CELLS = {
    "lstm": _VF.lstm_cell, "gru": _VF.gru_cell, "rnn_tanh": _VF.rnn_tanh_cell, "rnn_relu": _VF.rnn_relu_cell,
}  # fmt: skip
TORCH_LAYERS = {"lstm": _VF.lstm, "gru": _VF.gru, "rnn_tanh": _VF.rnn_tanh, "rnn_relu": _VF.rnn_relu}
NO_MEMORY = "a tensor has no memory"
NOT_KEPT = "its packed weights are not kept: no room under PYFLASH_CACHE_BYTES, or weights of inference mode"


class Given(NamedTuple):
    """Layers in one direction and what they are given, all of it contiguous.

    x: [steps, batch, features], or the other way round when `batch_first`. h, c: [layers, batch, hidden], None: zeros. Of
    one step all may be without steps and layers.
    """

    cell: str  # lstm, gru, rnn_tanh, rnn_relu
    x: torch.Tensor
    h: torch.Tensor | None
    c: torch.Tensor | None
    weights: tuple | list  # of each layer w_ih, w_hh, b_ih, b_hh, or the first two
    layers: int = 1
    batch_first: bool = False


@lru_cache(maxsize=1)
def _kernel():
    from pyflash.ops.recurrent._cpu_stream import rnn_infer

    return rnn_infer


def need_no_dispatch(tensors):
    """Plain values of one type on the CPU, and nothing of torch that wants to see more of the call than these."""
    dtype, wish = getattr(tensors[0], "dtype", None), backends._state.wish
    if (
        is_dynamo_compiling()
        or (wish != "auto" and wish != "cpu")
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.autograd._profiler_enabled()
        or torch.is_autocast_enabled("cpu")
        or forward_ad._current_level >= 0
        or backends.MISSING["cpu"]
        or dtype not in FLOATS
    ):
        return False
    for t in tensors:
        if type(t) not in PLAIN_TYPES or t.dtype is not dtype or not t.is_cpu or t.layout is not torch.strided:
            return False
        if t.is_nested or t.is_neg() or not t.is_contiguous():
            return False
    return True


def _run(operation, given, outputs, may_pack):
    """outputs (y, h_n, c_n) filled, or None and why: NO_MEMORY, or NOT_KEPT unless `may_pack`."""
    if Op.paranoid:
        outputs = tuple([t if t is None else poisoned(t) for t in outputs])
    why_not = _kernel()(given, outputs, may_pack=may_pack)
    if why_not:
        return None, why_not
    if Op.paranoid:
        expect_guards(operation, [t for t in outputs if t is not None])
    backends.counts[operation, "cpu", ""] += 1
    return outputs, ""


def infer_cell(operation, cell, x, h, c, w_ih, w_hh, b_ih, b_hh):
    """(h, c) after a cell's step, c None unless lstm; or None. `auto` does not leave this size to torch."""
    weights = (w_ih, w_hh, b_ih, b_hh)
    if torch.is_grad_enabled() or b_ih is None or b_hh is None:
        return None
    if not need_no_dispatch((x, h, *weights) if c is None else (x, h, c, *weights)):
        return None
    shape = h.shape
    if x.dim() != 2 or len(shape) != 2 or x.shape[0] != shape[0]:
        return None
    (batch, inputs), hidden, rows = x.shape, shape[1], auto.GATES[cell] * shape[1]
    if not (batch and hidden) or (c is not None and c.shape != shape):
        return None
    if w_ih.shape != (rows, inputs) or w_hh.shape != (rows, hidden) or not b_ih.shape == b_hh.shape == (rows,):
        return None
    outputs = None, x.new_empty(shape), None if c is None else x.new_empty(shape)
    found, reason = _run(operation, Given(cell, x, h, c, weights), outputs, backends._state.wish != "auto")
    if reason is not NOT_KEPT:
        return found and found[1:]
    backends.counts[operation, "torch", reason] += 1
    found = TORCH_CELLS[cell](x, h if c is None else (h, c), *weights)
    return (found, None) if c is None else found


def infer_layers(operation, cell, x, states, weights, form, batch_first):
    """(y, h_n, c_n) of layers in one direction without dropout or projection, c_n None unless lstm; None where a tensor has
    no memory. `auto` does not leave this size to torch, `need_no_dispatch` said yes of the tensors, and they fit.

    Args as `recurrent.lstm`'s; states: [h_0], or [h_0, c_0] for lstm, all None for zeros; form: of the weights.
    """
    first, second, _ = x.shape
    steps, batch = (second, first) if batch_first else (first, second)
    layers, hidden, is_lstm = form.layers, form.hidden, cell == "lstm"
    y, h_n = x.new_empty(first, second, hidden), x.new_empty(layers, batch, hidden)
    c_0, c_n = (states[1], x.new_empty(layers, batch, hidden)) if is_lstm else (None, None)
    may_pack = steps > 1 or backends._state.wish != "auto"
    given = Given(cell, x, states[0], c_0, weights, layers, batch_first)
    found, reason = _run(operation, given, (y, h_n, c_n), may_pack)
    if reason is not NOT_KEPT:
        return found
    backends.counts[operation, "torch", reason] += 1
    initial = [x.new_zeros(h_n.shape) for _ in states] if states[0] is None else states
    options = form.has_bias, layers, 0.0, False, False, batch_first
    found = TORCH_LAYERS[cell](x, initial if is_lstm else initial[0], weights, *options)
    return found if is_lstm else (*found, None)
