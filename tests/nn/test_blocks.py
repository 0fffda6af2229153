"""Chains in modules whose forward is code, as torchvision writes them."""

import copy
import io
import pickle
import random
import threading

import pytest
import torch
import torch.nn.functional as F
from helpers import use

import pyflash
import pyflash.models
from pyflash.nn import _blocks
from pyflash.ops.core import choice
from tests.frame.test_replace import Block, ResNet
from tests.nn.test_chains import results, settled, taken


class Bottleneck(torch.nn.Module):
    """torchvision's, whose expansion is 4."""

    expansion = 2

    def __init__(self, inplanes, planes, stride=1, downsample=None):
        super().__init__()
        self.conv1, self.bn1 = torch.nn.Conv2d(inplanes, planes, 1, bias=False), torch.nn.BatchNorm2d(planes)
        self.conv2 = torch.nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(planes)
        self.conv3 = torch.nn.Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.bn3 = torch.nn.BatchNorm2d(planes * self.expansion)
        self.relu = torch.nn.ReLU(inplace=True)
        self.downsample = downsample
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        out = self.relu(out)
        out = self.conv3(out)
        out = self.bn3(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Inverted(torch.nn.Module):
    """In code of functions, with a state that is no module's."""

    def __init__(self):
        super().__init__()
        self.expand, self.bn1 = torch.nn.Conv2d(4, 12, 1), torch.nn.BatchNorm2d(12)
        self.depth, self.bn2 = torch.nn.Conv2d(12, 12, 3, padding=1, groups=12), torch.nn.BatchNorm2d(12)
        self.project, self.bn3 = torch.nn.Conv2d(12, 4, 1), torch.nn.BatchNorm2d(4)
        self.use_res_connect = True

    def forward(self, x):
        y = F.relu6(self.bn1(self.expand(x)))
        y = self.bn3(self.project(F.relu6(self.bn2(self.depth(y)), inplace=True)))
        return x + y if self.use_res_connect else y


def projected():
    return torch.nn.Sequential(torch.nn.Conv2d(4, 8, 1, 2, bias=False), torch.nn.BatchNorm2d(8))


class Branches(torch.nn.Module):
    """Whose input is read for the last time before the chain that begins with it has run."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.BatchNorm2d(4)
        self.conv2, self.bn2 = torch.nn.Conv2d(4, 4, 1), torch.nn.BatchNorm2d(4)
        self.conv3, self.bn3 = torch.nn.Conv2d(4, 4, 1), torch.nn.BatchNorm2d(4)
        self.act = torch.nn.SiLU()

    def forward(self, x):
        x = self.act(self.bn3(self.conv3(x)))
        y = self.bn1(self.conv1(x))
        z = self.bn2(self.conv2(x))
        return self.act(y + z)


BLOCKS = {
    "branches": Branches,
    "basic": lambda: Block(4, 4, 1),
    "basic, strided": lambda: Block(4, 8, 2),
    "bottleneck": lambda: Bottleneck(4, 2),
    "bottleneck, strided": lambda: Bottleneck(4, 4, 2, projected()),
    "inverted": Inverted,
}
EVALUATED = {  # what runs where everything is folded
    "branches": 3, "basic": 2, "basic, strided": 3, "bottleneck": 3, "bottleneck, strided": 4, "inverted": 3,
}  # fmt: skip


def pair(name):
    theirs = settled(BLOCKS[name]())
    return theirs, pyflash.replace(copy.deepcopy(theirs))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", BLOCKS)
def test_as_its_own_forward(name, layout):
    theirs, ours = pair(name)
    assert _blocks.is_fused(ours) and isinstance(ours, type(theirs)) and repr(type(ours)) == repr(type(theirs))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    x = torch.randn(4, 4, 12, 12, dtype=torch.float64).to(memory_format=layout)
    theirs.double(), ours.double()
    for training in (True, False, True):
        expected, before = results(theirs.train(training), x), copy.deepcopy(ours)
        for backend in ("auto", "cpu"):
            ours.load_state_dict(before.state_dict())
            with use(backend):
                found = results(ours.train(training), x)
            largest = max(float(t.abs().max()) for t in expected)
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11 * largest)
            assert found[0].stride() == expected[0].stride()
    x = x.float()
    theirs.float(), ours.float()
    calls = taken(ours.eval(), torch.randn(4, 4, 32, 32))
    assert calls == {"conv_bias_act": EVALUATED[name]}
    calls = taken(ours.train(), x)
    assert set(calls) <= {"conv2d", "batch_norm_act", "batch_norm"} and calls["conv2d"] == EVALUATED[name]
    assert pyflash.restore(ours) is ours and type(ours) is type(theirs) and not _blocks.is_fused(ours)


def test_the_state_is_its_own():
    """What the forward reads is read again: mode, attributes, absent children, other children."""
    theirs, ours = pair("inverted")
    x = torch.randn(2, 4, 32, 32)
    for change in (
        lambda m: m.eval(), lambda m: setattr(m, "use_res_connect", False), lambda m: m.train(),
        lambda m: setattr(m, "project", type(theirs.project)(12, 4, 1, bias=False)), lambda m: m.eval(),
        lambda m: setattr(m, "bn2", torch.nn.Identity()), lambda m: m.requires_grad_(False),
        lambda m: m.double().float(),
    ):  # fmt: skip
        for model in (theirs, ours):
            torch.manual_seed(0)
            change(model)
        with use("cpu"):
            torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)
    theirs, ours = pair("inverted")
    for model in (theirs, ours):
        model.eval().forward = lambda x, model=model: model.bn1(model.expand(x))
    with use("cpu"):
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)
    theirs, ours = pair("basic, strided")
    for model in (theirs, ours):
        model.eval().downsample = None
        model.conv1.stride = 1
        torch.manual_seed(0)
        model.conv2 = torch.nn.Conv2d(8, 4, 1)
        model.bn2 = torch.nn.BatchNorm2d(4).eval()
    with use("cpu"):
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("at", ["conv1", "bn1", "relu", "conv2", "bn2", "downsample", "downsample.1"])
def test_a_hook_is_called(at):
    theirs, ours = pair("basic, strided")
    theirs.eval(), ours.eval()
    x, calls = torch.randn(2, 4, 32, 32), []
    for model in (theirs, ours):
        seen = []
        model.get_submodule(at).register_forward_hook(lambda m, args, out, seen=seen: seen.append(args[0].clone()))
        calls.append(seen)
    with use("cpu"):
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)
    assert len(calls[0]) == (2 if at == "relu" else 1)
    if at != "relu":  # which works in place
        torch.testing.assert_close(*calls, rtol=1e-4, atol=1e-4)


class Own(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.act = torch.nn.Conv2d(4, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.ReLU(inplace=True)


class Random(Own):
    def forward(self, x):
        return self.act(self.bn(self.conv(x))) if random.random() < 2 else x


class Values(Own):
    def forward(self, x):
        return self.act(self.bn(self.conv(x))) if x.sum() < 1e9 else x


class Counts(Own):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return self.act(self.bn(self.conv(x)))


class Optional(Own):
    def forward(self, x, add=None):
        y = self.act(self.bn(self.conv(x)))
        return y if add is None else y + add


class ReadsAChild(Own):
    def forward(self, x):
        return self.act(self.bn(self.conv(x))) if self.conv.stride == (1, 1) else x


class Asks(Own):
    def forward(self, x):
        return self.act(self.bn(self.conv(x))) if isinstance(x, torch.Tensor) else x


FLAG = True


class ReadsAGlobal(Own):
    def forward(self, x):
        return self.act(self.bn(self.conv(x))) if FLAG else x


class KeepsAList(Own):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        y = self.act(self.bn(self.conv(x)))
        self.seen.append(y)
        return y


class IsToldOfSubclasses(Inverted):
    def __init_subclass__(cls):
        raise AssertionError


class CallsSuper(Inverted):
    def forward(self, x):
        return super().forward(x)


LEFT = [
    Random, Values, Counts, Optional, ReadsAChild, Asks, ReadsAGlobal, KeepsAList, IsToldOfSubclasses, CallsSuper,
]  # fmt: skip


@pytest.mark.parametrize("cls", LEFT)
def test_what_is_left(cls):
    model = cls()
    assert type(pyflash.replace(model)) is cls and not _blocks.is_fused(model)
    model(torch.randn(2, 4, 5, 5))
    assert getattr(model, "calls", 1) == 1


class ReusesItsInput(Own):
    def forward(self, x):
        y = self.conv(x)
        z = self.act(x)
        return self.bn(y) + z


class WritesTheOther(Own):
    def forward(self, x):
        x = self.act(x)
        y = self.bn(self.conv(x))
        x += y
        return x


class KeepsBoth(Own):
    def forward(self, x):
        y = self.conv(x)
        return self.act(self.bn(y)), y


class Broadcasts(Own):
    def forward(self, x, y):
        return self.act(self.bn(self.conv(y)) + x)


@pytest.mark.parametrize("cls", [ReusesItsInput, WritesTheOther, KeepsBoth, Broadcasts])
def test_in_place_and_shared_values(cls):
    theirs = settled(cls()).eval()
    ours = pyflash.replace(copy.deepcopy(theirs))
    x = torch.randn(2, 4, 9, 9)
    args = [x, torch.randn(2, 4, 1, 1)] if cls is Broadcasts else [x]
    if cls is Broadcasts:
        assert _blocks.is_fused(ours)
        for dtype in (torch.float32, torch.float64):  # a sum of two types, of two shapes
            args[0] = x.to(dtype)
            with torch.no_grad(), use("cpu"):
                torch.testing.assert_close(ours(*args), theirs(*args), rtol=1e-4, atol=1e-5)
    with torch.no_grad(), use("cpu"):
        given = [[t.clone() for t in args] for _ in range(2)]
        torch.testing.assert_close(ours(*given[0]), theirs(*given[1]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(given[0], given[1])


def test_copies_pickles_and_scripts():
    theirs, ours = pair("bottleneck, strided")
    theirs.eval(), ours.eval()
    x = torch.randn(2, 4, 32, 32)
    expected = theirs(x)
    saved = io.BytesIO()
    torch.save(ours, saved)
    saved.seek(0)
    copies = copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), torch.load(saved, weights_only=False)
    with use("cpu"):
        for copied in (ours, *copies):
            assert _blocks.is_fused(copied) and taken(copied, x) == {"conv_bias_act": 4}
            torch.testing.assert_close(copied(x), expected, rtol=1e-4, atol=1e-4)
    assert type(pyflash.restore(copies[0])) is Bottleneck and _blocks.is_fused(ours)
    torch.testing.assert_close(torch.jit.script(ours)(x), expected, rtol=1e-4, atol=1e-4)
    torch.jit.script(pyflash.replace(ResNet()).eval())(torch.randn(1, 3, 33, 33))
    torch.testing.assert_close(torch.jit.trace(ours, x)(x), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.fx.symbolic_trace(ours)(x), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.export.export(ours, (x,)).module()(x), expected, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.func.vmap(ours)(x[:, None])[:, 0], expected, rtol=1e-4, atol=1e-4)
    found = []
    thread = threading.Thread(target=lambda: found.append(ours(x)))
    thread.start(), thread.join()
    torch.testing.assert_close(found, [expected], rtol=1e-4, atol=1e-4)


def test_half_types_under_autocast():
    theirs, ours = pair("basic, strided")
    theirs.eval(), ours.eval()
    x = torch.randn(2, 4, 32, 32)
    exact = copy.deepcopy(theirs).double()(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        expected = theirs(x)
        with use("cpu"):
            y = ours(x)
    assert y.dtype == expected.dtype and (y - exact).abs().max() <= 2 * (expected - exact).abs().max()


def test_report_replace_and_restore():
    model = pyflash.replace(ResNet(), exclude="layer2").eval()
    assert [name for name, module in model.named_modules() if _blocks.is_fused(module)] == ["", "layer1.0", "layer1.1"]
    rows = {row.name: row for row in pyflash.report(model).rows}
    assert rows["bn1"].reason == "folded into conv1" and rows["layer1.0.bn2"].reason == "folded into layer1.0.conv2"
    assert rows["layer1.1.relu"].reason == "fused into layer1.1.conv1; fused into layer1.1.conv2"
    with use("cpu"):
        rows = {row.name: row for row in pyflash.report(model, example_inputs=torch.randn(2, 3, 65, 65)).rows}
    assert rows["layer1.0.bn2"].reason == "folded into layer1.0.conv2" and rows["layer1.0.bn2"].took == ()
    assert [call["operation"] for call in rows["layer1.0.conv2"].took] == ["conv_bias_act"]
    classes = [type(module) for module in model.modules()]
    assert [type(module) for module in pyflash.replace(model, exclude="layer2").modules()] == classes
    model.layer1[0].bn1.register_forward_hook(lambda *_: None)
    assert not {row.name: row for row in pyflash.report(model).rows}["layer1.0.bn1"].reason
    pyflash.restore(model)
    assert [type(module) for module in model.modules()] == [type(module) for module in ResNet().modules()]
    dry = pyflash.replace(ResNet(), dry_run=True)
    assert not any(map(_blocks.is_fused, dry.modules()))
    assert not any(map(_blocks.is_fused, pyflash.replace(ResNet(), only=torch.nn.Conv2d).modules()))


def test_the_library_s_own_resnet():
    theirs = settled(pyflash.models.resnet18(num_classes=3)).eval()
    ours = pyflash.replace(copy.deepcopy(theirs))
    assert sum(map(_blocks.is_fused, ours.modules())) == 9
    assert sum(row.reason.startswith("folded into") for row in pyflash.report(ours).rows) == 20
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad(), use("cpu"):
        expected = theirs(x)
        torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_a_block_whose_chains_are_all_torchs_is_called_as_it_is(monkeypatch):
    """From the second call alike on; after a change of the rules, or for another wish, the record is asked again."""
    block, runs = pyflash.replace(Block(8, 8, 1)).eval(), []
    run = _blocks.Record.run
    monkeypatch.setattr(_blocks.Record, "run", lambda *args: runs.append(args) or run(*args))
    x = torch.randn(2, 8, 6, 5)
    with torch.no_grad():
        first, second = block(x), block(x)
        assert torch.equal(first, second) and len(runs) == 1
        block(x.to(memory_format=torch.channels_last)), block(x[:1])
        assert len(runs) == 3
        choice.forget_refused()
        block(x)
        assert len(runs) == 4
        with use("cpu"):
            torch.testing.assert_close(block(x), first)
            block(x)
        assert len(runs) == 6
