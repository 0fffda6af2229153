"""replace(policy="fastest"): what is chosen, by a planted clock, so that no machine's mood decides a test; and what it leaves alone."""

import json

import pytest
import torch
from torch import nn

import pyflash
import pyflash.nn as ours
from pyflash import _calls, _fastest
from pyflash.nn._twins import ORIGINALS, class_of

pytestmark = pytest.mark.host


@pytest.fixture
def clock(monkeypatch):
    """clock[class of torch.nn] = seconds of a call of ours, where torch's takes 1. A module's time is the sum over what it consists
    of, or what is said of its own class. Each candidate still runs."""
    planted = {}

    def cost(module):
        cls = class_of(module)
        own = planted.get(ORIGINALS[cls], 1.0) if cls in ORIGINALS else None
        if own is not None and ORIGINALS[cls] in planted:
            return own
        parts = list(module.children())
        return sum(map(cost, parts)) if parts else 1.0

    def seconds(run, repeats):
        run()
        return cost(run.module)

    monkeypatch.setattr(_calls, "seconds", seconds)
    return planted


def net():
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Sequential(nn.Linear(8, 8), nn.GELU()), nn.Softmax(-1))


def classes(model):
    return {name: type(module).__module__.split(".")[0] for name, module in model.named_modules()}


def test_what_is_faster_becomes_ours(clock):
    clock |= {nn.Linear: 2.0, nn.LayerNorm: 0.5, nn.GELU: 0.5, nn.Softmax: 1.0}
    model = net()
    assert pyflash.replace(model, policy="fastest", example_inputs=torch.randn(3, 6)) is model
    found = {name for name, made in classes(model).items() if made == "pyflash"}
    assert found == {"1", "2.1"}
    rows = {row.name: row for row in pyflash.report(model).rows}
    assert (rows["1"].torch_ms, rows["1"].pyflash_ms) == (1000.0, 500.0)
    assert (rows["0"].torch_ms, rows["0"].pyflash_ms, rows["0"].reason) == (1000.0, 2000.0, "torch's is not slower")
    assert rows["0"].backend == ""
    assert pyflash.report(model).whole == _fastest.Choice(True, "", 5000.0, 4000.0)


def test_a_chain_is_measured_as_one(clock):
    """Linear and GELU run as one in a Sequential of ours, whatever each takes alone."""
    clock |= {nn.Linear: 2.0, nn.GELU: 2.0, nn.Sequential: 0.25, nn.LayerNorm: 2.0, nn.Softmax: 2.0}

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Sequential(nn.Linear(6, 6), nn.GELU()), nn.LayerNorm(6)

        def forward(self, x):
            return self.b(self.a(x))

    made = pyflash.replace(Model(), policy="fastest", example_inputs=torch.randn(3, 6))
    assert classes(made) | {"": "test"} == {
        "": "test",
        "a": "pyflash",
        "a.0": "pyflash",
        "a.1": "pyflash",
        "b": "torch",
    }
    assert {row.name: row.pyflash_ms for row in pyflash.report(made).rows}["a"] == 250.0


def test_a_whole_model_that_is_slower_stays_torchs(clock, monkeypatch):
    clock |= {nn.Linear: 0.5, nn.LayerNorm: 0.5}

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Linear(6, 6), nn.LayerNorm(6)

        def forward(self, x):
            return self.norm(self.first(x))

    model, parts = Model(), _calls.seconds
    whole = {True: 1.0, False: 3.0}  # by whether all is torch's
    monkeypatch.setattr(
        _calls,
        "seconds",
        lambda run, repeats: (
            whole[not any(class_of(part) in ORIGINALS for part in run.module.modules())]
            if class_of(run.module) is Model
            else parts(run, repeats)
        ),
    )
    pyflash.replace(model, policy="fastest", example_inputs=torch.randn(3, 6))
    assert set(classes(model).values()) <= {"torch", Model.__module__.split(".")[0]}
    report = pyflash.report(model)
    assert not report.whole.is_ours and "the whole model is not faster" in report.rows[0].reason
    assert "torch 1e+03 ms, ours 3e+03 ms" in str(report)


def test_other_numbers_are_never_taken(clock, monkeypatch):
    clock[nn.LayerNorm] = 0.1
    forward = ours.LayerNorm.forward
    monkeypatch.setattr(ours.LayerNorm, "forward", lambda self, x: forward(self, x) * 1.001)
    model = pyflash.replace(net(), policy="fastest", example_inputs=torch.randn(3, 6))
    assert type(model[1]) is nn.LayerNorm
    assert "differs from torch's by" in {row.name: row.reason for row in pyflash.report(model).rows}["1"]


def test_other_gradients_are_never_taken(clock, monkeypatch):
    clock[nn.LayerNorm] = 0.1
    forward = ours.LayerNorm.forward

    def wrong(self, x):
        y = forward(self, x)
        return y.detach() + 1.001 * (y - y.detach())

    monkeypatch.setattr(ours.LayerNorm, "forward", wrong)
    taken = {}
    for training in (True, False):
        model = net().train(training)
        taken[training] = type(pyflash.replace(model, policy="fastest", example_inputs=torch.randn(3, 6))[1])
    assert taken == {True: nn.LayerNorm, False: ours.LayerNorm}


