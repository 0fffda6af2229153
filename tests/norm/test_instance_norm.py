"""InstanceNorm against torch's: the kernels of GroupNorm with a group for each channel, or of BatchNorm in evaluation."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import FLOAT_DTYPES, assert_error_within, backend_params, run, use

import pyflash.functional as PF
import pyflash.nn as nn
from tests.norm.norms import in_order
from tests.norm.test_batch_norm import assert_channels_within

BACKENDS = backend_params("cpu", "triton")

CASES = [  # shape, layout, parameters, why it is here
    ((2, 5, 37), "contiguous", "wb", "odd number of positions"),
    ((3, 20, 5, 4), "channels_last", "wb", "channels are adjacent"),
    ((2, 3, 2, 3, 5), "channels_last", "", "three dimensions"),
    ((2, 5, 30, 41), "contiguous", "w", "longer than one chunk of a sum"),
]


def results(function, case, x, weight, bias, running, uses_input, dy, dtype=None, backend=None):
    kept = [None if t is None else t.to(dtype or t.dtype, copy=True) for t in running]

    def call(x, weight, bias):
        return function(x, *kept, weight, bias, uses_input, 0.3, 1e-4)

    return *run(call, [x, weight, bias], dy, dtype, backend), *(t for t in kept if t is not None)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("uses_input, tracks", [(True, False), (True, True), (False, True)])
def test_matches_float64(backend, dtype, uses_input, tracks):
    for case in CASES[:2] if backend == "triton" else CASES:
        shape, layout, parameters, _why = case
        x, dy = (in_order(torch.randn(shape, dtype=dtype), layout) for _ in range(2))
        weight, bias, mean, var = (torch.rand(shape[1]).to(dtype) + 0.5 for _ in range(4))
        weight, bias = weight if "w" in parameters else None, bias if "b" in parameters else None
        args = case, x, weight, bias, (mean, var) if tracks else (None, None), uses_input, dy
        truth, theirs = results(F.instance_norm, *args, dtype=torch.float64), results(F.instance_norm, *args)
        found = results(PF.instance_norm, *args, backend=backend)
        assert found[0].stride() == x.stride()  # torch's is contiguous
        assert_channels_within(found, theirs, truth, dy, [x, weight])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("uses_input", [True, False])
def test_gradients_of_gradients(layout, uses_input):
    x = in_order(torch.randn(2, 3, 2, 2, dtype=torch.float64), layout).requires_grad_()
    weight, bias, running = (torch.rand(3, dtype=torch.float64) + 0.5 for _ in range(3))
    leaves = [x, weight.requires_grad_(), bias.requires_grad_()]

    def function(x, weight, bias):
        return PF.instance_norm(x, running.clone(), running.clone(), weight, bias, uses_input)

    with use("cpu"):
        assert torch.autograd.gradcheck(function, leaves)
        assert torch.autograd.gradgradcheck(function, leaves)


WRONG = [  # shape, arguments, error, message
    ((3, 4, 1), {}, ValueError, "Expected more than 1 spatial element when training, got input size"),
    ((3, 4), {}, ValueError, "Expected more than 1 spatial element when training"),
    ((3, 4, 5), {"use_input_stats": False}, RuntimeError, "Expected running_mean and running_var to be defined"),
    ((3, 4, 5), {"weight": torch.ones(3)}, RuntimeError, ""),
]


@pytest.mark.parametrize("backend", ["auto", "cpu", "torch"])
@pytest.mark.parametrize("shape, args, error, message", WRONG)
def test_what_torch_refuses(backend, shape, args, error, message):
    with use(backend):
        for function in (PF.instance_norm, F.instance_norm):
            with pytest.raises(error, match=message):
                function(torch.randn(shape), **args)


@pytest.mark.parametrize("momentum", [0.2, None])
def test_statistics_after_many_steps(momentum):
    mine = nn.InstanceNorm2d(6, momentum=momentum, affine=True, track_running_stats=True)
    its = torch.nn.InstanceNorm2d(6, momentum=momentum, affine=True, track_running_stats=True)
    its64 = copy.deepcopy(its).double()
    with use("cpu"):
        for step in range(100):
            x = torch.randn(3, 6, 4, 4) * (step % 3 + 1) + step % 7
            mine(x), its(x), its64(x.double())
        assert_error_within(*[(m.running_mean, m.running_var) for m in (mine, its, its64)])
        mine.eval(), its.eval()
        torch.testing.assert_close(mine(x), its(x))
        torch.testing.assert_close(mine(x[0]), its(x[0]))  # without a batch


def test_compile_and_symbolic_trace():
    x, module = torch.randn(3, 6, 4, 5), nn.InstanceNorm2d(6, affine=True)
    with use("cpu"):
        torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="aot_eager")(x), module(x))
    traced = torch.fx.symbolic_trace(torch.nn.Sequential(module))
    assert [node.op for node in traced.graph.nodes] == ["placeholder", "call_module", "output"]
