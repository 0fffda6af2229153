"""One step of RNN, LSTM and GRU: the recurrent operators with a sequence of one."""

from __future__ import annotations

import torch
from torch import Tensor

from pyflash.auto import recurrent as auto
from pyflash.ops.core.backends import Operation
from pyflash.ops.core.checks import NOT_PLAIN, expect, expect_tensors
from pyflash.ops.core.choice import Refused, choose, tracing_derivatives
from pyflash.ops.core.dtypes import ALL_BUT_FLOAT64, FLOATS, cast_by_autocast
from pyflash.ops.recurrent import reference
from pyflash.ops.recurrent.checks import are_plain, check_one_type
from pyflash.ops.recurrent.layers import _rules
from pyflash.ops.recurrent.operators import CUDA_NOTE, has_step, lacking, rnn_layer, rnn_step
from pyflash.ops.recurrent.stream import TORCH_CELLS, infer_cell

OPERATIONS = {
    name: Operation(
        name,
        dtypes={"cpu": FLOATS, "triton": ALL_BUT_FLOAT64, "cuda": ALL_BUT_FLOAT64},
        rules=_rules,
        sizes="pyflash.auto.recurrent.Size",
        notes={"cuda": CUDA_NOTE},
    )
    for name in ("rnn_cell", "lstm_cell", "gru_cell")
}
OPERATION_OF = {"lstm": "lstm_cell", "gru": "gru_cell", "rnn_tanh": "rnn_cell", "rnn_relu": "rnn_cell"}


def _size_of(cell):
    def size_of(training, x, h, c, w_ih, w_hh, *_):
        if not x.dim() == w_hh.dim() == 2:
            return None
        (batch, inputs), (rows, hidden) = x.shape, w_hh.shape
        if rows != auto.GATES[cell] * hidden:
            return None
        return auto.Size(cell, "cell", 1, batch, inputs, hidden, 1, 1, False, False, training)

    return size_of


def _key_of(x, h, c, w_ih, w_hh, *_):
    """Where other shapes do not fit to these, the call is an error, whoever serves it."""
    return x.shape, w_hh.shape, x.dtype, x.is_cpu


_REFUSED = {cell: Refused(OPERATIONS[name], _size_of(cell), _key_of) for cell, name in OPERATION_OF.items()}


def _columns(t):
    """For a message in torch's words: the columns of a matrix, or the shape of what is none."""
    return t.shape[1] if t.dim() == 2 else f"shape {tuple(t.shape)}"


def _check(operation, cell, x, h, c, w_ih, w_hh, b_ih, b_hh):
    """Raises what torch raises, and for every shape that a kernel relies on."""

    def check(condition, message):
        expect(condition, operation, message, RuntimeError)

    def shape_of(name, tensor, shape):
        check(
            tensor.shape == shape,
            lambda: f"{name} has shape {tuple(tensor.shape)}, expected {shape}",
        )

    for name, matrix in (("weight_ih", w_ih), ("weight_hh", w_hh), ("input", x)):
        if matrix.dim() != 2:
            raise IndexError(f"pyflash.{operation}: {name} has shape {tuple(matrix.shape)}, expected 2 dimensions")
    rows, inputs = w_ih.shape
    hidden = rows // auto.GATES[cell]
    check(
        x.shape[1] == inputs,
        lambda: f"input has inconsistent input_size: got {_columns(x)} expected {inputs}",
    )
    for i, state in enumerate((h,) if c is None else (h, c)):
        check(
            state.dim() == 2 and state.shape[1] == hidden,
            lambda i=i, state=state: (
                f"hidden{i} has inconsistent hidden_size: got {_columns(state)}, expected {hidden}"
            ),
        )
        check(
            state.shape[0] == x.shape[0],
            lambda i=i, state=state: (
                f"Input batch size {x.shape[0]} doesn't match hidden{i} batch size {state.shape[0]}"
            ),
        )
    shape_of("weight_hh", w_hh, (auto.GATES[cell] * hidden, hidden))
    check(
        rows == auto.GATES[cell] * hidden,
        lambda: f"weight_ih has {rows} rows, expected a multiple of {auto.GATES[cell]}",
    )
    for name, bias in (("bias_ih", b_ih), ("bias_hh", b_hh)):
        if bias is not None:
            shape_of(name, bias, (rows,))
    check_one_type(operation, x, h, c, w_ih, w_hh, b_ih, b_hh)


def _cast_by_autocast(cell, tensors):
    """On a CPU torch's lstm_cell and gru_cell keep the states' type."""
    keeps = tensors[0].is_cpu and cell in ("lstm", "gru")
    return cast_by_autocast(tensors, tensors[1].dtype if keeps else None)