def test_one_that_raises_is_not_taken(clock, monkeypatch):
    clock[nn.LayerNorm] = 0.1

    def fails(self, x):
        raise RuntimeError("of ours")

    monkeypatch.setattr(ours.LayerNorm, "forward", fails)
    model = pyflash.replace(net(), policy="fastest", example_inputs=torch.randn(3, 6))
    assert type(model[1]) is nn.LayerNorm
    assert "RuntimeError: of ours" in {row.name: row.reason for row in pyflash.report(model).rows}["1"]


@pytest.mark.parametrize("training", [True, False])
def test_random_layers_are_compared_in_evaluation(clock, training):
    clock |= {nn.Dropout: 0.5, nn.Sequential: 0.1}
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5)).train(training)
    pyflash.replace(model, policy="fastest", example_inputs=torch.randn(16, 6))
    assert type(model) is ours.Sequential and type(model[3]) is ours.Dropout


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(clock, training):
    clock[nn.Linear] = 0.5
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(6, 2))
    model.train(training)
    model(torch.randn(4, 6)).sum().backward()
    input = torch.randn(4, 6, requires_grad=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    ids, versions = [id(p) for p in model.parameters()], [p._version for p in model.parameters()]
    at, kept = torch.get_rng_state(), input.detach().clone()
    pyflash.replace(model, policy="fastest", example_inputs=input)
    assert type(model[0]) is ours.Linear
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, grads[name]) for name, p in model.named_parameters())
    assert [id(p) for p in model.parameters()] == ids and [p._version for p in model.parameters()] == versions
    assert torch.equal(torch.get_rng_state(), at) and torch.equal(input, kept) and input.grad is None
    assert model.training is training and all(part.training is training for part in model.modules())


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused, self.twice = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, *, scale=1.0):
        return {"y": self.twice(self.twice(self.used(x))) * scale}


def test_what_is_not_called_stays_torchs(clock):
    clock[nn.Linear] = 0.5
    model = pyflash.replace(Branches(), policy="fastest", example_inputs={"x": torch.randn(3, 4), "scale": 2.0})
    assert [type(part) for part in (model.used, model.unused, model.twice)] == [ours.Linear, nn.Linear, ours.Linear]
    rows = {row.name: row for row in pyflash.report(model).rows}
    assert rows["unused"].reason == "not called with the example inputs" and rows["unused"].torch_ms is None
    assert rows["twice"].torch_ms == 2 * rows["used"].torch_ms  # its two calls


def test_what_has_hooks_is_not_called_again(clock):
    clock[nn.Linear] = 0.5
    model, calls = Branches(), []
    model.used.register_forward_hook(lambda *_: calls.append(1))
    pyflash.replace(model, policy="fastest", example_inputs=torch.randn(3, 4))
    assert type(model.used) is nn.Linear and type(model.twice) is ours.Linear
    report = pyflash.report(model)
    assert "hooks" in {row.name: row.reason for row in report.rows}["used"] and "hooks" in report.whole.reason
    assert len(calls) == 1  # of the one run


def test_what_keeps_a_state_of_the_callers_is_not_called_again(clock):
    class Cache:
        steps = 0

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.steps = nn.Sequential(nn.Linear(4, 4))
            self.last = nn.Linear(4, 4)

        def forward(self, x, cache):
            cache.steps += 1
            return self.last(self.steps(x))

    clock[nn.Linear] = 0.5
    model, cache = Model(), Cache()
    pyflash.replace(model, policy="fastest", example_inputs=(torch.randn(3, 4), cache))
    assert cache.steps == 1 and type(model.last) is ours.Linear
    assert pyflash.report(model).whole == _fastest.Choice(True, "not measured: it is called with a Cache")


def test_only_and_exclude_hold(clock):
    clock[nn.Linear] = 0.5
    model = pyflash.replace(Branches(), policy="fastest", example_inputs=torch.randn(3, 4), exclude="twice")
    assert type(model.used) is ours.Linear and type(model.twice) is nn.Linear


def test_dry_run_measures_and_changes_nothing(clock):
    clock[nn.Linear] = 0.5
    model = pyflash.replace(Branches(), policy="fastest", example_inputs=torch.randn(3, 4), dry_run=True)
    assert type(model.used) is nn.Linear
    row = next(row for row in pyflash.report(model).rows if row.name == "used")
    assert row.reason == "would become pyflash.nn.Linear" and row.pyflash_ms == 500.0


