"""Tools that know torch.nn's classes, told of ours: what they find in a replaced model is what they find in torch's."""

import copy

import pytest
import torch

import pyflash
import pyflash.nn as nn
from pyflash import integrations


def models():
    torch.manual_seed(0)
    theirs = torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.LayerNorm(8), torch.nn.Linear(8, 5), torch.nn.ReLU(),
        torch.nn.Linear(5, 2),
    )  # fmt: skip
    return pyflash.replace(copy.deepcopy(theirs)), theirs


def test_a_registry_learns_our_classes_and_keeps_what_it_has():
    registry = {torch.nn.Linear: "product", torch.nn.Conv2d: "convolution", nn.ReLU: "ours", torch.nn.ReLU: "theirs"}
    integrations._register(registry)
    assert registry == {
        torch.nn.Linear: "product", nn.Linear: "product", torch.nn.Conv2d: "convolution", nn.Conv2d: "convolution",
        nn.ReLU: "ours", torch.nn.ReLU: "theirs",
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_captum():
    attr = pytest.importorskip("captum.attr")
    ours, theirs = models()
    x, baseline = torch.randn(4, 6), torch.randn(4, 6)
    expected = attr.DeepLift(theirs).attribute(x, baseline, target=1)
    integrations.register_captum()
    torch.testing.assert_close(attr.DeepLift(ours).attribute(x, baseline, target=1), expected)


@pytest.mark.filterwarnings("ignore")
def test_thop():
    thop = pytest.importorskip("thop")
    ours, theirs = models()
    integrations.register_thop()
    assert thop.profile(ours, (torch.randn(1, 6),), verbose=False) == thop.profile(
        theirs, (torch.randn(1, 6),), verbose=False
    )


@pytest.mark.filterwarnings("ignore")
def test_ptflops():
    ptflops = pytest.importorskip("ptflops")
    ours, theirs = models()
    integrations.register_ptflops()
    found, expected = (
        ptflops.get_model_complexity_info(
            model, (6,), backend="pytorch", as_strings=False, print_per_layer_stat=False, verbose=False
        )
        for model in (ours, theirs)
    )
    assert found == expected and found[0] > 0


@pytest.mark.filterwarnings("ignore")
def test_opacus():
    """Refusals, what is put in their place, and per-sample gradients."""
    opacus = pytest.importorskip("opacus")
    integrations.register_opacus()
    validate = opacus.validators.ModuleValidator.validate
    attention = torch.nn.Sequential(torch.nn.MultiheadAttention(8, 2), torch.nn.LSTM(3, 4))
    replaced = pyflash.replace(copy.deepcopy(attention))
    assert len(validate(replaced)) == len(validate(attention)) == 2
    fixed = opacus.validators.ModuleValidator.fix(replaced)
    assert not validate(fixed) and type(fixed[0]).__name__ == "DPMultiheadAttention"
    found = []
    x = torch.randn(4, 6)
    for model in models():
        sampled = opacus.GradSampleModule(model)
        sampled(x).square().sum().backward()
        found.append([p.grad_sample for p in sampled.parameters()])
    torch.testing.assert_close(*found)
