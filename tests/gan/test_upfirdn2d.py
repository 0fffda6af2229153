"""upfirdn2d and what is made of it, against its definition in float64."""

from functools import partial

import pytest
import torch
from helpers import FLOAT_DTYPES, assert_error_within, backend_params, on_its_device, run, use
from property_tests import given, settings, st

import pyflash.functional as PF
from pyflash.ops.core import backends
from pyflash.ops.gan.upfirdn2d import _upfirdn2d
from tests.gan import definitions
from tests.gan.definitions import picture

BACKENDS = backend_params("cpu", "triton", "cuda")
STYLEGAN2 = PF.setup_filter([1, 3, 3, 1])


def taps(*shape):
    return on_its_device(torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), device="cpu"))


CASES = [  # shape, layout, filter, arguments, why it is here
    ((2, 3, 5, 8), "contiguous", STYLEGAN2, dict(up=2, padding=(2, 1, 2, 1), gain=4), "twice the size, StyleGAN2's"),
    ((2, 3, 20, 40), "contiguous", STYLEGAN2, dict(down=2, padding=(1, 1, 1, 1)), "half the size, StyleGAN2's"),
    ((1, 2, 9, 70), "contiguous", STYLEGAN2, dict(padding=(2, 1, 2, 1)), "filter only, past a vector"),
    ((3, 5, 11, 33), "contiguous", STYLEGAN2, dict(padding=(2, 1, 2, 1)), "narrow: rows in fours, and the rest"),
    ((3, 5, 13, 31), "contiguous", STYLEGAN2, dict(up=2, padding=(2, 1, 2, 1)), "narrow, twice the size"),
    ((3, 5, 22, 63), "contiguous", STYLEGAN2, dict(down=2, padding=(1, 1, 1, 1)), "narrow, half the size"),
    ((2, 3, 4, 5), "contiguous", STYLEGAN2, dict(padding=(9, 8, 9, 8)), "narrow, more around than there is"),
    ((1, 2, 9, 150), "contiguous", STYLEGAN2, dict(up=2, padding=(2, 1, 2, 1)), "many vectors"),
    ((1, 2, 9, 290), "contiguous", STYLEGAN2, dict(down=2, padding=(2, 1, 2, 1)), "many vectors"),
    ((2, 3, 9, 20), "channels_last", STYLEGAN2, dict(up=2, padding=(2, 1, 2, 1)), "few channels, last"),
    ((2, 37, 9, 20), "channels_last", STYLEGAN2, dict(down=2, padding=(1, 1, 1, 1)), "many channels, last"),
    ((1, 40, 3, 300), "channels_last", STYLEGAN2, dict(padding=(2, 1, 2, 1)), "channels in blocks"),
    ((2, 8, 9, 13), "channels_last", STYLEGAN2, dict(up=2, padding=(2, 1, 2, 1)), "channels in fours, twice the size"),
    ((2, 8, 9, 13), "channels_last", STYLEGAN2, dict(up=2, padding=(1, 2, 1, 2)), "the same, odd paddings"),
    ((1, 12, 12, 21), "channels_last", STYLEGAN2, dict(down=2, padding=(1, 1, 1, 1)), "the same, half the size"),
    ((3, 5, 4, 4), "contiguous", STYLEGAN2, dict(up=2, padding=(1, 2, 1, 2)), "many small pictures, odd paddings"),
    ((3, 5, 8, 8), "contiguous", STYLEGAN2, dict(down=2, padding=(1, 1, 1, 1)), "many small pictures, half the size"),
    ((1, 18, 60, 20), "contiguous", STYLEGAN2, dict(padding=(2, 1, 2, 1)), "planes in lanes: strips, and two planes more"),
    ((1, 13, 40, 35), "contiguous", STYLEGAN2, dict(down=2, padding=(1, 1, 1, 1)), "planes in lanes, half the size"),
    ((1, 17, 30, 19), "contiguous", taps(12), dict(up=2, padding=(6, 5, 6, 5)), "planes in lanes, StyleGAN3's"),
    ((1, 16, 9, 7), "contiguous", taps(4, 4), dict(up=2, down=3, padding=(2, 1, 2, 1)), "planes in lanes, no product"),
    ((1, 12, 9, 20), "contiguous", taps(3), dict(up=2, padding=(-7, 5, 4, -9)), "planes in lanes, cropped and padded"),
    ((1, 12, 2, 3), "contiguous", taps(2), dict(padding=(20, 10, 100, 10)), "planes in lanes, strips of zeros"),
    ((1, 12, 4, 5), "contiguous", taps(3), dict(padding=(-5, 9, 0, 0)), "planes in lanes, all of them taken away"),
    ((2, 5, 13, 31), "contiguous", STYLEGAN2, dict(padding=(2, 1, 2, 1)), "few narrow planes, in fours and the rest"),
    ((1, 2, 40, 70), "contiguous", STYLEGAN2, dict(up=2, padding=(1, 2, 1, 2)), "tiles that begin before the first place"),
    ((1, 2, 9, 20), "contiguous", taps(12), dict(up=2, padding=(6, 5, 6, 5)), "separable, StyleGAN3's"),
    ((1, 2, 9, 20), "contiguous", taps(24), dict(up=4, padding=(12, 11, 12, 11)), "four times the size, StyleGAN3's"),
    ((1, 2, 21, 150), "contiguous", taps(24), dict(down=4, padding=(10, 10, 10, 10)), "a quarter, StyleGAN3's"),
    ((1, 2, 9, 20), "contiguous", taps(5, 4), dict(up=2, padding=(2, 1, 2, 1)), "no product of a column and a row"),
    ((1, 2, 9, 40), "contiguous", taps(4, 4), dict(down=2, padding=(2, 1, 2, 1)), "no product, half the size"),
    ((1, 18, 9, 5), "channels_last", taps(4, 4), dict(up=2, down=3, padding=(2, 1, 2, 1)), "no product, channels last"),
    ((1, 2, 7, 40), "contiguous", taps(7), dict(up=(3, 2), down=(2, 3), padding=(1, 2, 3, 4)), "up and down, apart"),
    ((1, 2, 7, 40), "contiguous", taps(7), dict(up=2, down=2, padding=(1, 2, 3, 4)), "every other tap"),
    ((1, 2, 7, 40), "contiguous", taps(3), dict(up=5, down=3, padding=(1, 2, 3, 4)), "results that no tap meets"),
    ((1, 2, 7, 40), "contiguous", taps(3, 2), dict(up=(4, 5), padding=(1, 2, 3, 4)), "the same, no product"),
    ((1, 2, 9, 40), "contiguous", taps(3, 3), dict(padding=(-3, -20, -2, -1)), "cropped"),
    ((1, 2, 9, 40), "contiguous", taps(3), dict(up=2, padding=(-7, 5, 4, -9)), "cropped and padded"),
    ((1, 20, 9, 10), "channels_last", taps(3), dict(up=2, padding=(-7, 5, 4, -9)), "the same, channels last"),
    ((1, 2, 2, 3), "contiguous", taps(2), dict(padding=(30, 40, 9, 10)), "more around than there is"),
    ((1, 2, 4, 5), "contiguous", taps(3), dict(padding=(-5, 9, 0, 0)), "all of it taken away, zeros left"),
    ((1, 2, 4, 5), "contiguous", taps(2, 5), dict(flip_filter=True, padding=(2, 2, 0, 0)), "a correlation"),
    ((2, 3, 9, 40), "transposed", STYLEGAN2, dict(up=2, padding=(2, 1, 2, 1)), "width is not the last in memory"),
    ((2, 3, 9, 40), "part", STYLEGAN2, dict(down=2, padding=(2, 1, 2, 1)), "a part of a tensor"),
    ((0, 3, 9, 4), "contiguous", STYLEGAN2, dict(padding=(2, 1, 2, 1)), "an empty batch"),
    ((2, 3, 1, 1), "contiguous", STYLEGAN2, dict(up=2, padding=(2, 1, 2, 1)), "one place"),
    ((2, 3, 4, 5), "contiguous", None, dict(up=2), "no filter"),
    ((2, 3, 4, 5), "contiguous", torch.zeros(2, 2), dict(up=2), "a filter of zeros"),
]  # fmt: skip