def test_a_block_of_the_users_is_measured_with_its_chains(clock):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            return torch.relu(self.bn(self.conv(x)))

    clock |= {nn.Conv2d: 0.5, nn.BatchNorm2d: 0.5}
    model = nn.Sequential(Block(), nn.Flatten()).eval()
    x = torch.randn(2, 3, 6, 6)
    expected = model(x)
    pyflash.replace(model, policy="fastest", example_inputs=x)
    assert type(model[0].conv) is ours.Conv2d and isinstance(model[0], Block)
    torch.testing.assert_close(model(x), expected)
    assert type(pyflash.restore(model)[0].conv) is nn.Conv2d and pyflash.report(model).whole is None


# ---- cache


def test_a_second_time_is_read_from_the_cache(clock, monkeypatch, tmp_path):
    clock[nn.LayerNorm] = 0.5
    cache = tmp_path / "measured.json"
    first = pyflash.replace(net(), policy="fastest", example_inputs=torch.randn(3, 6), cache=cache)
    monkeypatch.setattr(_calls, "seconds", None)  # no clock any more
    second = pyflash.replace(net(), policy="fastest", example_inputs=torch.randn(3, 6), cache=str(cache))
    assert classes(second) == classes(first) and type(second[1]) is ours.LayerNorm
    assert pyflash.report(second).rows == pyflash.report(first).rows
    assert [entry["machine"]["torch"] for entry in json.loads(cache.read_text()).values()] == [torch.__version__]
    assert list(tmp_path.iterdir()) == [cache]


@pytest.mark.parametrize("change", ["model", "mode", "size", "dtype", "threads", "backend", "only"])
def test_another_model_or_machine_is_measured(clock, tmp_path, change):
    clock[nn.LayerNorm] = 0.5
    cache, model, input, options = tmp_path / "measured.json", net(), torch.randn(3, 6), {}
    pyflash.replace(net(), policy="fastest", example_inputs=input, cache=cache)
    threads = torch.get_num_threads()
    if change == "model":
        model[1] = nn.LayerNorm(8, eps=1e-3)
    elif change == "mode":
        model.eval()
    elif change == "size":
        input = torch.randn(4, 6)
    elif change == "dtype":
        model, input = model.double(), input.double()
    elif change == "only":
        options = {"only": "1"}
    try:
        torch.set_num_threads(threads + (change == "threads"))
        with pyflash.use_backend("torch" if change == "backend" else "auto"):
            pyflash.replace(model, policy="fastest", example_inputs=input, cache=cache, **options)
    finally:
        torch.set_num_threads(threads)
    assert len(json.loads(cache.read_text())) == 2


@pytest.mark.parametrize("text", ["no JSON", "[1]"])
def test_a_file_that_is_no_cache_is_not_overwritten(clock, tmp_path, text):
    cache = tmp_path / "notes"
    cache.write_text(text)
    with pytest.raises(ValueError, match=r"cache=.*notes.* is no file that it wrote.*name another"):
        pyflash.replace(net(), policy="fastest", example_inputs=torch.randn(3, 6), cache=cache)
    assert cache.read_text() == text


def test_a_cache_that_was_tampered_with_is_named(clock, tmp_path):
    cache = tmp_path / "measured.json"
    pyflash.replace(net(), policy="fastest", example_inputs=torch.randn(3, 6), cache=cache)
    kept = json.loads(cache.read_text())
    next(iter(kept.values()))["modules"] = {"0": {"is_ours": True}}
    cache.write_text(json.dumps(kept))
    with pytest.raises(ValueError, match="cannot be read"):
        pyflash.replace(net(), policy="fastest", example_inputs=torch.randn(3, 6), cache=cache)


# ---- bad input


@pytest.mark.parametrize(
    "options, message",
    [
        ({"policy": "best"}, "policy is 'best', expected one of 'all', 'fastest'"),
        ({"policy": "fastest"}, "example_inputs is missing"),
        ({"example_inputs": torch.ones(3, 6)}, 'example_inputs is given, which only policy="fastest" reads'),
        ({"cache": "file.json"}, "cache is given"),
    ],
)
def test_errors(options, message):
    model = net()
    with pytest.raises(ValueError, match=message):
        pyflash.replace(model, **options)
    assert set(classes(model).values()) == {"torch"}


def test_a_wrong_example_raises_what_the_model_does(clock):
    model = net()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        pyflash.replace(model, policy="fastest", example_inputs=torch.randn(3, 5))
    assert set(classes(model).values()) == {"torch"}


def test_a_model_that_cannot_be_copied(clock):
    model = net()
    model.stream = (i for i in range(3))
    with pytest.raises(ValueError, match=r'which cannot be copied.*policy="all" needs none'):
        pyflash.replace(model, policy="fastest", example_inputs=torch.randn(3, 6))


# ---- by the real clock


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_models_compute_the_same(training):
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 2, 64, 0.0, batch_first=True), 2).train(training)
    x = torch.randn(2, 8, 32)
    expected = model(x)
    pyflash.replace(model, policy="fastest", example_inputs=x)
    torch.testing.assert_close(model(x), expected)
    report = pyflash.report(model)
    assert report.whole is not None and (report.whole.is_ours or not report.replaced)
    assert all(row.torch_ms > 0 for row in report.rows if row.torch_ms is not None)
