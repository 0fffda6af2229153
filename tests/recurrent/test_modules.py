"""Recurrent modules and cells: construction, cells and streaming against torch, errors, replacing, dropout."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from helpers import use
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import pyflash
import pyflash.nn as nn
from pyflash.ops.core import backends
from tests.nn.module_helpers import assert_same, pair
from tests.recurrent.rnn_helpers import CELLS, CPU, Case, serving

SERVING = ["reference", *CPU[-1:]]

CONSTRUCTORS = [
    ("RNN", (5, 6, 2), {"nonlinearity": "relu", "bidirectional": True}),
    ("RNN", (5, 6, 2, "relu"), {}),
    ("LSTM", (5, 6), {"num_layers": 2, "proj_size": 3, "batch_first": True}),
    ("LSTM", (5, 6), {"bias": False, "bidirectional": True, "num_layers": 2, "dropout": 0.25}),
    ("GRU", (5, 6), {"num_layers": 3, "dtype": torch.float64}),
    ("RNNCell", (5, 6), {"nonlinearity": "relu"}),
    ("LSTMCell", (5, 6), {"bias": False}),
    ("GRUCell", (5, 6, True), {"dtype": torch.float64}),
]


@pytest.mark.parametrize(("name", "args", "kwargs"), CONSTRUCTORS, ids=str)
def test_construction_is_torchs(name, args, kwargs):
    ours, theirs = pair(getattr(nn, name), getattr(torch.nn, name), *args, **kwargs)
    assert repr(ours) == repr(theirs)
    assert vars(ours).keys() == vars(theirs).keys()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    stream = io.BytesIO()
    torch.save(ours, stream)
    stream.seek(0)
    copies = copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), torch.load(stream, weights_only=False)
    x = torch.randn(3, 5, dtype=kwargs.get("dtype", torch.float32))
    for copied in copies:
        assert type(copied) is type(ours)
        torch.testing.assert_close(copied.eval()(x), ours.eval()(x))
        torch.testing.assert_close(copied(x), theirs.eval()(x))
    if name in CELLS:
        assert not isinstance(ours, type(theirs)) and isinstance(ours, torch.nn.RNNBase)
        ours.flatten_parameters()
        assert ours.all_weights[0][0] is ours.weight_ih_l0


def construct(name, *args, **kwargs):
    return lambda n: getattr(n, name)(*args, **kwargs)


def call(name, *shapes, options=None, dtype=torch.float32, given=None):
    """A module of 3 inputs and 4 hidden units on x of shapes[0] and states of the others."""

    def run(n):
        x, *states = (torch.zeros(s, dtype=dtype) for s in shapes)
        module = getattr(n, name)(3, 4, **(options or {}))
        states = tuple(states) if name.startswith("LSTM") else states[0] if states else None
        return module(x, *([states] if states is not None and len(shapes) > 1 else []))

    return run


REFUSED = [
    construct("LSTM", 0, 4),
    construct("LSTM", 3, 4, proj_size=4),
    construct("LSTM", 3, 4, proj_size=-1),
    construct("GRU", 3, 4, proj_size=2),
    construct("RNN", 3, 4, proj_size=2),
    construct("RNN", 3, 4, nonlinearity="sine"),
    construct("GRU", 3, 4, dropout=2.0),
    construct("GRU", 3, 4.0),
    construct("GRU", 3, 4, bias=1),
    *(call(name, (5, 2, 7)) for name in CELLS),
    *(call(name, (5, 2, 2, 3)) for name in CELLS),
    *(call(name, (3,)) for name in CELLS),
    *(call(name, (0, 2, 3)) for name in CELLS),
    *(call(name, (5, 2, 3), dtype=torch.float64) for name in CELLS),
    *(call(name, (5, 2, 3), dtype=torch.int64) for name in CELLS),
    *(call(name, (5, 2, 3), (1, 1, 4)) for name in ("GRU", "RNN")),
    *(call(name, (5, 2, 3), (2, 4)) for name in ("GRU", "RNN")),
    *(call(name, (5, 3), (1, 1, 4)) for name in ("GRU", "RNN")),
    call("GRU", (5, 2, 3), (1, 2, 4), options={"bidirectional": True}),
    call("LSTM", (5, 2, 3), (1, 2, 4), (1, 2, 5)),
    call("LSTM", (5, 2, 3), (1, 3, 4), (1, 2, 4)),
    call("LSTM", (5, 3), (1, 1, 4), (1, 1, 4)),
    call("LSTM", (5, 2, 3), (1, 4), (1, 4)),
    call("LSTM", (5, 2, 3), (1, 2, 4), (1, 2, 4), options={"proj_size": 2}),
    lambda n: n.GRU(3, 4)(torch.zeros(2, 2, 3), torch.zeros(1, 2, 4).double()),
    lambda n: n.GRU(3, 4)(pack_padded_sequence(torch.zeros(2, 2, 5), [2, 1])),
    lambda n: n.GRU(3, 4)(pack_padded_sequence(torch.zeros(2, 2, 3), [2, 1]), torch.zeros(1, 3, 4)),
    lambda n: n.GRU(3, 4)(pack_padded_sequence(torch.zeros(2, 2, 3), [1, 2])),
    lambda n: n.GRU(3, 4)(pack_padded_sequence(torch.zeros(2, 2, 3), [1, 0])),
    call("RNNCell", (2, 5)),
    call("GRUCell", (2, 3, 1)),
    call("LSTMCell", (2, 3), dtype=torch.float64),
    call("GRUCell", (2, 3), (3, 4)),
    call("GRUCell", (2, 3), (2, 5)),
    call("GRUCell", (2, 3), (1, 2, 4)),
    call("LSTMCell", (2, 3), (2, 4), (1, 4)),
    call("LSTMCell", (2, 3), (2, 4), (2, 4, 1)),
    call("LSTMCell", (2, 3), (2, 4)),
    call("LSTMCell", (2, 3), (2, 4), (2, 4), (2, 4)),
    lambda n: n.LSTMCell(3, 4)(torch.zeros(2, 3), torch.zeros(2, 2, 4)),
    lambda n: n.RNNCell(3, 4, nonlinearity="sine")(torch.zeros(2, 3)),
]


ACCEPTED = [] if torch.__version__ >= (2, 10) else [0, 8]  # by torch 2.9, and so by ours


@pytest.mark.parametrize("backend", ["auto", "cpu", "torch"])
def test_refusals_are_torchs(backend):
    def error(call, n):
        try:
            with use(backend):
                call(n)
        except Exception as raised:
            return raised

    for i, refused in enumerate(REFUSED):
        ours, theirs = error(refused, nn), error(refused, torch.nn)
        assert theirs is not None or i in ACCEPTED, f"call {i}: torch accepts it"
        assert type(ours) is type(theirs), f"call {i}: {ours!r}, torch: {theirs!r}"


def test_refusals_of_our_own():
    x, module = torch.zeros(5, 2, 3), nn.LSTM(3, 4)
    with pytest.raises(ValueError, match="lengths go from 1 to 6, expected 0 to 5"):
        module(x, lengths=torch.tensor([1, 6]))
    with pytest.raises(ValueError, match="lengths go from -1"):
        module(x, lengths=torch.tensor([-1, 2]))
    for lengths in (torch.tensor([1, 2, 3]), torch.tensor([1.0, 2.0]), torch.tensor([1j, 2]), torch.tensor(2)):
        with pytest.raises(ValueError, match=r"expected integers, \[2\]"):
            module(x, lengths=lengths)
    with pytest.raises(ValueError, match="input of one sequence"):
        module(x[:, 0], lengths=torch.tensor([1]))
    with pytest.raises(ValueError, match="PackedSequence, which has its own"):
        module(pack_padded_sequence(x, [5, 2]), lengths=torch.tensor([5, 2]))
    with pytest.raises(RuntimeError, match="pair of tensors"):
        module(x, torch.zeros(1, 2, 4))
    weights = module._flat_weights
    for wrong, message in (
        (weights[:3], "expected a multiple of 4"),
        (weights[:1], "flat list of weights"),
        ([*weights[:3], weights[3][:4]], r"the weights of layer 0 have shapes .*\(4,\)"),
        ([weights[0][:15], *weights[1:]], "expected"),
    ):
        with pytest.raises(RuntimeError, match=message):
            pyflash.functional.lstm(x, None, wrong)


@pytest.mark.parametrize("name", ["RNNCell", "LSTMCell", "GRUCell"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_cells_are_torchs(name, dtype):
    for options in ({}, {"bias": False}):
        ours, theirs = pair(getattr(nn, name), getattr(torch.nn, name), 5, 17, dtype=dtype, **options)
        for batch in ((3,), (1,), ()):
            x, states = torch.randn(*batch, 5).to(dtype), [torch.randn(*batch, 17).to(dtype) for _ in range(2)]
            hx = tuple(states) if name == "LSTMCell" else states[0]
            for args in ([x], [x, hx]):
                assert_same(ours, theirs, args, backends=("torch", *CPU), floor_ulp=16)
    empty = ours(torch.randn(0, 5).to(dtype))
    assert (empty[0] if name == "LSTMCell" else empty).shape == (0, 17)


@pytest.mark.parametrize("backend", SERVING)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval without gradients"])
def test_streaming_is_the_whole_sequence(cell, training, backend):
    """Step by step through the layers, chunk by chunk, and through the cell with the same weights."""
    case = Case(cell, "", steps=6, hidden=20, options={"num_layers": 2})
    module = case.module(torch.float64, ours=True)
    x, _ = case.inputs_of(torch.float64)
    cells = [getattr(nn, f"{cell}Cell")(size, 20, dtype=torch.float64) for size in (5, 20)]
    for i, one in enumerate(cells):
        one.load_state_dict({n.removesuffix(f"_l{i}"): p for n, p in module.named_parameters() if n.endswith(f"_l{i}")})
    with serving(backend), torch.set_grad_enabled(training):
        whole, _ = module(x)
        for chunks in (x.split(1), x.split([2, 1, 3])):
            state, ys = None, []
            for chunk in chunks:
                y, state = module(chunk, state)
                ys.append(y)
            torch.testing.assert_close(torch.cat(ys), whole)
        states, ys = [None, None], []
        for y in x:
            for i, one in enumerate(cells):
                states[i] = one(y, states[i])
                y = states[i][0] if cell == "LSTM" else states[i]
            ys.append(y)
        torch.testing.assert_close(torch.stack(ys), whole)


def numpy_view(p):
    p.detach().numpy()[:] *= 1.5


def assign(p):
    p.data = torch.randn_like(p) / 4


MUTATIONS = {
    "p.data.mul_": lambda p: p.data.mul_(1.5),
    "p.data.clamp_": lambda p: p.data.clamp_(-0.1, 0.1),
    "p.data = t": assign,
    "set_": lambda p: p.data.set_(torch.randn_like(p) / 4),
    "p.set_": lambda p: torch.no_grad()(p.set_)(torch.randn_like(p) / 4),
    "swap_tensors": lambda p: torch.utils.swap_tensors(p, torch.nn.Parameter(torch.randn_like(p) / 4)),
    "numpy view": numpy_view,
    "one element": lambda p: p.detach().numpy().flat.__setitem__(1, 0.9),
    "optimizer.step": lambda p: torch.optim.SGD([p], lr=0.1).step(),
}


@pytest.mark.parametrize("cell", [*CELLS, "LSTMCell", "GRUCell"])
@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("name", ["weight_ih", "weight_hh", "bias_ih", "bias_hh"])
def test_a_weight_changed_between_streaming_steps_is_seen(mutation, name, cell):
    if mutation == "swap_tensors" and "Cell" not in cell:
        pytest.skip("torch.nn.RNNBase keeps weak references, which torch refuses to swap")
    theirs = getattr(torch.nn, cell)(5, 8)
    ours = pyflash.replace(copy.deepcopy(theirs))
    x = torch.randn((2, 5) if "Cell" in cell else (1, 2, 5))
    name = name if "Cell" in cell else f"{name}_l0"

    def step(module):
        with use("cpu"), torch.no_grad():
            return module(x)

    for _ in range(2):
        for _ in range(2):
            torch.testing.assert_close(step(ours), step(theirs))
        p = getattr(ours, name)
        p.grad = torch.ones_like(p)
        MUTATIONS[mutation](p)
        with torch.no_grad():
            getattr(theirs, name).copy_(getattr(ours, name))
    torch.testing.assert_close(step(ours), step(theirs))


class Model(torch.nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.layers = getattr(torch.nn, cell)(5, 6, 2, bidirectional=True, batch_first=True)
        self.cell = getattr(torch.nn, f"{cell}Cell")(12, 7)
        self.head = torch.nn.Linear(7, 3)

    def forward(self, x):
        y, _ = self.layers(x)
        h = None
        for t in range(y.shape[1]):
            h = self.cell(y[:, t], h)
        return self.head(h[0] if isinstance(h, tuple) else h)


@pytest.mark.parametrize("cell", CELLS)
def test_replace_and_restore(cell):
    model, x = Model(cell), torch.randn(3, 4, 5)
    expected, params = model(x), list(model.parameters())
    assert pyflash.replace(model) is model
    assert type(model.layers) is getattr(nn, cell) and type(model.cell) is getattr(nn, f"{cell}Cell")
    assert all(a is b for a, b in zip(params, model.parameters()))
    report = pyflash.report(model)
    assert report.isinstance_changed == ["layers"] and "isinstance changed: layers" in str(report)
    rows = {row.name: row for row in report.rows}
    assert rows["layers"].before == f"torch.nn.{cell}" and rows["cell"].now == f"pyflash.nn.{cell}Cell"
    torch.testing.assert_close(model(x), expected)
    copied = pickle.loads(pickle.dumps(pyflash.replace(copy.deepcopy(model).double())))
    torch.testing.assert_close(copied(x.double()).float(), expected)
    pyflash.restore(copied)
    assert type(copied.layers) is getattr(torch.nn, cell)
    torch.testing.assert_close(copied.float()(x), expected)
    pyflash.restore(model)
    torch.testing.assert_close(model(x), expected)
    pyflash.replace(model, exclude=torch.nn.LSTM if cell == "LSTM" else getattr(nn, cell))
    assert type(model.layers) is getattr(torch.nn, cell)


def weight_norm_hook(module, name):
    torch.nn.utils.weight_norm(module, name)


@pytest.mark.parametrize("norm", [weight_norm_hook, parametrizations.weight_norm], ids=["hook", "parametrization"])
@pytest.mark.parametrize("cell", [*CELLS, "GRUCell"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weight_norm(when, cell, norm):
    theirs = getattr(torch.nn, cell)(5, 6)
    ours, name = copy.deepcopy(theirs), "weight_hh" if "Cell" in cell else "weight_hh_l0"
    if when == "after":
        pyflash.replace(ours)
    norm(ours, name)
    norm(theirs, name)
    if when == "before":
        pyflash.replace(ours)
    x = torch.randn(4, 5) if "Cell" in cell else torch.randn(4, 3, 5)
    for _ in range(2):
        found, expected = ours(x), theirs(x)
        torch.testing.assert_close(found, expected)
        first = [torch.utils._pytree.tree_leaves(v)[0].square().sum() for v in (found, expected)]
        grads = [torch.autograd.grad(f, list(m.parameters())) for f, m in zip(first, (ours, theirs))]
        torch.testing.assert_close(*grads)
        with torch.no_grad():
            for p, q, g in zip(ours.parameters(), theirs.parameters(), grads[1]):
                p -= 0.1 * g
                q -= 0.1 * g
    if norm is parametrizations.weight_norm:
        pyflash.restore(ours)
        torch.testing.assert_close(ours(x), theirs(x))
        parametrize.remove_parametrizations(ours, name)
        assert type(ours) is getattr(torch.nn, cell)
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("cell", CELLS)
def test_functional_call_sees_other_weights(cell):
    ours, theirs = pair(getattr(nn, cell), getattr(torch.nn, cell), 5, 6)
    x = torch.randn(4, 3, 5)
    weights = {name: torch.randn_like(p) for name, p in ours.named_parameters()}
    torch.testing.assert_close(
        torch.func.functional_call(ours, weights, (x,)), torch.func.functional_call(theirs, weights, (x,))
    )
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("backend", ["auto", "torch", *SERVING])
def test_packed_sequences_keep_their_form(backend):
    ours, theirs = pair(nn.LSTM, torch.nn.LSTM, 5, 6, batch_first=True)
    x = pack_padded_sequence(torch.randn(3, 4, 5), [2, 4, 1], batch_first=True, enforce_sorted=False)
    with serving(backend):
        found, expected = ours(x)[0], theirs(x)[0]
    assert type(found) is PackedSequence
    for a, b in zip(found[1:], expected[1:]):
        assert torch.equal(a, b)
    torch.testing.assert_close(pad_packed_sequence(found), pad_packed_sequence(expected))


@pytest.mark.parametrize("backend", SERVING)
@pytest.mark.parametrize("cell", CELLS)
def test_lengths_mean_what_packing_means(cell, backend):
    module = getattr(nn, cell)(5, 6, 2, bidirectional=True).double()
    x, lengths = torch.randn(7, 4, 5, dtype=torch.float64), torch.tensor([3, 7, 1, 5])
    x[3:, 0] = float("nan")  # what is past the end is not looked at
    x.requires_grad_()
    with serving(backend):
        packed, states = module(pack_padded_sequence(x, lengths, enforce_sorted=False))
        expected = pad_packed_sequence(packed)[0]
        for given in (lengths, lengths.int(), lengths.to(torch.uint16), lengths.tolist()):
            y, own = module(x, lengths=given)
            torch.testing.assert_close((y, own), (expected, states))
        grads = [torch.autograd.grad(o.square().sum(), [x, *module.parameters()]) for o in (y, expected)]
        torch.testing.assert_close(*grads)
        whole = module(x[:3], lengths=torch.full((4,), 3))
        torch.testing.assert_close(whole, module(x[:3]))


@pytest.mark.parametrize("backend", ["auto", *SERVING])
@pytest.mark.parametrize("cell", CELLS)
def test_dropout_between_layers(cell, backend):
    """pyflash.functional.dropout's mask on what goes from layer to layer, and nowhere else."""
    module = getattr(nn, cell)(5, 40, 3, dropout=0.5)
    single = [getattr(nn, cell)(size, 40) for size in (5, 40, 40)]
    for i, one in enumerate(single):
        one.load_state_dict({n[:-1] + "0": p for n, p in module.named_parameters() if n.endswith(f"_l{i}")})
    x = torch.randn(6, 20, 5)
    with serving(backend if backend != "auto" else "cpu"):
        torch.manual_seed(11)
        y = x
        for i, one in enumerate(single):
            y = one(pyflash.functional.dropout(y, 0.5) if i else y)[0]
        torch.manual_seed(11)
        torch.testing.assert_close(module(x)[0], y)
        torch.manual_seed(11)
        assert torch.equal(module(x)[0], module(x)[0]) is False
        module.eval()
        assert torch.equal(module(x)[0], module(x)[0])