def check(shape, layout, f, arguments, dtype, backend):
    x, f = picture(shape, layout, dtype), on_its_device(f)
    defined = partial(definitions.upfirdn2d, f=torch.ones(1) if f is None else f, **arguments)
    dy = torch.randn(defined(x).shape).to(dtype)
    truth = run(defined, [x], dy, torch.float64)
    theirs = run(partial(PF.upfirdn2d, f=f, **arguments), [x], dy, backend="torch")
    ours = run(partial(PF.upfirdn2d, f=f, **arguments), [x], dy, backend=backend)
    both = x.is_contiguous() and x.is_contiguous(
        memory_format=torch.channels_last
    )  # of a single place, it has either order
    if ours[0].numel() and not both:
        assert ours[0].is_contiguous(
            memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format
        )
    largest = 1.0 if f is None else f.abs().sum() ** (3 - f.dim()) * arguments.get("gain", 1)
    assert_error_within(ours, theirs, truth, x * largest, dy * largest)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_is_what_it_is_defined_to_be(backend, dtype):
    """Of the interpreter, which is slow, and of other orders of a GPU's threads each type has a share."""
    is_slow = backend in ("triton", *backend_params("cuda")[1:])
    for shape, layout, f, arguments, _why in CASES[FLOAT_DTYPES.index(dtype) :: 4] if is_slow else CASES:
        check(shape, layout, f, arguments, dtype, backend)


