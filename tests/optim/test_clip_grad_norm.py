"""clip_grad_norm_ against torch's: the norm it returns, the gradients it leaves."""

from __future__ import annotations

import warnings
from math import inf, nan

import pytest
import torch
from helpers import FLOAT_DTYPES, assert_error_within, backend_params, use, use_there

import pyflash
import pyflash.functional as F
from pyflash.ops.core import backends
from tests.optim.trajectories import give_gradients, parameters

BACKENDS = backend_params("cpu", "triton", "torch")


def clipped(function, dtype, max_norm, norm_type, scale=1.0, plant=None):
    params = [torch.nn.Parameter(p.detach().to(dtype, memory_format=torch.preserve_format)) for p in parameters()]
    give_gradients(params, 0, scale)
    params[0].grad = None
    if float(norm_type) == inf:
        params[4].grad = None  # without elements
    if plant is not None:
        params[2].grad[1, 5] = plant
    norm = function(params, max_norm, norm_type)
    return [norm, *(p.grad for p in params)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("norm_type", [2, 2.0, inf, "inf"])
@pytest.mark.parametrize("max_norm, scale", [(1.0, 1.0), (1e6, 1.0), (0.0, 1.0), (1.0, 3e-5)])
def test_it_is_torchs(max_norm, scale, norm_type, dtype, backend):
    torchs = torch.nn.utils.clip_grad_norm_
    truth, theirs = (clipped(torchs, d, max_norm, norm_type, scale) for d in (torch.float64, dtype))
    with use_there(backend):
        ours = clipped(F.clip_grad_norm_, dtype, max_norm, norm_type, scale)
    assert_error_within(ours, theirs, truth)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm_type", [2.0, inf])
@pytest.mark.parametrize("plant", [inf, -inf, nan])
def test_what_is_not_finite(plant, norm_type, backend):
    theirs = clipped(torch.nn.utils.clip_grad_norm_, torch.float32, 1.0, norm_type, plant=plant)
    with use_there(backend):
        ours = clipped(F.clip_grad_norm_, torch.float32, 1.0, norm_type, plant=plant)
        for x, y in zip(ours, theirs):
            assert (x is None) == (y is None)
            if x is not None:
                torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)
        with pytest.raises(
            RuntimeError, match=f"The total norm of order {norm_type} for gradients from `parameters` is non"
        ):
            clipped(lambda p, *args: F.clip_grad_norm_(p, *args, True), torch.float32, 1.0, norm_type, plant=plant)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_squares_are_lost(backend):
    for value in (1e-38, 1e-45, 3e37):
        p = torch.nn.Parameter(torch.zeros(64))
        p.grad = torch.full((64,), value)
        with use_there(backend) if backend != "torch" else use("cpu"):
            norm = F.clip_grad_norm_(p, inf)
        assert norm == p.grad[0] * 8


@pytest.mark.parametrize("backend", BACKENDS)
def test_types_together(backend):
    """One norm over all, in the type that torch's has."""

    def both(function, *dtypes):
        params = [torch.nn.Parameter(torch.ones(n).to(dtype)) for n, dtype in zip((40, 30000), dtypes)]
        for p in params:
            p.grad = torch.full_like(p, 2.0)
        return (function(iter(params), 1.0), *(p.grad for p in params))

    torchs, dtypes = torch.nn.utils.clip_grad_norm_, (torch.bfloat16, torch.float32)
    with use_there(backend):
        ours = both(F.clip_grad_norm_, *dtypes)
    assert_error_within(ours, both(torchs, *dtypes), both(torchs, torch.float64, torch.float64))


@pytest.mark.filterwarnings("ignore::pyflash.FallbackWarning")
def test_what_is_torchs():
    before = backends.counts.copy()
    p = torch.nn.Parameter(torch.ones(4, 6))
    p.grad = torch.ones(4, 12)[:, ::2]
    assert F.clip_grad_norm_([p], 1.0).item() == pytest.approx(24**0.5)
    assert ("clip_grad_norm_", "torch", "a parameter that does not fill its memory") in backends.counts - before
    p.grad = torch.ones(4, 6)
    assert F.clip_grad_norm_([p], 1.0, norm_type=1) == 24 and p.grad[0, 0].item() == pytest.approx(1 / 24)
    assert ("clip_grad_norm_", "torch", "norm_type is 1") in backends.counts - before
    with pyflash.use_backend("cpu"), pytest.raises(NotImplementedError, match="norm_type is 3"):
        F.clip_grad_norm_([p], 1.0, 3)


def test_nothing_to_clip():
    p = torch.nn.Parameter(torch.empty(0))
    p.grad = torch.empty(0)
    with pytest.raises(RuntimeError, match="infinity norm"):
        F.clip_grad_norm_(p, 1.0, inf)
    assert F.clip_grad_norm_([], 1.0) == 0 and F.clip_grad_norm_([torch.nn.Parameter(torch.ones(1))], 1.0) == 0
    with pytest.warns(UserWarning, match="`parameters` is an empty generator"):
        F.clip_grad_norm_((p for p in ()), 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p = torch.nn.Parameter(torch.empty(0))
        p.grad = torch.empty(0)
        assert F.clip_grad_norm_(p, 1.0) == 0


def test_versions_move_and_threads_change_nothing():
    p = torch.nn.Parameter(torch.zeros(1 << 17))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            p.grad = torch.randn(1 << 17)
            version = p.grad._version
            found.append((F.clip_grad_norm_(p, 1.0), p.grad))
            assert p.grad._version == version + 1
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other))
