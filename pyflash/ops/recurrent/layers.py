"""RNN, LSTM and GRU: stacks of layers in one direction or two, on padded, packed and ragged batches."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from pyflash.auto import recurrent as auto
from pyflash.ops.core import backends
from pyflash.ops.core.backends import Operation
from pyflash.ops.core.checks import NOT_PLAIN, PLAIN_TYPES, expect
from pyflash.ops.core.choice import Refused, choose, tracing_derivatives
from pyflash.ops.core.dtypes import ALL_BUT_FLOAT64, FLOATS, cast_by_autocast
from pyflash.ops.pointwise.dropout import dropout
from pyflash.ops.recurrent import reference
from pyflash.ops.recurrent.checks import Form, are_plain, check_input, check_lengths, check_state, form_of
from pyflash.ops.recurrent.operators import CUDA_NOTE, NO_PROJECTION, has_step, lacking, rnn_layer, rnn_step
from pyflash.ops.recurrent.stream import TORCH_LAYERS, infer_layers, need_no_dispatch


def _unless_compiling(measured):
    def rules(backend, size, dtype):
        # A compiled graph takes our operator for any size: torch's is unrolled into its steps there.
        return "" if torch.compiler.is_compiling() else measured(backend, size, dtype)

    rules.decide, rules.forget = measured.decide, measured.forget
    return rules


_rules = _unless_compiling(auto.rules)

OPERATIONS = {
    name: Operation(
        name,
        dtypes={"cpu": FLOATS, "triton": ALL_BUT_FLOAT64, "cuda": ALL_BUT_FLOAT64},
        rules=_rules,
        sizes="pyflash.auto.recurrent.Size",
        notes={"cuda": CUDA_NOTE},
    )
    for name in ("rnn", "lstm", "gru")
}
OPERATION_OF = {"lstm": "lstm", "gru": "gru", "rnn_tanh": "rnn", "rnn_relu": "rnn"}
OPERATIONS["lstm"].notes.update({"triton": NO_PROJECTION, "cuda": f"{NO_PROJECTION}; {CUDA_NOTE}"})


class Call(NamedTuple):
    """A stack of layers to be computed: every argument checked, and the tensors in the operators' layout."""

    operation: str  # rnn, lstm, gru
    cell: str  # lstm, gru, rnn_tanh, rnn_relu
    x: Tensor  # [T, B, I], [B, T, I] when batch_first, or packed [total, I]
    h_0: Tensor  # [layers * directions, B, P]
    c_0: Tensor | None  # [layers * directions, B, H], lstm
    params: list[Tensor]
    form: Form
    rows: Tensor | None  # [B]: the row of the batch at each sorted position, of a ragged batch
    steps: Tensor | None  # [T]: how many sequences are still running, of a ragged or packed batch
    length: int  # T
    batch_first: bool
    dropout: float
    training: bool  # the module's mode
    return_cells: bool
    save_gates: bool
    packed: PackedSequence | None  # what x was taken out of
    is_batched: bool
    c_dtype: torch.dtype  # of c_0 as it was given

    @property
    def drops(self) -> bool:
        return self.dropout > 0 and self.training


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


def _cast_by_autocast(cell, is_packed, tensors):
    """On a CPU torch's gru, and its lstm of packed sequences, keep the states' type."""
    keeps = tensors[0].is_cpu and (cell == "gru" or (cell == "lstm" and is_packed))
    return cast_by_autocast(tensors, tensors[0].dtype if keeps else None)


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


def _ragged(operation, lengths, batch, length, x, is_batched):
    """(rows by length, longest first; sequences still running at each step), both None where every sequence is whole.
    On a GPU nothing is read on the host."""
    expect(is_batched, operation, lambda: "lengths is given with an input of one sequence, which has no batch")
    lengths = lengths if isinstance(lengths, Tensor) else torch.as_tensor(lengths, device=x.device)
    if check_lengths(operation, lengths, batch, length):
        return None, None
    lengths = lengths.to(x.device, torch.int64)
    rows = torch.argsort(lengths, descending=True, stable=True)
    return rows, (lengths > torch.arange(length, device=x.device)[:, None]).sum(1)


