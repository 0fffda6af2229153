"""What the tests of recurrent layers share: cases, our call and torch's on the same weights, truth in float64."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from helpers import cpu_isas, use_there
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import pyflash.functional as F
import pyflash.nn as nn
from pyflash.ops.recurrent import cells as rnn_cell
from pyflash.ops.recurrent import layers as recurrent

CELLS = ("LSTM", "GRU", "RNN")
BACKENDS = ("torch", "reference")  # as `serving` takes them
CPU = [f"cpu:{isa}" for isa in cpu_isas()]


@contextmanager
def serving(backend: str):
    """A backend as in `helpers.use`, or "reference": our operators' own torch operations, where torch would serve."""
    if backend != "reference":
        with use_there(backend):
            yield
        return
    before = recurrent.choose, rnn_cell.choose
    recurrent.choose = rnn_cell.choose = lambda *args, **kwargs: "torch"
    try:
        yield
    finally:
        recurrent.choose, rnn_cell.choose = before


@dataclass(frozen=True)
class Case:
    """A module, the batch it gets, and why."""

    cell: str
    why: str
    steps: int = 7
    batch: int = 4
    inputs: int = 5
    hidden: int = 6
    options: dict = field(default_factory=dict)
    layout: str = "padded"  # unbatched, sorted or unsorted (packed), ragged (lengths)
    lengths: tuple = ()
    has_states: bool = True
    strides: str = ""  # "expanded" over the batch, "transposed"

    def __str__(self):
        return f"{self.cell} {self.why}".replace(" ", "-")

    def module(self, dtype, ours=False):
        torch.manual_seed(3)
        module = getattr(nn if ours else torch.nn, self.cell)(self.inputs, self.hidden, **self.options)
        return module.to(dtype)

    def inputs_of(self, dtype):
        """x and the initial states (none of them where the case has none), rounded to dtype."""
        torch.manual_seed(4)
        batch_first = self.options.get("batch_first", False)
        shape = (self.batch, self.steps, self.inputs) if batch_first else (self.steps, self.batch, self.inputs)
        x = torch.randn(shape, dtype=torch.float64)
        if self.layout == "unbatched":
            x = x[0] if batch_first else x[:, 0]
        if self.strides == "expanded":
            x = x[:1].expand(shape) if batch_first else x[:, :1].expand(shape)
        elif self.strides == "transposed":
            x = x.mT.contiguous().mT
        rows = self.options.get("num_layers", 1) * (1 + self.options.get("bidirectional", False))
        sizes = [self.options.get("proj_size", 0) or self.hidden, self.hidden][: 1 + (self.cell == "LSTM")]
        states = [torch.randn(rows, self.batch, size, dtype=torch.float64) for size in sizes if self.has_states]
        if self.layout == "unbatched":
            states = [s[:, 0] for s in states]
        return x.to(dtype), [s.to(dtype) for s in states]


def leaf(tensor):
    return tensor.detach().clone(memory_format=torch.preserve_format).requires_grad_()


def flat(outputs):
    """(output, h_n) or (output, (h_n, c_n)) as a flat list of tensors."""
    y, states = outputs[0], outputs[1]
    y = y.data if isinstance(y, PackedSequence) else y
    return [y, *(states if isinstance(states, tuple) else (states,))]


def call(module, case, x, states):
    """One call of a module, ours or torch's, in the layout of the case."""
    hx = None if not states else tuple(states) if case.cell == "LSTM" else states[0]
    batch_first = case.options.get("batch_first", False)
    if case.layout in ("sorted", "unsorted"):
        is_sorted = case.layout == "sorted"
        x = pack_padded_sequence(x, list(case.lengths), batch_first=batch_first, enforce_sorted=is_sorted)
    if case.layout != "ragged":
        return flat(module(x, hx))
    if isinstance(module, nn.rnn._Layers):
        return flat(module(x, hx, lengths=torch.tensor(case.lengths)))
    return row_by_row(module, case, x, states)


def row_by_row(module, case, x, states):
    """Each sequence by itself, in torch: the truth of a ragged batch."""
    batch_first, directions = module.batch_first, 1 + module.bidirectional
    ys, finals = [], []
    for b, length in enumerate(case.lengths):
        own = x[b] if batch_first else x[:, b]
        given = [s[:, b] for s in states] or [
            x.new_zeros(module.num_layers * directions, size)
            for size in (module.proj_size or module.hidden_size, module.hidden_size)[: 1 + (case.cell == "LSTM")]
        ]
        if length == 0:
            ys.append(own.new_zeros(case.steps, directions * given[0].shape[-1]))
            finals.append(given)
            continue
        y, final = module(own[:length], tuple(given) if case.cell == "LSTM" else given[0])
        ys.append(torch.nn.functional.pad(y, (0, 0, 0, case.steps - length)))
        finals.append(final if isinstance(final, tuple) else (final,))
    return [torch.stack(ys, 0 if batch_first else 1), *(torch.stack(list(s), 1) for s in zip(*finals))]


