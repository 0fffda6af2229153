"""Gated activations against torch's glu, and against activation(gate) * value."""

import pytest
import torch
import torch.nn.functional as F
from activations import CALLS
from helpers import FLOAT_DTYPES, assert_error_within, backend_params, run, use

import pyflash.functional as PF
import pyflash.nn as nn
from pyflash.ops.core import backends
from tests.pointwise.layouts import laid_out

BACKENDS = backend_params("cpu", "triton")

GLU_CASES = [  # shape, dim, layout, why it is here
    ((2,), -1, "contiguous", "smallest"),
    ((3, 74), -1, "contiguous", "halves end within a vector"),
    ((4, 6, 5), 1, "contiguous", "split in the middle"),
    ((4, 6, 5), 0, "contiguous", "split at the front"),
    ((2, 2200), 1, "contiguous", "halves longer than a tile"),
    ((2, 8, 3, 5), 1, "channels_last", "channels are neighbours in memory"),
    ((2, 8, 3, 6), 3, "channels_last", "dense, split where it is not last in memory"),
    ((5, 6), 1, "transposed", "dense, transposed"),
    ((5, 6), 1, "strided", "holes: a copy"),
    ((4, 6), 0, "expanded", "one row read many times: a copy"),
    ((0, 4), 1, "contiguous", "empty"),
    ((4, 0), 1, "contiguous", "empty halves"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_glu_matches_float64(backend, dtype):
    for shape, dim, layout, _why in GLU_CASES:
        x = laid_out(shape, layout, dtype)
        theirs = F.glu(x, dim)
        dy = torch.randn(theirs.shape).to(dtype)
        truth = run(lambda x, d=dim: F.glu(x, d), [x], dy, torch.float64)
        ours = run(lambda x, d=dim: PF.glu(x, d), [x], dy, backend=backend)
        assert_error_within(ours, run(lambda x, d=dim: F.glu(x, d), [x], dy), truth, dy, x)
        assert ours[0].stride() == theirs.stride() or theirs.numel() == 0


PAIRS = [  # shape, layout of the gate, of the value, why it is here
    ((1,), "contiguous", "contiguous", "smallest"),
    ((), "contiguous", "contiguous", "no dimensions"),
    ((3, 5, 37), "contiguous", "contiguous", "one run of memory"),
    ((3, 700), "part of a row", "part of a row", "halves of one tensor"),
    ((4, 40), "part of a row", "contiguous", "one of them in longer rows"),
    ((4, 6), "strided", "contiguous", "columns not adjacent: a copy"),
    ((2, 4, 3, 5), "channels_last", "channels_last", "dense, not contiguous"),
    ((2, 4, 3, 5), "channels_last", "contiguous", "in different orders"),
    ((4, 1), "part of a row", "part of a row", "one column"),
    ((4, 6), "expanded", "contiguous", "one row read many times"),
    ((0, 6), "contiguous", "contiguous", "empty"),
]


def gated(call):
    """activation(gate) * value of torch's functions."""
    return lambda gate, value: call.reference(gate) * value


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_pairs_match_float64(backend, dtype):
    for shape, *layouts, _why in PAIRS:
        inputs = [laid_out(shape, layout, dtype) for layout in layouts]
        dy = torch.randn(shape).to(dtype)
        for name in ("silu", "tanh")[: 1 if backend == "triton" else 2]:  # of what saves x, and what saves y
            theirs = run(gated(CALLS[name]), inputs, dy)
            truth = run(gated(CALLS[name]), inputs, dy, torch.float64)
            ours = run(lambda g, v, n=name: PF.gated_act(g, v, n), inputs, dy, backend=backend)
            assert_error_within(ours, theirs, truth, dy, *inputs)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_every_row_of_the_table_packed(name, backend):
    packed, dy = torch.randn(3, 74) * 2, torch.randn(3, 37)

    def theirs(x):
        return gated(CALLS[name])(*x.chunk(2, -1))

    truth = run(theirs, [packed], dy, torch.float64)
    ours = run(lambda x: PF.gated_act(x, activation=CALLS[name].argument), [packed], dy, backend=backend)
    assert_error_within(ours, run(theirs, [packed], dy), truth, dy, packed)


def test_no_activation_is_the_product():
    x = torch.randn(4, 6)
    with use("cpu"):
        torch.testing.assert_close(PF.gated_act(x, activation=None), x[:, :3] * x[:, 3:])


@pytest.mark.parametrize("name", ["silu", "tanh", "gelu", "relu", "softplus"])
@pytest.mark.parametrize("how", ["pair", "packed", "glu"])
def test_gradients_of_gradients(name, how):
    x, value = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    functions = {
        "pair": (lambda x, v: PF.gated_act(x, v, name), (x, value)),
        "packed": (lambda x: PF.gated_act(x, activation=name), (x,)),
        "glu": (lambda x: PF.glu(x, 1), (x,)),
    }
    function, inputs = functions[how]
    with use("cpu"):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


def twice(function, inputs, dy, dds, dtype=None, backend="torch"):
    """What dds, arriving at the gradients of function(*inputs), give to dy and to the inputs; one of dds may be None."""
    leaves = [torch.empty_like(t, dtype=dtype or t.dtype).copy_(t).requires_grad_() for t in (dy, *inputs)]
    with use(backend):
        first = torch.autograd.grad(function(*leaves[1:]), leaves[1:], leaves[0], create_graph=True)
        given = [(g, dd.to(g.dtype)) for g, dd in zip(first, dds) if dd is not None]
        return torch.autograd.grad([g for g, _ in given], leaves, [dd for _, dd in given], allow_unused=True)


SECOND = [  # shape, layout of the gate, of the value, of what arrives, which of both arrive, why it is here
    ((3, 5, 37), "contiguous", "contiguous", "contiguous", (True, True), "one run of memory"),
    ((2, 1100), "contiguous", "contiguous", "contiguous", (True, False), "nothing at the value; longer than a tile"),
    ((2, 1100), "contiguous", "contiguous", "contiguous", (False, True), "nothing at the gate"),
    ((3, 700), "part of a row", "part of a row", "part of a row", (True, True), "halves of one tensor"),
    ((2, 4, 3, 5), "channels_last", "channels_last", "contiguous", (True, True), "dense, in another order"),
    ((4, 6), "contiguous", "part of a row", "expanded", (True, True), "one row read many times"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_the_second_derivative_matches_float64(backend, dtype):
    names = ("silu", "tanh", "relu")  # saves x, saves y, is flat
    for shape, *layouts, of_dd, arrives, _why in SECOND:
        inputs = [laid_out(shape, layout, dtype) for layout in layouts]
        dy = torch.randn(shape).to(dtype)
        dds = [laid_out(shape, of_dd, dtype) if arrives_there else None for arrives_there in arrives]
        for name in names[:1] if backend == "triton" else names:
            args = inputs, dy, dds
            truth = twice(gated(CALLS[name]), *args, torch.float64)
            ours = twice(lambda g, v, n=name: PF.gated_act(g, v, n), *args, backend=backend)
            theirs = twice(gated(CALLS[name]), *args)
            ours = [o if t is not None else None for o, t in zip(ours, truth)]
            largest = [t.double().abs().max() for t in (dy, *inputs, *dds) if t is not None]
            assert_error_within(ours, theirs, truth, torch.stack(largest).prod())


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_the_second_derivative_of_every_row_packed(name, backend):
    packed, dd, dy = torch.randn(3, 74) * 2, torch.randn(3, 74), torch.randn(3, 37)
    if name == "hardsigmoid":  # of which torch has none
        pytest.skip("torch has no second derivative")

    def theirs(x):
        return gated(CALLS[name])(*x.chunk(2, -1))

    truth = twice(theirs, [packed], dy, [dd], torch.float64)
    ours = twice(lambda x: PF.gated_act(x, activation=CALLS[name].argument), [packed], dy, [dd], backend=backend)
    assert_error_within(ours, twice(theirs, [packed], dy, [dd]), truth, dy.abs().max() * dd.abs().max() * 4)


def test_an_infinite_value_at_which_nothing_is_asked():
    """Where nothing arrives at the gate's gradient, the value is no factor."""
    gate, value = torch.randn(2, 6)
    value[2] = float("inf")
    args = [gate, value], torch.randn(6), [None, torch.randn(6)]
    for backend in ("cpu", "triton"):
        assert twice(PF.gated_act, *args, backend=backend)[0].isfinite().all()


@pytest.mark.parametrize("name", ["silu", "sigmoid"])
def test_the_third_derivative(name):
    inputs = [t.requires_grad_() for t in torch.randn(3, 2, 3, dtype=torch.float64)]

    def gradients(gate, value, dy):
        return torch.autograd.grad(PF.gated_act(gate, value, name), (gate, value), dy, create_graph=True)

    with use("cpu"):
        assert torch.autograd.gradgradcheck(gradients, inputs)


def test_gate_and_value_broadcast_and_promote():
    gate, value = torch.randn(3, 1, 4), torch.randn(5, 4, dtype=torch.float64)
    dy = torch.randn(3, 5, 4, dtype=torch.float64)
    ours = run(PF.gated_act, [gate, value], dy, backend="cpu")
    torch.testing.assert_close(ours, run(gated(CALLS["silu"]), [gate, value], dy))


def test_wrong_arguments():
    x = torch.randn(3, 5)
    with use("cpu"):
        with pytest.raises(ValueError, match=r"gate has shape \(3, 5\).*expected an even size"):
            PF.gated_act(x)
        with pytest.raises(ValueError, match="activation is 'swish', expected None or one of relu"):
            PF.gated_act(x, x, "swish")
        with pytest.raises(TypeError, match="value is a float, expected a tensor"):
            PF.gated_act(x, 2.0)
        with pytest.raises(RuntimeError, match="gate is on cpu, value on meta"):
            PF.gated_act(x, x.to("meta"))
        with pytest.raises(RuntimeError, match="The size of tensor a"):
            PF.gated_act(x, x[:, :2])
        for function in (PF.glu, F.glu):
            with pytest.raises(RuntimeError, match="Halving dimension must be even, but dimension 1 is size 5"):
                function(x)
            with pytest.raises(RuntimeError, match="glu does not support scalars"):
                function(torch.tensor(1.0))
            with pytest.raises(IndexError, match="Dimension out of range"):
                function(x, 2)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_special_values(backend):
    gate = torch.tensor([float("nan"), float("inf"), -100.0, 0.0, -0.0, 1.0, 2.0])
    value = torch.tensor([1.0, 0.0, 2.0, -1.0, 3.0, float("nan"), -float("inf")])
    with use(backend):
        y = PF.gated_act(gate, value)
        packed = PF.glu(torch.cat([value, gate]))
    torch.testing.assert_close(y, F.silu(gate) * value, equal_nan=True)
    torch.testing.assert_close(packed, value * gate.sigmoid(), equal_nan=True)


def test_auto_leaves_small_ones_to_torch():
    backends.counts.clear()
    x = torch.randn(4, 6)
    assert torch.equal(PF.glu(x), F.glu(x))
    assert torch.equal(PF.gated_act(x), F.silu(x[:, :3]) * x[:, 3:])
    assert {name for name, backend, _ in backends.counts if backend == "torch"} == {"glu", "gated_act"}


def test_they_compile_and_export_whole():
    torch._dynamo.reset()
    x = torch.randn(4, 6, requires_grad=True)

    def function(x):
        return PF.gated_act(PF.glu(torch.cat([x, x.sin()], 1)), x, ("leaky_relu", {"negative_slope": 0.3}))

    class Module(torch.nn.Module):
        def forward(self, x):
            return nn.GLU(0)(function(x))

    with use("cpu"):
        expected = function(x)
        y = torch.compile(function, fullgraph=True, backend="aot_eager")(x)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(torch.autograd.grad(y.sum(), x), torch.autograd.grad(expected.sum(), x))
        program = torch.export.export(Module(), (x,))
        assert sum("pyflash.gated_fwd" in str(node.target) for node in program.graph.nodes) == 3
        torch.testing.assert_close(program.module()(x), Module()(x))
