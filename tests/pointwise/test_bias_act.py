"""bias_act and bias_act_dropout_add: every part and every combination, against the same in torch's operations."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from activations import CALLS
from helpers import FLOAT_DTYPES, assert_error_within, backend_params, by_cpu, run, use
from operator_arguments import SEED

import pyflash.functional as PF
from pyflash.ops.core import backends
from pyflash.ops.pointwise.activation import CURVED
from pyflash.ops.pointwise.bias_act import _bwd, _fwd
from tests.pointwise.layouts import laid_out

BACKENDS = backend_params("cpu", "triton")

# StyleGAN's own table, written out: function, default gain. Karras et al., torch_utils/ops/bias_act.py.
ACTS = {
    "linear": (lambda x, alpha: x, 1.0),
    "relu": (lambda x, alpha: torch.relu(x), 2**0.5),
    "lrelu": (lambda x, alpha: F.leaky_relu(x, 0.2 if alpha is None else alpha), 2**0.5),
    "tanh": (lambda x, alpha: torch.tanh(x), 1.0),
    "sigmoid": (lambda x, alpha: torch.sigmoid(x), 1.0),
    "elu": (lambda x, alpha: F.elu(x), 1.0),
    "selu": (lambda x, alpha: F.selu(x), 1.0),
    "softplus": (lambda x, alpha: F.softplus(x), 1.0),
    "swish": (lambda x, alpha: torch.sigmoid(x) * x, 2**0.5),
}


def stylegans(x, b=None, dim=1, act="linear", alpha=None, gain=None, clamp=None):
    function, default = ACTS[act]
    if b is not None:
        x = x + b.reshape([-1 if d == dim % x.dim() else 1 for d in range(x.dim())])
    x = function(x, alpha) * (default if gain is None else gain)
    return x if clamp is None or clamp < 0 else x.clamp(-clamp, clamp)


def few(values, backend):
    """All of them, or the first half where every launch is interpreted."""
    return values[: (len(values) + 1) // 2] if backend == "triton" else values


SHAPES = [  # shape, dim, layout, why it is here
    ((7,), 0, "contiguous", "one dimension"),
    ((5, 37), 1, "contiguous", "a row of biases"),
    ((5, 1100), 1, "contiguous", "a row longer than a tile"),
    ((2, 5, 7, 9), 1, "contiguous", "planes"),
    ((2, 20, 7, 9), 1, "channels_last", "channels are neighbours in memory"),
    ((3, 4, 5), 0, "contiguous", "the first dimension"),
    ((3, 4, 5), -2, "contiguous", "from the last"),
    ((4, 6), 1, "transposed", "dense, transposed"),
    ((4, 6), 1, "strided", "holes: a copy"),
    ((0, 6), 1, "contiguous", "empty: the bias's gradient is zero"),
    ((3, 0), 1, "contiguous", "no channels"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_layouts_match_float64(backend, dtype):
    for shape, dim, layout, _why in SHAPES:
        x = laid_out(shape, layout, dtype)
        b, dy = torch.randn(shape[dim]).to(dtype), torch.randn(shape).to(dtype)
        options = dict(dim=dim, act="lrelu", clamp=2.0)
        theirs = run(lambda x, b, o=options: stylegans(x, b, **o), [x, b], dy)
        truth = run(lambda x, b, o=options: stylegans(x, b, **o), [x, b], dy, torch.float64)
        ours = run(lambda x, b, o=options: PF.bias_act(x, b, **o), [x, b], dy, backend=backend)
        # which side of a kink or a bound an element is on may differ where x + b is rounded in torch and not in ours
        near = near_a_step(x, b, dim, dtype)
        assert_error_within(
            (ours[0], masked(ours[1], near)),
            (theirs[0], masked(theirs[1], near)),
            (truth[0], masked(truth[1], near)),
            dy,
            x,
        )
        terms = dy.double().abs().sum().view(1) / 8
        assert ours[2].shape == b.shape and ours[2].dtype == dtype
        if not near.any():
            assert_error_within(ours[2:], theirs[2:], truth[2:], terms)
        assert ours[0].stride() == torch.relu(x).stride()


def near_a_step(x, b, dim, dtype):
    z = x.double() + b.double().reshape([-1 if d == dim % x.dim() else 1 for d in range(x.dim())])
    u = F.leaky_relu(z, 0.2) * 2**0.5
    far = 8 * torch.finfo(dtype).eps * (x.double().abs() + 3)
    return (z.abs() < far) | ((u.abs() - 2).abs() < far)


def masked(t, where):
    return t.masked_fill(where, 0)


OPTIONS = [  # alpha, gain, clamp
    (None, None, None),
    (0.7, 3.0, None),
    (None, None, 0.5),
    (None, -0.5, 1.5),
    (None, 1.0, -1),
]


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_act_matches_float64(act, backend):
    x, dy = torch.randn(3, 6, 50) * 2, torch.randn(3, 6, 50)
    for (alpha, gain, clamp), has_bias in itertools.product(few(OPTIONS, backend), few((True, False), backend)):
        options = dict(act=act, alpha=alpha, gain=gain, clamp=clamp)
        inputs = [x, torch.randn(6)] if has_bias else [x]
        truth = run(lambda *i, o=options: stylegans(*i, **o), inputs, dy, torch.float64)
        theirs = run(lambda *i, o=options: stylegans(*i, **o), inputs, dy)
        ours = run(lambda *i, o=options: PF.bias_act(*i, **o), inputs, dy, backend=backend)
        assert_error_within(ours, theirs, truth, dy * 3, x)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("clamp", [None, 1.1])
def test_gradients_of_gradients(act, clamp):
    x, b = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 2), (3,)))
    with use("cpu"):
        for inputs in ((x, b), (x,)):
            assert torch.autograd.gradcheck(lambda *i: PF.bias_act(*i, act=act, clamp=clamp), inputs)
            assert torch.autograd.gradgradcheck(lambda *i: PF.bias_act(*i, act=act, clamp=clamp), inputs)


@pytest.mark.parametrize("act", ACTS)
def test_third_derivatives(act):
    """Those of a penalty on the gradient's gradient: of x, of b and of what the gradient is multiplied with."""
    x, b, dy = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 2), (3,), (2, 3, 2)))

    def first(x, b, dy):
        y = PF.bias_act(x, b, act=act, gain=1.3)
        return torch.autograd.grad(y, (x, b), dy, create_graph=True)

    with use("cpu"):
        assert torch.autograd.gradgradcheck(first, (x, b, dy))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_of_gradients_in_halves(dtype, backend):
    x, b, dy, *ddx = torch.randn(4, 5, 6), torch.randn(5), *torch.randn(2, 4, 5, 6), torch.randn(5)
    x, b, dy = x.to(dtype), b.to(dtype), dy.to(dtype)

    def twice(function):
        return lambda x, b: torch.autograd.grad(
            function(x, b, act="swish", clamp=1.1), (x, b), dy.to(x.dtype), create_graph=True
        )

    truth = run(twice(stylegans), [x, b], ddx, torch.float64)
    theirs, ours = run(twice(stylegans), [x, b], ddx), run(twice(PF.bias_act), [x, b], ddx, backend=backend)
    assert_error_within(ours, theirs, truth, dy * 3, ddx[0] * dy * 3)