def _fits(cell, x, h, c, weights):
    """The usual call, told in few steps: one type and device, plain tensors, every shape as it should be."""
    w_ih, w_hh = weights[:2]
    if not x.dim() == h.dim() == w_ih.dim() == w_hh.dim() == 2:
        return False
    (batch, inputs), (rows, hidden), dtype, device = x.shape, w_hh.shape, x.dtype, x.device
    if rows != auto.GATES[cell] * hidden or w_ih.shape != (rows, inputs) or h.shape != (batch, hidden):
        return False
    if c is not None and c.shape != (batch, hidden):
        return False
    for t in (h, *weights) if c is None else (h, c, *weights):
        if t.dtype != dtype or t.device != device:
            return False
    return all([b.shape == (rows,) for b in weights[2:]])


def step(cell, x, h, c, w_ih, w_hh, b_ih, b_hh):
    """h and c (None unless lstm) after one step of x [B, I]; arguments as `lstm_cell`'s.

    cell: lstm, gru, rnn_tanh or rnn_relu.
    """
    given, operation = (x, h, c, w_ih, w_hh, b_ih, b_hh), OPERATION_OF[cell]
    if not tracing_derivatives(given) and _REFUSED[cell].holds(*given):
        try:
            return _torch_step(cell, *given)
        except (RuntimeError, IndexError):
            _check(operation, cell, *given)  # says it in our words
            raise
    found = infer_cell(operation, cell, *given)
    if found is not None:
        return found
    optional = ("b_ih", "b_hh") if cell == "lstm" else ("b_ih", "b_hh", "c")
    expect_tensors(operation, optional, input=x, h=h, c=c, w_ih=w_ih, w_hh=w_hh, b_ih=b_ih, b_hh=b_hh)
    x, h, c, w_ih, w_hh, b_ih, b_hh = _cast_by_autocast(cell, given)
    weights = [w_ih, w_hh]
    if b_ih is not None or b_hh is not None:
        weights += [b_hh.new_zeros(b_hh.shape) if b_ih is None else b_ih]
        weights += [b_ih.new_zeros(b_ih.shape) if b_hh is None else b_hh]
    if not _fits(cell, x, h, c, weights):
        _check(operation, cell, x, h, c, w_ih, w_hh, b_ih, b_hh)
    tensors = [x, h, *weights] if c is None else [x, h, c, *weights]
    training = torch.is_grad_enabled() and any([t.requires_grad for t in tensors])
    (batch, inputs), hidden = x.shape, h.shape[1]
    size = auto.Size(cell, "cell", 1, batch, inputs, hidden, 1, 1, False, False, training)
    refused = "" if are_plain(tensors) else NOT_PLAIN
    wish = choose(OPERATIONS[operation], x, tensors, size=size, refused=refused, lacking=lacking(x, size))
    if wish is not None and not training and has_step(x, wish):
        return rnn_step(x, h, c, weights, cell, wish)
    if wish is None and not tracing_derivatives(tensors):
        return _torch_step(cell, *given)
    sequence = x.unsqueeze(0), h.unsqueeze(0), None if c is None else c.unsqueeze(0), weights, None, None, cell, False
    if wish is None:
        found = reference.layer(*sequence)
    else:
        found = rnn_layer(*sequence, wish, save_gates=auto.SAVES_GATES)
    return found[1].squeeze(0), None if c is None else found[2].squeeze(0)


def _torch_step(cell, x, h, c, *weights):
    """torch's own, which has its own errors."""
    if c is None:
        return TORCH_CELLS[cell](x, h, *weights), None
    return TORCH_CELLS[cell](x, (h, c), *weights)


def pair_of_states(hx):
    if isinstance(hx, Tensor):
        raise TypeError("pyflash.lstm_cell: hx is a tensor, expected a pair of tensors (h, c)")
    if len(hx) != 2:
        raise RuntimeError(f"pyflash.lstm_cell: expects two hidden states (h, c), got {len(hx)}")
    return hx


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of an LSTM, as torch.lstm_cell: (h, c) after `input`.

    Args:
        input: [B, I], float32, float64, bfloat16 or float16.
        hx: (h, c), each [B, H].
        w_ih, w_hh, b_ih, b_hh: [4 H, I], [4 H, H], [4 H], [4 H]; gates i, f, g, o.
    Raises:
        RuntimeError: shapes, types or devices disagree. TypeError: hx is no pair.
    """
    h, c = pair_of_states(hx)
    return step("lstm", input, h, c, w_ih, w_hh, b_ih, b_hh)


def gru_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    """One step of a GRU, as torch.gru_cell; arguments as `lstm_cell`'s with 3 gates, r, z, n, and hx = h."""
    return step("gru", input, hx, None, w_ih, w_hh, b_ih, b_hh)[0]


def rnn_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    nonlinearity: str = "tanh",
) -> Tensor:
    """One step of a plain recurrent layer, as torch.rnn_tanh_cell and torch.rnn_relu_cell; arguments as `lstm_cell`'s
    with one gate, and hx = h."""
    expect(nonlinearity in ("tanh", "relu"), "rnn_cell", lambda: f"Unknown nonlinearity: {nonlinearity}", RuntimeError)
    return step(f"rnn_{nonlinearity}", input, hx, None, w_ih, w_hh, b_ih, b_hh)[0]
