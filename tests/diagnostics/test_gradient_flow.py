"""gradient_flow: what it records is what torch computes, its verdicts are of nets that were made to deserve them, and nothing of
it stays behind."""

from __future__ import annotations

import copy
import gc
import json
import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import pyflash
from pyflash.diagnostics import VERDICTS, gradient_flow
from pyflash.models import MLP, LeNet, resnet18

WIDTH = 48


def seeded(build, *args, **options):
    torch.manual_seed(1)
    return build(*args, **options)


def batch(*shape, classes=10):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(shape, generator=generator), torch.randint(classes, shape[:1], generator=generator)


def scaled(model, gain, bias=0.0):
    """Every Linear but the last with weights of deviation gain / sqrt(features in)."""
    *inner, _ = [m for m in model.modules() if isinstance(m, nn.Linear)]
    with torch.no_grad():
        for layer in inner:
            layer.weight.normal_(std=gain / math.sqrt(layer.in_features))
            layer.bias.fill_(bias)
    return model


def deep(activation, depth, gain, bias=0.0, norm=None):
    return scaled(seeded(MLP, (16, *[WIDTH] * depth, 10), activation, norm=norm, nn=nn), gain, bias)


def watched(model, x, y, steps=2, **options):
    with gradient_flow(model, **options) as flow:
        for _ in range(steps):
            output = model(x)
            F.cross_entropy(output if output.dim() == 2 else output.flatten(1), y).backward()
    return flow


def verdicts(flow):
    return {row.name: row.verdict for row in flow.report().rows}


def hooks_of(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_forward_hooks_with_kwargs",
             "_forward_pre_hooks_with_kwargs")  # fmt: skip
    of_modules = [len(getattr(module, kind)) for module in model.modules() for kind in kinds]
    return sum(of_modules) + sum(len(p._backward_hooks or ()) for p in model.parameters())


class Residual(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.inner = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(depth)
        )
        self.first, self.last = nn.Linear(16, WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, x):
        x = self.first(x)
        for inner in self.inner:
            x = x + inner(x)
        return self.last(x)


class LastStep(nn.Module):
    """What the last step of a recurrent layer says; `change` is done to its weights."""

    def __init__(self, cell, change=None, **options):
        super().__init__()
        self.layer = getattr(nn, cell)(4, 24, batch_first=True, **options)
        self.head = nn.Linear(24, 10)
        if change is not None:
            with torch.no_grad():
                change(self.layer)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


class Stepwise(nn.Module):
    """The same by a cell."""

    def __init__(self, cell):
        super().__init__()
        self.cell, self.head = getattr(nn, cell)(4, 24), nn.Linear(24, 10)

    def forward(self, x):
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


def orthogonal(gain):
    return lambda layer: nn.init.orthogonal_(layer.weight_hh_l0, gain)


def identity(layer):
    """Le, Jaitly & Hinton 2015, arXiv:1504.00941."""
    nn.init.eye_(layer.weight_hh_l0)
    layer.weight_ih_l0.mul_(0.1)


def remembers(layer):
    """An LSTM whose forget gates are open (Jozefowicz et al. 2015)."""
    layer.bias_hh_l0[24:48] = 8.0


IMAGE, VECTOR, SEQUENCE = (32, 1, 28, 28), (64, 16), (16, 60, 4)