def test_a_gradient_penalty_has_stylegans_gradients():
    """Through two layers: the second derivative meets what the first one left."""
    weights = [torch.randn(8, 8) / 3 for _ in range(2)]

    def penalty(function, x, b):
        y = x
        for weight in weights:
            y = function(y @ weight.to(x.dtype), b, act="lrelu") + function(y, b, act="swish")
        (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return dx.square().sum()

    results = []
    for function, dtype in ((PF.bias_act, torch.float32), (stylegans, torch.float32), (stylegans, torch.float64)):
        torch.manual_seed(3)
        x, b = (torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_() for shape in ((5, 8), (8,)))
        with use("cpu"):
            results.append(torch.autograd.grad(penalty(function, x, b), (x, b)))
    assert_error_within(*results, results[2][0].abs().max().view(1), floor_ulp=64)


def test_which_activations_are_curved():
    flat = {"relu", "leaky_relu", "hardtanh", "relu6", "hardsigmoid", "hardshrink", "softshrink", "threshold"}
    assert set(CALLS[name].row.name for name in CALLS) - CURVED == flat


# ---- bias_act_dropout_add


@pytest.mark.parametrize("activation", ["gelu", "tanh", "relu"])
def test_gradients_of_gradients_behind_dropout(activation):
    x, residual = torch.randn(2, 3, 2, 4, dtype=torch.float64)
    inputs = x.requires_grad_(), torch.randn(2, dtype=torch.float64, requires_grad=True), residual.requires_grad_()

    def function(x, bias, residual):
        torch.manual_seed(0)
        return PF.bias_act_dropout_add(x, bias, residual, activation=activation, dropout_p=0.4, dim=1)

    with use("cpu"):
        assert torch.autograd.gradgradcheck(function, inputs)


def composed(x, bias=None, residual=None, *, reference=None, dim=-1):
    u = x if bias is None else x + bias.reshape([-1 if d == dim % x.dim() else 1 for d in range(x.dim())])
    u = u if reference is None else reference(u)
    return u if residual is None else residual + u


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_any_subset_matches_float64(backend, dtype):
    for shape, layout, dim in (((5, 70), "contiguous", -1), ((2, 20, 3, 5), "channels_last", 1)):
        x, dy = laid_out(shape, layout, dtype), torch.randn(shape).to(dtype)
        bias, residual = torch.randn(shape[dim]).to(dtype), laid_out(shape, "contiguous", dtype)
        for has_bias, has_residual, name in itertools.product(
            (True, False), (True, False), few(("gelu", None), backend)
        ):
            reference = name and CALLS[name].reference
            inputs = [x, bias if has_bias else None, residual if has_residual else None]

            def theirs(*i, r=reference, d=dim):
                return composed(*i, reference=r, dim=d)

            def ours(*i, n=name, d=dim):
                return PF.bias_act_dropout_add(*i, activation=n, dim=d)

            truth = run(theirs, inputs, dy, torch.float64)
            found = run(ours, inputs, dy, backend=backend)
            assert_error_within(found, run(theirs, inputs, dy), truth, dy.double().abs().sum() / 32, x)
            assert found[0].stride() == x.stride()


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_every_row_of_the_table(name, backend):
    x, bias, residual, dy = torch.randn(3, 70) * 2, torch.randn(70), torch.randn(3, 70), torch.randn(3, 70)
    inputs = [x, bias, residual]
    truth = run(lambda *i: composed(*i, reference=CALLS[name].reference), inputs, dy, torch.float64)
    theirs = run(lambda *i: composed(*i, reference=CALLS[name].reference), inputs, dy)
    ours = run(lambda *i: PF.bias_act_dropout_add(*i, activation=CALLS[name].argument), inputs, dy, backend=backend)
    assert_error_within(ours, theirs, truth, dy, x, torch.tensor(20.0 if "threshold" in name else 0.0))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 700), (2, 5, 7, 9), (1,)])
