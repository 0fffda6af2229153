"""LeNet, ResNet and ConvNeXt: names, weights and numbers of torch's own modules, built or replaced."""

from __future__ import annotations

import copy
import functools
import json
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_error_within, backend_params, use

import pyflash
from pyflash import models, nn
from pyflash.models.convnext import StochasticDepth
from pyflash.models.resnet import BasicBlock, Bottleneck
from pyflash.nn._twins import ORIGINALS, TWINS
from tests.nn.module_helpers import assert_same, results

LAYOUTS = (torch.contiguous_format, torch.channels_last)
PARAMETERS = {
    "LeNet": 61_706, "resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032, "convnext_tiny": 28_589_128,
}  # fmt: skip
TORCHVISIONS = json.loads((Path(__file__).parent / "torchvision_state_dicts.json").read_text())  # of its version 0.28


def small_resnet(block, width=8):
    return lambda **options: models.ResNet(block, (1, 2, 1, 1), 7, width=width, **options)


def small_convnext(stochastic_depth_prob=0.0, **options):
    return models.ConvNeXt((2, 1), (16, 24), 7, stochastic_depth_prob, **options)


SMALL = {  # of the true structure: what it is built by, and the shape of its input
    "LeNet": (models.LeNet, (2, 1, 28, 28)),
    "LeNet of digits": (lambda **options: models.LeNet(10, 1, 8, **options), (2, 1, 8, 8)),
    "ResNet of BasicBlocks": (small_resnet(BasicBlock), (2, 3, 64, 64)),
    "ResNet of Bottlenecks": (small_resnet(Bottleneck, 4), (2, 3, 64, 64)),
    "ConvNeXt": (small_convnext, (2, 3, 32, 32)),
}
WHOLE = {
    "resnet18": (models.resnet18, (2, 3, 64, 64)),
    "resnet50": (models.resnet50, (2, 3, 64, 64)),
    "convnext_tiny": (lambda **options: models.convnext_tiny(1000, 0.0, **options), (2, 3, 64, 64)),
}
ALL = {**SMALL, **WHOLE}


def seeded(build, **options):
    torch.manual_seed(7)
    return build(**options)


def twins(name):
    """Ours and torch.nn's from one seed."""
    return seeded(ALL[name][0]), seeded(ALL[name][0], nn=torch.nn)


def trained(name):
    """Ours and torch.nn's as they are after some training: norms that do something, and blocks that count."""
    ours, theirs = twins(name)
    with torch.no_grad():
        for key, value in theirs.state_dict().items():
            if key.endswith(("running_mean", "bias")):
                value.normal_(std=0.1)
            elif value.is_floating_point() and (value.dim() == 1 or key.endswith("layer_scale")):
                value.uniform_(0.5, 1.5)
        for parameter in ours.parameters():
            parameter.fill_(float("nan"))
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@functools.cache
def picture_of(name):
    """An input at which no rounding chooses a side of a ReLU or the largest of a window, where gradients jump."""
    model, margin = trained(name)[1].double(), 16 * torch.finfo(torch.float32).eps

    def look(module, inputs, _):
        x = inputs[0].detach()
        if isinstance(module, torch.nn.ReLU):
            distance = x.abs().min()
        else:
            padded = F.pad(x, (module.padding,) * 4, value=float("-inf"))
            windows = F.unfold(padded, module.kernel_size, stride=module.stride)
            first, second = windows.unflatten(1, (x.shape[1], -1)).topk(2, 2).values.unbind(2)
            distance = (first - second)[first > 0].min()
        nearest.append((distance / x.abs().max()).item())

    for module in model.modules():
        if isinstance(module, (torch.nn.ReLU, torch.nn.MaxPool2d)):
            module.inplace = False
            module.register_forward_hook(look)
    for _ in range(100):
        x, nearest = torch.randn(ALL[name][1]), []
        for training in (True, False):
            copy.deepcopy(model).train(training)(x.double())
        if not nearest or min(nearest) > margin:
            return x
    raise AssertionError("no such input among a hundred")