HEALTHY = {  # what builds it, and its input
    "two layers": (lambda: seeded(MLP, (16, 64, 10), nn=nn), VECTOR),
    "five layers with torch's weights": (lambda: seeded(MLP, (16, *[64] * 5, 10), nn=nn), VECTOR),
    "deep ReLU, He": (lambda: deep("relu", 20, math.sqrt(2)), VECTOR),
    "deep GELU": (lambda: deep("gelu", 12, 1.5), VECTOR),
    "deep tanh, Xavier": (lambda: deep("tanh", 12, 1.0), VECTOR),
    "deep sigmoid, batch norm": (lambda: deep("sigmoid", 8, 1.0, norm="batch"), VECTOR),
    "deep, batch norm": (lambda: deep("relu", 12, 1.0, norm="batch"), VECTOR),
    "residual": (lambda: seeded(Residual, 20), VECTOR),
    "LeNet": (lambda: seeded(LeNet, nn=nn), IMAGE),
    "ResNet-18": (lambda: seeded(resnet18, 10, nn=nn), (8, 3, 32, 32)),
    "RNN that begins with the identity": (lambda: seeded(LastStep, "RNN", identity, nonlinearity="relu"), SEQUENCE),
    "LSTM that remembers": (lambda: seeded(LastStep, "LSTM", remembers), SEQUENCE),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_nets_are_healthy(name):
    build, shape = HEALTHY[name]
    flow = watched(build(), *batch(*shape))
    assert set(verdicts(flow).values()) == {"healthy"}, flow.report()


SICK = {  # what builds it, its input, and the verdicts of some of its layers
    "deep sigmoid": (lambda: deep("sigmoid", 8, 1.0), VECTOR, {"0": "vanishing", "1": "vanishing", "4": "vanishing", "16": "healthy"}),
    "deep tanh, small weights": (lambda: deep("tanh", 8, 0.2), VECTOR, {"0": "vanishing", "2": "vanishing", "15": "healthy"}),
    "large weights": (lambda: deep("relu", 8, 20.0), VECTOR, {"0": "exploding", "1": "exploding", "16": "healthy"}),
    "overflow": (lambda: deep("relu", 8, 1e8), VECTOR, {"0": "exploding", "14": "exploding"}),
    "dead ReLU": (lambda: deep("relu", 2, 1.0, bias=-20.0), VECTOR, {"1": "dead", "3": "dead", "4": "healthy"}),
    "saturated tanh": (lambda: deep("tanh", 3, 30.0), VECTOR, {"1": "saturated", "3": "saturated", "5": "saturated", "6": "healthy"}),
    "saturated sigmoid": (lambda: deep("sigmoid", 2, 1.0, bias=9.0), VECTOR, {"1": "saturated", "3": "saturated"}),
    "saturated ReLU6": (lambda: deep("relu6", 2, 1.0, bias=15.0), VECTOR, {"1": "saturated", "3": "saturated"}),
    "RNN forgets": (lambda: seeded(LastStep, "RNN", orthogonal(0.5)), SEQUENCE, {"layer": "vanishing", "head": "healthy"}),
    "LSTM forgets": (lambda: seeded(LastStep, "LSTM"), SEQUENCE, {"layer": "vanishing", "head": "healthy"}),
    "RNN explodes": (
        lambda: seeded(LastStep, "RNN", orthogonal(3.0), nonlinearity="relu"), SEQUENCE, {"layer": "exploding", "head": "healthy"},
    ),
    "RNN saturated": (lambda: seeded(LastStep, "RNN", lambda layer: layer.weight_ih_l0.mul_(100)), SEQUENCE, {"layer": "saturated"}),
    "cell forgets": (lambda: seeded(Stepwise, "GRUCell"), SEQUENCE, {"cell": "vanishing", "head": "healthy"}),
}  # fmt: skip


@pytest.mark.parametrize("replaced", [False, True], ids=["torch", "replaced"])
@pytest.mark.parametrize("name", SICK)
def test_sick_nets_are_named(name, replaced):
    build, shape, expected = SICK[name]
    model = pyflash.replace(build()) if replaced else build()
    flow = watched(model, *batch(*shape))
    found = verdicts(flow)
    assert expected.items() <= found.items(), flow.report()
    assert found.keys() == {name for name, _ in model.named_modules() if name}


def test_what_is_dead_is_told_from_what_is_behind_it():
    """Of ReLUs that are functions, too; layers before it get nothing, and are not dead."""

    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(16, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 10)
            with torch.no_grad():
                self.b.bias.fill_(-50.0)

        def forward(self, x):
            return self.c(self.b(self.a(x).sin()).relu())

    flow = watched(seeded(Functional), *batch(*VECTOR))
    assert verdicts(flow) == {"a": "vanishing", "b": "dead", "c": "healthy"}, flow.report()
    assert "100% of its units" in str(flow.report())


def test_weights_that_begin_with_0_are_not_dead():
    """The branch's layers before them have no gradient yet, and that is what is said."""
    model = seeded(Residual, 4)
    nn.init.zeros_(model.inner[2][1].weight)
    nn.init.zeros_(model.inner[2][1].bias)
    found = verdicts(watched(model, *batch(*VECTOR)))
    assert {name for name, verdict in found.items() if verdict != "healthy"} == {"inner.2.0"}
    assert found["inner.2.0"] == "vanishing"


def test_channels_are_the_units_of_a_convolution():
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 26 * 26, 10))
    with torch.no_grad():
        model[0].bias[:6] = -50.0
    x, y = batch(*IMAGE)
    for layout in (torch.contiguous_format, torch.channels_last):
        rows = {row.name: row for row in watched(model.to(memory_format=layout), x, y).report().rows}
        assert list(rows) == ["0", "1", "3"]
        assert rows["1"].dead_units == rows["0"].dead_units == 0.75 and rows["1"].verdict == "dead"
        with_more = watched(model, x, y, dead=0.8)
        assert verdicts(with_more)["1"] == "healthy"


