"""Dropout: torch's rules, a mask from Philox that every backend, layout and number of threads draws alike."""

import numpy as np
import pytest
import torch
import torch._functorch.config
import torch.nn.functional as F
from helpers import FLOAT_DTYPES, backend_params, use
from property_tests import given, settings, st
from torch.utils.checkpoint import checkpoint

import pyflash.functional as PF
import pyflash.nn as nn
from pyflash.ops.pointwise.dropout import OPERATION, _Dropout, _op, philox_words

BACKENDS = backend_params("cpu", *(["triton"] if "triton" in OPERATION.dtypes else []))

CASES = [  # shape, layout, why it is here
    ((1,), "contiguous", "smallest"),
    ((63,), "contiguous", "less than one block of 64"),
    ((64,), "contiguous", "one block"),
    ((3, 67), "contiguous", "odd width: tail of a block"),
    ((2, 3, 4, 5), "channels_last", "dense, not contiguous"),
    ((40, 48), "transposed", "dense, transposed"),
    ((40, 48), "strided", "holes between rows"),
    ((4, 48), "expanded", "one row read many times"),
    ((1, 70), "unit", "a stride of a dimension of one element says nothing"),
    ((70000,), "contiguous", "several threads' parts"),
    ((), "contiguous", "no dimensions"),
]

# Counter words, key words, output words: the Random123 distribution's known answers for philox4x32 with 10 rounds.
KNOWN = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


def make(shape, layout, dtype=torch.float32):
    x = torch.randn(shape, dtype=dtype)
    if layout == "channels_last":
        return x.to(memory_format=torch.channels_last)
    if layout == "transposed":
        return x.t().contiguous().t()
    if layout == "strided":
        return torch.randn(shape[0], 2 * shape[1], dtype=dtype)[:, : shape[1]]
    if layout == "expanded":
        return x[:1].expand(shape)
    if layout == "unit":
        return x.as_strided(shape, (7, 1))
    return x


def seed_of(value):
    return torch.tensor([value])


@pytest.mark.parametrize("counter, key, expected", KNOWN)
@pytest.mark.parametrize("backend", backend_params("cpu"))
def test_known_answers(backend, counter, key, expected):
    from pyflash import _cpu

    counters = np.repeat(np.array(counter, dtype=np.uint32)[:, None], 16, axis=1).copy()
    counters[3, 1::2] ^= 1  # neighbouring lanes are independent
    words = np.zeros_like(counters)
    with use(backend):
        _cpu.philox_words(counters.ctypes.data, words.ctypes.data, 16, *key)
    assert (words[:, ::2] == np.array(expected, dtype=np.uint32)[:, None]).all()
    assert (words[:, 1::2] != words[:, ::2]).any()
    seed = seed_of(key[0] | (key[1] << 32) if key[1] < 2**31 else (key[0] | (key[1] << 32)) - 2**64)
    assert [w.item() for w in philox_words(seed, [torch.tensor(c) for c in counter])] == expected


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_matches_the_reference_bit_for_bit(backend, dtype):
    for shape, layout, why in CASES:
        if layout in ("strided", "expanded"):
            continue  # the operation takes dense memory
        for p, seed in ((0.1, 0), (0.5, -(2**63)), (0.7, 2**63 - 1), (1.0, 5), (1e-12, 6), (1 - 1e-12, 7)):
            x = make(shape, layout, dtype)
            with use(backend):
                ours = _op(x, seed_of(seed).to(x.device), p, backend.partition(":")[0])
            (theirs,) = _op.reference(x, seed_of(seed), p)
            assert torch.equal(ours, theirs), (why, p)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_forward_and_backward_use_one_mask(backend, dtype):
    for shape, layout, why in CASES:
        x = make(shape, layout, dtype).requires_grad_()
        with use(backend):
            y = PF.dropout(x, 0.3)
        assert y.shape == x.shape and y.dtype == dtype
        dy = make(shape, "contiguous", dtype)
        (dx,) = torch.autograd.grad(y, x, dy)
        factor = 1 / 0.7
        kept = (y != 0) | (dx != 0)  # a half type's random number may be 0 itself
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        assert torch.equal(y, torch.where(kept, (x.detach().to(wide) * factor).to(dtype), 0)), why
        assert torch.equal(dx, torch.where(kept, (dy.to(wide) * factor).to(dtype), 0)), why


def test_layouts_and_threads_draw_the_same_numbers():
    x = torch.randn(300, 400)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(_op(x, seed_of(3), 0.5, "cpu"))
        assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    finally:
        torch.set_num_threads(threads)
    transposed = _op(x.t(), seed_of(3), 0.5, "cpu")
    assert transposed.stride() == x.t().stride() and torch.equal(transposed.t(), results[0])
    offset = torch.cat([torch.zeros(5), x.flatten()])[5:].view(300, 400)
    assert torch.equal(_op(offset, seed_of(3), 0.5, "cpu"), results[0])