def test_the_kernel_drops_what_dropouts_reference_drops(backend, dtype, shape):
    x, residual, dy = (torch.randn(shape).to(dtype) for _ in range(3))
    bias, dim = torch.randn(shape[-1]), len(shape) - 1
    seed, rest = SEED.to(x.device), (dim, "gelu", 0.0, 0.0, 1.5, 1.0, 0.4)
    name = backend.partition(":")[0]
    with use(backend):
        ours = _fwd(x, bias, residual, seed, *rest, name), *_bwd(dy, x, bias, seed, *rest, True, name)
    theirs, truth = (
        (
            _fwd(x.to(d), bias.to(d), residual.to(d), seed, *rest, "torch"),
            *_bwd(dy.to(d), x.to(d), bias.to(d), seed, *rest, True, "torch"),
        )
        for d in (dtype, torch.float64)
    )
    assert_error_within(ours[:2], theirs[:2], truth[:2], dy * 3, residual)
    # Triton's sum is of dx as it was rounded.
    rounded = torch.finfo(dtype).eps / torch.finfo(ours[2].dtype).eps if backend == "triton" else 1
    assert_error_within(ours[2:], theirs[2:], truth[2:], dy.double().abs().sum().view(1) / 8 * rounded)


@pytest.mark.parametrize("backend", ["cpu", "auto", "torch"])
def test_dropout_follows_the_rules_of_torchs(backend):
    x, residual = torch.ones(300, 200, requires_grad=True), torch.full((300, 200), 5.0)
    with use(backend):
        y = PF.bias_act_dropout_add(x, None, residual, dropout_p=0.25)
        (dx,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(dx + 5, y.detach())  # the gradient's mask is the forward's
        kept = (dx != 0).double().mean()
        assert (kept - 0.75).abs() < 6 * (0.75 * 0.25 / dx.numel()) ** 0.5
        torch.testing.assert_close(dx.unique(), torch.tensor([0.0, 1 / 0.75]))
        assert torch.equal(PF.bias_act_dropout_add(x, None, residual, dropout_p=1.0), residual)
        assert torch.equal(PF.bias_act_dropout_add(x, None, residual, dropout_p=0.9, training=False), x + residual)
        assert PF.bias_act_dropout_add(x, dropout_p=0.5, training=False) is x
        with pytest.raises(ValueError, match=r"dropout_p is 1\.5, expected a probability from 0 to 1"):
            PF.bias_act_dropout_add(x, dropout_p=1.5)


@pytest.mark.parametrize("backend", ["cpu", "auto", "torch"])
def test_its_dropout_is_dropouts_of_the_same_seed(backend):
    """Also where `auto` has torch's operations do the rest: whose the mask is does not depend on that."""
    x = torch.randn(200, 300)
    with use(backend):
        torch.manual_seed(5)
        expected = PF.dropout(PF.relu(x), 0.3)
        torch.manual_seed(5)
        torch.testing.assert_close(PF.bias_act_dropout_add(x, activation="relu", dropout_p=0.3), expected)


def test_types_and_shapes():
    x, bias, residual = torch.randn(3, 4).bfloat16(), torch.randn(4), torch.randn(2, 3, 4)
    for backend in ("cpu", "torch"):
        with use(backend):
            assert PF.bias_act(x, bias, act="relu").dtype == torch.bfloat16
            assert PF.bias_act_dropout_add(x, bias).dtype == torch.bfloat16
            y = PF.bias_act_dropout_add(x, bias, residual, activation="relu")
        assert y.dtype == torch.float32 and y.shape == (2, 3, 4)
        torch.testing.assert_close(y, residual + (x + bias).relu(), rtol=1e-2, atol=1e-2)
    x.requires_grad_(), bias.requires_grad_(), residual.requires_grad_()
    with use("cpu"):
        PF.bias_act_dropout_add(x, bias, residual).sum().backward()
    assert [(t.grad.dtype, t.grad.shape) for t in (x, bias, residual)] == [
        (t.dtype, t.shape) for t in (x, bias, residual)
    ]


def test_nothing_to_do_returns_the_input():
    x = torch.randn(3, 4)
    assert PF.bias_act(x) is x and PF.bias_act(x, clamp=-1, impl="ref") is x and PF.bias_act_dropout_add(x) is x


@pytest.mark.parametrize("backend", BACKENDS)
def test_special_values(backend):
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 3e38, -3e38, 1e-40])
    dy = torch.ones_like(x)
    for options in (
        dict(act="relu"),
        dict(act="lrelu", clamp=2.0),
        dict(gain=2.0, clamp=1e38),
        dict(act="linear", gain=0.5),
    ):
        theirs = run(by_cpu(lambda x, o=options: stylegans(x, **o)), [x], dy)
        ours = run(lambda x, o=options: PF.bias_act(x, **o), [x], dy, backend=backend)
        torch.testing.assert_close(ours, theirs, equal_nan=True)
        assert torch.equal(ours[0].signbit() & ~ours[0].isnan(), theirs[0].signbit() & ~theirs[0].isnan())


