"""Calls of containers that are torch's, after the first ones alike: the same results, counts, hooks and errors as before."""

import copy

import pytest
import torch
from helpers import use
from torch.overrides import TorchFunctionMode

import pyflash
from pyflash.nn import _remembered
from pyflash.ops.core import choice
from pyflash.ops.core.backends import call_counts
from tests.frame.test_replace import Block
from tests.nn.test_chains import settled


def sequential():
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1, bias=False), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
        torch.nn.MaxPool2d(2), torch.nn.Conv2d(8, 8, 1), torch.nn.LeakyReLU(0.2), torch.nn.Flatten(), torch.nn.Linear(32, 8),
    )  # fmt: skip


CONTAINERS = {"Sequential": (sequential, (2, 3, 4, 4)), "a block": (lambda: Block(8, 8, 1), (2, 8, 6, 5))}
LEARNT = 2  # calls: of the first the chains are remembered, of the second the modules' calls


@pytest.fixture(params=CONTAINERS)
def pair(request):
    """A container of torch's, its twin that knows its calls in evaluation, and an input."""
    torch.manual_seed(0)
    make, shape = CONTAINERS[request.param]
    theirs = settled(make()).eval()
    ours, x = pyflash.replace(copy.deepcopy(theirs)), torch.randn(shape)
    with torch.no_grad():
        for _ in range(LEARNT):
            ours(x)
    return theirs, ours, x


def asked(monkeypatch):
    """Grows by one where a call asks whose it is."""
    found, holds = [], choice.Refused.holds
    monkeypatch.setattr(choice.Refused, "holds", lambda self, *args: found.append(self) or holds(self, *args))
    return found


def taken(model, x):
    call_counts(reset=True)
    model(x)
    return call_counts()


def test_results_and_counts_stay(pair, monkeypatch):
    theirs, ours, x = pair
    questions = asked(monkeypatch)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x)) and not questions
        known = taken(ours, x)
        choice.forget_refused()
        ours(x)
        assert taken(ours, x) == known and questions
        assert {backend for _, backend, _ in known} == {"torch"}


def graph_of(y):
    """The names of the backward's nodes, whether they come from a function in place or not."""
    found, due = [], [y.grad_fn]
    while due:
        node = due.pop()
        if node is not None:
            found.append(node.name().rstrip("01"))
            due += [following for following, _ in node.next_functions]
    return found


def test_training_is_torchs(pair):
    theirs, ours, x = pair
    theirs.train(), ours.train()
    for _ in range(LEARNT + 2):
        results, graphs = [], []
        for model in (theirs, ours):
            model.zero_grad()
            given = x.clone().requires_grad_()
            y = model(given)
            graphs.append(graph_of(y))
            y.square().sum().backward()
            results.append([y, given.grad, *(p.grad for p in model.parameters()), *model.buffers()])
        assert all(map(torch.equal, *results)) and graphs[0] == graphs[1]


def test_hooks_fire_and_go(pair, monkeypatch):
    theirs, ours, x = pair
    child = next(m for m in ours.modules() if isinstance(m, torch.nn.BatchNorm2d))
    seen = []
    with torch.no_grad():
        counted = taken(ours, x)
        hook = child.register_forward_hook(lambda module, args, y: seen.append(module) or y + 1)
        changed = ours(x)
        assert seen == [child] and not torch.equal(changed, theirs(x)) and taken(ours, x) == counted
        hook.remove()
        questions = asked(monkeypatch)
        assert torch.equal(ours(x), theirs(x)) and not questions
        with torch.nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module)):
            ours(x)
        assert set(ours.children()) <= {*seen, None}
        child.forward = lambda y: y * 2
        theirs.get_submodule(next(n for n, m in ours.named_modules() if m is child)).forward = child.forward
        torch.testing.assert_close(ours(x), theirs(x))


def test_a_child_is_another_or_changed(pair):
    theirs, ours, x = pair
    name = next(n for n, m in ours.named_modules() if isinstance(m, torch.nn.Conv2d))
    with torch.no_grad():
        for model in (theirs, ours):
            model.get_submodule(name).weight.mul_(2)
        assert torch.equal(ours(x), theirs(x))
        other = torch.nn.Sequential(copy.deepcopy(theirs.get_submodule(name)), torch.nn.Tanh())
        for model in (theirs, ours):
            model.set_submodule(name, other)
        torch.testing.assert_close(ours(x), theirs(x))