@pytest.mark.parametrize("backend", backend_params("cpu"))
def test_outputs_past_the_caches_are_the_same(backend):
    """Large outputs are streamed: 32 MB here."""
    x = torch.randn(4 << 20)
    with use(backend):
        whole, part = (_op(t, seed_of(8), 0.5, "cpu") for t in (x, x[:100000]))
    assert torch.equal(whole[:100000], part)
    assert torch.equal(whole, torch.where(whole != 0, x * 2, x * 0))


def test_counters_past_32_bits():
    """The high word of the counter matters from element 2^34 on: too long to run, so the formula is tested."""
    low = philox_words(seed_of(1), [torch.tensor(7), torch.tensor(0), torch.tensor(0), torch.tensor(0)])
    high = philox_words(seed_of(1), [torch.tensor(7), torch.tensor(1), torch.tensor(0), torch.tensor(0)])
    assert all(a != b for a, b in zip(low, high))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_keep_rate(p):
    n = 1 << 20
    with use("cpu"):
        kept = PF.dropout(torch.ones(n), p) != 0
    deviation = (n * p * (1 - p)) ** 0.5
    assert abs(kept.sum().item() - n * (1 - p)) < 5 * deviation
    both = (kept[1:] & kept[:-1]).sum().item()  # neighbours are independent
    assert abs(both - n * (1 - p) ** 2) < 8 * (n * (1 - p) ** 2) ** 0.5


def test_manual_seed():
    x = torch.ones(1000)
    with use("cpu"):
        torch.manual_seed(1)
        first, second = PF.dropout(x), PF.dropout(x)
        torch.manual_seed(1)
        again = PF.dropout(x)
    assert torch.equal(first, again) and not torch.equal(first, second)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("p", [0.5, 1.0])
def test_special_values_follow_torch(backend, p):
    """A dropped NaN or infinity is multiplied by zero, and a dropped negative number leaves -0."""
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 1.0, -1.0, 0.0, -0.0]).repeat(40)
    with use(backend):
        kept = PF.dropout(torch.ones_like(x), p) != 0
    torch.manual_seed(0)
    with use(backend):
        y = PF.dropout(x, p)
    expected = x * kept * (1 / (1 - p) if p < 1 else 0.0)
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.nan_to_num(), expected.nan_to_num())
    assert torch.equal(y.signbit()[~y.isnan()], expected.signbit()[~y.isnan()])
    assert set(F.dropout(x, p).isnan().nonzero().flatten().tolist()) >= set(x.isnan().nonzero().flatten().tolist())


@pytest.mark.parametrize("backend", ["auto", "cpu", "torch"])
def test_torchs_rules(backend):
    x = torch.randn(100, 100, requires_grad=True)
    with use(backend):
        assert PF.dropout(x, training=False) is x
        assert PF.dropout(x, 0.0) is x
        assert PF.dropout(x[:0], 0.5).shape == (0, 100)
        assert not PF.dropout(x, 1.0).any()
        assert PF.dropout(x, 1.0).requires_grad
        for p in (-0.1, 1.1):
            with pytest.raises(ValueError, match="has to be between 0 and 1"):
                PF.dropout(x, p)
        with pytest.raises(RuntimeError):
            PF.dropout(x, float("nan"))
        with pytest.raises(RuntimeError):
            PF.dropout(x, float("nan"), training=False)
        with pytest.raises(TypeError):
            PF.dropout(x, 0.5, training=None)
        with pytest.raises(TypeError):
            PF.dropout(x, "half")
        with pytest.raises(RuntimeError):
            PF.dropout(torch.arange(5), 0.5)
        assert torch.equal(PF.dropout(torch.arange(5), 0.5, training=False), torch.arange(5))
        with pytest.raises(RuntimeError, match="leaf"):
            PF.dropout(x, 0.5, inplace=True)


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided"])
def test_inplace(layout):
    x = make((40, 48), layout)
    before = x.clone()
    with use("cpu"):
        y = PF.dropout(x, 0.5, inplace=True)
    assert y is x
    assert torch.equal(y, torch.where(y != 0, before * 2, before * 0))
    w = torch.randn(40, 48, requires_grad=True)
    with use("cpu"):
        z = PF.dropout(w * 1, 0.5, inplace=True)
    (dw,) = torch.autograd.grad(z.sum(), w)
    assert torch.equal(dw != 0, z != 0)


def test_gradients_of_gradients():
    x = torch.randn(5, 30, dtype=torch.float64, requires_grad=True)
    seed = seed_of(4)
    assert torch.autograd.gradcheck(lambda x: _Dropout.apply(x, seed, 0.4, "cpu"), (x,))
    assert torch.autograd.gradgradcheck(lambda x: _Dropout.apply(x, seed, 0.4, "cpu") ** 2, (x,))


