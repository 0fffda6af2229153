"""GroupNorm with and without a residual and an activation, against torch's operations one after another."""

import pytest
import torch
import torch.nn.functional as F
from helpers import DEVICE, FLOAT_DTYPES, backend_params, by_cpu, run, use

import pyflash.functional as PF
import pyflash.nn as nn
from pyflash.activations import ACTIVATIONS
from tests.norm.norms import in_order
from tests.norm.test_batch_norm import assert_channels_within

BACKENDS = backend_params("cpu", "triton")

CASES = [  # shape, groups, layout, parameters, activation, with a residual, why it is here
    ((4, 6), 3, "contiguous", "wb", None, False, "no positions: channels are adjacent"),
    ((2, 6, 1, 1), 6, "contiguous", "wb", None, False, "one element a group"),
    ((2, 40, 7, 5), 8, "channels_last", "wb", "silu", False, "as in a diffusion U-Net"),
    ((3, 12, 37), 4, "contiguous", "wb", "silu", True, "odd number of positions"),
    ((2, 6, 5, 4), 1, "contiguous", "w", "relu", True, "all channels in one group"),
    ((2, 64, 50, 13), 32, "channels_last", "wb", "gelu", True, "several blocks of rows"),
    ((2, 600, 3, 3), 30, "channels_last", "", ("elu", {"alpha": 0.5}), False, "channels in more than one piece"),
    ((1, 2, 300, 301), 1, "contiguous", "wb", "sigmoid", False, "a unit that is larger than the cache"),
    ((3, 4, 6), 2, "transposed", "wb", None, False, "in no order that is read: a copy"),
]


def make_case(case, dtype):
    shape, groups, layout, parameters, activation, has_residual, _why = case
    x, residual, dy = (in_order(torch.randn(shape, dtype=dtype), layout) for _ in range(3))
    weight, bias = (torch.randn(shape[1], dtype=dtype) + 1 for _ in range(2))
    kept = weight if "w" in parameters else None, bias if "b" in parameters else None
    return [x, *kept, residual if has_residual else None], groups, activation, dy


def torchs(groups, activation):
    def function(x, weight, bias, residual=None):
        y = F.group_norm(x, groups, weight, bias)
        y = y if residual is None else y + residual
        name, values = activation if isinstance(activation, tuple) else (activation, {})
        return y if name is None else ACTIVATIONS[name].reference(y, **values)

    return function


def ours(groups, activation):
    def function(x, weight, bias, residual=None):
        if activation is None and residual is None:
            return PF.group_norm(x, groups, weight, bias)
        return PF.group_norm_act(x, groups, weight, bias, activation=activation, residual=residual)

    return function


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_matches_float64(backend, dtype):
    for case in CASES[:5] if backend == "triton" else CASES:
        tensors, groups, activation, dy = make_case(case, dtype)
        if case[0][2:] == (1, 1):  # rounding errors times 1 / sqrt(eps): float64 torch is no truth
            y, dx, *_ = run(ours(groups, activation), tensors, dy, backend=backend)
            assert torch.equal(y, tensors[2][:, None, None].expand_as(y)) and not dx.any()
            continue
        theirs = run(by_cpu(torchs(groups, activation)), tensors, dy)
        truth = run(torchs(groups, activation), tensors, dy, torch.float64)
        found = run(ours(groups, activation), tensors, dy, backend=backend)
        assert case[2] == "transposed" or found[0].stride() == theirs[0].stride(), case
        # A GPU adds in another order: in float64 that is 5 ulp of the largest term.
        assert_channels_within(found, theirs, truth, dy, tensors, floor_ulp=4.0 if DEVICE == "cpu" else 8.0)


