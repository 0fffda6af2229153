"""Vectors over their norm, against float64 and torch's own."""

import pytest
import torch
import torch.nn.functional as F
from helpers import FLOAT_DTYPES, assert_error_within, backend_params, run, use

import pyflash.functional as PF
from pyflash.ops.core import backends

BACKENDS = backend_params("cpu", "triton")
INF = float("inf")
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}

CASES = [  # shape, p, dim, layout, why it is here
    ((9, 37), 2.0, 1, "contiguous", "rows: part of a vector"),
    ((3, 5000), 2.0, -1, "contiguous", "rows longer than a chunk of a sum"),
    ((1, 5), 2.0, 1, "contiguous", "one row, smaller than a vector"),
    ((4, 1), 2.0, 1, "contiguous", "rows of one element: the sign"),
    ((2, 33, 5, 7), 2.0, 1, "contiguous", "columns"),
    ((1, 300, 700), 2.0, 1, "contiguous", "several blocks of columns, summed in two parts"),
    ((65, 3), 2.0, 0, "contiguous", "the first dimension"),
    ((2, 33, 5, 7), 2.0, 1, "channels_last", "whose channels are rows"),
    ((2, 5, 3, 4), 2.0, 3, "channels_last", "whose rows are columns"),
    ((6, 5, 40), 2.0, 2, "transposed", "dense, in another order"),
    ((6, 5, 40), 2.0, 1, "sliced", "a copy"),
    ((6, 5, 40), 2.0, (1, 2), "contiguous", "two dimensions"),
    ((6, 5, 4, 3), 1, (0, 1), "contiguous", "two dimensions, in front"),
    ((9, 37), 1.0, 1, "contiguous", "sum of magnitudes"),
    ((2, 33, 40), 1.0, 1, "contiguous", "sum of magnitudes, columns"),
    ((9, 37), INF, 1, "contiguous", "the largest"),
    ((3, 2100), INF, 1, "contiguous", "the largest, of a long row"),
    ((2, 33, 40), INF, 1, "contiguous", "the largest, columns"),
    ((0, 9), 2.0, 1, "contiguous", "no rows"),
    ((3, 0), 1.0, 1, "contiguous", "no elements"),
]


def laid_out(shape, layout, dtype):
    x = torch.randn(shape).to(dtype)
    if layout == "channels_last":
        return x.contiguous(memory_format=FORMATS[len(shape)])
    if layout == "transposed":
        return x.mT.contiguous().mT
    return torch.cat([x, x], -1)[..., : shape[-1]] if layout == "sliced" else x


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_matches_float64(backend, dtype):
    cases = CASES[FLOAT_DTYPES.index(dtype) % 2 :: 2] if backend == "triton" else CASES
    for shape, p, dim, layout, why in cases:
        x, dy = laid_out(shape, layout, dtype), torch.randn(shape).to(dtype)
        args = p, dim, 1e-12
        truth, theirs = run(F.normalize, [x, *args], dy, torch.float64), run(F.normalize, [x, *args], dy)
        ours = run(PF.normalize, [x, *args], dy, backend=backend)
        norm = torch.linalg.vector_norm(x.double(), p, dim, keepdim=True)
        assert_error_within(ours, theirs, truth, dy.double() / norm)  # dx is a difference of these
        assert ours[0].stride() == theirs[0].stride(), why


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("p", [1.0, 2.0, INF])
def test_what_eps_clamps_and_ties(backend, p):
    x = torch.randn(6, 21)
    x[0], x[1], x[2, 4:], x[3] = 0, 1e-3, 0, -2.0
    x[4, :10], x[4, 10:] = 3.0, -3.0
    dy = torch.randn(6, 21)
    for eps in (1e-12, 0.5, 5.0):
        for dim, turn in ((1, lambda t: t), (0, lambda t: t.mT.contiguous())):
            inputs = [turn(x), p, dim, eps]
            ours, theirs = (
                run(f, inputs, turn(dy), backend=b) for f, b in ((PF.normalize, backend), (F.normalize, None))
            )
            for a, b in zip(ours, theirs):
                if eps == 1e-12:  # of the zero row dy / eps: compared by itself
                    a, b = a.clamp(-1e4, 1e4), b.clamp(-1e4, 1e4)
                torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("p", [1.0, 2.0, INF])
