"""The second derivative of the activation table's rows: one kernel for both of its results, against torch's own."""

import numpy as np
import pytest
import torch
from activations import CALLS, borders
from helpers import FLOAT_DTYPES, assert_error_within, backend_params, by_cpu, has_gpus_arithmetic, on_its_device, use

import pyflash.functional as PF
from pyflash.activations import ACTIVATIONS
from pyflash.ops.core import backends
from pyflash.ops.pointwise import activation
from pyflash.ops.pointwise.activation import CURVED, activation_bwd_bwd

CASES = [  # a tensor, why it is here
    (lambda: torch.randn(()), "no dimensions"),
    (lambda: torch.randn(3, 37) * 3, "odd width: tail of a vector"),
    (lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), "dense, not contiguous"),
    (lambda: torch.randn(40, 96)[:, :48], "holes between rows"),
    (lambda: torch.randn(0, 64), "empty"),
]
BENT = [name for name, call in CALLS.items() if call.row.name in CURVED]


def twice(function, x, dy, ddx, dtype=None, backend=None):
    """What ddx, arriving at the gradient of function(x), gives to dy and to x; None where nothing arrives."""
    x, dy, ddx = (torch.empty_like(t, dtype=dtype or t.dtype).copy_(t).requires_grad_() for t in (x, dy, ddx))
    with use(backend or "torch"):
        (dx,) = torch.autograd.grad(function(x), x, dy, create_graph=True)
        return torch.autograd.grad(dx, (dy, x), ddx, allow_unused=True)


def values_of(call):
    return call.row.values((dict(call.row.parameters) | call.given).values())


@pytest.mark.parametrize("name", BENT)
@pytest.mark.parametrize("backend", backend_params("cpu", "triton", "cuda"))
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_matches_float64(name, backend, dtype):
    ours, reference = CALLS[name].ours, CALLS[name].reference
    for make, _why in CASES if backend != "triton" else CASES[1:3]:  # where every launch is interpreted
        x = make().to(dtype)
        dy, ddx = torch.randn(2, *x.shape, dtype=dtype)
        truth = twice(by_cpu(reference), x, dy, ddx, torch.float64)
        assert_error_within(
            twice(ours, x, dy, ddx, backend=backend), twice(reference, x, dy, ddx), truth, dy, ddx, ddx * dy
        )


def test_a_row_is_curved_or_its_second_derivative_is_zero():
    """By torch's own, away from the steps."""
    x = torch.linspace(-7.03, 7.01, 200, dtype=torch.float64)
    for call in CALLS.values():
        if call.row.name == "hardsigmoid":
            assert call.row.name not in CURVED  # of which torch has none
            continue
        of_x = twice(call.reference, x, torch.ones_like(x), torch.ones_like(x))[1]
        is_curved = of_x is not None and bool((of_x != 0).any())
        assert is_curved == (call.row.name in CURVED), call.row.name


# Of float32, of the first and of the second derivative; what a GPU adds. silu's first has 17 x (1 - sigmoid(17)), as torch's.
MAX_ULP = 18, 14
GPU_ULP = 6


@pytest.mark.parametrize("name", BENT)
@pytest.mark.parametrize("backend", backend_params("cpu", "triton", "cuda"))
def test_max_ulp_over_the_whole_range(name, backend):
    """Every 4001st float, fewer where they are interpreted, ours against the same formula in float64. A derivative f has places where it cancels: an ulp is of
    |f| + |x f'|, what a rounding of x does to it. And none is NaN where the formula is none."""
    row, values = CALLS[name].row, values_of(CALLS[name])
    step = 40009 if backend == "triton" and backends.INTERPRETING else 4001
    bits = np.arange(0, 2**32, step, dtype=np.uint32)
    x = on_its_device(torch.from_numpy(bits.view(np.float32)))
    x = x[x.isfinite()]
    saved = x if row.saves == "x" else row.of(x, values)
    one, wide = torch.ones_like(x), saved.double().requires_grad_()
    with use(backend):
        found = activation_bwd_bwd(one, one, saved, row.name, *values, backend.partition(":")[0], need_ddy=True)
    truths = activation._reference_bwd_bwd(one.double(), one.double(), wide, row.name, *values, True)
    for ours, truth, most in zip(found, truths, MAX_ULP):
        slope = torch.autograd.grad(truth.sum(), wide, retain_graph=True)[0] if truth.requires_grad else torch.zeros(())
        scale = truth.abs() + (wide * slope).nan_to_num(0.0).abs()
        if row.name == "tanhshrink":  # 1 - tanh^2 cancels, as torch's
            scale = scale.clamp(min=1)
        assert not (ours.isnan() & truth.isfinite()).any()
        normal = (scale >= 2.0**-100) & (truth.abs() < 2.0**120)  # where no factor is subnormal, or overflows
        error = ((ours.double() - truth).abs() / scale)[normal] * 2**24
        assert error.max() <= most + GPU_ULP * has_gpus_arithmetic(backend)


