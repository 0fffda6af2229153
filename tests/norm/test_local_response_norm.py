"""Local response normalisation against float64 and torch's own."""

import pytest
import torch
import torch.nn.functional as F
from helpers import FLOAT_DTYPES, assert_error_within, backend_params, run, use

import pyflash
import pyflash.functional as PF
import pyflash.nn as nn
from pyflash.ops.core import backends

BACKENDS = backend_params("cpu", "triton")
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}

CASES = [  # shape, (size, alpha, beta, k), layout, why it is here
    ((2, 96, 5, 7), (5, 1e-4, 0.75, 2.0), "contiguous", "AlexNet's"),
    ((2, 20, 35), (3, 0.5, 0.5, 1.0), "contiguous", "three dimensions"),
    ((1, 7, 3, 4, 5), (4, 0.5, 1.0, 0.5), "contiguous", "five dimensions; an even size has more before than after"),
    ((1, 2, 3, 2, 2, 3), (2, 0.5, 0.25, 1.0), "contiguous", "six dimensions"),
    ((2, 9, 4, 4), (5, 0.5, 0.6, 1.0), "contiguous", "a power that is no quarter"),
    ((1, 5, 30, 41), (9, 0.5, 0.75, 1.0), "contiguous", "a window wider than the channels; several blocks"),
    ((1, 3, 4, 4), (1, 2.0, 0.75, 0.0), "contiguous", "a window of one, nothing added"),
    ((3, 40, 1), (5, 0.5, 0.75, 1.0), "contiguous", "one position"),
    ((2, 1, 6, 6), (3, 0.5, 0.75, 1.0), "contiguous", "one channel"),
    ((1, 2100, 3), (5, 0.5, 0.75, 1.0), "contiguous", "more channels than a block of positions is kept of"),
    ((2, 96, 5, 7), (5, 1e-4, 0.75, 2.0), "channels_last", "AlexNet's"),
    ((2, 37, 3, 5), (4, 0.5, 0.5, 1.0), "channels_last", "part of a vector"),
    ((1, 3, 4, 5), (9, 0.5, 0.6, 1.0), "channels_last", "a window wider than the channels, no quarter"),
    ((1, 18, 2, 3, 3), (5, 0.5, 0.75, 1.0), "channels_last", "five dimensions"),
    ((2, 9, 4, 5), (5, 0.5, 0.75, 1.0), "transposed", "a copy"),
    ((0, 9, 4, 5), (5, 0.5, 0.75, 1.0), "contiguous", "no samples"),
    ((2, 0, 4, 5), (5, 0.5, 0.75, 1.0), "contiguous", "no channels"),
]


def laid_out(shape, layout, dtype):
    x = torch.randn(shape).mul(2).to(dtype)
    if layout == "channels_last":
        return x.contiguous(memory_format=FORMATS[len(shape)])
    return x.mT.contiguous().mT if layout == "transposed" else x


def theirs_in(dtype):
    """torch's, in a type that its pooling has on a CPU, rounded as it rounds."""

    def function(x, *args):
        if dtype not in (torch.bfloat16, torch.float16) or x.dtype == torch.float64:
            return F.local_response_norm(x, *args)
        return F.local_response_norm(x.float(), *args).to(dtype)

    return function


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_matches_float64(backend, dtype):
    cases = CASES[FLOAT_DTYPES.index(dtype) % 2 :: 2] if backend == "triton" else CASES
    for shape, args, layout, why in cases:
        x, dy = laid_out(shape, layout, dtype), torch.randn(shape).to(dtype)
        truth = run(F.local_response_norm, [x, *args], dy, torch.float64)
        theirs = run(theirs_in(dtype), [x, *args], dy)
        ours = run(PF.local_response_norm, [x, *args], dy, backend=backend)
        # dx is a difference: of dy / s^beta, and what the windows give.
        assert_error_within(ours, theirs, truth, dy.double() * truth[0] / x.double())
        if layout == "channels_last":
            assert all(t.is_contiguous(memory_format=FORMATS[len(shape)]) for t in ours), why


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_nan_infinity_and_zeros_of_both_signs(backend, layout):
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 0.0, 1e30, 1e-30, -3.0, 0.5])
    x = values[torch.randint(9, (2, 40, 3, 5))]
    x[:, 7:] = values[3:][torch.randint(6, (2, 33, 3, 5))]
    x[:, 20:] = values[6:][torch.randint(3, (2, 20, 3, 5))]  # whose neighbours a NaN must not reach
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    for args in ((5, 0.5, 0.75, 1.0), (3, 0.5, 0.5, 0.0), (3, 0.5, 0.6, 1.0)):
        expected = F.local_response_norm(x, *args)
        with use(backend):
            torch.testing.assert_close(PF.local_response_norm(x, *args), expected, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_neighbours_leave_nothing_behind(backend):
    x = torch.randn(1, 30, 40)
    x[:, 3] = 1e18
    far = slice(6, None)
    with use(backend):
        y, alone = PF.local_response_norm(x, 5, 1.0), PF.local_response_norm(x[:, 4:], 5, 1.0)[:, 2:]
    torch.testing.assert_close(y[:, far], alone, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_gradients_of_gradients(backend):
    args = (4, 0.7, 0.75, 1.0)
    for layout in ("contiguous", "channels_last"):
        x = laid_out((1, 6, 2, 2), layout, torch.float64).requires_grad_()
        with use(backend):
            for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
                assert check(lambda x: PF.local_response_norm(x, *args), (x,), fast_mode=True)


def test_results_do_not_depend_on_threads():
    for layout in ("contiguous", "channels_last"):
        x, dy = laid_out((2, 64, 30, 30), layout, torch.float32), torch.randn(2, 64, 30, 30)
        threads, results = torch.get_num_threads(), []
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                results.append(run(PF.local_response_norm, [x, 5, 0.5], dy, backend="cpu"))
        finally:
            torch.set_num_threads(threads)
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other))