@pytest.mark.parametrize("backend", backend_params("cpu"))
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_samples_that_do_not_fit_together_into_the_cache(layout, activation, backend):
    """They are taken a few at a time: what each gives is what it gives alone."""
    shape = 5, 6, 200, 301
    x, residual, dy = (in_order(torch.randn(shape), layout) for _ in range(3))
    tensors = [x, torch.randn(6), torch.randn(6), residual if activation else None]
    y, dx, *grads = run(ours(2, activation), tensors, dy, backend=backend)
    alone = []
    for i in range(shape[0]):
        sample = [x[i : i + 1], *tensors[1:3], residual[i : i + 1] if activation else None]
        alone.append(run(ours(2, activation), sample, dy[i : i + 1], backend=backend))
    for together, each in zip((y, dx, *grads), zip(*alone), strict=True):
        if together.shape == shape:
            assert torch.equal(together, torch.cat(each))
        else:
            torch.testing.assert_close(together, torch.stack(each).double().sum(0).float())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("mean, deviation", [(1e4, 1.0), (100.0, 1e-3), (0.0, 1e15)])
def test_large_means(backend, layout, mean, deviation):
    x = in_order(torch.randn(3, 8, 9, 15) * deviation + mean, layout)
    x[:, 3, 0, 0] += 100 * deviation
    dy, tensors = in_order(torch.randn(3, 8, 9, 15), layout), [x, torch.ones(8), torch.zeros(8)]
    truth, theirs = run(torchs(2, None), tensors, dy, torch.float64), run(torchs(2, None), tensors, dy)
    assert_channels_within(run(ours(2, None), tensors, dy, backend=backend), theirs, truth, dy, tensors)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", ["silu", None])
def test_gradients_of_gradients(layout, activation):
    x, residual = (in_order(torch.randn(2, 4, 2, 2, dtype=torch.float64), layout) for _ in range(2))
    weight, bias = (torch.randn(4, dtype=torch.float64) + 1 for _ in range(2))
    leaves = [t.requires_grad_() for t in (x, weight, bias, residual)]
    with use("cpu"):
        assert torch.autograd.gradcheck(ours(2, activation), leaves)
        assert torch.autograd.gradgradcheck(ours(2, activation), leaves)


WRONG = [  # shape, groups, weight, error, message
    ((2, 6, 3), 4, None, RuntimeError, "Expected number of channels in input to be divisible by num_groups"),
    ((2, 6, 3), 2, 5, RuntimeError, "Expected weight to be a vector of size equal to the number of channels in input"),
    ((1, 6), 6, None, ValueError, "Expected more than 1 value per channel when training"),
    ((6,), 6, None, RuntimeError, "Expected at least 2 dimensions for input tensor but received 1"),
    ((2, 6, 3), -1, None, RuntimeError, "Expected num groups to be greater than 0"),
]


@pytest.mark.parametrize("backend", ["auto", "cpu", "torch"])
@pytest.mark.parametrize("shape, groups, weight, error, message", WRONG)
def test_what_torch_refuses(backend, shape, groups, weight, error, message):
    x, weight = torch.randn(shape), None if weight is None else torch.ones(weight)
    with use(backend):
        for function in (PF.group_norm, PF.group_norm_act, F.group_norm):
            with pytest.raises(error, match=message):
                function(x, groups, weight)


@pytest.mark.parametrize("backend", ["cpu", "auto"])
def test_empty(backend):
    for shape in ((0, 4), (0, 4, 3, 3), (2, 4, 0)):
        x = torch.randn(shape)
        with use(backend):
            assert PF.group_norm(x, 2, torch.ones(4)).shape == shape


def test_compile_and_export():
    x, module = torch.randn(3, 6, 4, 5, requires_grad=True), nn.GroupNorm(3, 6)
    with use("cpu"):
        found, expected = torch.compile(module, fullgraph=True, backend="aot_eager")(x), module(x)
        torch.testing.assert_close(found, expected)
        grads = [torch.autograd.grad(y.square().sum(), (x, module.weight)) for y in (found, expected)]
        program = torch.export.export(module, (x,))
    torch.testing.assert_close(*grads)
    torch.testing.assert_close(program.module()(x), expected)
    assert any("pyflash.channel_norm_fwd" in str(node.target) for node in program.graph.nodes)
