"""RNN, LSTM and GRU: stacks of layers in one direction or two, on padded, packed and ragged batches."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from pyflash.auto import recurrent as auto
from pyflash.ops.core import backends
from pyflash.ops.core.backends import Operation
from pyflash.ops.core.checks import expect, is_plain
from pyflash.ops.core.choice import choose, tracing_derivatives
from pyflash.ops.core.dtypes import ALL_BUT_FLOAT64, FLOATS, cast_by_autocast
from pyflash.ops.pointwise.dropout import dropout as _dropout
from pyflash.ops.recurrent import reference
from pyflash.ops.recurrent.checks import check_input, check_lengths, check_state, form_of
from pyflash.ops.recurrent.operators import has_step, rnn_layer, rnn_step
from pyflash.ops.recurrent.stream import TORCH_LAYERS, infer_layers


def _rules(backend, size, dtype):
    # A compiled graph takes our operator for any size: torch's is unrolled into its steps there.
    return "" if torch.compiler.is_compiling() else auto.rules(backend, size, dtype)


OPERATIONS = {
    name: Operation(
        name, dtypes={"cpu": FLOATS, "triton": ALL_BUT_FLOAT64}, rules=_rules, sizes="pyflash.auto.recurrent.Size"
    )
    for name in ("rnn", "lstm", "gru")
}
_NO_PROJECTION = "triton has no kernel for a projection (proj_size)"
OPERATIONS["lstm"].notes["triton"] = _NO_PROJECTION


def _reference_layer(x, h_0, c_0, weights, rows, steps, cell, batch_first, backend, **_):
    """`rnn_layer` in torch operations that torch.func and forward mode see."""
    return reference.layer(x, h_0, c_0, weights, rows, steps, cell, batch_first)[:4]


def _stack(layer, x, h_0, c_0, params, form, rows, steps, cell, batch_first, dropout, return_cells, save_gates, wish):
    """y, h_n, c_n and cells of all layers; what lies above a layer reads its y where it is."""
    per_layer = form.each * form.directions
    outputs = []
    for i in range(form.layers):
        if i and dropout:
            x = _dropout(x, dropout)
        own = slice(i * form.directions, (i + 1) * form.directions)
        x, *rest = layer(
            x, h_0 if form.layers == 1 else h_0[own], c_0 if c_0 is None or form.layers == 1 else c_0[own],
            params[i * per_layer : (i + 1) * per_layer], rows, steps, cell, batch_first, wish,
            return_cells=return_cells, save_gates=save_gates,
        )  # fmt: skip
        outputs.append(rest)
    if form.layers == 1:
        return x, *outputs[0]
    h_n, c_n, cells = zip(*outputs)
    return x, torch.cat(h_n), None if c_0 is None else torch.cat(c_n), torch.cat(cells) if return_cells else None


def _is_stream(form, dropout):
    """May single steps go through `rnn_step`? A compiled graph is not to be split by the number of steps."""
    return not dropout and form.directions == 1 and form.output == form.hidden and not torch.compiler.is_compiling()


def _step(x, h_0, c_0, params, form, cell, batch_first, wish):
    """y, h_n and c_n of one step through all layers, with little Python."""
    time = 1 if batch_first else 0
    row, h_n, c_n = x.squeeze(time), [], []
    for i in range(form.layers):
        weights = params[i * form.each : (i + 1) * form.each]
        row, c = rnn_step(row, h_0[i], None if c_0 is None else c_0[i], weights, cell, wish)
        h_n.append(row)
        c_n.append(c)
    return row.unsqueeze(time), torch.stack(h_n), None if c_0 is None else torch.stack(c_n)


def _torch_stack(x, h_0, c_0, params, form, steps, cell, batch_first, dropout, training):
    """PyTorch's own, for the whole stack."""
    options = (form.has_bias, form.layers, dropout, training, form.directions == 2)
    hx = h_0 if c_0 is None else (h_0, c_0)
    if steps is None:
        outputs = TORCH_LAYERS[cell](x, hx, params, *options, batch_first)
    else:
        outputs = TORCH_LAYERS[cell](x, steps, hx, params, *options)
    return (*outputs, None) if c_0 is None else outputs


def _cast_by_autocast(cell, is_packed, tensors):
    """On a CPU torch's gru, and its lstm of packed sequences, keep the states' type."""
    keeps = tensors[0].is_cpu and (cell == "gru" or (cell == "lstm" and is_packed))
    return cast_by_autocast(tensors, tensors[0].dtype if keeps else None)


def _ragged(lengths, steps, device):
    """(rows by length, longest first; sequences still running at each step): nothing is read on the host."""
    lengths = lengths.to(device, torch.int64)
    rows = torch.argsort(lengths, descending=True, stable=True)
    return rows, (lengths > torch.arange(steps, device=device)[:, None]).sum(1)


