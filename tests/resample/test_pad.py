"""pad and the modules of it, against torch's own: elements are copied, and gradients of them added."""

import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import FLOAT_DTYPES, assert_error_within, backend_params, by_cpu, run, use

import pyflash
import pyflash.functional as PF
from pyflash.ops.core import backends
from pyflash.ops.resample.pad import _pad
from tests.resample.test_interpolate import laid_out

BACKENDS = backend_params("cpu", "triton")
MODES = ("constant", "reflect", "replicate", "circular")

CASES = [  # shape, layout, pads, why it is here
    ((2, 3, 17), "contiguous", (2, 3), "one dimension"),
    ((3, 40), "contiguous", (39, 0), "as many as there are, and no batch"),
    ((2, 3, 8, 9), "contiguous", (1, 2, 3, 4), "rows as wide as no vector"),
    ((1, 2, 40, 64), "contiguous", (3, 3, 3, 3), "vectors that are copied whole"),
    ((3, 20, 9), "contiguous", (1, 2, 3, 4), "no batch"),
    ((2, 3, 5, 6, 7), "contiguous", (1, 2, 3, 4, 2, 1), "three dimensions"),
    ((2, 3, 8, 9), "contiguous", (-1, 2, 3, -2), "something is taken away, something added"),
    ((2, 3, 8, 9), "contiguous", (-1, -3, 0, -2), "something is taken away"),
    ((2, 3, 8, 9), "contiguous", (0, 0, 3, 0), "rows alone: they are copied"),
    ((2, 3, 8, 9), "contiguous", (0, 0, 0, 0), "nothing: a copy"),
    ((2, 3, 8, 9), "channels_last", (1, 2, 3, 4), "few channels, last"),
    ((2, 21, 5, 6), "channels_last", (1, 2, 3, 4), "many channels, last"),
    ((1, 3, 4, 5, 6), "channels_last", (1, 0, 0, 2, 1, 1), "channels last in three dimensions"),
    ((2, 3, 8, 9), "transposed", (1, 2, 3, 4), "width is not the last in memory: a copy"),
    ((20, 3, 8, 9), "contiguous", (1, 2, 3, 4), "many small planes"),
    ((2, 3, 8, 9), "part", (1, 2, 3, 4), "a part of a tensor that is channels last"),
]
CONSTANT = [
    ((2, 3, 8, 9), "contiguous", (0, 0, 0, 0, 2, 3), "channels"),
    ((2, 3, 8, 9), "channels_last", (0, 0, 0, 0, 2, 3), "channels, last"),
    ((2, 3, 8, 9), "contiguous", (1, 1, 0, 0, 0, 0, 2, 3), "dimensions that lie apart"),
    ((2, 3, 4, 5, 6), "contiguous", (0, 0, 1, 1, 0, 0, 0, 1), "one that lies between"),
    ((2, 3, 0, 9), "contiguous", (1, 2, 3, 4), "nothing but the constant"),
    ((2, 3, 4, 5), "contiguous", (-2, -3, 1, 1), "nothing is left"),
    ((0, 3, 4, 5), "contiguous", (1, 2), "an empty batch"),
    ((5,), "contiguous", (40, 3), "no dimension but one"),
]
IN_ALL_MODES = [(mode, *case) for case in CASES for mode in MODES] + [("constant", *case) for case in CONSTANT]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_matches_torch(backend, dtype):
    cases = IN_ALL_MODES[:: 1 if backend != "triton" else 3 if dtype == torch.float32 else 11]
    for mode, shape, layout, pads, _why in cases:
        x = laid_out(shape, layout, dtype)
        arguments = dict(pad=pads, mode=mode, value=1.5 if mode == "constant" else None)
        dy = torch.randn(F.pad(x, **arguments).shape).to(dtype)
        theirs = run(by_cpu(partial(F.pad, **arguments)), [x], dy)
        truth = run(partial(F.pad, **arguments), [x], dy, torch.float64)
        ours = run(partial(PF.pad, **arguments), [x], dy, backend=backend)
        assert torch.equal(ours[0], theirs[0]) and ours[0].stride() == theirs[0].stride()
        assert_error_within(ours, theirs, truth, dy)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