@pytest.mark.parametrize("name", TORCHVISIONS)
def test_names_and_shapes_are_torchvisions(name):
    with torch.device("meta"):
        model = getattr(models, name)()
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == TORCHVISIONS[name]
    assert list(model.state_dict()) == list(TORCHVISIONS[name])


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    with torch.device("meta"):
        model = getattr(models, name)()
        other = getattr(models, name)(num_classes=13)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    *_, bias = other.parameters()
    assert bias.shape == (13,)


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISIONS)
def test_torchvisions_own(name):
    """The same seed, the same weights, logits and drawn depths, where it is installed."""
    torchvision = pytest.importorskip("torchvision")
    theirs, ours = seeded(getattr(torchvision.models, name)), seeded(getattr(models, name), nn=torch.nn)
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(seeded(lambda: ours(x)), seeded(lambda: theirs(x)))


@pytest.mark.parametrize("name", SMALL)
def test_a_seed_gives_the_twins_weights(name):
    ours, theirs = twins(name)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    for module in ours.modules():
        assert type(module) not in TWINS, f"{type(module)} is torch's"
    assert not any(type(module) in ORIGINALS for module in theirs.modules())


@pytest.mark.parametrize("backend", backend_params("cpu"))
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_logits_and_gradients(name, layout, backend):
    """Ours after load_state_dict, and the twin after replace, are as near to float64 as the twin."""
    ours, theirs = trained(name)
    x = picture_of(name).to(memory_format=layout)
    replaced = pyflash.replace(copy.deepcopy(theirs))
    ours, replaced, theirs = (model.to(memory_format=layout) for model in (ours, replaced, theirs))
    assert_same([ours, replaced], theirs, [x], backends=(backend,))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in WHOLE)])
def test_in_float64(name, layout):
    """Rounding is too small to choose a side here. What it may change is told by torch's answer to an input one ulp off,
    which is one rounding, where a layer's products are hundreds: hence the factor."""
    ours, theirs = (model.double().to(memory_format=layout) for model in trained(name))
    x = torch.randn(ALL[name][1], dtype=torch.float64).to(memory_format=layout)
    for mode in ("train", "eval"):
        moved = results(copy.deepcopy(theirs), [x * (1 + torch.finfo(x.dtype).eps)], {}, mode)
        truth, found = results(theirs, [x], {}, mode), results(ours, [x], {}, mode, "cpu")
        assert_error_within(found, moved, truth, max(t.abs().max() for t in truth), factor=8, floor_ulp=64)
    torch.testing.assert_close(list(ours.buffers()), list(theirs.buffers()))


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", WHOLE)
def test_logits_of_whole_models(name, layout):
    """In float32: their gradients jump at some of so many ReLUs, by either side's rounding."""
    ours, theirs = trained(name)
    replaced, double = pyflash.replace(copy.deepcopy(theirs)), copy.deepcopy(theirs).double()
    x = torch.randn(ALL[name][1]).to(memory_format=layout)
    with torch.no_grad():
        for training in (True, False):
            truth, torchs = (
                model.train(training)(x.to(dtype)) for model, dtype in ((double, torch.double), (theirs, x.dtype))
            )
            with use("cpu"):
                for model in (ours, replaced):
                    assert_error_within((model.train(training)(x),), (torchs,), (truth,), floor_ulp=64)


@pytest.mark.parametrize("name", SMALL)
def test_replace_leaves_nothing_to_torch(name):
    theirs, x = twins(name)[1], torch.randn(ALL[name][1])
    rows = pyflash.report(pyflash.replace(theirs)).rows
    assert not [row for row in rows if row.now == row.before and row.before.startswith("torch.nn.")]
    with use("cpu"):
        took = [call for row in pyflash.report(theirs, example_inputs=x).rows for call in row.took]
    assert took and {call["backend"] for call in took} == {"cpu"}


@pytest.mark.parametrize("name", SMALL)
def test_copies(name):
    """deepcopy, pickle, state_dict and back: the same classes, weights, logits; and apart from the original."""
    ours, x = trained(name)[0].eval(), torch.randn(ALL[name][1])
    expected = ours(x)
    fresh = ALL[name][0]().eval()
    fresh.load_state_dict(ours.state_dict())
    copies = [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), fresh]
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
    for copied in copies:
        assert [type(m) for m in copied.modules()] == [type(m) for m in ours.modules()]
        assert torch.equal(copied(x), expected)