def test_derivative_of_the_operator_alone():
    x = torch.randn(6, 20, requires_grad=True)
    y = torch.ops.pyflash.dropout(x, seed_of(1), 0.5, "cpu")
    (dx,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(dx * x, y)


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_compile(layout):
    x = make((40, 48), layout).requires_grad_()

    def function(x):
        return PF.dropout(x, 0.25)

    with use("cpu"):
        y = torch.compile(function, fullgraph=True, backend="aot_eager")(x)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(dx != 0, y != 0) and 0.1 < (y == 0).float().mean() < 0.4
    assert torch.equal(y, torch.where(y != 0, x.detach() * (1 / 0.75), 0))


def test_export():
    class Module(torch.nn.Module):
        def forward(self, x):
            return PF.dropout(x, 0.5)

    with use("cpu"):
        program = torch.export.export(Module(), (torch.ones(40, 48),))
    assert any("pyflash.dropout" in str(node.target) for node in program.graph.nodes)
    y = program.module()(torch.ones(40, 48))
    assert set(y.unique().tolist()) == {0.0, 2.0}


class Dropped(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x):
        for _ in range(3):
            x = PF.dropout(self.down(self.up(x).relu().sin()), 0.5).cos()
        return x


class Attended(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.project = nn.Linear(32, 96)

    def forward(self, x):
        q, k, v = self.project(x).sin().view(2, -1, 4, 24).transpose(1, 2).split(8, -1)
        dropped = PF.scaled_dot_product_attention(q, k, v, dropout_p=0.5)
        fused = PF.attention(q, k, dropped.sin(), dropout_p=0.5) * PF.attention_weights(q, k, dropout_p=0.5).mean()
        packed, offsets = (
            [t[0].transpose(0, 1) for t in (q, k, fused.sin())],
            torch.tensor([0, 3, 8], dtype=torch.int32),
        )
        return PF.attention_varlen(*packed, offsets, offsets, 5, 5, dropout_p=0.5).sin()


class Called(torch.nn.Module):
    """A module's first result, of as many of its input as it wants."""

    def __init__(self, module, inputs):
        super().__init__()
        self.module, self.inputs = module, inputs

    def forward(self, x):
        return self.module(*[x.view(4, 4, 32).sin()] * self.inputs)[0].sin()


MODELS = {
    "dropout": Dropped,
    "attention": Attended,
    "multi-head attention with weights": lambda: Called(nn.MultiheadAttention(32, 4, dropout=0.5), 3),
    "GRU": lambda: Called(nn.GRU(32, 16, 3, dropout=0.5), 1),
}


@pytest.mark.parametrize("recomputed", [0.5, 0.1, "checkpoint"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.slow
def test_what_a_compiled_backward_computes_again_has_the_mask_of_the_forward(name, recomputed):
    """A partition of the graph under `activation_memory_budget` may compute anything again, drawing a seed included."""
    torch._dynamo.reset()
    model, x = MODELS[name](), torch.randn(16, 32, requires_grad=True)

    def results(function):
        torch.manual_seed(1)
        y = function(x)
        return y, *torch.autograd.grad(y.square().sum(), (x, *model.parameters()))

    def checkpointed(x):
        return checkpoint(model, x, use_reentrant=False)

    budget = 1 if recomputed == "checkpoint" else recomputed
    function = checkpointed if recomputed == "checkpoint" else model
    with use("cpu"), torch._functorch.config.patch(activation_memory_budget=budget):
        found = results(torch.compile(function, backend="aot_eager_decomp_partition", fullgraph=True))
        for ours, expected in zip(found, results(model), strict=True):
            assert torch.equal(ours, expected)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_an_eager_checkpoint_has_one_mask(use_reentrant):
    x = torch.randn(16, 32, requires_grad=True)
    with use("cpu"):
        y = checkpoint(lambda x: PF.dropout(x, 0.5), x, use_reentrant=use_reentrant)
        y.sum().backward()
    assert torch.equal(x.grad != 0, y != 0)


def test_functorch_takes_torch():
    x = torch.ones(8, 100)
    with use("cpu"):
        y = torch.func.vmap(lambda x: PF.dropout(x, 0.5), randomness="different")(x)
        dx = torch.func.grad(lambda x: PF.dropout(x, 0.5).sum())(x)
    assert set(y.unique().tolist()) == {0.0, 2.0} and set(dx.unique().tolist()) == {0.0, 2.0}


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 9), max_size=4), st.floats(0, 1), st.integers(-(2**63), 2**63 - 1), st.randoms())
def test_any_shape_and_order_of_dimensions(shape, p, seed, random):
    order = list(range(len(shape)))
    random.shuffle(order)
    x = torch.randn(shape).permute(order)
    ours, (theirs,) = _op(x, seed_of(seed), p, "cpu"), _op.reference(x, seed_of(seed), p)
    assert torch.equal(ours, theirs)