def test_nan_infinity_and_zeros_of_both_signs(backend, p):
    values = torch.tensor([float("nan"), INF, -INF, -0.0, 0.0, 1e30, 1e-30, -3.0, 0.5])
    x = values[torch.randint(9, (12, 40))]
    x[4:] = values[3:][torch.randint(6, (8, 40))]
    x[8:] = values[3:5][torch.randint(2, (4, 40))]
    for dim, turned in ((1, x), (0, x.mT.contiguous())):
        expected = F.normalize(turned, p, dim)
        with use(backend):
            y = PF.normalize(turned, p, dim)
        torch.testing.assert_close(y, expected, equal_nan=True)
        assert torch.equal(y.signbit()[expected == 0], expected.signbit()[expected == 0])


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_gradients_of_gradients(backend):
    for p in (1.0, 2.0, INF):
        for shape, dim in (((3, 5), 1), ((2, 4, 3), 1)):
            x = (
                torch.randperm(torch.Size(shape).numel(), dtype=torch.float64)
                .add(0.5)
                .sin()
                .view(shape)
                .requires_grad_()
            )
            with use(backend):
                for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
                    assert check(lambda x, p=p, dim=dim: PF.normalize(x, p, dim), (x,), fast_mode=True)


def test_results_do_not_depend_on_threads():
    x, dy = torch.randn(64, 48, 96), torch.randn(64, 48, 96)
    for dim in (1, 2):
        threads, results = torch.get_num_threads(), []
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                results.append(run(PF.normalize, [x, 2.0, dim], dy, backend="cpu"))
        finally:
            torch.set_num_threads(threads)
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other))


X = torch.randn(2, 8, 5, 6)
WRONG = [  # calls that torch refuses
    lambda f: f.normalize(X, dim=4), lambda f: f.normalize(X, dim=-5), lambda f: f.normalize(X, dim=(1, 1)),
    lambda f: f.normalize(X, dim="1"), lambda f: f.normalize(X, dim=1.0), lambda f: f.normalize(None),
    lambda f: f.normalize(X[:, :0], INF),
]  # fmt: skip


@pytest.mark.parametrize("backend", ["auto", "cpu", "torch"])
@pytest.mark.filterwarnings("ignore::pyflash.ops.core.backends.FallbackWarning")
def test_what_torch_refuses(backend):
    for number, call in enumerate(WRONG):
        with pytest.raises((RuntimeError, TypeError, ValueError, IndexError, AttributeError)) as theirs:
            call(F)
        if number == len(WRONG) - 1 and backend == "cpu":
            continue  # that this backend does not take the call comes first
        with use(backend), pytest.raises(theirs.type) as ours:
            call(PF)
        assert str(ours.value) == str(theirs.value), number


@pytest.mark.filterwarnings("ignore::pyflash.ops.core.backends.FallbackWarning")
def test_what_no_kernel_takes_is_torchs_and_counted():
    calls = [
        lambda f: f.normalize(X, 3.0), lambda f: f.normalize(X, 0), lambda f: f.normalize(X, -INF), lambda f: f.normalize(X, "fro"),
        lambda f: f.normalize(X, dim=(0, 2)), lambda f: f.normalize(X, dim=()), lambda f: f.normalize(X, dim=None),
        lambda f: f.normalize(X, eps=torch.tensor(0.1)), lambda f: f.normalize(X.cfloat()),
        lambda f: f.normalize(X, out=torch.empty_like(X)),
    ]  # fmt: skip
    for call in calls:
        before = backends.counts.copy()
        torch.testing.assert_close(call(PF), call(F), equal_nan=True)
        assert any(backend == "torch" for _, backend, _ in backends.counts - before)
        with use("cpu"), pytest.raises(NotImplementedError):
            call(PF)
    out = torch.empty(0)
    assert PF.normalize(X, out=out) is out and torch.equal(out, F.normalize(X))


def test_autocast_as_torchs():
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        with use("cpu"), torch.autocast("cpu", torch.bfloat16):
            ours, theirs = (f.normalize(X.to(dtype)) for f in (PF, F))
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)


def test_compile_export_and_functorch():
    x = torch.randn(2, 8, 3, 20, requires_grad=True)

    def results(function):
        y = function(x)
        return y.detach(), torch.autograd.grad(y.square().sum(), x)[0]

    def function(x):
        return PF.normalize(x).sin() + PF.normalize(x.mT, dim=-1).mT

    class Module(torch.nn.Module):
        def forward(self, x):
            return PF.normalize(x)

    with use("cpu"):
        torch.testing.assert_close(
            results(torch.compile(function, fullgraph=True, backend="aot_eager")), results(function)
        )
        dynamic = torch.compile(function, backend="aot_eager", dynamic=True)
        for width in (20, 23, 30):
            y = torch.randn(2, 9, 9, width, requires_grad=True)
            torch.testing.assert_close(dynamic(y), function(y))
        program = torch.export.export(Module(), (X,))
        assert any("pyflash.normalize_fwd" in str(node.target) for node in program.graph.nodes)
        torch.testing.assert_close(program.module()(X), F.normalize(X))
        torch.testing.assert_close(torch.func.vmap(lambda x: PF.normalize(x, dim=0))(X), F.normalize(X))
        hessian, expected = (torch.func.hessian(lambda x, f=f: f.normalize(x).sum())(X[0, :2, :3]) for f in (PF, F))
        torch.testing.assert_close(hessian, expected)
