"""Packed weights: kept while gradients are off, and never used when the weight has changed."""

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from helpers import use

import pyflash
import pyflash.functional as PF


@pytest.fixture
def cache(monkeypatch):
    """Empty, and for weights of any size."""
    pytest.importorskip("pyflash._cpu")
    from pyflash.ops._native import linear as native

    monkeypatch.setattr(native, "MIN_CACHED", 0)
    cache = native.cache
    pyflash.clear_cache()
    yield cache
    pyflash.clear_cache()


def step(p):
    optimizer = torch.optim.SGD([p], lr=0.5)
    p.grad = torch.ones_like(p)
    optimizer.step()


def load(p):
    module = torch.nn.Module()
    module.p = p
    module.load_state_dict({"p": torch.randn_like(p)})


def assign(p):
    p.data = torch.randn_like(p)


def numpy_view(p):
    p.detach().numpy()[:] *= 3


def swap(p):
    torch.utils.swap_tensors(p, torch.nn.Parameter(torch.randn_like(p)))


MUTATIONS = {
    "optimizer.step": step,
    "load_state_dict": load,
    "p.data.mul_": lambda p: p.data.mul_(1.5),
    "p.data.clamp_": lambda p: p.data.clamp_(-0.5, 0.5),
    "p.data = t": assign,
    "set_": lambda p: p.data.set_(torch.randn_like(p)),
    "p.set_": lambda p: torch.no_grad()(p.set_)(torch.randn_like(p)),
    "swap_tensors": swap,
    "numpy view": numpy_view,
    "one element of a small weight": lambda p: p.detach().numpy().__setitem__((3, 2), 7.0),
}


@pytest.mark.parametrize("shape", [(20, 30), (300, 500)], ids=str)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_changed_weight_is_seen(mutation, shape, cache):
    if "small" in mutation and shape != (20, 30):
        pytest.skip("outside the guarantee: one element of a large weight, behind autograd's back")
    p, x = torch.nn.Parameter(torch.randn(shape)), torch.randn(8, shape[1])
    with use("cpu"):
        for _ in range(2):
            with torch.no_grad():
                for _ in range(2):
                    torch.testing.assert_close(PF.linear(x, p), F.linear(x, p), atol=1e-4, rtol=1e-4)
            MUTATIONS[mutation](p)
        with torch.no_grad():
            torch.testing.assert_close(PF.linear(x, p), F.linear(x, p), atol=1e-4, rtol=1e-4)


def test_the_cache_is_used_only_with_gradients_off(cache):
    p, x = torch.nn.Parameter(torch.randn(20, 30)), torch.randn(8, 30)
    with use("cpu"):
        PF.linear(x, p)
        PF.linear(x.requires_grad_(), p.detach())
        assert len(cache) == 0
        with torch.no_grad():
            PF.linear(x, p)
        assert len(cache) == 1
        PF.linear(x.detach(), p.detach())  # nothing requires a gradient; the same memory
        assert len(cache) == 1


def test_a_tiny_weight_is_packed_in_every_call(cache, monkeypatch):
    from pyflash.ops._native import linear as native

    monkeypatch.setattr(native, "MIN_CACHED", 20 * 30 + 1)
    p, x = torch.randn(20, 30), torch.randn(8, 30)
    with use("cpu"), torch.no_grad():
        torch.testing.assert_close(PF.linear(x, p), F.linear(x, p))
        assert len(cache) == 0
        p.data.mul_(2)
        torch.testing.assert_close(PF.linear(x, p), F.linear(x, p))


def test_a_hit_does_not_pack(cache, monkeypatch):
    from pyflash.ops._native import linear as native

    p, x = torch.nn.Parameter(torch.randn(20, 30)), torch.randn(8, 30)
    with use("cpu"), torch.no_grad():
        PF.linear(x, p)
        monkeypatch.setattr(native, "pack", lambda weight: pytest.fail("packed again"))
        PF.linear(x, p)
        PF.linear(x[:3], p)


def test_slices_and_transposes_have_entries_of_their_own(cache):
    p, x = torch.nn.Parameter(torch.randn(60, 60)), torch.randn(8, 60)
    with use("cpu"), torch.no_grad():
        for weight in (p, p[:20], p[20:40], p.t(), p[::2]):
            for _ in range(2):
                torch.testing.assert_close(PF.linear(x, weight), F.linear(x, weight))
    assert len(cache) == 5


def test_a_dead_parameter_leaves_the_cache(cache):
    p, x = torch.nn.Parameter(torch.randn(20, 30)), torch.randn(8, 30)
    with use("cpu"), torch.no_grad():
        PF.linear(x, p)
    assert len(cache) == 1 and cache.bytes > 0
    del p
    assert len(cache) == 0 and cache.bytes == 0


def test_the_cache_is_bounded(cache, monkeypatch):
    weights, x = [torch.randn(64, 64) for _ in range(6)], torch.randn(2, 64)
    monkeypatch.setattr(cache, "limit", 3 * 64 * 64 * 4)
    with use("cpu"), torch.no_grad():
        for weight in weights * 2:
            torch.testing.assert_close(PF.linear(x, weight), F.linear(x, weight))
            assert cache.bytes <= cache.limit
    assert len(cache) == 3


def test_inference_tensors_are_packed_each_time(cache):
    with use("cpu"), torch.inference_mode():
        weight, x = torch.randn(20, 30), torch.randn(8, 30)
        for _ in range(2):
            torch.testing.assert_close(PF.linear(x, weight), F.linear(x, weight))
            weight.clamp_(-0.1, 0.1)
    assert len(cache) == 0


def test_the_cache_is_no_part_of_a_module(cache):
    layer = torch.nn.Linear(30, 20)
    with use("cpu"), torch.no_grad():
        PF.linear(torch.randn(8, 30), layer.weight, layer.bias)
        twin = copy.deepcopy(layer)
        assert len(cache) == 1 and set(layer.state_dict()) == {"weight", "bias"}
        twin.weight.mul_(2)
        x = torch.randn(8, 30)
        torch.testing.assert_close(PF.linear(x, twin.weight), F.linear(x, twin.weight))
        torch.testing.assert_close(PF.linear(x, layer.weight), F.linear(x, layer.weight))


def test_threads_share_the_cache(cache):
    weights = [torch.randn(64, 64) for _ in range(8)]
    x = torch.randn(4, 64)
    failures = []

    def work():
        with torch.no_grad():
            for _ in range(30):
                for weight in weights:
                    if not torch.allclose(PF.linear(x, weight), F.linear(x, weight), atol=1e-4):
                        failures.append(1)

    with use("cpu"):
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures and len(cache) == 8