@pytest.mark.parametrize("replaced", [False, True], ids=["torch", "replaced"])
def test_numbers_are_those_of_torch(replaced):
    model = deep("relu", 3, 1.5)
    x, y = batch(*VECTOR)
    outputs, by_hand = {}, copy.deepcopy(model).double()
    for name, module in by_hand.named_modules():
        if name:
            module.register_forward_hook(
                lambda module, _, out, name=name: outputs.__setitem__(name, out) or out.retain_grad()
            )
    F.cross_entropy(by_hand(x.double()), y).backward()
    flow = watched(pyflash.replace(model) if replaced else model, x, y, steps=3)
    for row in flow.report().rows:
        out, module = outputs[row.name], by_hand.get_submodule(row.name)
        for moments, tensor in ((row.activation, out.detach()), (row.gradient, out.grad)):
            assert moments.norm == pytest.approx(tensor.norm().item(), rel=1e-4)
            assert moments.mean == pytest.approx(tensor.mean().item(), rel=1e-3, abs=1e-6)
            assert moments.zeros == pytest.approx((tensor == 0).double().mean().item(), abs=1e-3)
            assert moments.not_finite == 0
        parameters = list(module.parameters())
        assert (row.weights is None) == (not parameters)
        if parameters:
            assert row.weights.norm == pytest.approx(
                torch.cat([p.grad.flatten() for p in parameters]).norm().item(), rel=1e-4
            )
    assert flow.report().steps == 3


