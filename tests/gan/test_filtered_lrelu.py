"""filtered_lrelu against its definition in float64."""

from functools import partial

import pytest
import torch
from helpers import FLOAT_DTYPES, assert_error_within, backend_params, on_its_device, run, use

import pyflash.functional as PF
from pyflash.cli._memory import Memory
from pyflash.ops.core import backends
from pyflash.ops.gan import passes
from pyflash.ops.gan.filtered_lrelu import _filtered_lrelu
from tests.gan import definitions
from tests.gan.definitions import picture
from tests.gan.test_upfirdn2d import STYLEGAN2, taps

BACKENDS = backend_params("cpu", "triton")


def lowpass(n, up=1):
    """As smooth as StyleGAN3's, of n taps."""
    window = torch.hann_window(n + 2, periodic=False)[1:-1]
    return window / window.sum()


UP, DOWN, DISC = lowpass(12), lowpass(12), torch.outer(lowpass(6), lowpass(6)) + 0.01 * torch.eye(6)
CASES = [  # shape, layout, filters, has a bias, arguments, why it is here
    ((1, 2, 6, 9), "contiguous", UP, DOWN, True, dict(up=2, down=2, padding=(11, 11, 11, 11)), "StyleGAN3's"),
    ((1, 2, 5, 40), "contiguous", lowpass(24), DOWN, True, dict(up=4, down=2, padding=(16, 15, 16, 15), clamp=0.3),
     "StyleGAN3's, that doubles the size"),
    ((1, 3, 12, 9), "channels_last", UP, lowpass(24), True, dict(up=2, down=4, padding=(17, 17, 17, 17)), "half the size"),
    ((2, 20, 5, 6), "channels_last", UP, DOWN, True, dict(up=2, down=2, padding=(11, 11, 11, 11), clamp=0.5),
     "many channels, last"),
    ((1, 40, 3, 150), "channels_last", STYLEGAN2, STYLEGAN2, True, dict(up=2, down=2, padding=(4, 4, 4, 4)),
     "channels in blocks"),
    ((1, 2, 9, 8), "contiguous", UP, DISC, True, dict(up=2, down=2, padding=(8, 8, 8, 8)), "StyleGAN3-R's: no product"),
    ((1, 2, 9, 8), "contiguous", taps(3, 4), taps(5, 2), False, dict(up=3, down=2, padding=(3, -2, 4, 5)), "cropped, no bias"),
    ((1, 2, 9, 8), "contiguous", None, None, True, dict(clamp=0.8, slope=0.0, gain=2.0), "no filters"),
    ((1, 2, 9, 8), "contiguous", taps(3), None, True, dict(flip_filter=True, slope=-0.5, padding=(1, 1, 1, 1)), "correlated"),
    ((1, 2, 6, 7), "contiguous", None, taps(3), True, dict(down=3, padding=(1, 1, 1, 1)), "padding is not biased"),
    ((2, 3, 4, 20), "transposed", UP, DOWN, True, dict(up=2, down=2, padding=(11, 11, 11, 11)), "laid out otherwise"),
    ((1, 2, 40, 4), "part", UP, DOWN, True, dict(up=2, down=2, padding=(11, 11, 11, 11)), "rows enough for bands"),
    ((0, 2, 4, 4), "contiguous", UP, DOWN, True, dict(up=2, down=2, padding=(11, 11, 11, 11)), "an empty batch"),
]  # fmt: skip


def bound(f):
    """What a filter makes of ones at most."""
    return 1.0 if f is None else float(f.abs().sum() ** (3 - f.dim()))