@pytest.mark.parametrize("name", BENT)
@pytest.mark.parametrize("backend", backend_params("cpu", "triton", "cuda"))
def test_special_values(name, backend):
    """NaN, infinities, zeros, subnormal and huge numbers: nothing is NaN that torch has a number for."""
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-40, -1e-40, 1e20, -1e20, 3e38, -3e38])
    one = torch.ones_like(x)
    ours = twice(CALLS[name].ours, x, one, one, backend=backend)
    theirs = twice(by_cpu(CALLS[name].in_type(torch.float32).reference), x, one, one, torch.float64)
    for our, their in zip(ours, theirs):
        known = ~their.isnan()
        torch.testing.assert_close(our[known], their[known].float())
        assert our.isnan()[0] == their.isnan()[0]


@pytest.mark.parametrize("name", [name for name in BENT if "where(" in CALLS[name].row.double_backward])
@pytest.mark.parametrize("backend", backend_params("cpu", "triton", "cuda"))
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_borders_belong_where_torch_has_them(name, backend, dtype):
    """Exact values at a kink: which side's second derivative."""
    x = borders(name, dtype)
    dy, ddx = torch.full_like(x, 3.0), torch.full_like(x, -0.5)
    wide = dtype if dtype.itemsize > 2 else torch.float32  # torch composes some of it, and rounds as often
    theirs = twice(by_cpu(CALLS[name].reference), x, dy, ddx, wide)
    torch.testing.assert_close(twice(CALLS[name].ours, x, dy, ddx, backend=backend), tuple(t.to(dtype) for t in theirs))


@pytest.mark.parametrize("name", ["gelu", "tanh", "softplus", "mish", "elu"])
def test_the_third_derivative(name):
    x, dy = torch.randn(2, 15, dtype=torch.float64)

    def gradient(x, dy):
        return torch.autograd.grad(CALLS[name].ours(x), x, dy, create_graph=True)[0]

    with use("cpu"):
        assert torch.autograd.gradgradcheck(gradient, (x.detach().requires_grad_(), dy.detach().requires_grad_()))


def test_what_is_not_needed_is_not_computed(monkeypatch):
    """Neither the gradient of a dy that asks for none, nor that of a flat row by x."""
    asked = []
    forward = activation._bwd_bwd.__call__
    monkeypatch.setattr(activation, "_bwd_bwd", lambda *args: asked.append(args[-2]) or forward(*args))
    for name in ("silu", "leaky_relu"):
        for dy in (torch.ones(9), torch.ones(9, requires_grad=True)):
            x = torch.randn(9, requires_grad=True)
            with use("cpu"):
                (dx,) = torch.autograd.grad(getattr(PF, name)(x), x, dy, create_graph=True)
                dx.sum().backward()
            assert (x.grad is None) == (name == "leaky_relu")
            assert (dy.grad is None) != dy.requires_grad
    assert asked == [False, True]


def test_a_flat_row_has_no_such_operator():
    x = torch.randn(3)
    for backend in ("cpu", "torch"):
        with pytest.raises(ValueError, match="the derivative of 'relu' is flat: the gradient by dy is activation_bwd"):
            torch.ops.pyflash.activation_bwd_bwd(x, x, x, "relu", 0.0, 0.0, True, backend)


def test_gradients_in_another_order_are_laid_out():
    """ddx and dy as they come: transposed, expanded, with holes."""
    x = torch.randn(4, 6, dtype=torch.float64)
    for dy in (torch.randn(6, 4).t(), torch.randn(4, 1).expand(4, 6), torch.randn(4, 12)[:, ::2]):
        dy = dy.double()
        ours, theirs = [], []
        for found, function in ((ours, PF.silu), (theirs, torch.nn.functional.silu)):
            leaf = x.clone().requires_grad_()
            with use("cpu"):
                (dx,) = torch.autograd.grad(function(leaf), leaf, dy, create_graph=True)
                found.extend(torch.autograd.grad(dx, leaf, dy))
        torch.testing.assert_close(ours, theirs)


def test_it_compiles_whole():
    ddx, dy, x = torch.randn(3, 40)
    call = torch.compile(
        lambda *tensors: activation_bwd_bwd(*tensors, "mish", 0.0, 0.0, "cpu", need_ddy=True),
        fullgraph=True,
        backend="aot_eager",
    )
    torch.testing.assert_close(call(ddx, dy, x), twice(ACTIVATIONS["mish"].reference, x, dy, ddx))