def test_a_wish_and_a_transform_are_heard(pair):
    theirs, ours, x = pair
    with torch.no_grad():
        with use("cpu"):
            assert {backend for _, backend, _ in taken(ours, x)} == {"cpu"}
        expected = theirs(x)
        torch.testing.assert_close(torch.func.vmap(ours)(x[:, None])[:, 0], expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(ours(x), expected)
        with torch.autocast("cpu", torch.bfloat16):
            for _ in range(LEARNT + 1):
                assert ours(x).dtype == theirs(x).dtype


def test_a_mode_sees_what_is_called(pair):
    _, ours, x = pair

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            called.append(func)
            return func(*args, **(kwargs or {}))

    with torch.no_grad():
        called: list = []
        with Mode():
            ours(x)
        assert torch.nn.functional.batch_norm in called
        with pyflash.overrides():
            assert taken(ours, x) == taken(ours, x)


def test_what_raises_is_called_once_and_in_our_words():
    class Raises(torch.nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            if self.calls > LEARNT:
                raise RuntimeError("mine")
            return x

    model = pyflash.nn.Sequential(pyflash.nn.Linear(8, 8), Raises(), pyflash.nn.Linear(8, 8))
    x = torch.randn(2, 8)
    for _ in range(LEARNT):
        model(x)
    with pytest.raises(RuntimeError, match="mine"):
        model(x)
    assert model[1].calls == LEARNT + 1
    model[1] = torch.nn.Identity()
    for _ in range(LEARNT):
        model(x)
    model.double()
    with pytest.raises(RuntimeError, match=r"pyflash\.linear"):
        model(x)


def test_a_report_sees_the_modules(pair):
    _, ours, x = pair
    rows = {row.before: row for row in pyflash.report(ours, example_inputs=x).rows}
    assert [call["calls"] for call in rows["torch.nn.BatchNorm2d"].took] == [1]


def test_a_block_is_asked_for_its_state():
    """A record of another state has other calls."""
    theirs = settled(Block(8, 16, 2)).eval()
    ours = pyflash.replace(copy.deepcopy(theirs))
    x = torch.randn(2, 8, 6, 6)
    with torch.no_grad():
        for _ in range(LEARNT + 1):
            assert torch.equal(ours(x), theirs(x))
        for model in (theirs, ours):
            model.downsample = None
            model.conv1.stride, model.conv1, model.bn1 = (1, 1), torch.nn.Identity(), torch.nn.Identity()
            model.conv2, model.bn2 = torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.BatchNorm2d(8).eval()
        ours.conv2.load_state_dict(theirs.conv2.state_dict())
        for _ in range(LEARNT + 1):
            torch.testing.assert_close(ours(x), theirs(x))


def test_only_large_tensors_are_saved():
    """Where torch serves all, an activation writes into what the module before it made."""
    model = pyflash.nn.Sequential(pyflash.nn.Conv2d(1, 4, 1), pyflash.nn.LeakyReLU(0.2)).eval()
    found = []
    with torch.no_grad():
        for size in (8, 256):
            x = torch.randn(1, 1, size, size)
            first, second, third = model(x), model(x), model(x)
            assert torch.equal(first, second) and torch.equal(first, third)
            known = _remembered.known_of(_remembered.in_turn, model, x)[1]
            found.append((known.places, known.in_place, known.forwards[1] is _remembered._in_place))
    assert found == [(frozenset(), {}, False), (frozenset(), {1: 0}, True)]


class Twice(torch.nn.Module):
    """The activation's input is read again where `again` says so: in that state it must stay."""

    def __init__(self, activation, again):
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(2, 4, 1), torch.nn.BatchNorm2d(4)
        self.activation, self.again = activation, again

    def forward(self, x):
        y = self.norm(self.conv(x))
        z = self.activation(y)
        return z + y if self.again else z


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "activation",
    [torch.nn.ReLU(), torch.nn.ReLU6(), torch.nn.SiLU(), torch.nn.LeakyReLU(-0.5), torch.nn.Hardswish(), torch.nn.Hardtanh(-0.3, 0.4)],
    ids=lambda module: type(module).__name__,
)  # fmt: skip
def test_an_activation_in_place_is_torchs(activation, training, monkeypatch):
    monkeypatch.setattr(_remembered, "LARGE_BYTES", 0)
    torch.manual_seed(0)
    theirs = settled(Twice(activation, again=False)).train(training)
    ours, x = pyflash.replace(copy.deepcopy(theirs)), torch.randn(2, 2, 5, 3)
    for again in (False, True, False):
        theirs.again = ours.again = again
        for _ in range(LEARNT + 1):
            results = []
            for model in (theirs, ours):
                model.zero_grad()
                given = x.clone().requires_grad_()
                y = model(given)
                y.square().sum().backward()
                results.append([y, given.grad, *(p.grad for p in model.parameters()), *model.buffers()])
                with torch.no_grad():
                    results[-1].append(model(x))
            assert all(map(torch.equal, *results))
        known = _remembered._known[ours]
        assert {value.in_place == {2: 1} for value in known.values() if value.forwards} == {not again}


def test_memory_is_bounded_and_lets_go():
    model = pyflash.nn.Sequential(pyflash.nn.Linear(4, 4), pyflash.nn.ReLU())
    for rows in range(2 * _remembered.CALLS):
        model(torch.randn(rows + 1, 4))
    assert len(_remembered._known[model]) <= _remembered.CALLS
    held = len(_remembered._known)
    del model
    assert len(_remembered._known) == held - 1
