"""Weights that change between calls, as Linear sees them: it keeps nothing of them."""

import pytest
import torch
import torch.nn.functional as F
from helpers import use

import pyflash
import pyflash.functional as PF
import pyflash.nn
from pyflash.ops.core.packed_weights import packed_weights


@pytest.fixture
def cache():
    """The packed weights that outlive a call, empty."""
    pytest.importorskip("pyflash._cpu")
    pyflash.clear_cache()
    yield packed_weights
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
    "one element": lambda p: p.detach().numpy().flat.__setitem__(17, 7.0),
}


@pytest.mark.parametrize("shape", [(20, 30), (300, 500)], ids=str)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_changed_weight_is_seen(mutation, shape):
    p, x = torch.nn.Parameter(torch.randn(shape)), torch.randn(8, shape[1])
    with use("cpu"):
        for _ in range(2):
            with torch.no_grad():
                for _ in range(2):
                    torch.testing.assert_close(PF.linear(x, p), F.linear(x, p), atol=1e-4, rtol=1e-4)
            MUTATIONS[mutation](p)
        with torch.no_grad():
            torch.testing.assert_close(PF.linear(x, p), F.linear(x, p), atol=1e-4, rtol=1e-4)


# Each changes part of a matrix: (name, data, a random place in it).
SURGERY = {
    "a row is zero": lambda w, r, c: w[r].zero_(),
    "a column is doubled": lambda w, r, c: w[:, c].mul_(2),
    "a row is negated": lambda w, r, c: w[r].neg_(),
    "part of a row": lambda w, r, c: w[r, c : c + 40].fill_(3),
    "two rows change places": lambda w, r, c: w.__setitem__([r, r - 1], w[[r - 1, r]]),
    "two columns change places": lambda w, r, c: w.__setitem__((slice(None), [c, c - 1]), w[:, [c - 1, c]]),
    "a row of another view": lambda w, r, c: w.flatten()[r * w.shape[1] : (r + 1) * w.shape[1]].copy_(w[r - 1]),
    "one element of an array": lambda w, r, c: w.numpy().__setitem__((r, c), 5.0),
}


@pytest.mark.parametrize("surgery", SURGERY)
@pytest.mark.parametrize("name", ["linear", "linear_act", "MultiheadAttention"])
def test_surgery_on_a_large_weight_is_seen(name, surgery):
    if name == "MultiheadAttention":
        module, x = pyflash.nn.MultiheadAttention(512, 8, bias=False).eval(), torch.randn(9, 4, 512)
        p = module.in_proj_weight

        def run(p):  # with the memory of another weight: nothing is known of it
            return torch.func.functional_call(module, {"in_proj_weight": p}, (x, x, x))[0]

    else:
        p, x = torch.nn.Parameter(torch.randn(8192, 1024)), torch.randn(8, 1024)

        def run(p):
            return getattr(PF, name)(x, p)

    rows, columns = p.shape
    with use("cpu"), torch.no_grad():
        before = run(p)
        for _ in range(4):
            SURGERY[surgery](p.data, int(torch.randint(1, rows, ())), int(torch.randint(1, columns - 40, ())))
            found = run(p)
            assert torch.equal(found, run(p.clone())) and not torch.equal(found, before)
            before = found


def test_linear_keeps_nothing(cache):
    p, x = torch.nn.Parameter(torch.randn(200, 300)), torch.randn(8, 300)
    for backend in ("auto", "cpu"):
        with use(backend), torch.no_grad():
            PF.linear(x, p)
    assert len(cache) == 0 and cache.bytes == 0
