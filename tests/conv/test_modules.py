"""What is peculiar to the modules of convolution; what they share with all others, tests/nn/test_modules.py has."""

import copy
from itertools import product

import pytest
import torch
from helpers import use
from torch.nn.utils import parametrizations

import pyflash
import pyflash.functional as PF
import pyflash.nn as nn
from pyflash.nn._twins import ORIGINALS
from pyflash.ops.conv import functions
from pyflash.ops.core import backends, choice
from tests.conv.convs import BACKENDS

LAZY = [name for name in nn.conv.__all__ if name.startswith("Lazy")]


@pytest.mark.parametrize("name", LAZY)
def test_lazy_forms_become_ours(name):
    n, built = int(name[-2]), {}
    for package in (nn, torch.nn):
        torch.manual_seed(3)
        module = getattr(package, name)(6, 3, padding=1, stride=2)
        y = module(torch.ones(2, 4, *(7,) * n))
        built[package] = module.state_dict(), y
        assert type(module) is getattr(package, name.removeprefix("Lazy")) and module.in_channels == 4
    for ours, theirs in zip(built[nn][0].values(), built[torch.nn][0].values(), strict=True):
        assert torch.equal(ours, theirs)
    torch.testing.assert_close(built[nn][1], built[torch.nn][1])
    replaced = pyflash.replace(getattr(torch.nn, name)(6, 3))
    assert type(replaced) is getattr(nn, name)
    assert type(pyflash.restore(replaced)) is getattr(torch.nn, name)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_output_size_chooses_among_those_of_a_stride(backend, n):
    theirs = getattr(torch.nn, f"ConvTranspose{n}d")(3, 4, 3, stride=2, padding=1)
    ours, x = pyflash.replace(copy.deepcopy(theirs)), torch.randn(2, 3, *(5,) * n)
    for size in ([9] * n, [10] * n, [2, 4, *[10] * n]):
        with use(backend):
            torch.testing.assert_close(ours(x, size), theirs(x, size))
    for wrong in ([12] * n, [9] * (n + 3)):
        with pytest.raises(ValueError) as expected:
            theirs(x, wrong)
        with pytest.raises(ValueError) as found:
            ours(x, wrong)
        assert str(found.value) == str(expected.value)


def test_constructors_refuse_what_torchs_do():
    calls = [
        lambda n: n.Conv2d(3, 4, 3, groups=2),
        lambda n: n.Conv2d(4, 3, 3, groups=2),
        lambda n: n.Conv2d(4, 4, 3, groups=0),
        lambda n: n.Conv2d(4, 4, 3, padding="bogus"),
        lambda n: n.Conv2d(4, 4, 3, padding="same", stride=2),
        lambda n: n.Conv2d(4, 4, 3, padding_mode="bogus"),
        lambda n: n.ConvTranspose2d(4, 4, 3, padding_mode="circular"),
        lambda n: n.Conv2d(4, 4, 3)(torch.ones(1, 3, 5, 5)),
        lambda n: n.Conv2d(4, 4, 3, padding_mode="circular", padding=3)(torch.ones(1, 4, 2, 2)),
        lambda n: n.ConvTranspose1d(4, 4, 3)(torch.ones(4)),
    ]
    for call in calls:
        with pytest.raises(Exception) as theirs:
            call(torch.nn)
        for backend in ("auto", "cpu"):
            with use(backend), pytest.raises(theirs.type) as ours:
                call(nn)
            assert str(ours.value) == str(theirs.value)
    module = nn.ConvTranspose2d(4, 4, 3)
    module.padding_mode = "reflect"
    with pytest.raises(ValueError, match="Only `zeros` padding mode is supported for ConvTranspose2d"):
        module(torch.ones(1, 4, 5, 5))


def test_a_subclass_may_bring_weights_of_its_own():
    """As the equalised learning rate of a GAN does."""

    class Scaled(nn.Conv2d):
        def forward(self, x):
            return self._conv_forward(x, self.weight * 0.5, self.bias)

    module, x = Scaled(3, 4, 3, padding=1, padding_mode="circular"), torch.randn(2, 3, 6, 6)
    before = backends.counts.copy()
    found = module(x)
    assert any(name == "conv2d" for name, *_ in backends.counts - before)
    twin = torch.nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")
    twin.load_state_dict({"weight": module.weight * 0.5, "bias": module.bias})
    torch.testing.assert_close(found, twin(x))


def test_of_a_whole_model_every_convolution_is_ours_and_torchs_again():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        parametrizations.weight_norm(torch.nn.Conv2d(8, 8, 3, groups=8)),
        torch.nn.ConvTranspose2d(8, 4, 4, 2),
        torch.nn.Unfold(2),  # torch's own
    )
    x, twin = torch.randn(2, 3, 9, 9), copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    assert pyflash.replace(model) is model
    assert [type(m) for m in model][0::2] == [nn.Conv2d, nn.ConvTranspose2d] and isinstance(model[1], nn.Conv2d)
    rows = {row.name: row for row in pyflash.report(model).rows}
    assert rows["0"].now == "pyflash.nn.Conv2d" and rows["3"].reason == "no class of ours yet"
    (y,) = [m(x) for m in [model]]
    torch.testing.assert_close(y, twin(x))
    y.square().mean().backward()
    optimizer.step()
    pyflash.restore(model)
    assert not any(type(m) in ORIGINALS for m in model)
    assert list(model.state_dict()) == list(twin.state_dict())


def test_a_graph_of_torch_fx_and_a_script_hold_torchs():
    model, x = torch.nn.Sequential(nn.Conv2d(3, 4, 3, padding_mode="reflect", padding=1), nn.ConvTranspose2d(4, 2, 3)), torch.randn(1, 3, 5, 5)  # fmt: skip
    traced = torch.fx.symbolic_trace(model)
    targets = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert torch.conv2d in targets and torch.conv_transpose2d in targets
    torch.testing.assert_close(traced(x), model(x))
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))
    torch.testing.assert_close(torch.jit.trace(model, x)(x), model(x))


@pytest.mark.parametrize("grads", [False, True])
@pytest.mark.parametrize("channels", [4, 64])  # beyond the points of a table, and like them
def test_what_is_remembered_of_a_call_is_what_the_rules_say(channels, grads):
    """In whichever layout it came first: of most small calls the answer is the same, and their strides are not read."""
    convolution = functions._CONV[2]
    formats = torch.contiguous_format, torch.channels_last
    given = [[torch.randn(8, channels, size, size), torch.randn(channels, channels, 3, 3)] for size in (2, 11, 22)]
    for order in (formats, formats[::-1]):
        choice.forget_refused()
        for (x, weight), memory_format, padding in product(given, order, (1, [1, 1])):  # a list has no hash
            x, weight = (t.contiguous(memory_format=memory_format).requires_grad_(grads) for t in (x, weight))
            before = backends.counts.copy()
            with use("auto"):
                PF.conv2d(x, weight, padding=padding)
            ((_, backend, _),) = backends.counts - before
            geometry = convolution.geometry(x.shape, weight.shape, 1, 1, 1, 1)
            size = convolution._size(grads, x, weight, geometry)
            assert backend == ("torch" if convolution.operation.rules("cpu", size, x.dtype) else "cpu")
        assert len(convolution.refused.answers) == len(given)