def _arrange(
    operation, cell, input, states, params, *, bidirectional, batch_first, dropout, training, lengths, return_cells,
    save_gates,
):  # fmt: skip
    """The `Call` of these arguments.

    Raises:
        TypeError, RuntimeError, ValueError: they fit no stack of layers; torch's types and words.
    """
    form = form_of(operation, cell, tuple([p.shape for p in params]), bidirectional)
    packed = input if isinstance(input, PackedSequence) else None
    x, steps, rows = input, None, None
    if packed is not None:
        expect(lengths is None, operation, lambda: "lengths is given with a PackedSequence, which has its own")
        batch_first, (x, steps, order, _) = False, packed
        if order is not None:
            states = [s if s is None else s.index_select(1, order) for s in states]
    c_dtype = (x if states[-1] is None else states[-1]).dtype
    x, *rest = _cast_by_autocast(cell, packed is not None, [x, *states, *params])
    states, params = rest[: len(states)], rest[len(states) :]
    check_input(operation, x, params, form, packed is not None)
    is_batched = packed is not None or x.dim() == 3
    if not is_batched:
        x = x.unsqueeze(0 if batch_first else 1)
    if packed is not None:
        length, batch = len(steps), _batch_of(steps, states[0])
    else:
        length, batch, _ = (x.shape[1], x.shape[0], 0) if batch_first else x.shape
    if length <= 0:
        raise RuntimeError(f"pyflash.{operation}: Expected sequence length to be larger than 0 in RNN")
    h_0, c_0 = _initial(operation, states, form, x, batch, is_batched)
    if lengths is not None:
        rows, steps = _ragged(operation, lengths, batch, length, x, is_batched)
    return Call(
        operation, cell, x, h_0, c_0, params, form, rows, steps, length, batch_first, dropout, training, return_cells,
        save_gates, packed, is_batched, c_dtype,
    )  # fmt: skip


def _way(call: Call):
    """(what serves the whole stack: y, h_n, c_n and cells of a call and a wish; the wish): our kernels, torch, or its
    reference, which knows every transform."""
    x, h_0, c_0, form = call.x, call.h_0, call.c_0, call.form
    tensors = [x, h_0, *call.params] if c_0 is None else [x, h_0, c_0, *call.params]
    size = auto.Size(
        call.cell, "layers", call.length, h_0.shape[1], form.inputs, form.hidden, form.layers, form.directions,
        form.output != form.hidden, call.steps is not None,
        # Whose dropout it is must not depend on gradients: a reentrant checkpoint computes without them, then with.
        call.drops or (torch.is_grad_enabled() and any([t.requires_grad for t in tensors])),
    )  # fmt: skip
    refused = "" if are_plain(tensors) else NOT_PLAIN
    wish = choose(
        OPERATIONS[call.operation], x, tensors, size, refused, lacking=lacking(x, size), order=auto.order(size)
    )
    if wish is None and not (tracing_derivatives(tensors) or call.return_cells or call.rows is not None):
        return _torch_stack, wish
    if wish is not None and _is_stream(call, size, wish):
        return _step, wish
    return _stack, wish


def _stack(call, wish):
    """Layer by layer, by the kernels of `wish`; None: by the reference."""
    x, h_0, c_0, form = call.x, call.h_0, call.c_0, call.form
    layer = _layer_for_derivatives if wish is None and tracing_derivatives([x, h_0, c_0, *call.params]) else rnn_layer
    per_layer, outputs = form.each * form.directions, []
    for i in range(form.layers):
        if i and call.drops:
            x = dropout(x, call.dropout)
        if form.layers > 1:
            own = slice(i * form.directions, (i + 1) * form.directions)
            h_0, c_0 = call.h_0[own], None if call.c_0 is None else call.c_0[own]
        # What lies above a layer reads its y where it is.
        x, *rest = layer(
            x, h_0, c_0, call.params[i * per_layer : (i + 1) * per_layer], call.rows, call.steps, call.cell,
            call.batch_first, wish or "torch", call.return_cells, call.save_gates and wish is not None,
        )  # fmt: skip
        outputs.append(rest)
    if form.layers == 1:
        return x, *outputs[0]
    h_n, c_n, cells = zip(*outputs)
    return (
        x,
        torch.cat(h_n),
        None if c_0 is None else torch.cat(c_n),
        torch.cat(cells) if call.return_cells else None,
    )


def _layer_for_derivatives(x, h_0, c_0, weights, rows, steps, cell, batch_first, *_):
    """`rnn_layer` in torch operations that torch.func and forward mode see."""
    return reference.layer(x, h_0, c_0, weights, rows, steps, cell, batch_first)[:4]


def _torch_stack(call, _=None):
    """PyTorch's own, for the whole stack."""
    form, c_0 = call.form, call.c_0
    options = (form.has_bias, form.layers, call.dropout, call.training, form.directions == 2)
    hx = call.h_0 if c_0 is None else (call.h_0, c_0)
    if call.steps is None:
        outputs = TORCH_LAYERS[call.cell](call.x, hx, call.params, *options, call.batch_first)
    else:
        outputs = TORCH_LAYERS[call.cell](call.x, call.steps, hx, call.params, *options)
    return (*outputs, None, None) if c_0 is None else (*outputs, None)