def _states(operation, hx, is_lstm):
    """[h_0] or [h_0, c_0], None where none is given."""
    if not is_lstm:
        if hx is not None and not isinstance(hx, Tensor):
            raise TypeError(f"pyflash.{operation}: hx is a {type(hx).__name__}, expected a tensor, h_0, or None")
        return [hx]
    if hx is None:
        return [None, None]
    if isinstance(hx, Tensor) or len(hx) != 2:
        raise RuntimeError(f"pyflash.{operation}: hx is not a pair of tensors (h_0, c_0)")
    return list(hx)


def _initial(operation, states, form, x, batch, is_batched):
    """The initial states, checked, as [layers * directions, B, features]; zeros where none is given."""
    rows, found = form.layers * form.directions, []
    for i, state in enumerate(states):
        shape = (rows, batch, form.hidden if i else form.output)
        if state is None:
            found.append(x.new_zeros(shape))
            continue
        check_state(operation, f"hidden[{i}]" if len(states) > 1 else "hidden", state, shape, x, is_batched)
        found.append(state if is_batched else state.unsqueeze(1))
    return found[0], found[1] if len(found) > 1 else None


def _batch_of(steps, h_0):
    """Sequences of a packed batch; while tracing, where a value is not to be read, as many as there are states."""
    return h_0.shape[1] if torch.compiler.is_compiling() and h_0 is not None else int(steps[0])


def _recurrent(
    cell, input, hx, params, *, bidirectional, batch_first, dropout, training, lengths, return_cells, save_gates
):
    """output, h_n, c_n and cells, in the caller's layout."""
    operation = "rnn" if cell.startswith("rnn") else cell
    is_packed = isinstance(input, PackedSequence)
    batch_first = batch_first and not is_packed
    states = _states(operation, hx, cell == "lstm")
    if not (is_packed or bidirectional or return_cells or lengths is not None or (dropout and training)):
        found = infer_layers(operation, cell, input, states, params, batch_first)
        if found is not None:
            return *found, None
    form = form_of(operation, cell, params, bidirectional)
    x, steps, rows = input, None, None
    if is_packed:
        expect(lengths is None, operation, lambda: "lengths is given with a PackedSequence, which has its own")
        x, steps, order, back = input
        if order is not None:
            states = [s if s is None else s.index_select(1, order) for s in states]
    of_c = (x if states[-1] is None else states[-1]).dtype
    x, *rest = _cast_by_autocast(cell, is_packed, [x, *states, *params])
    states, params = rest[: len(states)], rest[len(states) :]
    check_input(operation, x, params, form, is_packed)
    is_batched, batch_dim = is_packed or x.dim() == 3, 0 if batch_first else 1
    if not is_batched:
        x = x.unsqueeze(batch_dim)
    length, batch = (
        (len(steps), _batch_of(steps, states[0])) if is_packed else (x.shape[1 - batch_dim], x.shape[batch_dim])
    )
    expect(length > 0, operation, lambda: "Expected sequence length to be larger than 0 in RNN", RuntimeError)
    h_0, c_0 = _initial(operation, states, form, x, batch, is_batched)
    if lengths is not None:
        expect(is_batched, operation, lambda: "lengths is given with an input of one sequence, which has no batch")
        lengths = lengths if isinstance(lengths, Tensor) else torch.as_tensor(lengths, device=x.device)
        if not check_lengths(operation, lengths, batch, length):
            rows, steps = _ragged(lengths, length, x.device)
    y, h_n, c_n, cells = _run(
        operation,
        x,
        h_0,
        c_0,
        params,
        form,
        rows,
        steps,
        cell,
        batch_first,
        dropout,
        training,
        return_cells,
        save_gates,
    )
    if c_n is not None and form.output != form.hidden and x.is_cpu:
        c_n = c_n.to(of_c)  # autocast leaves this state alone in torch, where there is a projection
    if is_packed:
        if back is not None:
            h_n, c_n = (s if s is None else s.index_select(1, back) for s in (h_n, c_n))
        return PackedSequence(y, steps, order, back), h_n, c_n, cells
    if return_cells and batch_first:
        cells = cells.transpose(1, 2)
    if not is_batched:
        y, h_n, c_n = y.squeeze(batch_dim), h_n.squeeze(1), c_n if c_n is None else c_n.squeeze(1)
        cells = cells.squeeze(batch_dim + 1) if return_cells else None
    return y, h_n, c_n, cells