def test_what_served_is_counted():
    module, x = nn.GRU(5, 6), torch.randn(4, 3, 5)

    def counted(call):
        before = backends.counts.copy()
        call()
        return {(op, backend) for op, backend, _ in backends.counts - before}

    with use("torch"):
        assert counted(lambda: module(x)) == {("gru", "torch")}
    assert {op for op, _ in counted(lambda: module(x))} == {"gru"}
    if CPU:
        with use("cpu"):
            assert counted(lambda: module(x)) == {("gru", "cpu")}
            assert counted(lambda: nn.LSTMCell(5, 6)(x[0])) == {("lstm_cell", "cpu")}
            with pytest.raises(NotImplementedError, match="cpu takes cpu tensors"):
                module.to("meta")(x.to("meta"))


@pytest.mark.parametrize("cell", CELLS)
def test_overrides_reach_torchs_layers_and_cells(cell):
    layers = getattr(torch.nn, cell)(5, 6, 2, bidirectional=True, batch_first=True)
    one = getattr(torch.nn, f"{cell}Cell")(5, 6)
    x = torch.randn(3, 4, 5)
    packed = pack_padded_sequence(x, [1, 4, 2], batch_first=True, enforce_sorted=False)
    calls = (lambda: layers(x), lambda: layers(packed), lambda: one(x[0]))
    expected = [call() for call in calls]
    before = backends.counts.copy()
    with pyflash.overrides(), use("cpu"):
        found = [call() for call in calls]
    torch.testing.assert_close(found, expected)
    served = {(op, backend) for op, backend, _ in backends.counts - before}
    assert served == {(cell.lower(), "cpu"), (f"{cell.lower()}_cell", "cpu")}