def results(module, case, dtype):
    """Outputs, then the gradients of x, the states and every parameter, for fixed random gradients of the outputs."""
    x, states = case.inputs_of(dtype)
    x, states = leaf(x), [leaf(s) for s in states]
    outputs = call(module, case, x, states)
    generator = torch.Generator().manual_seed(5)
    drawn = [torch.randn(o.shape, generator=generator, dtype=torch.float64, device="cpu") for o in outputs]
    douts = [dout.to(o) for dout, o in zip(drawn, outputs)]
    grads = torch.autograd.grad(outputs, [x, *states, *module.parameters()], douts)
    return (*(o.detach() for o in outputs), *grads)


def truth_and_torch(case, dtype):
    """The same by torch: in float64 on the values rounded to dtype, and in dtype."""
    theirs = case.module(dtype)
    rounded = copy.deepcopy(theirs).double()
    x, states = case.inputs_of(dtype)

    class Rounded(Case):
        def inputs_of(self, _):
            return x.double(), [s.double() for s in states]

    wide = Rounded(**{name: getattr(case, name) for name in case.__dataclass_fields__})
    return results(rounded, wide, torch.float64), results(theirs, case, dtype)


def functional(module, x, hx=None, **options):
    """The function behind a module, on its weights."""
    function = {"LSTM": F.lstm, "GRU": F.gru, "RNN": F.rnn}[type(module).__name__]
    return function(
        x, hx, module._flat_weights, bidirectional=module.bidirectional, batch_first=module.batch_first, **options
    )


# ---- what several backends are asked alike


def gradients_either_way(case, dtype, lengths, backend):
    """Of a forward that stores its gates, and of one whose backward computes them again."""
    module, grads = case.module(dtype, ours=True), []
    x, states = case.inputs_of(dtype)
    with serving(backend):
        for save_gates in (True, False):
            leaves = [leaf(x), *map(leaf, states)]
            hx = tuple(leaves[1:]) if case.cell == "LSTM" else leaves[1]
            y = functional(module, leaves[0], hx, lengths=lengths, save_gates=save_gates)[0]
            grads.append(torch.autograd.grad(y.square().sum(), [*leaves, *module.parameters()]))
    return grads


def assert_padding_is_not_read(hidden, backend, **options):
    """What lies past the end of a sequence may be NaN: results and gradients are the same, and zero there."""
    case = Case("LSTM", "", steps=3, hidden=hidden, options={"bidirectional": True})
    module, lengths = case.module(torch.float32, ours=True), torch.tensor([1, 3, 0, 2])
    x, _ = case.inputs_of(torch.float32)
    grads = []
    with serving(backend):
        for padding in (0.0, float("nan")):
            past = torch.arange(3)[:, None] >= lengths
            own = leaf(torch.where(past[..., None], padding, x))
            y, (h_n, c_n), cells = functional(module, own, lengths=lengths, return_cells=True, **options)
            assert not y[past].any() and not cells[:, past].any()
            total = y.sum() + h_n.square().sum() + c_n.sum() + cells.square().sum()
            grads.append(torch.autograd.grad(total, [own, *module.parameters()]))
    assert all(torch.equal(a, b) for a, b in zip(*grads))
    assert not grads[0][0][past].any()


def gradients_of_a_part(cell, backend):
    """Ours and torch's, where only the last state is used, and only some of the inputs want a gradient."""
    case = Case(cell, "", steps=3, options={"bidirectional": True})
    x, _ = case.inputs_of(torch.float32)
    grads = []
    for module, by in ((case.module(torch.float32, ours=True), backend), (case.module(torch.float32), "torch")):
        module.weight_hh_l0.requires_grad_(False)
        module.bias_ih_l0_reverse.requires_grad_(False)
        with serving(by):
            h_n = module(x)[1]
            (h_n[-1] if cell == "LSTM" else h_n)[1].sum().backward()
        grads.append([torch.zeros(()) if p.grad is None else p.grad for p in module.parameters()])
    return grads
