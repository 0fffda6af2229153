"""Tensors of more than 2^31 elements, whose offsets pass 32 bits: on a GPU with memory enough, and nowhere else.

The end of the result must be what the same kernel makes of the end of the input, which is short.
"""

import pytest
import torch
from helpers import DEVICE, STAND_IN, backend_params, use

import pyflash.functional as PF
from pyflash.ops.core.registry import Op

pytestmark = pytest.mark.large

COUNT = 2**31
TAIL = 4  # rows, or sequences
DTYPE = torch.bfloat16


@pytest.fixture(autouse=True)
def without_guards(paranoid):
    """Filling so much memory twice would take most of the time."""
    Op.paranoid = False


def enough_memory(tensors: int) -> None:
    """Skips where that many tensors of 2^31 elements do not fit."""
    needed = int(1.1 * tensors * COUNT * DTYPE.itemsize)
    if DEVICE != "cuda" or STAND_IN:
        pytest.skip(f"needs a GPU with {needed >> 30} GB free")
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed >> 30} GB of the GPU's memory free, has {torch.cuda.mem_get_info()[0] >> 30}")


def random(*shape):
    """Only the ends are looked at: the middle repeats."""
    x = torch.empty(shape, dtype=DTYPE, device="cuda").fill_(0.5)
    x[:TAIL], x[-TAIL:] = torch.randn_like(x[:TAIL]), torch.randn_like(x[-TAIL:])
    return x


def ends_equal(whole, start, stop):
    for large, first, last in zip(whole, start, stop, strict=True):
        assert torch.equal(large[:TAIL], first) and torch.equal(large[-TAIL:], last)


def on_ends(function, backend, *inputs):
    """Results of `function`, and those for the first and for the last rows alone."""
    with use(backend):
        return [function(*(x[part] for x in inputs)) for part in (slice(None), slice(TAIL), slice(-TAIL, None))]


@pytest.mark.parametrize("backend", backend_params("triton"))
@pytest.mark.parametrize("name", ["relu", "gelu", "silu"])
def test_activation(name, backend):
    enough_memory(2)
    x = random(COUNT // 1024 + TAIL, 1024)
    ends_equal(*([y] for y in on_ends(getattr(PF, name), backend, x)))


@pytest.mark.parametrize("backend", backend_params("triton"))
def test_dropout(backend):
    enough_memory(2)
    x = torch.ones(COUNT + 1024, dtype=DTYPE, device="cuda")
    with use(backend):
        y = PF.dropout(x, 0.25)
    for part in (y[:1024], y[-1024:]):  # each element is dropped or scaled, nothing is left out
        assert set(part.float().unique().tolist()) == {0.0, torch.tensor(1 / 0.75, dtype=DTYPE).item()}
    assert not torch.equal(y[:1024], y[-1024:])
    kept = sum((chunk != 0).sum().item() for chunk in y.split(1 << 28))
    assert abs(kept - 0.75 * y.numel()) < 6 * (0.75 * 0.25 * y.numel()) ** 0.5


@pytest.mark.parametrize("backend", backend_params("triton"))
def test_layer_norm(backend):
    enough_memory(4)

    def both(x):
        leaf = x.detach().requires_grad_()
        y = PF.layer_norm(leaf, (1024,))
        return y.detach(), *torch.autograd.grad(y, leaf, x)

    ends_equal(*on_ends(both, backend, random(COUNT // 1024 + TAIL, 1024)))


@pytest.mark.parametrize("backend", backend_params("triton"))
def test_linear(backend):
    """K = 64: a long input and a longer result."""
    enough_memory(2)
    weight, bias = torch.randn(1024, 64, dtype=DTYPE, device="cuda"), torch.randn(1024, dtype=DTYPE, device="cuda")
    x = random(COUNT // 1024 + 128, 64)
    with use(backend), torch.no_grad():
        whole, last = PF.linear_act(x, weight, bias, "relu"), PF.linear_act(x[-128:], weight, bias, "relu")
        first = PF.linear_act(x[:128], weight, bias, "relu")
    assert torch.equal(whole[:128], first) and torch.equal(whole[-128:], last)


@pytest.mark.parametrize("backend", backend_params("triton"))
def test_attention(backend):
    enough_memory(9)

    def both(q, k, v, dout):
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        out = PF.scaled_dot_product_attention(*leaves, is_causal=True)
        return out.detach(), *torch.autograd.grad(out, leaves, dout)

    inputs = [random(COUNT // (16 * 128 * 128) + TAIL, 16, 128, 128) for _ in range(4)]
    ends_equal(*on_ends(both, backend, *inputs))