@pytest.mark.parametrize("replaced", [False, True], ids=["torch", "replaced"])
@pytest.mark.parametrize("cell", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_gradients_of_time_steps(cell, packed, replaced):
    """That of the input at each step, and the model's own gradients stay what they are."""
    layer = seeded(getattr(nn, cell), 4, 8, batch_first=True)
    x = torch.randn(3, 7, 4)
    lengths = torch.tensor([7, 5, 2])

    def run(layer, x):
        given = pack_padded_sequence(x, lengths, batch_first=True) if packed else x
        out, _ = layer(given)
        return (out.data if packed else out).square().sum()

    leaf = x.clone().requires_grad_()
    run(copy.deepcopy(layer), leaf).backward()
    expected = [leaf.grad[:, step].norm().item() for step in range(7)]
    plain = copy.deepcopy(layer)
    run(plain, x).backward()
    if replaced:
        layer = pyflash.replace(layer)
    with gradient_flow(layer) as flow:
        run(layer, x).backward()
        for given in (leaf,):  # its gradient reaches what the input was computed of
            before = given.grad.clone()
            given.grad = None
            run(layer, given).backward()
            torch.testing.assert_close(given.grad, before)
    (row,) = flow.report().rows
    assert row.steps == pytest.approx(expected, rel=1e-4)
    assert row.activation.norm > 0
    assert x.grad is None and not x.requires_grad
    for ours, theirs in zip(layer.parameters(), plain.parameters()):
        torch.testing.assert_close(ours.grad, 2 * theirs.grad)


@pytest.mark.parametrize("cell", ["RNNCell", "LSTMCell", "GRUCell"])
def test_steps_of_a_cell_are_its_calls(cell):
    model = seeded(Stepwise, cell)
    x, y = batch(5, 9, 4)
    flow = watched(model, x, y, steps=2)
    steps = next(row.steps for row in flow.report().rows if row.name == "cell")
    state, states = None, []
    for step in x.unbind(1):
        state = model.cell(step, state)
        states.append(state if isinstance(state, tuple) else (state,))
    F.cross_entropy(model.head(states[-1][0]), y).backward(inputs=list(model.parameters()), retain_graph=True)
    flat = [t for pair in states for t in pair]
    found = torch.autograd.grad(F.cross_entropy(model.head(states[-1][0]), y), flat, allow_unused=True)
    squares = [0 if g is None else g.double().square().sum().item() for g in found]
    per_step = len(flat) // 9
    expected = [math.sqrt(sum(squares[i : i + per_step])) for i in range(0, len(flat), per_step)]
    assert steps == pytest.approx(expected, rel=1e-3)


def test_results_stay_what_they_were():
    for build, shape in (HEALTHY["LeNet"], HEALTHY["LSTM that remembers"], HEALTHY["residual"]):
        x, y = batch(*shape)
        found = []
        for is_watched in (False, True):
            model = build()
            if is_watched:
                watched(model, x, y, steps=1)
            else:
                F.cross_entropy(model(x), y).backward()
            found.append([p.grad for p in model.parameters()])
        assert all(map(torch.equal, *found))


def test_hooks_are_gone():
    x, y = batch(*SEQUENCE)
    model = seeded(LastStep, "GRU")
    flow = gradient_flow(model)
    assert hooks_of(model) == 0
    with pytest.raises(ZeroDivisionError), flow:
        assert hooks_of(model) > 4
        loss = F.cross_entropy(model(x), y)
        out = model(x)
        assert len(out._backward_hooks) == 1
        1 / 0  # noqa: B018
    assert hooks_of(model) == 0 and not out._backward_hooks
    before = flow.to_json()
    loss.backward()  # after the block: not recorded
    model(x)
    assert flow.to_json() == before
    with flow:  # once more: it goes on
        F.cross_entropy(model(x), y).backward()
    assert hooks_of(model) == 0 and all(row.gradient for row in flow.report().rows)


def test_a_user_hook_stays():
    model, seen = deep("relu", 1, 1.0), []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    watched(model, *batch(*VECTOR), steps=1)
    model(batch(*VECTOR)[0])
    assert seen == [1, 1] and hooks_of(model) == 1


def test_memory_is_bounded():
    """Sums are kept, and no tensor of the model; handles of hooks do not pile up where nobody goes backward."""
    model = deep("relu", 2, 1.0)
    x, y = batch(*VECTOR)
    with gradient_flow(model) as flow:
        for _ in range(300):
            out = model(x)
        watch = flow.watches[0]
        assert len(watch._pending) <= 66
        kept = weakref.ref(out)
        del out
        gc.collect()
        assert kept() is None
        F.cross_entropy(model(x), y).backward()
        assert watch.activation.sums.numel() == 5 * WIDTH and watch.weights.sums.numel() == 5


def test_every_and_no_gradients():
    model = deep("relu", 1, 1.0)
    x, y = batch(*VECTOR)
    flow = watched(model, x, y, steps=7, every=3)
    assert flow.report().steps == 3 and flow.watches[0].activation.calls == flow.watches[0].gradient.calls == 3
    assert flow.watches[0].weights.calls == 3
    for context in (torch.no_grad, torch.inference_mode):
        with gradient_flow(model) as flow:
            with context():
                model(x)
            model(x)
        rows = flow.report().rows
        assert [row.gradient for row in rows] == [None] * 3 and rows[0].activation.norm > 0
        assert set(verdicts(flow).values()) == {"healthy"}


def test_what_is_a_layer():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.zeros(16))
            self.body = nn.Sequential(nn.Linear(16, 8), nn.Dropout(), nn.Identity(), nn.Sequential(), nn.ReLU())
            self.twice = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
            self.unused, self.loss = nn.Linear(2, 2), nn.CrossEntropyLoss()
            self.head = nn.Linear(8, 10)
            self.head.weight.requires_grad_(False)

        def forward(self, x):
            return self.head(self.twice(self.twice(self.body(x + self.token))))

    flow = watched(seeded(Model), *batch(*VECTOR))
    report = flow.report()
    assert [row.name for row in report.rows] == ["body.0", "body.4", "twice", "head"] and report.silent == ["unused"]
    assert next(row for row in report.rows if row.name == "twice").weights.norm > 0
    (row,) = watched(nn.Linear(16, 10), *batch(*VECTOR)).report().rows
    assert (row.name, row.kind, row.verdict) == ("", "Linear", "healthy")