@pytest.mark.parametrize("backend", ["cpu", *backend_params("cuda")[:1]])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_arguments(backend, data):
    shape = [
        data.draw(st.integers(1, n), label=name)
        for name, n in (("batch", 2), ("channels", 20), ("height", 9), ("width", 70))
    ]
    layout = data.draw(st.sampled_from(["contiguous", "channels_last", "transposed", "part"]))
    f = taps(*data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=2), label="taps"))
    up, down = ([data.draw(st.integers(1, 4)) for _ in range(2)] for _ in range(2))
    padding = [data.draw(st.integers(-4, 8)) for _ in range(4)]
    left = [shape[3] * up[0] + sum(padding[:2]) - f.shape[-1], shape[2] * up[1] + sum(padding[2:]) - f.shape[0]]
    flip_filter = data.draw(st.booleans())
    if min(left) < 0:
        with pytest.raises(ValueError, match="nothing is left"), use(backend):
            PF.upfirdn2d(picture(shape, layout, torch.float32), f, up, down, padding)
        return
    arguments = dict(up=up, down=down, padding=padding, flip_filter=flip_filter, gain=0.5)
    check(shape, layout, f, arguments, torch.float32, backend)


@pytest.mark.parametrize("f", [STYLEGAN2, taps(3), taps(12), taps(5, 2)], ids=["product", "3", "12", "5x2"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_sizes_of_filtering_up_and_down(f, layout):
    """What StyleGAN's paddings make: a picture of the same size, n times it, an n-th of it."""
    x = picture((1, 2, 12, 24), layout, torch.float64)
    with use("cpu"):
        for n in (2, 3, 4):
            assert PF.upsample2d(x, f, n).shape == (1, 2, 12 * n, 24 * n)
            assert PF.downsample2d(x, f, n).shape == (1, 2, 12 // n, 24 // n)
        assert PF.filter2d(x, f).shape == x.shape
        assert PF.filter2d(x, f, padding=(1, 2)).shape == (1, 2, 16, 26)
        assert PF.upsample2d(x, f, (2, 1), padding=(0, -1, 1, 0)).shape == (1, 2, 13, 47)
    for name in ("filter2d", "upsample2d", "downsample2d"):
        function = getattr(PF, name)
        with use("cpu"):
            ours = function(x, f, gain=3, flip_filter=True)
        torch.testing.assert_close(ours, function(x, f, gain=3, flip_filter=True, impl="ref"))


def test_what_is_even_stays_so():
    """A filter that adds up to 1 keeps a constant picture, away from its border; upsampling and downsampling as well."""
    f, x = PF.setup_filter([1, 2, 1]), torch.ones(1, 2, 16, 16)
    with use("cpu"):
        for y in (PF.filter2d(x, f), PF.upsample2d(x, f), PF.downsample2d(x, f)):
            torch.testing.assert_close(y[:, :, 2:-2, 2:-2], torch.ones_like(y[:, :, 2:-2, 2:-2]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_nan_and_infinity_are_where_they_are_defined_to_be(backend, layout):
    for arguments in (dict(up=2, padding=(2, 1, 2, 1)), dict(down=2, padding=(1, 1, 1, 1)), dict(padding=(2, 1, 2, 1))):
        for f in (STYLEGAN2, taps(4, 4), taps(4)):
            x = picture((1, 2, 6, 40), layout, torch.float32)
            x[0, 0, 2, 7], x[0, 1, 0, 0], x[0, 1, 5, 39] = float("nan"), float("inf"), -float("inf")
            with use(backend):
                ours = PF.upfirdn2d(x, f, **arguments)
            # A zero between places is none to a filter of numbers: the definition's is finite there.
            truth = definitions.upfirdn2d(x, f, **arguments)
            assert torch.equal(ours.isfinite(), truth.isfinite()) and torch.equal(ours.isnan(), truth.isnan())


@pytest.mark.parametrize("backend", ["cpu", *backend_params("cuda")])
@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_of_gradients(channels_last, backend):
    """Triton's are the same calls."""
    x = picture((1, 2, 4, 5), "channels_last" if channels_last else "contiguous", torch.float64).requires_grad_()
    for f in (taps(3), taps(3, 2)):
        with use(backend):
            function = partial(PF.upfirdn2d, f=f, up=(2, 3), down=(3, 2), padding=(2, -1, 3, 1), gain=2.0)
            assert torch.autograd.gradcheck(function, x)
            assert torch.autograd.gradgradcheck(lambda x, function=function: function(x).pow(3), x)


def test_every_derivative_is_a_kernel():
    x = torch.randn(1, 2, 6, 7, requires_grad=True)
    backends.call_counts(reset=True)
    with use("cpu"), torch.profiler.profile() as profile:
        y = PF.upfirdn2d(x, STYLEGAN2, up=2, padding=2)
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        dx.square().sum().backward()
    names = [event.key for event in profile.key_averages()]
    assert "pyflash::upfirdn2d" in names and not [name for name in names if "conv" in name]
    assert [(name, backend) for name, backend, _ in backends.call_counts()] == [("upfirdn2d", "cpu")]


def test_the_gradient_of_a_filter_goes_through_torch():
    f = STYLEGAN2.clone().requires_grad_()
    x = torch.randn(1, 2, 6, 7)
    backends.call_counts(reset=True)
    with use("auto"), pytest.warns(backends.FallbackWarning, match="gradient of a filter"):
        (df,) = torch.autograd.grad(PF.upfirdn2d(x, f, up=2, padding=2).square().sum(), f)
    (expected,) = torch.autograd.grad(definitions.upfirdn2d(x, f, 2, 1, (2,) * 4).square().sum(), f)
    torch.testing.assert_close(df, expected)
    with use("cpu"), pytest.raises(NotImplementedError, match="gradient of a filter"):
        PF.upfirdn2d(x, f)
    with use("cpu"), torch.no_grad():
        PF.upfirdn2d(x, f)


def test_the_reference_is_the_kernel_in_torch():
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    for f in (taps(3), taps(3, 2)):
        args = x, f, [6, 9], [2, 3], [2, 2], [1, -1], False, 2.0, False
        torch.testing.assert_close(_upfirdn2d(*args, "cpu"), _upfirdn2d(*args, "torch"))


@pytest.mark.parametrize("backend", ["cpu", "triton", *backend_params("cuda")])
def test_the_operator_reads_no_memory_that_is_not_there(backend):
    """Called by itself, with a tensor that lies otherwise than is said."""
    name = backend.partition(":")[0]
    x = torch.randn(1, 1, 4, 5).expand(2, 3, 4, 5)
    for channels_last in (False, True):
        f = taps(2, 3).mT
        with use(backend):
            found = torch.ops.pyflash.upfirdn2d(x, f, [4, 6], [1, 1], [1, 1], [1, 1], False, 1.0, channels_last, name)
        torch.testing.assert_close(found, definitions.upfirdn2d(x, f, 1, 1, (1, 1, 1, 1)))


def test_results_do_not_depend_on_the_threads():
    x, before, found = torch.randn(1, 5, 40, 700), torch.get_num_threads(), []
    narrow = torch.randn(30, 37, 19, 31)  # of which threads take other rows together
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            with use("cpu"):
                found.append([PF.upsample2d(x, STYLEGAN2), PF.downsample2d(x, taps(5, 4))])
                found[-1] += [f(narrow, STYLEGAN2, padding=1) for f in (PF.upsample2d, PF.downsample2d, PF.filter2d)]
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *found))


X = torch.randn(2, 3, 4, 5)


@pytest.mark.parametrize("backend", ["auto", "cpu", "torch"])
@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (dict(x=[1.0]), TypeError, "x is a list, expected a tensor"),
        (dict(x=X[0]), ValueError, r"x has shape \(3, 4, 5\), expected \[batch"),
        (dict(x=X.long()), TypeError, "x is of torch.int64, expected a floating-point type"),
        (dict(f=[1.0]), TypeError, "f is a list, expected a tensor"),
        (dict(f=torch.ones(1, 1, 1)), ValueError, r"f has shape \(1, 1, 1\), expected \[taps\]"),
        (dict(f=torch.ones(0)), ValueError, r"f has shape \(0,\)"),
        (dict(f=STYLEGAN2.double()), TypeError, "f is of torch.float64, expected torch.float32"),
        (dict(f=STYLEGAN2.to("meta")), ValueError, "f is on meta, expected cpu"),
        (dict(up=0), ValueError, "up is 0, expected 1 or more"),
        (dict(up=1.5), TypeError, "up is 1.5, expected a whole number"),
        (dict(down=(1, 2, 3)), ValueError, r"down is \(1, 2, 3\), expected a whole number or a pair"),
        (dict(padding=(1, 2, 3)), ValueError, r"padding is \(1, 2, 3\), expected"),
        (dict(padding="same"), TypeError, "padding is 'same', expected"),
        (dict(padding=-2), ValueError, "nothing is left of x .*padding -2 leaves 0 x 1 places"),
        (dict(padding=0, f=torch.ones(1, 6)), ValueError, r"leaves 4 x 5 places to a filter of \(1, 6\)"),
        (dict(impl="cpp"), ValueError, "impl is 'cpp', expected None or 'cuda'"),
    ],
)
def test_what_is_refused(backend, arguments, error, message):
    with use(backend), pytest.raises(error, match=f"pyflash.upfirdn2d: .*{message}"):
        PF.upfirdn2d(**{"x": X, "f": STYLEGAN2, "padding": 2, **arguments})


def test_errors_name_the_function_that_was_called():
    for name in ("filter2d", "upsample2d", "downsample2d"):
        for f in (torch.ones(1, 1, 1), STYLEGAN2.half()):
            with pytest.raises((TypeError, ValueError), match=f"pyflash.{name}: f "):
                getattr(PF, name)(X, f)


def test_what_goes_to_torch():
    for x, f, arguments, reason in (
        (X.to(torch.complex64), taps(2), {}, "only strided floating-point tensors"),
        (torch.randn(1, 1, 2, 300), taps(1, 200), {}, "more than 128 taps"),
        (X, taps(2), dict(up=65), "up or down is more than 64"),
    ):
        if x.is_complex():
            with use("cpu"), pytest.raises(NotImplementedError, match=reason):
                PF.upfirdn2d(x, f)
            continue
        with use("auto"), pytest.warns(backends.FallbackWarning, match=reason):
            y = PF.upfirdn2d(x, f, **arguments)
        torch.testing.assert_close(y, definitions.upfirdn2d(x, f, **arguments))
        with use("cpu"), pytest.raises(NotImplementedError, match=reason):
            PF.upfirdn2d(x, f, **arguments)


def test_setup_filter():
    one = torch.tensor([1.0, 3.0, 3.0, 1.0])
    torch.testing.assert_close(PF.setup_filter([1, 3, 3, 1]), torch.outer(one, one) / 64)
    torch.testing.assert_close(PF.setup_filter([1, 3, 3, 1], separable=True, gain=4), one / 8 * 2)
    torch.testing.assert_close(PF.setup_filter([[1, 2], [3, 4]], normalize=False, flip_filter=True, gain=2), torch.tensor([[8.0, 6], [4, 2]]))  # fmt: skip
    assert PF.setup_filter(range(8)).shape == (8,) and PF.setup_filter(range(7)).shape == (7, 7)
    assert torch.equal(PF.setup_filter(None), torch.ones(1, 1)) and PF.setup_filter(2).shape == (1, 1)
    assert PF.setup_filter([1, 2], device="meta").is_meta
    for f, options, message in (
        (torch.ones(1, 1, 1), {}, r"f has shape \(1, 1, 1\)"),
        ([], {}, r"f has shape \(0,\)"),
        ([[1.0]], dict(separable=True), "separable is True and f has shape"),
    ):
        with pytest.raises(ValueError, match=f"pyflash.setup_filter: {message}"):
            PF.setup_filter(f, **options)


def test_autocast_changes_nothing():
    """Pictures stay in the type that they have, as StyleGAN's."""
    for backend in ("cpu", "torch"):
        for dtype in (torch.float32, torch.bfloat16):
            with torch.autocast("cpu", dtype=torch.bfloat16), use(backend):
                assert PF.upsample2d(X.to(dtype), STYLEGAN2).dtype == dtype


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    @torch.compile(fullgraph=True, dynamic=dynamic, backend="aot_eager")
    def blurred(x, f):
        return PF.downsample2d(PF.filter2d(PF.upsample2d(x, f), f), f).square()

    with use("cpu"):
        for width in (6, 9):
            x = torch.randn(1, 2, 5, width, requires_grad=True)
            y, expected = blurred(x, STYLEGAN2), x
            for function in (PF.upsample2d, PF.filter2d, PF.downsample2d):
                expected = function(expected, STYLEGAN2, impl="ref")
            expected = expected.square()
            torch.testing.assert_close(y, expected)
            dy = torch.randn_like(y)
            torch.testing.assert_close(*(torch.autograd.grad(out, x, dy)[0] for out in (y, expected)))


def test_export():
    class Upsample(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("f", STYLEGAN2)

        def forward(self, x):
            return PF.upsample2d(x, self.f)

    with use("cpu"):
        program = torch.export.export(Upsample(), (X,))
    assert any("pyflash.upfirdn2d" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(X), PF.upsample2d(X, STYLEGAN2, impl="ref"))


def test_functional_transforms():
    x = torch.randn(3, 1, 2, 4, 5)
    batched = torch.func.vmap(lambda x: PF.upsample2d(x, STYLEGAN2))(x)
    torch.testing.assert_close(batched, torch.stack([PF.upsample2d(x, STYLEGAN2, impl="ref") for x in x]))
    jacobian = torch.func.jacrev(lambda x: PF.downsample2d(x, STYLEGAN2))(x[0])
    expected = torch.autograd.functional.jacobian(lambda x: PF.downsample2d(x, STYLEGAN2, impl="ref"), x[0])
    torch.testing.assert_close(jacobian, expected)


def test_what_is_counted():
    """On a CPU every size is ours: torch's way is several operations, of which each costs as much as one of ours."""
    backends.call_counts(reset=True)
    with use("auto"):
        PF.upsample2d(torch.randn(1, 1, 2, 2), STYLEGAN2)
        PF.downsample2d(torch.randn(1, 64, 64, 64), STYLEGAN2)
        PF.filter2d(torch.randn(1, 1, 2, 2), STYLEGAN2, impl="ref")
    counted = backends.call_counts()
    assert counted == {("upfirdn2d", "cpu", ""): 2, ("upfirdn2d", "torch", "asked for"): 1}