WRONG = [
    (lambda x: PF.bias_act(x, act="gelu"), ValueError, "act is 'gelu', expected one of linear, relu, lrelu"),
    (
        lambda x: PF.bias_act(x, torch.zeros(3)),
        ValueError,
        r"b has shape \(3,\), expected \(4,\), a value for each place",
    ),
    (lambda x: PF.bias_act(x, torch.zeros(1, 4)), ValueError, r"b has shape \(1, 4\)"),
    (lambda x: PF.bias_act(x, torch.zeros(4), dim=2), IndexError, "dim is 2, and x has 2 dimensions"),
    (lambda x: PF.bias_act(x, 1.0), TypeError, "b is a float, expected a tensor"),
    (lambda x: PF.bias_act(x, torch.zeros(4, device="meta")), RuntimeError, "b is on meta, x on cpu"),
    (lambda x: PF.bias_act_dropout_add(x, torch.zeros(3)), ValueError, r"bias has shape \(3,\), expected \(4,\)"),
    (lambda x: PF.bias_act_dropout_add(x, None, x.to("meta")), RuntimeError, "residual is on meta, x on cpu"),
    (lambda x: PF.bias_act_dropout_add(x, activation="swish"), ValueError, "activation is 'swish', expected None or"),
]


@pytest.mark.parametrize("backend", ["auto", "cpu", "torch"])
@pytest.mark.parametrize("call, error, message", WRONG, ids=[message for *_, message in WRONG])
def test_wrong_arguments(backend, call, error, message):
    with use(backend), pytest.raises(error, match=message):
        call(torch.zeros(2, 4))


