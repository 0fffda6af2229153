"""Pixel norm and adaptive instance norm, against their formulas in float64."""

import pytest
import torch
import torch.nn.functional as F
from helpers import FLOAT_DTYPES, assert_error_within, backend_params, run, use

import pyflash.functional as PF
from pyflash.ops.core import backends

BACKENDS = backend_params("cpu", "triton")
INF, NAN = float("inf"), float("nan")
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def pixel_norm(x, dim=1, eps=1e-8):
    return x / (x.square().mean(dim, keepdim=True) + eps).sqrt()


def adaptive_instance_norm(x, scale, shift, eps=1e-5):
    dims = tuple(range(2, x.dim()))
    mean, var = x.mean(dims, keepdim=True), x.var(dims, correction=0, keepdim=True)
    ones = (1,) * len(dims)
    return (x - mean) / (var + eps).sqrt() * scale.reshape(*scale.shape, *ones) + shift.reshape(*shift.shape, *ones)


def laid_out(shape, layout, dtype):
    x = torch.randn(shape).to(dtype)
    if layout == "channels_last":
        return x.contiguous(memory_format=FORMATS[len(shape)])
    return torch.cat([x, x], -1)[..., : shape[-1]] if layout == "sliced" else x


PIXELS = [  # shape, dim, layout, why it is here
    ((9, 37), 1, "contiguous", "latent vectors: part of a vector"),
    ((3, 5000), -1, "contiguous", "longer than a chunk of a sum"),
    ((4, 1), 1, "contiguous", "of one element"),
    ((2, 33, 5, 7), 1, "contiguous", "columns"),
    ((1, 300, 700), 1, "contiguous", "several blocks of columns, summed in two parts"),
    ((2, 33, 5, 7), 1, "channels_last", "whose channels are rows"),
    ((6, 5, 40), 1, "sliced", "a copy"),
    ((0, 9), 1, "contiguous", "no vectors"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_pixel_norm_matches_float64(backend, dtype):
    for shape, dim, layout, why in PIXELS:
        for eps in (1e-8, 0.5)[:: 1 if max(shape) < 100 else 2]:
            if backend == "triton" and (max(shape) > 100 or eps != 0.5) and dtype != torch.float32:
                continue  # the interpreter takes long
            x, dy = laid_out(shape, layout, dtype), torch.randn(shape).to(dtype)
            args = dim, eps
            truth, theirs = run(pixel_norm, [x, *args], dy, torch.float64), run(pixel_norm, [x, *args], dy)
            ours = run(PF.pixel_norm, [x, *args], dy, backend=backend)
            root = (x.double().square().mean(dim, keepdim=True) + eps).sqrt()
            assert_error_within(ours, theirs, truth, dy.double() / root)
            expected = x if layout != "sliced" else x.contiguous()
            assert ours[0].stride() == expected.stride(), why


@pytest.mark.parametrize("backend", BACKENDS)
def test_pixel_norm_of_what_is_not_finite(backend):
    values = torch.tensor([NAN, INF, -INF, -0.0, 0.0, 1e-30, -3.0, 0.5])
    x = values[torch.randint(8, (12, 40))]
    x[4:] = values[3:][torch.randint(5, (8, 40))]
    x[8:] = 0
    for dim, turned in ((1, x), (0, x.mT.contiguous())):
        with use(backend):
            torch.testing.assert_close(PF.pixel_norm(turned, dim), pixel_norm(turned, dim), equal_nan=True)


STYLES = [  # shape, layout, why it is here
    ((3, 5, 7, 9), "contiguous", "images"),
    ((2, 4, 33), "contiguous", "one dimension"),
    ((2, 4, 3, 5, 2), "contiguous", "three"),
    ((2, 32, 16, 5), "channels_last", "two passes"),
    ((3, 5, 7, 9), "sliced", "a copy"),
    ((1, 1, 2, 1), "contiguous", "two positions"),
    ((0, 5, 7, 9), "contiguous", "no samples"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_adaptive_instance_norm_matches_float64(backend, dtype):
    for shape, layout, why in STYLES:
        x, dy = laid_out(shape, layout, dtype), torch.randn(shape).to(dtype)
        styles = [torch.randn(shape[:2]).to(dtype) for _ in range(2)]
        truth = run(adaptive_instance_norm, [x, *styles], dy, torch.float64)
        theirs = run(adaptive_instance_norm, [x, *styles], dy)
        ours = run(PF.adaptive_instance_norm, [x, *styles], dy, backend=backend)
        if not x.numel():
            assert all(a.shape == b.shape for a, b in zip(ours, theirs))
            continue
        rstd = (x.double().flatten(2).var(2, correction=0) + 1e-5).rsqrt()
        terms = dy.double() * styles[0].double().reshape(*shape[:2], *(1,) * (len(shape) - 2))
        assert_error_within(
            ours, theirs, truth, *styles, dy, terms * rstd.reshape(*shape[:2], *(1,) * (len(shape) - 2)),
            dy.double().flatten(2).abs().sum(2),
        )  # fmt: skip
        expected = x if layout != "sliced" else x.contiguous()
        assert ours[0].stride() == expected.stride(), why


def test_adaptive_instance_norm_takes_float32_styles_beside_half_types():
    x, styles = torch.randn(2, 3, 8, 8).bfloat16(), [torch.randn(2, 3) for _ in range(2)]
    expected = adaptive_instance_norm(x.double(), *[s.double() for s in styles])
    for backend in ("cpu", "torch"):
        with use(backend):
            y = PF.adaptive_instance_norm(x, *styles)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.double(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_gradients_of_gradients(backend):
    fast = backend == "triton"  # the interpreter takes long
    x, scale, shift = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 2, 3, 2), (2, 2), (2, 2)))
    last = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    with use(backend):
        for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
            assert check(PF.adaptive_instance_norm, (x, scale, shift), fast_mode=fast)
            assert check(PF.pixel_norm, (x,), fast_mode=fast)
            if backend == "cpu":
                assert check(PF.adaptive_instance_norm, (last, scale, shift), fast_mode=True)
                assert check(PF.pixel_norm, (last,), fast_mode=True)


def test_results_do_not_depend_on_threads():
    x, styles = torch.randn(8, 48, 24, 24), [torch.randn(8, 48) for _ in range(2)]
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(
                run(PF.pixel_norm, [x], x, backend="cpu")
                + run(PF.adaptive_instance_norm, [x, *styles], x, backend="cpu")
            )
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


X, S = torch.randn(6, 4, 3, 3), torch.randn(6, 4)
WRONG = [
    (IndexError, "Dimension out of range", lambda: PF.pixel_norm(X, 4)),
    (TypeError, "dim is 1.0", lambda: PF.pixel_norm(X, 1.0)),
    (RuntimeError, r"x is torch\.int64", lambda: PF.pixel_norm(X.long())),
    (TypeError, "x is a NoneType", lambda: PF.pixel_norm(None)),
    (ValueError, r"scale has shape \(6, 3\), expected \(6, 4\)", lambda: PF.adaptive_instance_norm(X, S[:, :3], S)),
    (ValueError, r"shift has shape \(4,\), expected \(6, 4\)", lambda: PF.adaptive_instance_norm(X, S, S[0])),
    (ValueError, "more than 1 spatial element", lambda: PF.adaptive_instance_norm(X[..., :1, :1], S, S)),
    (ValueError, "expected .batch, channels, positions", lambda: PF.adaptive_instance_norm(S, S, S)),
    (RuntimeError, r"scale is torch\.int64", lambda: PF.adaptive_instance_norm(X, S.long(), S)),
    (TypeError, "eps is '1'", lambda: PF.adaptive_instance_norm(X, S, S, "1")),
    (RuntimeError, "shift is on meta", lambda: PF.adaptive_instance_norm(X, S, S.to("meta"))),
]  # fmt: skip


@pytest.mark.parametrize("backend", ["auto", "cpu", "torch"])
@pytest.mark.parametrize("error, message, call", WRONG, ids=[message for _, message, _ in WRONG])
def test_what_is_refused(backend, error, message, call):
    with use(backend), pytest.raises(error, match=message):
        call()


def test_small_ones_are_torchs_and_counted():
    large = torch.randn(4, 64, 64, 64)
    for function, args in ((PF.pixel_norm, ()), (PF.adaptive_instance_norm, (torch.ones(4, 64), torch.zeros(4, 64)))):
        for x, expected in ((large[..., :4, :4].contiguous()[:, :, :2], "torch"), (large, "cpu")):
            before = backends.counts.copy()
            function(x, *args)
            assert [(n, b) for n, b, _ in backends.counts - before] == [(function.__name__, expected)]
    torch.testing.assert_close(PF.adaptive_instance_norm(large, *args), F.instance_norm(large), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_compile_export_and_functorch():
    x, styles = torch.randn(2, 8, 3, 5, requires_grad=True), [torch.randn(2, 8, requires_grad=True) for _ in range(2)]

    def function(x, scale, shift):
        return PF.adaptive_instance_norm(PF.pixel_norm(x), scale, shift)

    def results(function):
        y = function(x, *styles)
        return y.detach(), *torch.autograd.grad(y.sin().sum(), (x, *styles))

    class Module(torch.nn.Module):
        def forward(self, x, scale, shift):
            return function(x, scale, shift)

    detached = [t.detach() for t in (x, *styles)]
    with use("cpu"):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(results(compiled), results(function))
        program = torch.export.export(Module(), tuple(detached))
        torch.testing.assert_close(program.module()(*detached), function(*detached))
        batched = torch.func.vmap(lambda x: PF.pixel_norm(x, 0))(detached[0])
        torch.testing.assert_close(batched, pixel_norm(detached[0]))
        hessians = [
            torch.func.hessian(lambda x, f=f: f(x).sin().sum())(detached[0][:1, :2])
            for f in (PF.pixel_norm, pixel_norm)
        ]
        torch.testing.assert_close(*hessians)
