"""What every norm promises, alone and of a sum."""

import pytest
import torch
from helpers import backend_params, run, use

from tests.norm.norms import NORMS

BACKENDS = backend_params("cpu", "triton")
every_norm = pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.name)


@every_norm
@pytest.mark.parametrize("backend", backend_params("cpu"))
def test_outputs_past_the_caches_are_the_same(norm, backend):
    """Large outputs are streamed: 32 MB here, and the same rows in two calls."""
    x, residual, dy = (torch.randn(2800, 1024) for _ in range(3))
    weights = norm.weights(1024)

    def rows(part):
        inputs = [x[part], residual[part], (1024,), *weights]
        return run(norm.ours_of_a_sum, inputs, (dy[part], dy[part]), backend=backend)[:4]

    whole, halves = rows(slice(None)), [rows(slice(1000)), rows(slice(1000, None))]
    for a, b in zip(whole, zip(*halves)):
        assert torch.equal(a, torch.cat(b))


@every_norm
def test_results_do_not_depend_on_threads(norm):
    x, residual, dy = (torch.randn(700, 256) for _ in range(3))
    inputs = [x, residual, (256,), *norm.weights(256)]
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run(norm.ours_of_a_sum, inputs, (dy, dy), backend="cpu"))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@every_norm
@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_wanted_gradients(norm, backend):
    names = ["x", "residual", "weight", "bias"][: 2 + norm.parameters]
    wishes = ("x", "residual", "weight", "bias", "x weight", "residual weight", "weight bias")
    for wanted in (wish.split() for wish in wishes if set(wish.split()) <= set(names)):
        x, residual, dy = (torch.randn(20, 40, dtype=torch.float64) for _ in range(3))
        tensors = dict(zip(names, (x, residual, *norm.weights(40, torch.float64))))
        for name in wanted:
            tensors[name].requires_grad_()

        def grads(function, wanted=wanted, tensors=tensors, dy=dy):
            x, residual, *weights = tensors.values()
            y, _ = function(x, residual, (40,), *weights)
            return torch.autograd.grad(y, [tensors[name] for name in wanted], dy)

        with use(backend):
            ours = grads(norm.ours_of_a_sum)
        torch.testing.assert_close(ours, grads(norm.torchs_of_a_sum))


@every_norm
def test_gradient_of_the_sum_alone(norm):
    x, residual = torch.randn(5, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    with use("cpu"):
        _, summed = norm.ours_of_a_sum(x, residual, (8,))
    dx, dresidual = torch.autograd.grad(summed, (x, residual), torch.ones(5, 8))
    assert torch.equal(dx, torch.ones(5, 8)) and torch.equal(dresidual, dx)


@every_norm
def test_compile(norm):
    x, residual = torch.randn(4, 6, 40, requires_grad=True), torch.randn(4, 6, 40)
    weights = [weight.requires_grad_() for weight in norm.weights(40)]

    def function(x, residual, *weights):
        y, summed = norm.ours_of_a_sum(x, residual, (40,), *weights)
        return norm.ours(y, (6, 40)) + summed

    def loss(function):
        with use("cpu"):
            y = function(x, residual, *weights)
        return y.detach(), *torch.autograd.grad(y.square().sum(), (x, *weights))

    torch.testing.assert_close(loss(torch.compile(function, fullgraph=True, backend="aot_eager")), loss(function))


@every_norm
def test_compile_with_dynamic_shapes(norm):
    function = torch.compile(
        lambda x, w: norm.ours(x, (x.shape[-1],), w), fullgraph=True, backend="aot_eager", dynamic=True
    )
    with use("cpu"):
        for rows in (3, 7, 9):
            x, w = torch.randn(rows, 20, requires_grad=True), torch.randn(20, requires_grad=True)
            torch.testing.assert_close(function(x, w), norm.torchs(x, (20,), w))
            torch.autograd.grad(function(x, w).sum(), (x, w))


@every_norm
def test_functorch_takes_torch(norm):
    x, weight = torch.randn(3, 5, 8), torch.randn(8)
    ours, theirs, add = norm.ours, norm.torchs, norm.ours_of_a_sum
    with use("cpu"):
        torch.testing.assert_close(torch.func.vmap(lambda x: ours(x, (8,), weight))(x), theirs(x, (8,), weight))
        torch.testing.assert_close(
            torch.func.vmap(torch.func.grad(lambda x: add(x, x, (8,), weight)[0].square().sum()))(x[0]),
            torch.func.vmap(torch.func.grad(lambda x: theirs(x + x, (8,), weight).square().sum()))(x[0]),
        )
        _, tangent = torch.func.jvp(lambda x: ours(x, (8,)), (x,), (x,))
        torch.testing.assert_close(tangent, torch.func.jvp(lambda x: theirs(x, (8,)), (x,), (x,))[1])


@every_norm
def test_the_sum_broadcasts_and_promotes(norm):
    x, residual = torch.randn(3, 5, 8), torch.randn(5, 8)
    for inputs in ([x, residual, (8,), *norm.weights(8)], [x.bfloat16(), x, (8,)]):
        ours = run(norm.ours_of_a_sum, inputs, (x, x), backend="cpu")
        theirs = run(norm.torchs_of_a_sum, inputs, (x, x))
        assert torch.equal(ours[1], theirs[1])
        for a, b in zip(ours, theirs):
            assert a.dtype == b.dtype and a.shape == b.shape
            torch.testing.assert_close(a, b)


@every_norm
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_on_the_cpu_leaves_the_types_alone(norm, dtype, autocast):
    x, weights = torch.randn(3, 8, dtype=dtype), norm.weights(8)
    with use("cpu"), torch.autocast("cpu", autocast):
        y, theirs = norm.ours(x, (8,), *weights), norm.torchs(x, (8,), *weights)
    assert y.dtype == theirs.dtype == dtype
    torch.testing.assert_close(y, theirs)