def _run(
    operation, x, h_0, c_0, params, form, rows, steps, cell, batch_first, dropout, training, return_cells, save_gates
):
    """The stack by whoever serves it: our kernels, torch, or its reference, which knows every transform."""
    tensors = [x, h_0, *params] if c_0 is None else [x, h_0, c_0, *params]
    size = auto.Size(
        cell, "layers", x.shape[1 if batch_first else 0] if x.dim() == 3 else len(steps), h_0.shape[1], form.inputs,
        form.hidden, form.layers, form.directions, form.output != form.hidden, steps is not None,
        # Whose dropout it is must not depend on gradients: a reentrant checkpoint computes without them, then with.
        (dropout > 0 and training) or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)),
    )  # fmt: skip
    refused = "" if all(map(is_plain, tensors)) else "only strided floating-point tensors are served"
    if size.projected and (not x.is_cpu or backends._state.wish == "triton"):
        refused = refused or _NO_PROJECTION
    wish = choose(OPERATIONS[operation], x, tensors, size=size, refused=refused)
    is_ours = wish is not None
    layer = rnn_layer
    if not is_ours:
        wish = "torch"
        if tracing_derivatives(tensors):
            layer = _reference_layer
        elif not return_cells and rows is None:
            return *_torch_stack(x, h_0, c_0, params, form, steps, cell, batch_first, dropout, training), None
    elif (
        size.steps == 1
        and not (size.training or size.ragged or return_cells)
        and has_step(x, wish)
        and _is_stream(form, dropout * training)
    ):
        return *_step(x, h_0, c_0, params, form, cell, batch_first, wish), None
    if save_gates is None:
        save_gates = is_ours and auto.saves_gates(cell, x.dtype)
    return _stack(
        layer, x, h_0, c_0, params, form, rows, steps, cell, batch_first, dropout if training else 0.0, return_cells,
        save_gates, wish,
    )  # fmt: skip


def lstm(
    input: Tensor | PackedSequence,
    hx: tuple[Tensor, Tensor] | None,
    params: list[Tensor],
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Tensor | None = None,
    return_cells: bool = False,
    save_gates: bool | None = None,
):
    """A stack of LSTM layers, as torch.nn.LSTM computes it from its weights.

    i, f, o = sigmoid(W_i. x + b_i. + W_h. h + b_h.), g = tanh(the same); c' = f c + i g; h' = o tanh(c'), or W_hr times it.

    Args:
        input: [T, B, I], [B, T, I] with `batch_first`, [T, I] without a batch, or a PackedSequence; float32, float64,
            bfloat16 or float16.
        hx: (h_0, c_0), [layers * directions, B, P] and [layers * directions, B, H]; None: zeros. P is H, or the
            projection's size.
        params: the weights of each layer, forward direction first: weight_ih [4 H, I], weight_hh [4 H, P], bias_ih and
            bias_hh [4 H] or neither, weight_hr [P, H] for a projection; gates i, f, g, o. The list nn.LSTM keeps.
        dropout: between layers, while `training`; the mask is `dropout`'s.
        lengths: [B] integers, on any device: how many steps of each sequence count; in any order, zero included. The
            output past them is zero, and the states are those of the last step that counts.
        return_cells: return c after every step, too.
        save_gates: keep the gates for the backward (4 T B H values a layer) rather than compute them again there; None:
            what measured faster.
    Returns:
        output, (h_n, c_n): as torch.nn.LSTM; output like input with directions * P features. With `return_cells` a third:
            [layers * directions, T, B, H] (B and T swapped with `batch_first`), float32 (float64 for float64).
    Raises:
        RuntimeError, ValueError: as torch.nn.LSTM.  ValueError: lengths out of range.
    Numerics: gates and c in float32 (float64 for float64), h stored in the input's type; deterministic. Gradients to any
        order, in evaluation and repeatedly.
    """
    output, h_n, c_n, cells = _recurrent(
        "lstm", input, hx, params, bidirectional=bidirectional, batch_first=batch_first, dropout=dropout,
        training=training, lengths=lengths, return_cells=return_cells, save_gates=save_gates,
    )  # fmt: skip
    return (output, (h_n, c_n), cells) if return_cells else (output, (h_n, c_n))


def gru(
    input: Tensor | PackedSequence,
    hx: Tensor | None,
    params: list[Tensor],
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Tensor | None = None,
    save_gates: bool | None = None,
):
    """A stack of GRU layers, as torch.nn.GRU computes it from its weights.

    r, z = sigmoid(W_i. x + b_i. + W_h. h + b_h.), n = tanh(W_in x + b_in + r (W_hn h + b_hn)); h' = (1 - z) n + z h.
    Arguments as `lstm`'s; hx is h_0, the gates are r, z, n. Returns (output, h_n).
    """
    return _recurrent(
        "gru", input, hx, params, bidirectional=bidirectional, batch_first=batch_first, dropout=dropout,
        training=training, lengths=lengths, return_cells=False, save_gates=save_gates,
    )[:2]  # fmt: skip


def rnn(
    input: Tensor | PackedSequence,
    hx: Tensor | None,
    params: list[Tensor],
    *,
    nonlinearity: str = "tanh",
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Tensor | None = None,
):
    """A stack of plain recurrent layers, h' = tanh(W_ih x + b_ih + W_hh h + b_hh) or relu of it, as torch.nn.RNN.

    Arguments as `lstm`'s; hx is h_0, `nonlinearity` "tanh" or "relu". Returns (output, h_n).
    """
    expect(
        nonlinearity in ("tanh", "relu"),
        "rnn",
        lambda: f"Unknown nonlinearity {nonlinearity!r}, expected 'tanh' or 'relu'",
    )
    return _recurrent(
        f"rnn_{nonlinearity}", input, hx, params, bidirectional=bidirectional, batch_first=batch_first, dropout=dropout,
        training=training, lengths=lengths, return_cells=False, save_gates=False,
    )[:2]  # fmt: skip