def test_training_and_evaluation():
    model, x = twins("ResNet of BasicBlocks")[0], torch.randn(2, 3, 64, 64)
    assert model.training
    before = copy.deepcopy(model.state_dict())
    model.eval()
    assert torch.equal(model(x)[:1], model(x)[:1]) and torch.equal(model.bn1.running_mean, before["bn1.running_mean"])
    model.train()(x)
    assert model.bn1.num_batches_tracked == 1
    assert not torch.equal(model.layer2[0].downsample[1].running_var, before["layer2.0.downsample.1.running_var"])


@pytest.mark.parametrize(("block", "norm"), [(BasicBlock, "bn2"), (Bottleneck, "bn3")], ids=["basic", "bottleneck"])
def test_zero_init_residual(block, norm):
    """Each block begins as the way around it."""
    model = small_resnet(block)(zero_init_residual=True)
    weights = [
        value for key, value in model.named_parameters() if key.startswith("layer") and key.endswith(f"{norm}.weight")
    ]
    assert len(weights) == 5 and not any(value.any() for value in weights)
    x = torch.randn(2, model.layer2[1].conv1.in_channels, 8, 8)
    assert model.layer2[1].downsample is None and torch.equal(model.layer2[1](x), x.relu())
    assert getattr(small_resnet(block)().layer1[0], norm).weight.all()


def test_the_depths_of_convnext_are_drawn_as_the_twins():
    """Evenly from 0 to the last block's; the same generator gives the same."""
    with torch.device("meta"):
        model = models.convnext_tiny(10)
    drops = [module.p for module in model.modules() if isinstance(module, StochasticDepth)]
    assert len(drops) == 18 and drops[0] == 0 and drops[-1] == pytest.approx(0.1)
    assert drops == pytest.approx([0.1 * i / 17 for i in range(18)])

    ours, theirs = (seeded(small_convnext, stochastic_depth_prob=0.9, nn=n) for n in (nn, torch.nn))
    for model in (ours, theirs):
        for block in (*model.features[1], *model.features[3]):
            torch.nn.init.ones_(block.layer_scale)
    x = torch.randn(8, 3, 32, 32)
    drawn = seeded(lambda: theirs(x))
    torch.testing.assert_close(seeded(lambda: ours(x)), drawn)
    assert not torch.allclose(drawn, theirs(x)) and not torch.allclose(drawn, theirs.eval()(x))


def test_stochastic_depth():
    x = torch.randn(1000, 2, 3, 3)
    y = StochasticDepth(0.25)(x)
    dropped = (y == 0).flatten(1).all(1)
    assert 180 < dropped.sum() < 320
    torch.testing.assert_close(y[~dropped], x[~dropped] / 0.75)
    assert StochasticDepth(0.25).eval()(x) is x and StochasticDepth(0.0)(x) is x
    assert not StochasticDepth(1.0)(x).any()
    for p in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"pyflash\.models\.ConvNeXt: stochastic depth"):
            StochasticDepth(p)


@pytest.mark.parametrize("size", [4, 5, 7, 8, 11, 12, 13, 28, 32])
def test_lenet_takes_any_size(size):
    model = models.LeNet(5, 2, size)
    assert model(torch.randn(3, 2, size, size)).shape == (3, 5)


def test_lenet_refuses_what_two_poolings_would_leave_nothing_of():
    with pytest.raises(ValueError, match=r"pyflash\.models\.LeNet: image_size is 3, expected at least 4"):
        models.LeNet(image_size=3)


@pytest.mark.parametrize("name", SMALL)
def test_torch_fx_sees_through_it(name):
    """In training, so that drawn depths are in the graph; one node for each module of torch.nn."""
    theirs, x = twins(name)[1], torch.randn(ALL[name][1])
    if name == "ConvNeXt":
        theirs = small_convnext(0.9, nn=torch.nn)
    traced = torch.fx.symbolic_trace(theirs)
    torch.testing.assert_close(seeded(lambda: traced(x)), seeded(lambda: theirs(x)))
    called = {node.target for node in traced.graph.nodes if node.op == "call_module"}
    leaves = {n for n, m in theirs.named_modules() if type(m).__module__.startswith("torch.nn") and not [*m.children()]}
    assert called >= leaves


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_one_graph(name):
    model, x = trained(name)[0].eval(), torch.randn(ALL[name][1])
    with use("cpu"):
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), model(x))