X = torch.randn(2, 8, 5, 6)
WRONG = [  # calls that torch refuses
    lambda f: f.local_response_norm(X[0, 0], 5), lambda f: f.local_response_norm(X, 0), lambda f: f.local_response_norm(X, -1),
    lambda f: f.local_response_norm(X, 5.0), lambda f: f.local_response_norm(None, 5), lambda f: f.local_response_norm(X, True),
    lambda f: f.local_response_norm(X, "5"),
]  # fmt: skip


@pytest.mark.parametrize("backend", ["auto", "cpu", "torch"])
def test_what_torch_refuses(backend):
    for number, call in enumerate(WRONG):
        with pytest.raises((RuntimeError, TypeError, ValueError, AttributeError)) as theirs:
            call(F)
        with use(backend), pytest.raises(theirs.type) as ours:
            call(PF)
        assert str(ours.value) == str(theirs.value), number


@pytest.mark.filterwarnings("ignore::pyflash.ops.core.backends.FallbackWarning")
def test_what_no_kernel_takes_is_torchs_and_counted():
    calls = [
        lambda f: f.local_response_norm(X, 5, -1e-4), lambda f: f.local_response_norm(X, 5, k=-1.0, beta=2.0),
        lambda f: f.local_response_norm(X, 5, beta=0.0), lambda f: f.local_response_norm(X, 5, beta=-0.5),
        lambda f: f.local_response_norm(X, 5, torch.tensor(0.5)), lambda f: f.local_response_norm((X * 9).long(), 5),
        lambda f: f.local_response_norm(X, 5, float("nan")),
    ]  # fmt: skip
    for call in calls:
        before = backends.counts.copy()
        torch.testing.assert_close(call(PF), call(F), equal_nan=True)
        assert any(backend == "torch" for _, backend, _ in backends.counts - before)
        with use("cpu"), pytest.raises(NotImplementedError):
            call(PF)


def test_autocast_as_torchs():
    for x in (X, X[0], X[..., None]):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            with use("cpu"), torch.autocast("cpu", torch.bfloat16):
                ours, theirs = (f.local_response_norm(x.to(dtype), 5) for f in (PF, F))
            assert ours.dtype == theirs.dtype
            torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)


def test_modules():
    theirs, ours = torch.nn.LocalResponseNorm(3, 0.5, k=2.0), nn.LocalResponseNorm(3, 0.5, k=2.0)
    assert repr(ours) == repr(theirs) and isinstance(ours, torch.nn.LocalResponseNorm)
    expected = theirs(X)
    replaced = pyflash.replace(torch.nn.Sequential(theirs))
    with use("cpu"):
        before = backends.counts.copy()
        for module in (ours, replaced):
            torch.testing.assert_close(module(X), expected)
        assert (backends.counts - before)["local_response_norm", "cpu", ""] == 2


def test_compile_export_and_functorch():
    x = torch.randn(2, 8, 3, 20, requires_grad=True)

    def results(function):
        y = function(x)
        return y.detach(), torch.autograd.grad(y.square().sum(), x)[0]

    def function(x):
        return PF.local_response_norm(x, 5, 0.5).sin()

    with use("cpu"):
        torch.testing.assert_close(
            results(torch.compile(function, fullgraph=True, backend="aot_eager")), results(function)
        )
        dynamic = torch.compile(function, backend="aot_eager", dynamic=True)
        for width in (20, 23, 30):
            y = torch.randn(2, 9, 9, width, requires_grad=True)
            torch.testing.assert_close(dynamic(y), function(y))
        program = torch.export.export(nn.LocalResponseNorm(5), (X,))
        assert any("pyflash.local_response_norm_fwd" in str(node.target) for node in program.graph.nodes)
        torch.testing.assert_close(program.module()(X), F.local_response_norm(X, 5))
        torch.testing.assert_close(
            torch.func.vmap(lambda x: PF.local_response_norm(x, 5))(X[:, None])[:, 0], F.local_response_norm(X, 5)
        )
        hessian, expected = (
            torch.func.hessian(lambda x, f=f: f.local_response_norm(x, 2).sum())(X[:1, :2, :2, 0]) for f in (PF, F)
        )
        torch.testing.assert_close(hessian, expected)