def check(shape, layout, fu, fd, has_bias, arguments, dtype, backend):
    x = picture(shape, layout, dtype)
    tensors = [x, *[torch.randn(shape[1]).to(dtype)] * has_bias]

    def call(function, x, *b):
        return function(x, fu, fd, *b, **arguments)

    defined, ours_is = partial(call, definitions.filtered_lrelu), partial(call, PF.filtered_lrelu)
    dy = torch.randn(defined(*tensors).shape).to(dtype)
    truth = run(defined, tensors, dy, torch.float64)
    theirs = run(ours_is, tensors, dy, backend="torch")
    ours = run(ours_is, tensors, dy, backend=backend)
    if ours[0].numel():
        is_last = layout == "channels_last"
        assert ours[0].is_contiguous(memory_format=torch.channels_last if is_last else torch.contiguous_format)
    largest = bound(fu) * bound(fd) * arguments.get("gain", 2**0.5) * arguments.get("up", 1) ** 2
    # A bias' gradient is a sum over places, which torch's and ours add up in another order.
    places = shape[0] * shape[2] * shape[3]
    assert_error_within(ours[:2], theirs[:2], truth[:2], x * largest, dy * largest)
    assert_error_within(ours[2:], theirs[2:], truth[2:], dy * largest * max(1, places))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_is_what_it_is_defined_to_be(backend, dtype):
    """Of the interpreter, which is slow, each type has some."""
    for shape, layout, fu, fd, has_bias, arguments, _why in (
        CASES[FLOAT_DTYPES.index(dtype) :: 6] if backend == "triton" else CASES
    ):
        check(shape, layout, fu, fd, has_bias, arguments, dtype, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", [passes.GRADIENT, passes.DERIVATIVE])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_derivatives_are_those_of_the_reference(backend, form, layout):
    for fu, fd, clamp in ((UP, DOWN, -1.0), (STYLEGAN2, taps(3, 2), 0.4)):
        x = picture((1, 3, 5, 6), layout, torch.float32)
        middle = [5 * 2 + 22 - fu.shape[0] + 1, 6 * 2 + 21 - fu.shape[-1] + 1]
        size = [(middle[0] - fd.shape[0]) // 2 + 1, (middle[1] - fd.shape[-1]) // 2 + 1]
        of_v, of_y = ([5, 6], size) if form == passes.DERIVATIVE else (size, [5, 6])
        v = picture((1, 3, *of_v), layout, torch.float32)
        args = (
            x,
            fu,
            fd,
            torch.randn(3),
            v,
            middle,
            of_y,
            2,
            2,
            [5, 4],
            False,
            1.4,
            0.2,
            clamp,
            form,
            layout != "contiguous",
        )
        with use(backend):
            ours = _filtered_lrelu(*args, backend.partition(":")[0])
        torch.testing.assert_close(ours, _filtered_lrelu(*args, "torch"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradients_of_gradients(layout):
    """Away from where the activation has its corners, to which finite differences do not come close here."""
    torch.manual_seed(1)
    x = picture((1, 2, 3, 4), layout, torch.float64).requires_grad_()
    b = torch.randn(2, dtype=torch.float64, requires_grad=True)
    for fu, fd, clamp in ((taps(4), taps(3), None), (taps(2, 3), taps(2), 1.5)):
        with use("cpu"):
            function = partial(PF.filtered_lrelu, up=2, down=2, padding=(2, 3, 1, 2), clamp=clamp)

            def call(x, b, function=function, fu=fu, fd=fd):
                return function(x, fu, fd, b)

            assert torch.autograd.gradcheck(call, (x, b), eps=1e-7, atol=1e-5)
            assert torch.autograd.gradgradcheck(lambda x, b, call=call: call(x, b).pow(3), (x, b), eps=1e-7, atol=1e-4)


ONE_LAUNCH = [  # shape, layout, filters, padding (left, right, top, bottom), type, why it is here
    ((1, 3, 6, 9), "contiguous", UP, DOWN, (11, 11, 11, 11), torch.float32, "StyleGAN3's"),
    ((1, 2, 5, 6), "channels_last", UP, DISC, (8, 9, 9, 8), torch.float32, "StyleGAN3-R's; rows odd, columns even"),
    ((2, 2, 4, 7), "contiguous", DISC, lowpass(5), (4, 6, 5, 5), torch.float16, "no product above, odd taps below"),
    ((1, 5, 7, 4), "channels_last", lowpass(3), taps(3, 4), (3, -1, 2, 1), torch.bfloat16, "the fewest taps, cropped"),
    ((1, 1, 5, 6), "contiguous", taps(4, 7), taps(6, 3), (6, 7, 5, 4), torch.float32, "taps differ each way"),
    ((1, 2, 37, 3), "contiguous", STYLEGAN2, lowpass(6), (3, 4, 4, 4), torch.float32, "bands, the last one shorter"),
    ((2, 90, 3, 13), "channels_last", lowpass(4), lowpass(4), (3, 3, 3, 3), torch.float32, "several programs"),
]  # fmt: skip


@pytest.mark.parametrize("case", ONE_LAUNCH, ids=lambda case: case[-1])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("backend", backend_params("triton"))
def test_in_one_launch(case, flip, backend, monkeypatch):
    """Forward and gradient, and the derivative for v in every place; through memory nothing goes."""
    kernels = pytest.importorskip("pyflash.kernels.gan.filtered_lrelu")
    monkeypatch.setattr(kernels, "upfirdn2d", None)
    shape, layout, fu, fd, padding, dtype, _ = case
    fu, fd = on_its_device(fu), on_its_device(fd)
    clamp = 0.5 if flip else None
    arguments = dict(up=2, down=2, padding=padding, clamp=clamp, flip_filter=flip)
    check(shape, layout, fu, fd, flip, arguments, dtype, backend)
    x, v = (picture(shape, layout, torch.float32) for _ in range(2))
    sizes = [2 * n + a + b for n, a, b in zip(shape[2:], padding[2::-2], padding[3::-2])]
    middle = [n - t + 1 for n, t in zip(sizes, (fu.shape[0], fu.shape[-1]))]
    size = [(n - t) // 2 + 1 for n, t in zip(middle, (fd.shape[0], fd.shape[-1]))]
    form = x, fu, fd, None, v, middle, size, 2, 2, [padding[2], padding[0]], flip, 1.4, 0.2, 0.5 if flip else -1.0
    rest = passes.DERIVATIVE, layout == "channels_last"
    with use(backend):
        ours = _filtered_lrelu(*form, *rest, backend)
    torch.testing.assert_close(ours, _filtered_lrelu(*form, *rest, "torch"), rtol=1e-4, atol=1e-4)


def test_what_is_one_launch():
    kernels = pytest.importorskip("pyflash.kernels.gan.filtered_lrelu")

    def is_fused(fu, fd, up=2, down=2, dtype=torch.float32, form=passes.VALUE):
        x = torch.empty(1, 1, 8, 8, dtype=dtype)
        v = None if form == passes.VALUE else x
        above, of_v, below, _ = passes.of(x, fu, fd, v, [20, 20], [8, 8], up, down, [5, 5], False, 1.0, 0.2, -1.0, form)
        return kernels.is_fused(x, above, *([] if v is None else [of_v]), below)

    for form in (passes.VALUE, passes.GRADIENT, passes.DERIVATIVE):
        assert is_fused(UP, DISC, form=form) and is_fused(UP, DOWN, dtype=torch.bfloat16, form=form)
        assert not is_fused(UP, DOWN, dtype=torch.float64, form=form)
        assert not is_fused(UP, lowpass(24), down=4, form=form) and not is_fused(lowpass(24), DOWN, up=4, form=form)
        assert not is_fused(UP, DOWN, up=1, form=form) and not is_fused(UP, DOWN, down=3, form=form)
        assert not is_fused(lowpass(13), DOWN, form=form) and not is_fused(UP, lowpass(2), form=form)


def test_every_derivative_is_a_kernel():
    x, b = torch.randn(1, 2, 6, 7, requires_grad=True), torch.randn(2, requires_grad=True)
    backends.call_counts(reset=True)
    with use("cpu"), torch.profiler.profile() as profile:
        y = PF.filtered_lrelu(x, UP, DOWN, b, 2, 2, 11)
        grads = torch.autograd.grad(y.square().sum(), (x, b), create_graph=True)
        sum(g.square().sum() for g in grads).backward()
    names = [event.key for event in profile.key_averages()]
    assert "pyflash::filtered_lrelu" in names and not [name for name in names if "conv" in name]
    assert [(name, backend) for name, backend, _ in backends.call_counts()] == [("filtered_lrelu", "cpu")]


def test_nothing_of_the_upsampled_size_is_stored():
    x = torch.randn(1, 4, 64, 64, requires_grad=True)
    kept = []
    with use("cpu"), torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        PF.filtered_lrelu(x, UP, DOWN, torch.randn(4), 2, 2, 11)
    assert sum(t.numel() for t in kept) <= x.numel() + UP.numel() + DOWN.numel() + 4


@pytest.mark.host
@pytest.mark.parametrize("training", [False, True])
def test_a_call_takes_a_third_of_the_memory_of_torchs_operations(training):
    """It is a twelfth and less: x and y, where those hold pictures of the upsampled size, some of them several times."""
    x = torch.randn(1, 32, 200, 200, requires_grad=training)

    def call(impl):
        y = PF.filtered_lrelu(x, UP, DOWN, None, 2, 2, 11, impl=impl)
        return torch.autograd.grad(y.sum(), x) if training else y

    with use("cpu"):
        call(None)  # what is kept from call to call is there
        ours, theirs = (Memory("cpu").added_by(lambda impl=impl: call(impl)) for impl in (None, "ref"))
    if ours is None or theirs is None:
        pytest.skip("this system does not tell the peak")
    assert 0 < ours < theirs / 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_and_infinity_are_where_they_are_defined_to_be(backend):
    for layout in ("contiguous", "channels_last"):
        x = picture((1, 2, 6, 20), layout, torch.float32)
        x[0, 0, 2, 7], x[0, 1, 0, 0], x[0, 1, 5, 19] = float("nan"), float("inf"), -float("inf")
        for clamp in (None, 0.5):
            arguments = dict(fu=lowpass(4), fd=lowpass(3), up=2, down=2, padding=(4, 4, 4, 4), clamp=clamp)
            with use(backend):
                ours = PF.filtered_lrelu(x, **arguments)
            truth = definitions.filtered_lrelu(x, **arguments)
            torch.testing.assert_close(ours, truth, equal_nan=True, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_a_filter_goes_through_torch():
    fu, x = UP.clone().requires_grad_(), torch.randn(1, 2, 6, 7)
    with use("auto"), pytest.warns(backends.FallbackWarning, match="gradient of a filter"):
        (df,) = torch.autograd.grad(PF.filtered_lrelu(x, fu, DOWN, up=2, down=2, padding=11).square().sum(), fu)
    truth = definitions.filtered_lrelu(x, fu, DOWN, up=2, down=2, padding=(11,) * 4)
    torch.testing.assert_close(df, torch.autograd.grad(truth.square().sum(), fu)[0])
    with use("cpu"), pytest.raises(NotImplementedError, match="gradient of a filter"):
        PF.filtered_lrelu(x, None, fu, padding=6)


def test_results_do_not_depend_on_the_threads():
    x, before, found = torch.randn(1, 3, 70, 100), torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            with use("cpu"):
                found.append(PF.filtered_lrelu(x, UP, DOWN, up=2, down=2, padding=11))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


X = torch.randn(2, 3, 4, 5)


@pytest.mark.parametrize("backend", ["auto", "cpu", "torch"])
@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (dict(x=None), TypeError, "x is a NoneType, expected a tensor"),
        (dict(x=X[0]), ValueError, r"x has shape \(3, 4, 5\), expected \[batch"),
        (dict(fu=torch.ones(1, 1, 1)), ValueError, r"fu has shape \(1, 1, 1\), expected \[taps\]"),
        (dict(fd=STYLEGAN2.double()), TypeError, "fd is of torch.float64, expected torch.float32"),
        (dict(b=1.0), TypeError, "b is a float, expected a tensor"),
        (dict(b=torch.ones(2)), ValueError, r"b has shape \(2,\), expected \(3,\), the channels of x"),
        (dict(b=torch.ones(3).half()), TypeError, "b is of torch.float16, expected torch.float32, x's"),
        (dict(up=(2, 2)), TypeError, r"up is \(2, 2\), expected a whole number"),
        (dict(down=0), ValueError, "down is 0, expected 1 or more"),
        (dict(clamp=-1), ValueError, "clamp is -1, expected None, 0 or more"),
        (dict(padding=(1, 2, 3)), ValueError, r"padding is \(1, 2, 3\), expected"),
        (dict(fu=UP), ValueError, r"nothing is left of x .*padding 0 leaves 4 x 5 places to filters of \(12, 12\)"),
        (dict(fd=UP), ValueError, r"nothing is left of x .*padding 0 leaves 4 x 5 places to filters of \(1, 1\)"),
        (dict(impl="cpp"), ValueError, "impl is 'cpp', expected None or 'cuda'"),
    ],
)
def test_what_is_refused(backend, arguments, error, message):
    with use(backend), pytest.raises(error, match=f"pyflash.filtered_lrelu: .*{message}"):
        PF.filtered_lrelu(**{"x": X, **arguments})


def test_autocast_changes_nothing():
    for backend in ("cpu", "torch"):
        for dtype in (torch.float32, torch.bfloat16):
            with torch.autocast("cpu", dtype=torch.bfloat16), use(backend):
                assert PF.filtered_lrelu(X.to(dtype), UP, DOWN, up=2, down=2, padding=11).dtype == dtype


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    @torch.compile(fullgraph=True, dynamic=dynamic, backend="aot_eager")
    def compiled(x, b):
        return PF.filtered_lrelu(x, UP, DOWN, b, 2, 2, 11).square()

    with use("cpu"):
        for width in (6, 9):
            x, b = torch.randn(1, 2, 5, width, requires_grad=True), torch.randn(2, requires_grad=True)
            y, expected = compiled(x, b), PF.filtered_lrelu(x, UP, DOWN, b, 2, 2, 11, impl="ref").square()
            torch.testing.assert_close(y, expected)
            ours, theirs = (torch.autograd.grad(out.sum(), (x, b)) for out in (y, expected))
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_export_and_functional_transforms():
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("fu", UP), self.register_buffer("fd", DOWN)

        def forward(self, x):
            return PF.filtered_lrelu(x, self.fu, self.fd, up=2, down=2, padding=11)

    expected = PF.filtered_lrelu(X, UP, DOWN, up=2, down=2, padding=11, impl="ref")
    with use("cpu"):
        program = torch.export.export(Layer(), (X,))
    assert any("pyflash.filtered_lrelu" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(X), expected)
    batched = torch.func.vmap(lambda x: Layer()(x[None])[0])(X)
    torch.testing.assert_close(batched, expected)