def _is_stream(call, size, wish):
    """Is this a single step for `rnn_step`? A compiled graph is not to be split by the number of steps."""
    return (
        size.steps == 1
        and not (size.training or size.ragged or size.projected or call.return_cells)
        and size.directions == 1
        and has_step(call.x, wish)
        and not torch.compiler.is_compiling()
    )


def _step(call, wish):
    """y, h_n and c_n of one step through all layers, with little Python; no cells."""
    time, each = 1 if call.batch_first else 0, call.form.each
    row, h_n, c_n = call.x.squeeze(time), [], []
    for i in range(call.form.layers):
        weights, c_0 = call.params[i * each : (i + 1) * each], None if call.c_0 is None else call.c_0[i]
        row, c = rnn_step(row, call.h_0[i], c_0, weights, call.cell, wish)
        h_n.append(row)
        c_n.append(c)
    return row.unsqueeze(time), torch.stack(h_n), None if call.c_0 is None else torch.stack(c_n), None


def _restore(call: Call, y, h_n, c_n, cells):
    """What `_serve` gave, in the caller's layout: a packed batch packed again and in its order, no batch where none was."""
    if c_n is not None and call.form.output != call.form.hidden and call.x.is_cpu:
        c_n = c_n.to(call.c_dtype)  # autocast leaves this state alone in torch, where there is a projection
    if call.packed is not None:
        _, steps, order, back = call.packed
        if back is not None:
            h_n, c_n = (s if s is None else s.index_select(1, back) for s in (h_n, c_n))
        return PackedSequence(y, steps, order, back), h_n, c_n, cells
    if call.return_cells and call.batch_first:
        cells = cells.transpose(1, 2)
    if not call.is_batched:
        batch_dim = 0 if call.batch_first else 1
        y, h_n, c_n = y.squeeze(batch_dim), h_n.squeeze(1), c_n if c_n is None else c_n.squeeze(1)
        cells = cells.squeeze(batch_dim + 1) if call.return_cells else None
    return y, h_n, c_n, cells


class Fitting(NamedTuple):
    """What the shapes of a padded batch tell."""

    form: Form
    length: int
    batch: int


@lru_cache(maxsize=1024)
def _fitting(operation, cell, shape, states, params, bidirectional, batch_first) -> Fitting | None:
    """Of a batch that is not empty, where every shape fits; else None: `_arrange` says what does not.

    shape: of the input; states, params: the shapes of the initial states, where they are given, and of the weights.
    """
    if len(shape) != 3:
        return None
    try:
        form = form_of(operation, cell, params, bidirectional)
    except RuntimeError:
        return None
    length, batch = (shape[1], shape[0]) if batch_first else shape[:2]
    if shape[2] != form.inputs or not (length and batch and form.hidden and form.output):
        return None
    for i, state in enumerate(states):
        if state != (form.layers * form.directions, batch, form.hidden if i else form.output):
            return None
    return Fitting(form, length, batch)


def _key_of(x, *others):
    return x.dtype, x.shape, *[t.shape for t in others]


def _size_of(operation, cell, bidirectional, batch_first):
    """Of tensors that `need_no_dispatch`: initial states, which are what has three dimensions, or none, and weights."""

    def size_of(training, x, *others):
        states, params = (tuple([t.shape for t in others if (t.dim() == 3) is is_state]) for is_state in (True, False))
        if len(states) not in (0, 1 + (cell == "lstm")):
            return None
        fitting = _fitting(operation, cell, x.shape, states, params, bidirectional, batch_first)
        if fitting is None:
            return None
        form, length, batch = fitting
        return auto.Size(
            cell, "layers", length, batch, form.inputs, form.hidden, form.layers, form.directions,
            form.output != form.hidden, False, training,
        )  # fmt: skip

    return size_of


_REFUSED = {
    (cell, *options): Refused(OPERATIONS[operation], _size_of(operation, cell, *options), _key_of)
    for cell, operation in OPERATION_OF.items()
    for options in ((False, False), (False, True), (True, False), (True, True))  # bidirectional, batch_first
}


