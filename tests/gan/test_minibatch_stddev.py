"""The minibatch's deviation, against its formula in float64."""

import pytest
import torch
from helpers import FLOAT_DTYPES, assert_error_within, backend_params, run, use

import pyflash.functional as PF
from pyflash.ops.core import backends
from pyflash.ops.gan.minibatch_stddev import _bwd_bwd

BACKENDS = backend_params("cpu", "triton")
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
INF, NAN = float("inf"), float("nan")


def defined(x, group_size=4, num_channels=1):
    """As stylegan2-ada's MinibatchStdLayer computes it."""
    batch, channels, *positions = x.shape
    group = batch if group_size is None else min(group_size, batch)
    y = x.reshape(group, -1, num_channels, channels // num_channels, *positions)
    y = (
        ((y - y.mean(0)).square().mean(0) + 1e-8)
        .sqrt()
        .flatten(2)
        .mean(2)
        .reshape(-1, num_channels, *[1] * len(positions))
    )
    return torch.cat([x, y.repeat(group, 1, *positions)], 1)


def laid_out(shape, layout, dtype):
    x = torch.randn(shape).to(dtype)
    if layout == "channels_last":
        return x.contiguous(memory_format=FORMATS[len(shape)])
    return torch.cat([x, x], -1)[..., : shape[-1]] if layout == "sliced" else x


CASES = [  # shape, layout, samples of a group, added channels, why it is here
    ((8, 6, 4, 4), "contiguous", 4, 1, "StyleGAN2's"),
    ((8, 6, 4, 4), "channels_last", 4, 1, "StyleGAN2's, channels last"),
    ((8, 66, 4, 5), "contiguous", None, 2, "all of the batch, two channels"),
    ((8, 66, 4, 5), "channels_last", None, 2, "the same, channels last"),
    ((3, 6, 2, 5), "contiguous", 4, 3, "fewer samples than a group has"),
    ((3, 6, 2, 5), "channels_last", 4, 3, "the same, channels last"),
    ((4, 3, 1, 1), "contiguous", 1, 1, "a sample by itself: no deviation, no gradient"),
    ((4, 30, 17, 19), "contiguous", 2, 1, "several units of work"),
    ((4, 30, 17, 19), "channels_last", 4, 1, "several units of work"),
    ((4, 5000, 1, 2), "channels_last", 4, 1, "a row of several units"),
    ((4, 5), "contiguous", 4, 1, "no places"),
    ((4, 6, 7), "contiguous", 2, 1, "of one dimension"),
    ((4, 4, 3, 2, 5), "channels_last", 4, 2, "of three"),
    ((4, 6, 3, 20), "sliced", 2, 1, "a copy"),
    ((70, 3, 2, 2), "contiguous", 35, 1, "many samples"),
    ((0, 4, 2, 2), "contiguous", 4, 1, "no samples"),
]


def check(shape, layout, group, channels, dtype, backend):
    x = laid_out(shape, layout, dtype)
    dy = torch.randn(shape[0], shape[1] + channels, *shape[2:]).to(dtype)
    y, dx = run(PF.minibatch_stddev, [x, group, channels], dy, backend=backend)
    if not x.numel():
        assert y.shape == dy.shape and dx.shape == x.shape
        return
    truth = run(defined, [x, group, channels], dy, torch.float64)
    theirs = run(defined, [x.float() if dtype.itemsize == 2 else x, group, channels], dy)
    theirs = [t.to(dtype) for t in theirs]  # 1e-8 is 0 in float16
    assert_error_within((y, dx), theirs, truth, x, dy)
    assert torch.equal(y[:, : shape[1]], x)
    if layout == "channels_last":
        assert y.is_contiguous(memory_format=FORMATS[len(shape)])
        assert backend == "torch" or dx.stride() == x.stride()
    else:
        assert y.is_contiguous()


@pytest.mark.parametrize("backend", [*BACKENDS, "torch"])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_is_stylegans(backend, dtype):
    """Of the interpreter, which is slow, each type has a share."""
    for shape, layout, group, channels, _why in CASES[FLOAT_DTYPES.index(dtype) :: 4] if backend == "triton" else CASES:
        check(shape, layout, group, channels, dtype, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_the_second_derivative_is_that_of_the_formula(backend, dtype):
    for shape, layout, group, channels in (
        ((8, 6, 4, 5), "contiguous", 4, 2),
        ((6, 20, 3, 2), "channels_last", 3, 1),
        ((4, 40, 9, 13), "contiguous", 4, 1),
    ):
        if backend == "triton" and (dtype, layout) == (torch.float64, "contiguous"):
            continue
        x, v = laid_out(shape, layout, dtype), laid_out(shape, layout, dtype)
        dy = torch.randn(shape[0], shape[1] + channels, *shape[2:]).to(dtype)

        def second(v, dy, x, group=group, channels=channels):
            (dx,) = torch.autograd.grad(defined(x, group, channels), x, dy, create_graph=True)
            return torch.autograd.grad(dx, (dy, x), v)

        def of(dtype, second=second, tensors=(v, dy, x)):
            return second(*(t.to(dtype).requires_grad_() for t in tensors))

        truth = of(torch.float64)
        theirs = [t.to(dtype) for t in of(torch.float64 if dtype == torch.float64 else torch.float32)]
        with use(backend):
            ours = _bwd_bwd(v, dy, x, group, channels, layout == "channels_last", backend.partition(":")[0])
        # What is added up for x's: v times the sum of dy over a group's places, over the deviation and its elements.
        places = shape[2] * shape[3]
        terms = dy[:, shape[1] :].double().abs().sum() / (shape[1] // channels * places * group) * 10
        assert_error_within(ours, theirs, truth, v, v.double() * terms)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradients_of_gradients(layout):
    torch.manual_seed(0)
    for group, channels in ((4, 1), (2, 2), (3, 1)):
        shape = (12, 4, 2, 1)
        x = laid_out(shape, layout, torch.float64).requires_grad_()
        with use("cpu"):

            def call(x, group=group, channels=channels):
                return PF.minibatch_stddev(x, group, channels)

            assert torch.autograd.gradcheck(call, (x,))
            assert torch.autograd.gradgradcheck(call, (x,))


def test_third_derivatives_are_those_of_the_formula():
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64, requires_grad=True)

    def third(function):
        y = function(x, 2)
        for _ in range(3):
            (y,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        return y

    with use("cpu"):
        torch.testing.assert_close(third(PF.minibatch_stddev), third(defined))


def test_every_derivative_is_a_kernel():
    x = torch.randn(8, 6, 4, 4, requires_grad=True)
    backends.call_counts(reset=True)
    with use("cpu"), torch.profiler.profile() as profile:
        (dx,) = torch.autograd.grad(PF.minibatch_stddev(x).sum(), x, create_graph=True)
        dx.sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert {f"pyflash::minibatch_stddev_{name}" for name in ("fwd", "bwd", "bwd_bwd")} <= names
    assert not names & {"aten::mean", "aten::sqrt", "aten::cat", "aten::sub"}
    assert [(name, backend) for name, backend, _ in backends.call_counts()] == [("minibatch_stddev", "cpu")]


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_and_infinity_are_where_they_are_in_the_formula(backend):
    x = torch.randn(8, 4, 3, 5)
    x[0, 0, 0, 0], x[3, 2, 2, 4], x[1, 3, 0, 1] = NAN, INF, -0.0
    for group, channels in ((4, 2), (2, 1)):
        with use(backend):
            ours = PF.minibatch_stddev(x, group, channels)
        torch.testing.assert_close(ours, defined(x, group, channels), equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_next_to_zero_is_copied_as_it_is(backend):
    x = torch.tensor([1, 3, 0x8001, 0x0070], dtype=torch.uint16).view(torch.bfloat16).repeat(4, 6).reshape(4, 6, 2, 2)
    with use(backend):
        y = PF.minibatch_stddev(x)
    assert torch.equal(y[:, :6].contiguous().view(torch.int16), x.view(torch.int16))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_large_mean_costs_no_digits(backend):
    """Squares of x would leave none."""
    noise = torch.randn(8, 16, 4, 4, dtype=torch.float64)
    x = (noise + 4096).float()
    with use(backend):
        y = PF.minibatch_stddev(x)[:, 16:]
    torch.testing.assert_close(y.double(), defined(x.double())[:, 16:], rtol=1e-5, atol=0)


def test_results_do_not_depend_on_the_threads():
    x, before, found = torch.randn(8, 96, 16, 16), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(run(PF.minibatch_stddev, [x], torch.ones(8, 97, 16, 16), backend="cpu"))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other))


X = torch.randn(6, 4, 3, 3)


@pytest.mark.parametrize("backend", ["auto", "cpu", "torch"])
@pytest.mark.parametrize(
    "error, message, call",
    [
        (ValueError, "no multiple of group_size 4", lambda: PF.minibatch_stddev(X)),
        (ValueError, "4 channels are no multiple of num_channels 3", lambda: PF.minibatch_stddev(X, 3, 3)),
        (ValueError, "group_size is 0", lambda: PF.minibatch_stddev(X, 0)),
        (ValueError, "num_channels is 1.5", lambda: PF.minibatch_stddev(X, 2, 1.5)),
        (RuntimeError, r"x is torch\.int64", lambda: PF.minibatch_stddev(X.long(), 2)),
        (ValueError, r"x has shape \(4,\)", lambda: PF.minibatch_stddev(X[0, :, 0, 0])),
        (TypeError, "x is a NoneType", lambda: PF.minibatch_stddev(None)),
    ],
)
def test_what_is_refused(backend, error, message, call):
    with use(backend), pytest.raises(error, match=message):
        call()


def test_nothing_to_take_a_deviation_of_is_torchs():
    x = torch.randn(4, 0, 2, 2)
    with use("auto"), pytest.warns(backends.FallbackWarning, match="nothing of which"):
        assert PF.minibatch_stddev(x).isnan().all()
    with use("cpu"), pytest.raises(NotImplementedError, match="nothing of which"):
        PF.minibatch_stddev(x)


@pytest.mark.slow
def test_compile_export_and_functorch():
    class Module(torch.nn.Module):
        def forward(self, x):
            return PF.minibatch_stddev(x, 2)

    x = torch.randn(4, 6, 3, 5, requires_grad=True)
    (expected,) = torch.autograd.grad(defined(x, 2).sin().sum(), x)
    with use("cpu"):
        compiled = torch.compile(Module(), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(torch.autograd.grad(compiled(x).sin().sum(), x)[0], expected)
        program = torch.export.export(Module(), (x.detach(),))
        assert any("minibatch_stddev" in str(node.target) for node in program.graph.nodes)
        torch.testing.assert_close(program.module()(x.detach()), defined(x.detach(), 2))
    torch.testing.assert_close(torch.func.grad(lambda x: Module()(x).sin().sum())(x.detach()), expected)
