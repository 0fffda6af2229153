"""Weights over their spectral norm, against float64 and torch's parametrization."""

import pytest
import torch
import torch.nn.functional as F
from helpers import FLOAT_DTYPES, assert_error_within, backend_params, run, use

import pyflash.functional as PF
from pyflash.ops.norm.spectral import Layer, estimated_ahead

BACKENDS = backend_params("cpu", "triton")

CASES = [  # shape, dim, layout, iterations, why it is here
    ((9, 37), 0, "contiguous", 1, "rows: part of a vector, and not a multiple of four"),
    ((40, 3000), 0, "contiguous", 2, "rows longer than a chunk of a sum; two iterations"),
    ((130, 700), 0, "contiguous", 1, "several pieces"),
    ((1, 5), 0, "contiguous", 1, "one row"),
    ((5, 1), 0, "contiguous", 3, "one column"),
    ((6, 5, 3, 3), 0, "contiguous", 1, "a convolution's"),
    ((6, 5, 3, 3), 0, "channels_last", 1, "a convolution's, whose columns lie in another order"),
    ((6, 9, 4, 4), 1, "contiguous", 1, "a transposed convolution's"),
    ((6, 9, 4, 4), 1, "channels_last", 2, "a transposed convolution's, rows adjacent in memory"),
    ((33, 20), 1, "contiguous", 1, "columns for rows"),
    ((7, 2, 5), -1, "contiguous", 1, "the last dimension"),
    ((12, 20), 0, "transposed", 1, "dense, in another order"),
]


def defined(weight, u, v, iterations, eps, dim):
    """torch's steps; u and v are no constants in name only."""
    matrix = weight.movedim(dim, 0).flatten(1)
    with torch.no_grad():
        for _ in range(iterations):
            u = F.normalize(matrix @ v, dim=0, eps=eps)
            v = F.normalize(matrix.mT @ u, dim=0, eps=eps)
    return weight / torch.dot(u.detach(), matrix @ v.detach()), u.detach(), v.detach()


def ours(weight, u, v, iterations, eps, dim):
    u, v = u.detach().clone(), v.detach().clone()
    y = PF.spectral_norm(weight, u, v, iterations > 0, max(iterations, 1), eps, dim)
    return y, u, v


def arguments(shape, dim, layout, dtype):
    weight = torch.randn(shape)
    if layout == "channels_last":
        weight = weight.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        weight = weight.mT.contiguous().mT
    u, v = torch.randn(shape[dim]), torch.randn(weight.numel() // shape[dim])
    return weight.to(dtype), F.normalize(u, dim=0).to(dtype), F.normalize(v, dim=0).to(dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_matches_float64(backend, dtype):
    for shape, dim, layout, iterations, why in CASES:
        for steps in (iterations, 0):
            weight, u, v = arguments(shape, dim, layout, dtype)
            if not steps:  # of vectors that belong together, as they are in evaluation
                _, u, v = (t.to(dtype) for t in defined(weight.double(), u.double(), v.double(), 5, 1e-12, dim))
            dy = torch.randn(shape).to(dtype)

            def call(f, w, dtype_=None, backend=None, steps=steps, u=u, v=v, dim=dim, dy=dy):
                vectors = [t if dtype_ is None else t.to(dtype_) for t in (u, v)]
                return run(lambda w: f(w, *vectors, steps, 1e-12, dim)[0], [w], dy, dtype_, backend)

            truth, theirs, found = (
                call(defined, weight, torch.float64),
                call(defined, weight),
                call(ours, weight, backend=backend),
            )
            scale = truth[0].abs().max() / weight.double().abs().max()
            assert_error_within(found, theirs, truth, dy.double() * scale * shape[dim])
            assert found[0].stride() == theirs[0].stride(), why
            with use(backend):
                _, *vectors = ours(weight, u, v, steps, 1e-12, dim)
            _, *theirs = defined(weight, u, v, steps, 1e-12, dim)
            _, *truth = defined(weight.double(), u.double(), v.double(), steps, 1e-12, dim)
            assert_error_within(vectors, theirs, truth)


@pytest.mark.parametrize("backend", BACKENDS)
def test_eps_zeros_and_nan(backend):
    weight, u, v = arguments((9, 37), 0, "contiguous", torch.float32)
    nan = weight.clone()
    nan[4, 7] = float("nan")
    for w, eps in ((weight, 3.0), (weight * 1e-4, 0.01), (weight * 0, 1e-12), (nan, 1e-12)):
        expected = defined(w, u, v, 1, eps, 0)
        with use(backend):
            torch.testing.assert_close(ours(w, u, v, 1, eps, 0), expected, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_layers_together_are_what_they_are_alone(backend):
    def layers():
        torch.manual_seed(3)
        for i, (shape, dim, layout, iterations, _) in enumerate(CASES):
            dtype = torch.float64 if i % 4 == 3 else torch.float32
            yield Layer(*arguments(shape, dim, layout, dtype), iterations * (i % 3 > 0), 1e-12, dim % len(shape))

    with use(backend):
        together = estimated_ahead(list(layers()))
        for layer, estimate in zip(layers(), together):
            (alone,) = estimated_ahead([layer])
            for a, b in zip(estimate[1:], alone[1:]):
                assert torch.equal(a, b)


@pytest.mark.parametrize("backend", ["cpu", "triton", "torch"])
def test_gradients_of_gradients(backend):
    for shape, dim in (((4, 6), 0), ((3, 4, 2), 1)):
        weight, u, v = arguments(shape, dim, "contiguous", torch.float64)

        def function(w, u=u, v=v, dim=dim):
            return PF.spectral_norm(w, u, v, False, dim=dim)

        with use(backend):
            assert torch.autograd.gradcheck(function, weight.requires_grad_(), fast_mode=True)
            assert torch.autograd.gradgradcheck(lambda w, f=function: f(w).square(), weight, fast_mode=True)


def test_results_do_not_depend_on_threads():
    tensors = [arguments(shape, 0, "contiguous", torch.float32) for shape in ((300, 900), (64, 32), (512, 1000))]
    dy, threads, results = torch.randn(512, 1000), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            with use("cpu"):
                found = estimated_ahead([Layer(*of, 2, 1e-12, 0) for of in tensors])
            weight, u, v = tensors[2]
            gradient = run(lambda w, u=u, v=v: ours(w, u, v, 1, 1e-12, 0)[0], [weight], dy, backend="cpu")
            results.append([t for estimate in found for t in estimate[1:]] + list(gradient))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(dim=2), r"dim is 2 of a weight of shape \(4, 6\)"),
        (dict(weight=torch.randn(4)), r"dim is 0 of a weight of shape \(4,\)"),
        (dict(u=torch.randn(6)), r"u has shape \(6,\), v \(6,\); the weight \(4, 6\) has 4 rows"),
        (dict(dim=1), r"the weight \(4, 6\) has 6 rows"),
        (dict(n_power_iterations=0), "n_power_iterations is 0, expected 1 or more"),
    ],
)
def test_what_is_refused(arguments, message):
    given = dict(weight=torch.randn(4, 6), u=torch.randn(4), v=torch.randn(6))
    with pytest.raises(ValueError, match=f"pyflash.spectral_norm: .*{message}"):
        PF.spectral_norm(**{**given, **arguments})