def _usual(operation, cell, x, states, params, bidirectional, batch_first, drops):
    """(`Fitting`, who serves the call: infer_layers, _stack or _torch_stack) of a padded batch of ordinary tensors, told by
    one look at each; None: `_arrange` and `_way` look closer, and say what is wrong with a call."""
    wish = backends._state.wish
    if type(x) not in PLAIN_TYPES or (wish != "auto" and wish != "cpu"):
        return None
    given = () if states[0] is None and states[-1] is None else states
    tensors, is_refused = (x, *given, *params), False
    if not need_no_dispatch(tensors):
        return None
    if wish == "auto":
        is_refused = None if drops else _REFUSED[cell, bool(bidirectional), bool(batch_first)].holds(*tensors)
        if is_refused is None:
            return None
    shapes = tuple([t.shape for t in given]) if given else (), tuple([p.shape for p in params])
    fitting = _fitting(operation, cell, x.shape, *shapes, bidirectional, batch_first)
    if fitting is None:
        return None
    if is_refused:
        return fitting, _torch_stack
    is_training = torch.is_grad_enabled() and any([t.requires_grad for t in tensors])
    if is_training or drops or bidirectional or fitting.form.output != fitting.form.hidden:
        return fitting, _stack
    return fitting, infer_layers


def recurrent(
    cell, input, hx, params, *, bidirectional=False, batch_first=False, dropout=0.0, training=False, lengths=None,
    return_cells=False, save_gates=None,
):  # fmt: skip
    """output, h_n, c_n (None unless lstm) and cells (None unless `return_cells`); arguments as `lstm`'s.

    cell: lstm, gru, rnn_tanh or rnn_relu.
    """
    operation = OPERATION_OF[cell]
    states = _states(operation, hx, cell == "lstm")
    save_gates = auto.SAVES_GATES if save_gates is None else save_gates
    usual = None
    if lengths is None and not return_cells:
        usual = _usual(operation, cell, input, states, params, bidirectional, batch_first, dropout > 0 and training)
    if usual is not None and usual[1] is infer_layers:
        found = infer_layers(operation, cell, input, states, params, usual[0].form, batch_first)
        if found is not None:
            return *found, None
        usual = None
    if usual is not None:
        (form, length, batch), serve = usual
        wish = backends._state.wish
        if serve is _stack:  # what is torch's was counted when that was found out
            backends.counts[operation, "cpu", ""] += 1
        h_0, c_0 = _initial(operation, states, form, input, batch, True)
        call = Call(
            operation, cell, input, h_0, c_0, params, form, None, None, length, batch_first, dropout, training,
            return_cells, save_gates, None, True, input.dtype,
        )  # fmt: skip
    else:
        call = _arrange(
            operation, cell, input, states, params, bidirectional=bidirectional, batch_first=batch_first,
            dropout=dropout, training=training, lengths=lengths, return_cells=return_cells, save_gates=save_gates,
        )  # fmt: skip
        serve, wish = _way(call)
    return _restore(call, *serve(call, wish))


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
) -> Any:
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
            kept, which measured faster.
    Returns:
        output, (h_n, c_n): as torch.nn.LSTM; output like input with directions * P features. With `return_cells` a third:
            [layers * directions, T, B, H] (B and T swapped with `batch_first`), float32 (float64 for float64).
    Raises:
        RuntimeError, ValueError: as torch.nn.LSTM.  ValueError: lengths out of range.
    Numerics: gates and c in float32 (float64 for float64), h stored in the input's type; deterministic. Gradients to any
        order, in evaluation and repeatedly.
    """
    output, h_n, c_n, cells = recurrent(
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
) -> Any:
    """A stack of GRU layers, as torch.nn.GRU computes it from its weights.

    r, z = sigmoid(W_i. x + b_i. + W_h. h + b_h.), n = tanh(W_in x + b_in + r (W_hn h + b_hn)); h' = (1 - z) n + z h.
    Arguments as `lstm`'s; hx is h_0, the gates are r, z, n. Returns (output, h_n).
    """
    return recurrent(
        "gru", input, hx, params, bidirectional=bidirectional, batch_first=batch_first, dropout=dropout,
        training=training, lengths=lengths, save_gates=save_gates,
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
) -> Any:
    """A stack of plain recurrent layers, h' = tanh(W_ih x + b_ih + W_hh h + b_hh) or relu of it, as torch.nn.RNN.

    Arguments as `lstm`'s; hx is h_0, `nonlinearity` "tanh" or "relu". Returns (output, h_n).
    """
    expect(
        nonlinearity in ("tanh", "relu"),
        "rnn",
        lambda: f"Unknown nonlinearity {nonlinearity!r}, expected 'tanh' or 'relu'",
    )
    return recurrent(
        f"rnn_{nonlinearity}", input, hx, params, bidirectional=bidirectional, batch_first=batch_first, dropout=dropout,
        training=training, lengths=lengths,
    )[:2]  # fmt: skip