def test_auto_leaves_small_ones_and_transforms_to_torch():
    backends.counts.clear()
    x, b = torch.randn(4, 6), torch.randn(6)
    torch.testing.assert_close(PF.bias_act(x, b, act="swish"), stylegans(x, b, act="swish"))
    torch.testing.assert_close(PF.bias_act_dropout_add(x, b, x, activation="gelu"), composed(x, b, x, reference=F.gelu))
    assert {name for name, backend, _ in backends.counts if backend == "torch"} >= {"bias_act", "bias_act_dropout_add"}
    with use("cpu"):
        ours = torch.func.vmap(torch.func.grad(lambda x: PF.bias_act(x[None], b, act="swish").sum()))(x)
    theirs = torch.func.vmap(torch.func.grad(lambda x: stylegans(x[None], b, act="swish").sum()))(x)
    torch.testing.assert_close(ours, theirs)


def test_they_compile_and_export_whole():
    torch._dynamo.reset()
    x, b = torch.randn(4, 6, requires_grad=True), torch.randn(6, requires_grad=True)

    class Module(torch.nn.Module):
        def forward(self, x, b):
            y = PF.bias_act(x, b, act="lrelu", clamp=1.0)
            return PF.bias_act_dropout_add(y, b, x, activation="gelu")

    with use("cpu"):
        expected = Module()(x, b)
        y = torch.compile(Module(), fullgraph=True, backend="aot_eager")(x, b)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(torch.autograd.grad(y.sum(), (x, b)), torch.autograd.grad(expected.sum(), (x, b)))
        program = torch.export.export(Module(), (x, b))
        assert sum("pyflash.bias_act_fwd" in str(node.target) for node in program.graph.nodes) == 2
        torch.testing.assert_close(program.module()(x, b), expected)
        dropped = torch.compile(
            lambda x: PF.bias_act_dropout_add(x, dropout_p=0.5), fullgraph=True, backend="aot_eager"
        )(x)
        assert torch.equal(torch.autograd.grad(dropped.sum(), x)[0] != 0, dropped != 0)
