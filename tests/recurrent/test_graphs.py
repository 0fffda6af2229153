"""Recurrent layers under torch.compile, torch.export, torch.func, autocast; and that ours is ours."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import use
from property_tests import given, settings, st
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import pyflash
import pyflash.nn as nn
from pyflash.ops.core import backends
from tests.nn.module_helpers import pair
from tests.nn.test_modules import ALLOWED, operations
from tests.recurrent.rnn_helpers import CELLS, CPU, Case, flat, leaf, results, serving, truth_and_torch

SERVING = ["reference", *CPU[-1:]]
OPTIONS = {"num_layers": 2, "bidirectional": True}


class Head(torch.nn.Module):
    """The same input to two places, states in and out, and something behind it."""

    def __init__(self, cell, ours=True, **options):
        super().__init__()
        torch.manual_seed(1)
        self.layers = getattr(nn if ours else torch.nn, cell)(5, 6, **options)
        self.one = getattr(nn if ours else torch.nn, f"{cell}Cell")(12, 6)

    def forward(self, x, hx=None, **lengths):
        y, states = self.layers(x, hx, **lengths)
        h = self.one(y[-1])
        return y.tanh(), states, h


def losses(function, *args, **kwargs):
    outputs = [t for t in torch.utils._pytree.tree_leaves(function(*args, **kwargs))]
    return sum((o * torch.arange(1, o.numel() + 1).view(o.shape)).mean() for o in outputs)


@pytest.mark.parametrize(("cell", "backend"), [("LSTM", "cpu"), ("GRU", "auto"), ("RNN", "cpu")])
@pytest.mark.slow
def test_compile_in_one_graph_with_dynamic_length_and_batch(cell, backend):
    torch._dynamo.reset()
    module = Head(cell, **OPTIONS)
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=counting)
    with use(backend):
        for steps, batch in ((4, 3), (7, 2), (9, 6)):
            before = len(graphs)
            x = torch.randn(steps, batch, 5, requires_grad=True)
            wanted = [x, *module.parameters()]
            expected, found = losses(module, x), losses(compiled, x)
            torch.testing.assert_close(found, expected)
            torch.testing.assert_close(torch.autograd.grad(found, wanted), torch.autograd.grad(expected, wanted))
            with torch.no_grad():
                torch.testing.assert_close(losses(compiled, x), losses(module, x))
        assert len(graphs) == before  # of the first shape
        lengths = torch.tensor([2, 9, 0, 4, 1, 9])
        torch.testing.assert_close(losses(compiled, x, lengths=lengths), losses(module, x, lengths=lengths))
        states = torch.randn(4, 6, 6)
        hx = (states, states) if cell == "LSTM" else states
        torch.testing.assert_close(losses(compiled, x, hx), losses(module, x, hx))


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
def test_compile_with_inductor(cell):
    torch._dynamo.reset()
    module = Head(cell, **OPTIONS)
    compiled = torch.compile(module, fullgraph=True)
    x = torch.randn(4, 3, 5, requires_grad=True)
    with use("cpu"):
        expected, found = losses(module, x), losses(compiled, x)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found, x), torch.autograd.grad(expected, x))


@pytest.mark.parametrize("is_sorted", [True, False])
def test_compile_of_a_packed_batch(is_sorted):
    torch._dynamo.reset()
    module = nn.LSTM(5, 6)
    states = torch.randn(1, 3, 6)

    def function(data, batch_sizes, sorted_indices, unsorted_indices):
        x = PackedSequence(data, batch_sizes, sorted_indices, unsorted_indices)
        y, final = module(x, (states, states))
        return y.data, final

    x = torch.randn(4, 3, 5)
    packed = pack_padded_sequence(x, [4, 2, 1] if is_sorted else [1, 4, 2], enforce_sorted=is_sorted)
    with use("cpu"):
        found = torch.compile(function, fullgraph=True, backend="aot_eager")(*packed)
        torch.testing.assert_close(found, function(*packed))


def test_dropout_under_compile():
    torch._dynamo.reset()
    module = nn.GRU(5, 6, 2, dropout=0.5)
    compiled, x = torch.compile(module, fullgraph=True, backend="aot_eager"), torch.randn(4, 3, 5)
    with use("cpu"):
        torch.manual_seed(2)
        expected = module(x)
        torch.manual_seed(2)
        torch.testing.assert_close(compiled(x), expected)


@pytest.mark.parametrize("cell", CELLS)
def test_export_with_dynamic_length_and_batch(cell):
    module = Head(cell, **OPTIONS).eval()
    steps, batch = torch.export.Dim("steps", min=2, max=4096), torch.export.Dim("batch", min=2, max=512)
    with use("cpu"):
        program = torch.export.export(module, (torch.randn(4, 3, 5),), dynamic_shapes={"x": {0: steps, 1: batch}})
        assert sum("pyflash.rnn_fwd" in str(node.target) for node in program.graph.nodes) == 3
    for shape in ((4, 3, 5), (31, 17, 5)):
        x = torch.randn(shape)
        torch.testing.assert_close(program.module()(x), module(x))


@pytest.mark.parametrize("cell", CELLS)
def test_a_reentrant_checkpoint_drops_what_its_forward_dropped(cell):
    """Sizes whose training alone `auto` leaves to torch."""
    module = getattr(nn, cell)(5, 6, 2, dropout=0.5)
    for shape in ((1, 400, 5), (7, 64, 5)):
        found = []
        for recompute in (False, True):
            x = torch.linspace(-1, 1, math.prod(shape)).view(shape).requires_grad_()
            torch.manual_seed(3)
            y = checkpoint(lambda x: module(x)[0], x, use_reentrant=True) if recompute else module(x)[0]
            y.square().sum().backward()
            found.append((y.detach(), x.grad))
        torch.testing.assert_close(*found)


@pytest.mark.parametrize("cell", CELLS)
def test_transforms_see_torch_operations(cell):
    ours, theirs = pair(getattr(nn, cell), getattr(torch.nn, cell), 3, 4, dtype=torch.float64, **OPTIONS)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    params = dict(ours.named_parameters())

    def loss(module):
        return lambda params, x: torch.func.functional_call(module, params, (x,))[0].square().sum()

    before = backends.counts.copy()
    grads = torch.func.grad(loss(ours))(params, x)
    new = backends.counts - before
    assert {(op, b) for op, b, _ in new} == {(cell.lower(), "torch")} and "transform" in next(iter(new))[2]
    torch.testing.assert_close(grads, torch.func.grad(loss(theirs))(params, x))
    rows = torch.randn(3, 5, 2, 3, dtype=torch.float64)
    each = [torch.func.grad(loss(theirs))(params, row) for row in rows]
    per_sample = torch.func.vmap(torch.func.grad(loss(ours)), (None, 0))(params, rows)
    torch.testing.assert_close(per_sample, {n: torch.stack([g[n] for g in each]) for n in params})
    ensemble = {n: torch.stack([p, p / 2]).detach() for n, p in params.items()}
    found = torch.func.vmap(lambda p: torch.func.functional_call(ours, p, (x,))[0])(ensemble)
    torch.testing.assert_close(found[0], theirs(x)[0])
    tangent = torch.randn_like(x)
    _, jvp = torch.func.jvp(lambda x: ours(x)[0], (x,), (tangent,))
    step = 1e-6
    numeric = (theirs(x + step * tangent)[0] - theirs(x - step * tangent)[0]) / (2 * step)
    torch.testing.assert_close(jvp, numeric, atol=1e-7, rtol=1e-6)
    hessian = torch.func.hessian(lambda x: loss(ours)(params, x))(x[:2, :1])
    expected = torch.autograd.functional.hessian(lambda x: loss(theirs)(params, x), x[:2, :1])
    torch.testing.assert_close(hessian, expected)
    ragged = torch.func.vmap(lambda x: ours(x, lengths=torch.tensor([2, 5]))[0])(rows)
    torch.testing.assert_close(ragged[1], ours(rows[1], lengths=torch.tensor([2, 5]))[0])
    one, their_one = pair(getattr(nn, f"{cell}Cell"), getattr(torch.nn, f"{cell}Cell"), 3, 4, dtype=torch.float64)
    stepped = torch.func.vmap(lambda x: flat((x, one(x)))[1])(rows[:, 0])
    torch.testing.assert_close(stepped[2], flat((x, their_one(rows[2, 0])))[1])


@pytest.mark.parametrize("backend", ["auto", "cpu", "torch"])
def test_autocast_gives_torchs_types(backend):
    x = torch.randn(4, 3, 8)
    packed = pack_padded_sequence(x, [4, 3, 1])
    wide = torch.randn(1, 3, 6)
    for cell in CELLS:
        hx = (wide, wide) if cell == "LSTM" else wide
        row = (wide[0], wide[0]) if cell == "LSTM" else wide[0]
        ours, theirs = pair(getattr(nn, cell), getattr(torch.nn, cell), 8, 6)
        one, their_one = pair(getattr(nn, f"{cell}Cell"), getattr(torch.nn, f"{cell}Cell"), 8, 6)
        calls = [
            (ours, theirs, (x,)),
            (ours, theirs, (packed,)),
            (ours, theirs, (x, hx)),
            (ours, theirs, (x.bfloat16(),)),
        ]
        calls += [(one, their_one, (x[0],)), (one, their_one, (x[0], row))]
        if cell == "LSTM":
            ours, theirs = pair(nn.LSTM, torch.nn.LSTM, 8, 6, proj_size=2)
            calls += [(ours, theirs, (x,)), (ours, theirs, (x, (wide[..., :2], wide)))]
        for own, their, args in calls:
            with torch.autocast("cpu", dtype=torch.bfloat16), use(backend):
                expected, found = flat_any(their(*args)), flat_any(own(*args))
            for f, e, exact in zip(found, expected, flat_any(their(*(widened(a) for a in args)))):
                assert f.dtype == e.dtype, f"{type(own).__name__}, {[type(a).__name__ for a in args]}"
                error, theirs_error = (f - exact).abs().max(), (e - exact).abs().max()
                assert error <= 2 * theirs_error + 2**-9


def widened(value):
    return value.float() if isinstance(value, torch.Tensor) else value


def flat_any(outputs):
    return [t for t in torch.utils._pytree.tree_leaves(outputs) if t is not None and t.is_floating_point()]


INDEXING = {  # of lengths and packed sequences: orders, counts, permuted states
    "arange", "lt", "gt", "le", "argsort", "sort", "resize_", "cumsum", "diff", "sub", "all", "aminmax", "min", "max",
    "equal", "index_select", "index_select_backward", "index_add_",
}  # fmt: skip
OWN = [
    *((cell, layout) for cell in CELLS for layout in ("padded", "sorted", "unsorted", "ragged")),
    *((f"{cell}Cell", "") for cell in CELLS),
]


@pytest.mark.skipif(not CPU, reason="the native module is not built")
@pytest.mark.parametrize(("name", "layout"), OWN)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval without gradients"])
@pytest.mark.parametrize("save_gates", [True, False], ids=["gates stored", "gates computed again"])
def test_ours_is_ours(name, layout, training, save_gates, monkeypatch):
    """With a backend asked for by name no torch operation computes, forward or backward."""
    monkeypatch.setattr("pyflash.ops.core.registry.Op.paranoid", False)  # its checks are torch operations
    monkeypatch.setattr("pyflash.auto.recurrent.SAVES_GATES", save_gates)
    if layout:
        projection = {"proj_size": 3} if name == "LSTM" else {}
        module, lengths = getattr(nn, name)(5, 8, 2, bidirectional=True, dropout=0.5, **projection), [4, 2, 2, 1]
        x = torch.randn(4, 4, 5, requires_grad=True)
    else:
        module, x = getattr(nn, name)(5, 8), torch.randn(4, 5, requires_grad=True)
    module.train(training)
    given = x
    if layout in ("sorted", "unsorted"):
        given = pack_padded_sequence(
            x, lengths if layout == "sorted" else lengths[::-1], enforce_sorted=layout == "sorted"
        )
        given = type(given)(leaf(given.data), *given[1:])
    options = {"lengths": torch.tensor(lengths)} if layout == "ragged" else {}

    def call():
        outputs = flat_any(module(given, **options))
        if training:
            torch.autograd.backward(outputs, [torch.ones_like(o) for o in outputs])

    with use("cpu"), torch.set_grad_enabled(training):
        call()  # whatever is set up once
        seen = operations(call)
    allowed = (ALLOWED | INDEXING) if layout in ("unsorted", "sorted", "ragged") else ALLOWED
    allowed = allowed if training else allowed | {"dropout"}  # in evaluation it is the identity
    assert seen <= allowed, f"torch computed: {sorted(seen - allowed)}"


@pytest.mark.skipif(not CPU, reason="the native module is not built")
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_shape_and_lengths(data):
    draw = data.draw
    cell, steps, batch = draw(st.sampled_from(CELLS)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    options = {
        "num_layers": draw(st.integers(1, 2)),
        "bidirectional": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "bias": draw(st.booleans()),
    }
    hidden = draw(st.integers(1, 37))
    if cell == "LSTM" and hidden > 1 and draw(st.booleans()):
        options["proj_size"] = draw(st.integers(1, hidden - 1))
    layout = draw(st.sampled_from(("padded", "unsorted", "ragged")))
    least = 0 if layout == "ragged" else 1
    lengths = draw(st.lists(st.integers(least, steps), min_size=batch, max_size=batch))
    if layout == "ragged" and not any(lengths):
        lengths[0] = steps
    if layout == "unsorted":
        lengths[0] = steps
    case = Case(cell, "", steps, batch, draw(st.integers(1, 37)), hidden, options, layout, tuple(lengths))
    truth, _ = truth_and_torch(case, torch.float64)
    with serving(CPU[-1]):
        found = results(case.module(torch.float64, ours=True), case, torch.float64)
    for f, t in zip(found, truth):
        torch.testing.assert_close(f, t, rtol=1e-9, atol=1e-9 * float(t.abs().max()) + 1e-12)
    assert pyflash.report(case.module(torch.float32, ours=True)).replaced == 1
