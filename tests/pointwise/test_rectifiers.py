"""PReLU and RReLU against torch's own; RReLU's slopes against its operator's in torch's integers."""

import pytest
import torch
import torch.nn.functional as F
from helpers import FLOAT_DTYPES, assert_error_within, backend_params, run, use
from operator_arguments import SEED

import pyflash
import pyflash.functional as PF
import pyflash.nn as nn
from pyflash.ops.core import backends
from pyflash.ops.pointwise.prelu import _bwd
from pyflash.ops.pointwise.rrelu import _op, _RReLU
from tests.pointwise.layouts import laid_out

BACKENDS = backend_params("cpu", "triton")

CASES = [  # shape, weights, layout, why it is here
    ((1,), 1, "contiguous", "smallest"),
    ((), 1, "contiguous", "no dimensions"),
    ((5, 37), 37, "contiguous", "channels are neighbours: a row of weights"),
    ((300, 3), 3, "contiguous", "fewer channels than a vector"),
    ((3, 2000), 2000, "contiguous", "more channels than a tile"),
    ((2, 5, 7, 9), 5, "contiguous", "odd planes: a plane ends within a vector"),
    ((2, 5, 40, 41), 5, "contiguous", "planes longer than a tile"),
    ((3, 6, 4), 6, "contiguous", "planes shorter than a vector"),
    ((2, 20, 9, 5), 20, "channels_last", "channels are neighbours in memory"),
    ((2, 5, 6, 7), 1, "transposed", "one weight, dense in another order"),
    ((2, 5, 6, 7), 5, "strided", "holes between elements: a copy"),
    ((2, 5, 8), 5, "expanded", "one row read many times: a copy"),
    ((3, 1, 8), 1, "contiguous", "one channel"),
    ((600, 130), 130, "contiguous", "several parts of a sum"),
    ((0, 4), 4, "contiguous", "empty: the weight's gradient is zero"),
    ((2, 4, 0), 4, "contiguous", "empty planes"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_prelu_matches_float64(backend, dtype):
    for shape, weights, layout, _why in CASES:
        x, weight = laid_out(shape, layout, dtype), torch.randn(weights).to(dtype)
        dy = torch.randn(shape).to(dtype)
        truth, theirs = run(F.prelu, [x, weight], dy, torch.float64), run(F.prelu, [x, weight], dy)
        ours = run(PF.prelu, [x, weight], dy, backend=backend)
        terms = (x.double() * dy.double()).abs().sum() if x.numel() else dy  # what the weight's gradient is a sum of
        assert_error_within(ours[:2], theirs[:2], truth[:2], dy)
        assert_error_within(ours[2:], theirs[2:], truth[2:], terms / 16)
        assert ours[0].stride() == F.leaky_relu(x).stride()


@pytest.mark.parametrize("backend", backend_params("cpu"))
def test_equal_terms_do_not_drift(backend):
    """A float that grows rounds equal terms all the same way: 16 channels of a million elements."""
    for shape in ((1 << 16, 16), (4, 16, 1 << 14)):
        x = torch.full(shape, -0.1)
        *_, dweight = run(PF.prelu, [x, torch.ones(16)], torch.ones(shape), backend=backend)
        expected = x.flatten()[0].double() * (1 << 16)
        assert (dweight / expected - 1).abs().max() < 128 / 2 * torch.finfo(torch.float32).eps  # 128 floats in a row


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(700, 200), (7, 20, 1000)])
def test_the_weights_gradient_is_the_same_on_any_number_of_threads(shape, threads):
    x, dy, before = torch.randn(shape), torch.randn(shape), torch.get_num_threads()
    with use("cpu"):
        expected = _bwd(dy, x, torch.randn(shape[1]), True, "cpu")[1]
        torch.set_num_threads(threads)
        try:
            assert torch.equal(_bwd(dy, x, torch.randn(shape[1]), True, "cpu")[1], expected)
        finally:
            torch.set_num_threads(before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_special_values(backend):
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-40, -1e-40, 3e38, -3e38])
    for weight in (torch.tensor([0.25]), torch.tensor(0.0), torch.tensor([-float("inf")])):
        ours = run(PF.prelu, [x, weight], torch.ones_like(x), backend=backend)
        torch.testing.assert_close(ours, run(F.prelu, [x, weight], torch.ones_like(x)), equal_nan=True)
        assert torch.equal(ours[0].signbit(), F.prelu(x, weight).signbit() | ours[0].isnan() & ours[0].signbit())


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("weights", [1, 3])
def test_prelus_gradients_of_gradients(backend, weights):
    x = torch.randn(2, 3, 1 if backend == "triton" else 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(weights, dtype=torch.float64, requires_grad=True)
    with use(backend):
        assert torch.autograd.gradcheck(PF.prelu, (x, weight))
        assert torch.autograd.gradgradcheck(PF.prelu, (x, weight))


REFUSED = [  # shape, weight, error, message
    ((2, 3, 4), torch.zeros(2), RuntimeError, "Mismatch of parameter numbers and input channel size"),
    ((2, 3, 4), torch.zeros(1, 3), RuntimeError, "Expected `weight` to be a scalar or 1D tensor"),
    ((), torch.zeros(3), RuntimeError, "Not allow zero-dim input tensor"),
    ((3,), torch.zeros(3), RuntimeError, "Mismatch of parameter numbers"),
    ((2, 3), torch.zeros(3, dtype=torch.float64), RuntimeError, "Type promoting not supported"),
    ((2, 3), 0.25, TypeError, "must be Tensor"),
]


@pytest.mark.parametrize("backend", ["auto", "cpu", "torch"])
@pytest.mark.parametrize("shape, weight, error, message", REFUSED)
def test_what_torchs_prelu_refuses(backend, shape, weight, error, message):
    with use(backend), pytest.raises(error, match=message):
        PF.prelu(torch.zeros(shape), weight)


def test_autocast_casts_as_torchs():
    x, weight = torch.randn(3, 4), torch.randn(4)
    with torch.autocast("cpu", torch.bfloat16):
        expected = F.prelu(x, weight)
        with use("cpu"):
            y = PF.prelu(x, weight)
    assert y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected)