def test_attention_and_embeddings():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(50, 32, sparse=True)
            self.layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True)
            self.head = nn.Linear(32, 10)

        def forward(self, ids):
            return self.head(self.layer(self.words(ids))[:, 0])

    ids, y = torch.randint(50, (8, 12)), torch.randint(10, (8,))
    model = seeded(Model)
    stock = watched(copy.deepcopy(model), ids, y).report()
    model.words.sparse = False  # ours has no sparse gradient
    ours = watched(pyflash.replace(model), ids, y).report()
    assert [row.name for row in stock.rows] == [row.name for row in ours.rows]
    for a, b in zip(stock.rows, ours.rows):
        assert (a.verdict, b.verdict) == ("healthy", "healthy"), (stock, ours)
        assert b.weights.norm == pytest.approx(a.weights.norm, rel=1e-3)
        if a.activation is not None and b.activation is not None:  # torch never calls out_proj
            assert b.activation.norm == pytest.approx(a.activation.norm, rel=1e-4)
            assert b.gradient.norm == pytest.approx(a.gradient.norm, rel=1e-3)


def test_autocast_and_half_types():
    model = deep("gelu", 4, 1.5)
    x, y = batch(*VECTOR)
    with torch.autocast("cpu", torch.bfloat16):
        flow = watched(model, x, y)
    assert set(verdicts(flow).values()) == {"healthy"}, flow.report()
    flow = watched(model.bfloat16(), x.bfloat16(), y)
    assert set(verdicts(flow).values()) == {"healthy"} and flow.report().rows[0].weights.norm > 0


@pytest.mark.slow
def test_distributed_data_parallel(tmp_path):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        model = deep("sigmoid", 8, 1.0)
        x, y = batch(*VECTOR)
        alone = watched(copy.deepcopy(model), x, y).report()
        parallel = watched(nn.parallel.DistributedDataParallel(model), x, y).report()
    finally:
        dist.destroy_process_group()
    assert [row.name for row in parallel.rows] == [f"module.{row.name}" for row in alone.rows]
    for a, b in zip(alone.rows, parallel.rows):
        assert a.verdict == b.verdict and a.gradient == b.gradient and a.weights == b.weights
    assert "vanishing" in str(parallel)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "inside"])
def test_compiled(when):
    """Of a compiled graph the parameters' gradients are seen, and judged; the graph is whole."""
    torch._dynamo.reset()
    model = deep("sigmoid", 8, 1.0)
    x, y = batch(*VECTOR)
    F.cross_entropy(model(x), y).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    if when == "before":
        compiled(x)
    with gradient_flow(compiled) as flow:
        F.cross_entropy(compiled(x), y).backward()
    found = {row.name: row for row in flow.report().rows}
    assert found["_orig_mod.0"].weights.norm > 0 and found["_orig_mod.0"].verdict == "vanishing"
    assert found["_orig_mod.16"].verdict == "healthy"
    for parameter, gradient in zip(model.parameters(), expected):
        torch.testing.assert_close(parameter.grad, gradient)
    assert hooks_of(model) == 0
    compiled(x)


