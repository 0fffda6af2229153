"""Power-average pooling against torch's own."""

import pytest
import torch
import torch.nn.functional as F
from helpers import FLOAT_DTYPES, assert_error_within, run, use

import pyflash
import pyflash.functional as PF
import pyflash.nn as nn
from pyflash.ops.core import backends
from tests.pool.pools import laid_out, of_rank

CASES = [  # shape, (norm_type, kernel, stride, ceil_mode), layout
    ((2, 3, 40), (2, 3, 2, False), "contiguous"),
    ((2, 3, 40), (3.0, 3), "contiguous"),
    ((2, 3, 9, 40), (2, 2), "contiguous"),
    ((2, 3, 9, 40), (1.5, (3, 2), (2, 1), True), "contiguous"),
    ((2, 20, 9, 8), (2, 3, 2, True), "channels_last"),
    ((2, 3, 9, 40), (float("inf"), 3, 2, True), "contiguous"),
    ((2, 3, 9, 40), (-float("inf"), 3, 2), "contiguous"),
    ((2, 3, 5, 6, 20), (2, 2, 1), "contiguous"),
    ((2, 3, 5, 6, 20), (float("inf"), (2, 1, 3), None, True), "contiguous"),
]


@pytest.mark.parametrize("backend", ["cpu", "auto"])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_matches_float64(backend, dtype):
    for shape, args, layout in CASES:
        if len(shape) == 5 and dtype.itemsize == 2:
            continue  # torch has none to compare with
        x = laid_out(shape, layout, dtype).abs() + 0.125  # powers of negative numbers are NaN
        ours, theirs = of_rank(PF, "lp_pool{}d", shape), of_rank(F, "lp_pool{}d", shape)
        dy = torch.randn(theirs(x, *args).shape, dtype=dtype)
        truth, torchs = run(theirs, [x, *args], dy, torch.float64), run(theirs, [x, *args], dy)
        assert_error_within(run(ours, [x, *args], dy, backend=backend), torchs, truth, x, dy)


@pytest.mark.parametrize("backend", ["cpu", "auto"])
def test_corner_cases_are_torchs(backend):
    x = torch.tensor([[0.0, 0.0, -1.0, 2.0, float("nan"), 1.0, float("inf"), -2.0]])
    for args in ((2, 2), (3, 2), (2.5, 2), (float("inf"), 2), (-float("inf"), 2)):
        theirs = run(F.lp_pool1d, [x, *args], torch.ones(1, 4))
        with use(backend):
            ours = run(PF.lp_pool1d, [x, *args], torch.ones(1, 4))
        for a, b in zip(ours, theirs):
            torch.testing.assert_close(a, b, equal_nan=True)


def test_gradients_of_gradients():
    x = (torch.rand(1, 2, 5, 7, dtype=torch.float64) + 0.5).requires_grad_()
    with use("cpu"):
        for norm_type in (2, 3, float("inf")):
            assert torch.autograd.gradcheck(lambda x, p=norm_type: PF.lp_pool2d(x, p, 3, 2), x)
            assert torch.autograd.gradgradcheck(lambda x, p=norm_type: PF.lp_pool2d(x, p, 3, 2), x)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_modules_and_overrides(n):
    theirs, x = getattr(torch.nn, f"LPPool{n}d")(2, 3, 2, ceil_mode=True), torch.rand(2, 3, *(9,) * n)
    ours, expected = getattr(nn, f"LPPool{n}d")(2, 3, 2, ceil_mode=True), theirs(x)
    assert repr(ours) == repr(theirs)
    with use("cpu"), pyflash.overrides():
        before = backends.counts.copy()
        torch.testing.assert_close(getattr(F, f"lp_pool{n}d")(x, 2.0, 3, 2, True), expected)
        assert (backends.counts - before)[f"avg_pool{n}d", "cpu", ""] == 1
    with use("cpu"):
        torch.testing.assert_close(ours(x), expected)
        torch.testing.assert_close(pyflash.replace(torch.nn.Sequential(theirs))(x), expected)


@pytest.mark.parametrize("backend", ["cpu", "auto"])
def test_what_torch_refuses(backend):
    x = torch.ones(2, 3, 8)
    calls = [
        lambda f: f.lp_pool1d(x, 2, 9), lambda f: f.lp_pool1d(x, 2, (2, 2)), lambda f: f.lp_pool2d(x, 2, 0),
        lambda f: f.lp_pool2d(None, 2, 2), lambda f: f.lp_pool3d(x, 2, 2),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises((RuntimeError, TypeError, AttributeError, ZeroDivisionError)) as theirs:
            call(F)
        with use(backend), pytest.raises(theirs.type) as ours:
            call(PF)
        assert str(ours.value) == str(theirs.value)