# ---- RReLU


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_slopes_are_the_references(backend, dtype):
    for shape, layout in (((1,), "contiguous"), ((3, 700), "contiguous"), ((2, 5, 6, 7), "channels_last"), ((0,), "")):
        x, d = laid_out(shape, layout, dtype), laid_out(shape, layout, dtype)
        with use(backend):
            ours = _op(d, x, SEED.to(x.device), 0.1, 0.4, backend.partition(":")[0])
        truth = _op(d.double(), x.double(), SEED.to(x.device), 0.1, 0.4, "torch")
        theirs = _op(d, x, SEED.to(x.device), 0.1, 0.4, "torch")
        assert_error_within((ours,), (theirs,), (truth,), floor_ulp=1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_slopes_are_uniform_and_the_backward_has_the_forwards(backend):
    x = -torch.rand(1 << 14) - 0.5
    x = torch.cat([x, -x]).requires_grad_()
    with use(backend):
        y = PF.rrelu(x, 0.2, 0.6, training=True)
    (dx,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(dx * x, y)
    slopes, n = dx[: 1 << 14].double(), 1 << 14
    assert torch.equal(dx[n:], torch.ones(n))
    assert 0.2 <= slopes.min() and slopes.max() <= 0.6
    deviation = 0.4 / 12**0.5
    assert (slopes.mean() - 0.4).abs() < 6 * deviation / n**0.5
    assert (slopes.std() / deviation - 1).abs() < 0.05
    for quarter in range(4):
        share = ((slopes - 0.2) / 0.4 * 4).floor().eq(quarter).double().mean()
        assert (share - 0.25).abs() < 6 * (0.25 * 0.75 / n) ** 0.5


@pytest.mark.parametrize("backend", ["cpu", "auto", "torch"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
def test_rrelu_as_torch_where_nothing_is_drawn(backend, training, inplace):
    """In evaluation, and with one slope to draw from: results and gradients, also of what was overwritten."""
    x, lower, upper = torch.randn(9, 333), 0.3 if training else 0.1, 0.3
    ours, theirs = (lambda x, f=f: f.rrelu(x * 1, lower, upper, training, inplace) for f in (PF, F))
    dy = torch.randn(9, 333)
    truth = run(theirs, [x], dy, torch.float64)
    assert_error_within(run(ours, [x], dy, backend=backend), run(theirs, [x], dy), truth, dy)
    with use(backend):
        y = x.clone()
        assert (PF.rrelu(y, lower, upper, training, inplace) is y) is inplace
        if inplace:
            with pytest.raises(RuntimeError, match="leaf"):
                PF.rrelu(x.clone().requires_grad_(), lower, upper, training, inplace)


def test_rrelu_is_reproducible_and_independent():
    x = -torch.ones(1000)
    with use("cpu"):
        torch.manual_seed(1)
        first, second = (PF.rrelu(x, training=True) for _ in range(2))
        torch.manual_seed(1)
        assert torch.equal(PF.rrelu(x, training=True), first) and not torch.equal(first, second)


def test_rrelus_gradients_of_gradients():
    x = torch.randn(5, 30, dtype=torch.float64, requires_grad=True)

    def function(x):
        return _RReLU.apply(x, x.detach(), SEED, 0.1, 0.4, "cpu")

    assert torch.autograd.gradcheck(function, (x,))
    assert torch.autograd.gradgradcheck(lambda x: function(x) ** 2, (x,))


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_where_rrelu_draws(backend):
    """Not where x is positive or NaN; 0 stays what it is."""
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 2.0]).repeat(20)
    with use(backend):
        y = PF.rrelu(x, training=True)
    torch.testing.assert_close(y, F.rrelu(x, 0.2, 0.2, True), equal_nan=True)
    assert torch.equal(y[4].signbit(), x[4].signbit())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "arguments, error",
    [((0.5, 0.1), RuntimeError), ((float("nan"), 0.1), RuntimeError), ((0.1, float("inf")), RuntimeError),
     (("a",), TypeError), ((0.1, 0.2, None), TypeError)],
)  # fmt: skip
def test_what_torchs_rrelu_refuses(arguments, error, training):
    arguments = arguments if len(arguments) == 3 else (*arguments, *(0.3,) * (2 - len(arguments)), training)
    for function in (F.rrelu, PF.rrelu):
        try:
            with use("cpu"):
                function(torch.zeros(3), *arguments)
        except error:
            continue
        assert function is PF.rrelu and not training  # what torch takes, ours takes
        F.rrelu(torch.zeros(3), *arguments)


@pytest.mark.parametrize("name", ["prelu", "rrelu", "rrelu_"])
def test_torchs_functions_are_ours_under_overrides(name):
    x = torch.linspace(-3, 3, 60)
    calls = {
        "prelu": (lambda x: x.prelu(torch.tensor([0.3])), "prelu"),
        "rrelu": (lambda x: F.rrelu(x, 0.3, 0.3, True), "rrelu"),
        "rrelu_": (lambda x: F.rrelu_(x, 0.3, 0.3, True), "rrelu"),
    }
    call, operation = calls[name]
    backends.counts.clear()
    with use("cpu"), pyflash.overrides():
        y = call(x.clone())
    assert backends.counts[operation, "cpu", ""] == 1
    torch.testing.assert_close(y, F.leaky_relu(x, 0.3))


def test_modules_compile_whole():
    torch._dynamo.reset()
    x = torch.randn(4, 5, 6, requires_grad=True)
    for module in (nn.PReLU(5), nn.RReLU(0.2, 0.2), nn.RReLU().eval()):
        with use("cpu"):
            y = torch.compile(module, fullgraph=True, backend="aot_eager")(x)
            torch.testing.assert_close(y, module(x))
            expected = torch.autograd.grad(module(x).sum(), [x, *module.parameters()])
        torch.testing.assert_close(torch.autograd.grad(y.sum(), [x, *module.parameters()]), expected)