def test_functorch_and_tracing_are_left_alone():
    model = deep("relu", 1, 1.0)
    x, _ = batch(*VECTOR)
    with gradient_flow(model) as flow:
        torch.func.vmap(model)(x)
        torch.func.grad(lambda x: model(x).sum())(x)
        torch.jit.trace(model, x, check_trace=False)
    assert not flow.report().rows


def test_second_derivatives_go_through():
    model = deep("tanh", 2, 1.0)
    x = torch.randn(8, 16, requires_grad=True)
    with gradient_flow(model) as flow:
        (dx,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        dx.square().sum().backward()
    assert flow.report().rows[0].weights.norm > 0


def test_report_and_json():
    flow = watched(deep("sigmoid", 8, 1.0), *batch(*VECTOR))
    report = flow.report()
    head, *rows, summary = str(report).splitlines()
    assert head.split()[:3] == ["layer", "class", "output"] and len(rows) == 17
    assert rows[0].startswith("0 ") and "vanishing: its gradient is" in rows[0] and rows[-1].endswith("healthy")
    assert "vanishing" in summary and summary.endswith("2 forwards")
    data = json.loads(flow.to_json())
    assert [row["name"] for row in data["layers"]] == [row.name for row in report.rows]
    assert {row["verdict"] for row in data["layers"]} == {"healthy", "vanishing"} < set(VERDICTS)
    assert data["thresholds"] == {"vanishing": 1e-3, "exploding": 1e3, "dead": 0.7, "saturated": 0.5, "margin": 0.02}
    assert data["layers"][1]["weights"] is None and data["layers"][0]["gradient"]["norm"] > 0
    exploded = json.loads(watched(SICK["overflow"][0](), *batch(*VECTOR)).to_json(), parse_constant=pytest.fail)
    assert exploded["layers"][0]["verdict"] == "exploding"


def test_thresholds_are_adjustable():
    model, data = deep("sigmoid", 8, 1.0), batch(*VECTOR)
    assert "vanishing" not in verdicts(watched(model, *data, vanishing=0)).values()
    strict = verdicts(watched(model, *data, vanishing=0.5))
    assert list(strict.values()).count("vanishing") == 15
    model = deep("tanh", 3, 3.0)
    assert verdicts(watched(model, *data, margin=0.4))["1"] == "saturated"
    assert verdicts(watched(model, *data, margin=0.4, saturated=1.0))["1"] == "healthy"
    assert verdicts(watched(deep("relu", 8, 3.0), *data, exploding=10))["0"] == "exploding"


def test_picture(tmp_path):
    said = watched(deep("sigmoid", 8, 1.0), *batch(*VECTOR)).plot(tmp_path / "deep.png")
    assert (tmp_path / "deep.png").exists() or "no picture" in said
    for name in ("RNN forgets", "overflow"):
        build, shape, _ = SICK[name]
        said = watched(build(), *batch(*shape)).plot(str(tmp_path / "other.png"))
        assert (tmp_path / "other.png").exists() or "no picture" in said


@pytest.mark.parametrize(
    "error, message, call",
    [
        (TypeError, "expected a torch.nn.Module, got list", lambda: gradient_flow([])),
        (ValueError, "no layer to watch", lambda: gradient_flow(nn.Sequential(nn.Dropout()))),
        (ValueError, "every is 0", lambda: gradient_flow(nn.Linear(1, 1), every=0)),
        (ValueError, "vanishing is 2, expected 0 to 1", lambda: gradient_flow(nn.Linear(1, 1), vanishing=2)),
        (ValueError, r"exploding is 0\.5, expected 1 to inf", lambda: gradient_flow(nn.Linear(1, 1), exploding=0.5)),
        (ValueError, "margin is nan", lambda: gradient_flow(nn.Linear(1, 1), margin=math.nan)),
        (TypeError, "dead is 'all', expected a number", lambda: gradient_flow(nn.Linear(1, 1), dead="all")),
    ],
)
def test_what_is_refused(error, message, call):
    with pytest.raises(error, match=message):
        call()


def test_a_block_is_not_entered_twice():
    flow = gradient_flow(nn.Linear(1, 1))
    with flow, pytest.raises(RuntimeError, match="entered already"), flow:
        pass
