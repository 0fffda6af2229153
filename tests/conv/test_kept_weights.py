"""Packed weights of convolutions, which outlive a call while gradients are off: never used when a weight has changed."""

import copy
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from helpers import use

import pyflash
import pyflash.functional as PF
import pyflash.nn
from pyflash.auto import conv as auto
from tests.linear.test_linear_cache import MUTATIONS, SURGERY, cache  # noqa: F401  a fixture

FORMATS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
# Functions of (x, weight, module of functions), each with a weight that is packed: the layouts in which it is, the weight's shape.
CALLS = {
    "3x3": (FORMATS, (48, 40, 3, 3), lambda x, w, f: f.conv2d(x, w, padding=1)),  # Winograd
    "strided": (["NHWC"], (48, 40, 3, 3), lambda x, w, f: f.conv2d(x, w, stride=2)),
    "1x1": (["NHWC"], (160, 128, 1, 1), lambda x, w, f: f.conv2d(x, w)),
    "transposed": (FORMATS, (40, 48, 4, 4), lambda x, w, f: f.conv_transpose2d(x, w, stride=2)),  # Winograd
    "transposed 3x3": (FORMATS, (40, 48, 3, 3), lambda x, w, f: f.conv_transpose2d(x, w, stride=2)),
}
CASES = [(name, layout) for name, (layouts, *_) in CALLS.items() for layout in layouts]


def case(name, layout, size=6):
    """(x, weight, call)"""
    _, shape, call = CALLS[name]
    inputs = shape[0] if name.startswith("transposed") else shape[1]
    x = torch.randn(2, inputs, size, size).contiguous(memory_format=FORMATS[layout])
    return x, torch.nn.Parameter(torch.randn(shape).contiguous(memory_format=FORMATS[layout]) / 20), call


@pytest.fixture(autouse=True)
def winograd_everywhere(monkeypatch):
    for name in ("LEAST_2X2_PLACES", "LEAST_PHASE_PLACES"):
        monkeypatch.setattr(auto, name, {True: 0, False: 0})


def check(x, weight, call):
    with use("cpu"), torch.no_grad():
        found = call(x, weight, PF)
    torch.testing.assert_close(found, call(x, weight.detach(), F), atol=1e-3, rtol=1e-3)
    return found


@pytest.mark.parametrize("name, layout", CASES)
def test_the_second_call_uses_the_first_ones(name, layout, cache):  # noqa: F811
    x, weight, call = case(name, layout)
    first = check(x, weight, call)
    assert len(cache) == 1 and cache.bytes >= weight.nbytes
    assert torch.equal(check(x, weight, call), first) and len(cache) == 1
    del weight
    assert len(cache) == 0 and cache.bytes == 0


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("name, layout", CASES)
def test_a_changed_weight_is_seen(name, layout, mutation, cache):  # noqa: F811
    if layout == "NHWC" and mutation == "one element":
        pytest.skip("a weight with adjacent channels has no flat view")
    x, weight, call = case(name, layout, 32)  # so many places that every element is compared
    for _ in range(2):
        check(x, weight, call)
        MUTATIONS[mutation](weight)
        check(x, weight, call)
    assert len(cache) == 1


@pytest.mark.parametrize("surgery", [name for name in SURGERY if "element" not in name and "part" not in name])
@pytest.mark.parametrize("name, layout", [(name, layout) for name, layout in CASES if layout == "NCHW"])
def test_surgery_between_small_calls_is_seen(name, layout, surgery, cache):  # noqa: F811
    x, weight, call = case(name, layout)
    matrix = weight.data.view(weight.shape[0], -1)
    for _ in range(3):
        before = check(x, weight, call)
        SURGERY[surgery](matrix, int(torch.randint(1, matrix.shape[0], ())), int(torch.randint(1, 300, ())))
        assert not torch.equal(check(x, weight, call), before)


def test_what_is_kept_is_of_one_geometry(cache):  # noqa: F811
    """The phases of a transposed convolution are those of its stride, its padding and its result's size."""
    x, weight, _ = case("transposed", "NHWC", 1)
    for stride, padding, output_padding in ((2, 0, 0), (2, 1, 0), ((2, 1), 0, 0), ((1, 2), 0, 0), (3, 1, 1), (3, 0, 0)):
        options = {"stride": stride, "padding": padding, "output_padding": output_padding}
        for size in (1, 3):
            x = torch.randn(1, 40, size, size).to(memory_format=torch.channels_last)
            for _ in range(2):
                check(x, weight, lambda x, w, f, options=options: f.conv_transpose2d(x, w, **options))
    assert len(cache) == 6


@pytest.mark.parametrize("name, layout", CASES)
def test_nothing_is_kept_of_what_will_not_come_again(name, layout, cache, monkeypatch):  # noqa: F811
    x, weight, call = case(name, layout)
    with use("cpu"):
        call(x, weight, PF)  # gradients are on
        with torch.no_grad():
            call(x, weight * 2, PF)  # no layer's
            PF.conv2d(x[:, :8], torch.nn.Parameter(torch.randn(16, 8, 3, 3)))  # small
        with torch.inference_mode():
            call(x, torch.nn.Parameter(weight.clone()), PF)  # has no version
    assert len(cache) == 0
    monkeypatch.setattr(cache, "limit", 0)
    for _ in range(2):
        check(x, weight, call)
    assert len(cache) == 0


def test_threads_see_a_change_at_once(cache):  # noqa: F811
    """A weight that was changed behind torch's back is packed anew beside the copy that others still read."""
    x, weight, call = case("3x3", "NCHW", 32)
    wrong = []

    def visit(expected):
        for _ in range(20):
            with torch.no_grad():
                if not torch.allclose(call(x, weight, PF), expected, atol=1e-3):
                    wrong.append(expected)

    for _ in range(3):
        weight.data.mul_(-1.5)
        expected = call(x, weight.detach(), F)
        threads = [threading.Thread(target=visit, args=(expected,)) for _ in range(3)]
        with use("cpu"):  # of the process
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert not wrong


def test_a_model_that_is_trained_on(cache):  # noqa: F811
    """Evaluation between steps sees the step; a copy of the model and its state have nothing of what is kept."""
    layer = pyflash.nn.Conv2d(40, 48, 3, padding=1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    x = torch.randn(2, 40, 6, 6)
    size = len(pickle.dumps(layer))
    for _ in range(3):
        with use("cpu"):
            layer(x).square().mean().backward()
        optimizer.step()
        check(x, layer.weight, CALLS["3x3"][2])
        assert len(pickle.dumps(copy.deepcopy(layer))) < size + layer.weight.nbytes * 2 + layer.bias.nbytes * 2
    assert len(cache) == 1


def test_a_compiled_model_keeps_its_weights(cache):  # noqa: F811
    layer, x = pyflash.nn.Conv2d(40, 48, 3, padding=1), torch.randn(2, 40, 6, 6)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with use("cpu"), torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(
                compiled(x), F.conv2d(x, layer.weight, layer.bias, padding=1), atol=1e-3, rtol=1e-3
            )
            assert len(cache) == 1
            layer.weight.data.neg_()