def test_every_bit_is_copied(backend, mode):
    """NaN, infinity, the sign of zero, subnormals; and nothing of them comes into a place beside."""
    x = torch.randn(1, 2, 8, 70)
    x[0, 0, 2, 3], x[0, 0, 0, 0], x[0, 1, 7, 69], x[0, 1, 3] = float("nan"), float("inf"), -0.0, 1e-42
    dy = torch.randn(F.pad(x, (3, 2, 1, 3), mode).shape)
    dy[0, 0, 4, 20], dy[0, 1, 0, 0] = float("inf"), float("nan")
    ours = run(lambda x: PF.pad(x, (3, 2, 1, 3), mode), [x], dy, backend=backend)
    theirs = run(lambda x: F.pad(x, (3, 2, 1, 3), mode), [x], dy)
    assert torch.equal(*(t[0].view(torch.int32) for t in (ours, theirs)))
    torch.testing.assert_close(ours[1], theirs[1], equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_constants(backend):
    x = torch.randn(2, 3, 5)
    for value in (None, 0, 2, -1.5, float("inf"), float("nan"), -0.0, True):
        with use(backend):
            ours = PF.pad(x, (1, 2), "constant", value)
        theirs = F.pad(x, (1, 2), "constant", value)
        if backend == "triton":  # whose kernel of 0 is that of -0, too
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
        else:
            assert torch.equal(ours.view(torch.int32), theirs.view(torch.int32))


@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_gradients(mode):
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    with use("cpu"):
        assert torch.autograd.gradcheck(lambda x: PF.pad(x, (1, 2, 2, -1), mode), x)
        assert torch.autograd.gradgradcheck(lambda x: PF.pad(x, (1, 2, 2, -1), mode).square(), x)


@pytest.mark.parametrize("mode", MODES)
def test_the_reference_is_the_kernel_in_torch(mode):
    for transposed in (False, True):
        args = torch.randn(2, 3, 7, 6, dtype=torch.float64), [1, 2, 2, 0], mode, 1.5, transposed, False
        torch.testing.assert_close(_pad(*args, "cpu"), _pad(*args, "torch"))


@pytest.mark.parametrize("backend", ["auto", "cpu", "torch"])
@pytest.mark.parametrize(
    "shape, pads, options, error, message",
    [
        ((2, 3, 4, 5), (1, 2, 3), {}, RuntimeError, "Padding length must be divisible by 2"),
        ((2, 3), (1,) * 6, {}, RuntimeError, "less than or equal to two times the input dimension"),
        ((2, 3, 4, 5), (-3, -3), {}, RuntimeError, ""),
        ((2, 3, 4, 5), (1, 1.5), {}, TypeError, "must be tuple of ints"),
        ((2, 3, 4, 5), (1, 1), dict(value=1j), TypeError, "must be float, not complex"),
        ((2, 3, 4, 5), (1, 1), dict(mode="mirror"), NotImplementedError, "Unrecognised padding mode mirror"),
        ((2, 3, 4, 5), (1, 1, 1, 1), dict(mode="reflect", value=1.0), RuntimeError, "doesn't take in value argument"),
        ((2, 3, 4, 5), (5, 1, 1, 1), dict(mode="reflect"), RuntimeError, "Padding size should be less than"),
        ((2, 3, 4, 5), (6, 1, 1, 1), dict(mode="circular"), RuntimeError, "wrapping around more than once"),
        ((2, 3, 4, 5), (1, 1), dict(mode="reflect"), NotImplementedError, ""),
        ((2, 3, 0, 5), (1, 1, 1, 1), dict(mode="replicate"), RuntimeError, ""),
    ],
)  # fmt: skip
def test_what_torch_refuses(backend, shape, pads, options, error, message):
    x = torch.randn(shape)
    with pytest.raises(error) as theirs:
        F.pad(x, pads, **options)
    with use(backend), pytest.raises(error) as ours:
        PF.pad(x, pads, **options)
    assert type(ours.value) is type(theirs.value) and message in str(ours.value)


def test_what_goes_to_torch():
    for x, pads, reason in (
        (torch.arange(6), (1, 2), "only strided floating-point tensors"),
        (torch.randn(3, 4, 2, 5, 2, 6, 2), (1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1), "more than 3 dimensions"),
        (torch.randn(2, 3, dtype=torch.complex64), (1, 1), "only strided floating-point tensors"),
    ):
        backends.call_counts(reset=True)
        with use("auto"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert torch.equal(PF.pad(x, pads), F.pad(x, pads))
        found = backends.call_counts()  # for this reason, or for one of the rules, which are asked first
        assert found and all(backend == "torch" and why for _, backend, why in found)
        if x.is_floating_point():
            with use("cpu"), pytest.raises(NotImplementedError, match=reason):
                PF.pad(x, pads)
        else:  # token numbers: no choice of a backend is meant for them
            with use("cpu"):
                assert torch.equal(PF.pad(x, pads), F.pad(x, pads))


def test_autocast_is_torchs():
    for mode in MODES:
        for dtype in (torch.float32, torch.bfloat16):
            for dims in (1, 2, 3):
                x = torch.randn(1, 2, *(5, 4, 3)[:dims], dtype=dtype)
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    theirs = F.pad(x, (1, 1) * dims, mode)
                    with use("cpu"):
                        ours = PF.pad(x, (1, 1) * dims, mode)
                assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.slow
def test_compile(dynamic):
    @torch.compile(fullgraph=True, dynamic=dynamic, backend="aot_eager")
    def padded(x):
        return PF.pad(PF.pad(x, (2, 1, 1, 1), "reflect"), (0, x.shape[2]))

    with use("cpu"):
        for width in (6, 9):
            x = torch.randn(1, 2, 5, width, requires_grad=True)
            y, expected = padded(x), F.pad(F.pad(x, (2, 1, 1, 1), "reflect"), (0, x.shape[2]))
            assert torch.equal(y, expected)
            dy = torch.randn_like(y)
            torch.testing.assert_close(*(torch.autograd.grad(out, x, dy)[0] for out in (y, expected)))


def test_export():
    x = torch.randn(1, 2, 5, 6)
    with use("cpu"):
        program = torch.export.export(pyflash.nn.ReflectionPad2d(2), (x,))
    assert any("pyflash.pad" in str(node.target) for node in program.graph.nodes)
    assert torch.equal(program.module()(x), F.pad(x, (2, 2, 2, 2), "reflect"))


def test_functional_transforms():
    x = torch.randn(3, 1, 2, 4, 5)
    padded = torch.func.vmap(lambda x: PF.pad(x, (1, 2, 1, 1), "reflect"))(x)
    assert torch.equal(padded, torch.stack([F.pad(x, (1, 2, 1, 1), "reflect") for x in x]))
    jacobian = torch.func.jacrev(lambda x: PF.pad(x, (1, 2), "circular"))(x[0, 0])
    assert torch.equal(jacobian, torch.func.jacrev(lambda x: F.pad(x, (1, 2), "circular"))(x[0, 0]))
