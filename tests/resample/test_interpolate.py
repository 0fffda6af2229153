"""interpolate and the modules of it, against torch's own in float64."""

import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import FLOAT_DTYPES, assert_error_within, backend_params, by_cpu, run, use

import pyflash
import pyflash.functional as PF
from pyflash.ops.core import backends
from pyflash.ops.resample.interpolate import _interpolate

BACKENDS = backend_params("cpu", "triton")

CASES = [  # shape, layout, arguments, why it is here
    ((2, 3, 17), "contiguous", dict(scale_factor=2, mode="linear"), "one dimension"),
    ((1, 2, 300), "contiguous", dict(size=77, mode="linear"), "lanes far apart"),
    ((2, 3, 5, 8), "contiguous", dict(scale_factor=2, mode="bilinear"), "narrower than a vector"),
    ((2, 2, 9, 40), "contiguous", dict(size=(33, 77), mode="bilinear", align_corners=True), "corners aligned"),
    ((2, 3, 9, 40), "contiguous", dict(size=(5, 1), mode="bilinear", align_corners=True), "one place: its scale is 0"),
    ((1, 3, 9, 70), "contiguous", dict(scale_factor=(1.7, 0.45), mode="bilinear"), "a scale, which is not that of the sizes"),
    ((1, 3, 9, 7), "contiguous", dict(scale_factor=1.7, mode="bilinear", recompute_scale_factor=True), "the sizes' scale"),
    ((2, 3, 9, 40), "contiguous", dict(size=(9, 60), mode="bilinear"), "one dimension as it was"),
    ((2, 3, 9, 40), "contiguous", dict(size=(25, 19), mode="bicubic"), "four taps, clamped"),
    ((1, 2, 4, 5), "contiguous", dict(size=(9, 11), mode="bicubic", align_corners=True), "four taps, corners aligned"),
    ((1, 2, 4, 5, 36), "contiguous", dict(scale_factor=(2, 1.5, 1.3), mode="trilinear"), "three dimensions"),
    ((2, 3, 9, 40), "contiguous", dict(scale_factor=2), "every place twice"),
    ((2, 3, 9, 40), "contiguous", dict(scale_factor=0.6), "places that nothing reads"),
    ((1, 2, 4, 5, 6), "contiguous", dict(size=(3, 9, 11)), "nearest in three dimensions"),
    ((2, 3, 9, 40), "contiguous", dict(scale_factor=1.7, mode="nearest-exact"), "nearest, by the centres"),
    ((2, 3, 21), "contiguous", dict(size=50, mode="nearest-exact"), "nearest, by the centres, in one dimension"),
    ((2, 3, 9, 20), "channels_last", dict(scale_factor=2, mode="bilinear"), "few channels, last"),
    ((2, 37, 5, 6), "channels_last", dict(scale_factor=2, mode="bilinear"), "many channels, last"),
    ((2, 37, 5, 6), "channels_last", dict(size=(3, 15), mode="bicubic"), "many channels, last, four taps"),
    ((1, 18, 3, 4, 5), "channels_last", dict(size=(5, 6, 4), mode="trilinear"), "channels last in three dimensions"),
    ((2, 20, 5, 6), "channels_last", dict(scale_factor=1.5), "channels are copied"),
    ((2, 3, 9, 40), "transposed", dict(scale_factor=2, mode="bilinear"), "width is not the last in memory: a copy"),
    ((2, 6, 9, 20), "part", dict(scale_factor=2, mode="bilinear"), "a part of a tensor that is channels last"),
    ((0, 3, 9, 40), "contiguous", dict(scale_factor=2, mode="bilinear"), "an empty batch"),
    ((1, 1, 1, 1), "contiguous", dict(size=(3, 40), mode="bilinear"), "one place"),
    ((20, 3, 4, 5), "contiguous", dict(scale_factor=2, mode="bilinear"), "many small planes"),
    ((40, 2, 4, 5), "channels_last", dict(size=(3, 9), mode="nearest"), "many small planes, channels last"),
    ((1, 1, 2, 20000), "contiguous", dict(scale_factor=1.5, mode="bilinear"), "rows long enough to be cut"),
]  # fmt: skip
FILTERED = [
    ((1, 2, 40, 80), "contiguous", dict(size=(25, 19), mode="bicubic"), "smaller"),
    ((1, 2, 40, 80), "contiguous", dict(size=(25, 97), mode="bilinear"), "smaller and larger"),
    ((1, 2, 9, 80), "contiguous", dict(size=(5, 3), mode="bilinear", align_corners=True), "corners aligned"),
    ((1, 3, 40, 80), "channels_last", dict(size=(25, 19), mode="bicubic"), "channels last"),
    ((1, 18, 20, 30), "channels_last", dict(size=(3, 40), mode="bicubic"), "many channels, last"),
    ((1, 2, 40, 80), "contiguous", dict(size=(25, 97), mode="lanczos"), "three lobes"),
]
HAS_LANCZOS = hasattr(torch.ops.aten, "_upsample_lanczos2d_aa")
FILTERED = [
    (s, l, {**kw, "antialias": True}, why) for s, l, kw, why in FILTERED if HAS_LANCZOS or kw["mode"] != "lanczos"
]


def laid_out(shape, layout, dtype):
    x = torch.randn(shape, dtype=dtype)
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(len(shape))
    if layout == "channels_last":
        return x.contiguous(memory_format=channels_last)
    if layout == "transposed":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "part":
        return torch.randn(shape[0], shape[1], shape[2] + 2, shape[3] + 3, dtype=dtype).contiguous(
            memory_format=channels_last
        )[:, :, 2:, :-3]
    return x


def gradient(x, arguments):
    return torch.randn(F.interpolate(x.double(), **arguments).shape).to(x.dtype)


def of_backend(cases, backend, dtype):
    """Of the interpreter, which is slow, all in one type and some in each other."""
    return cases[:: 1 if backend != "triton" or dtype == torch.float32 else 4]


def terms(x, dy):
    """In float64 the truth is as uncertain as ours: where a place lies is rounded in the last digit of its coordinate."""
    return (x, dy) if x.dtype != torch.float64 else (x * max(x.shape[2:]), dy * max(dy.shape[2:]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_matches_float64(backend, dtype):
    for shape, layout, arguments, _why in of_backend(CASES, backend, dtype):
        x = laid_out(shape, layout, dtype)
        dy = gradient(x, arguments)
        theirs = run(by_cpu(partial(F.interpolate, **arguments)), [x], dy)
        truth = run(partial(F.interpolate, **arguments), [x], dy, torch.float64)
        ours = run(partial(PF.interpolate, **arguments), [x], dy, backend=backend)
        assert ours[0].stride() == theirs[0].stride()
        assert_error_within(ours, theirs, truth, *terms(x, dy))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_filtered_matches_float64(backend, dtype):
    """torch's has no half types: theirs is float32's, rounded."""
    wide = torch.float32 if dtype.itemsize == 2 else dtype
    for shape, layout, arguments, _why in of_backend(FILTERED, backend, dtype):
        x = laid_out(shape, layout, dtype)
        dy = gradient(x, arguments)
        theirs = [t.to(dtype) for t in run(by_cpu(partial(F.interpolate, **arguments)), [x], dy, wide)]
        truth = run(partial(F.interpolate, **arguments), [x], dy, torch.float64)
        ours = run(partial(PF.interpolate, **arguments), [x], dy, backend=backend)
        assert ours[0].stride() == theirs[0].stride()
        assert_error_within(ours, theirs, truth, *terms(x, dy))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nearest_places_are_torchs(backend):
    """Of every scale, also where rounding decides."""
    for size, out in ((7, 13), (13, 7), (100, 33), (33, 100), (50, 150), (49, 100), (64, 64), (5, 10), (3, 49)):
        x = torch.arange(size, dtype=torch.float32)[None, None]
        for mode in ("nearest", "nearest-exact"):
            for arguments in (dict(size=out), dict(scale_factor=out / size), dict(scale_factor=(out + 0.5) / size)):
                with use(backend):
                    ours = PF.interpolate(x, **arguments, mode=mode)
                assert torch.equal(ours, F.interpolate(x, **arguments, mode=mode))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("channels", [2, 20])
def test_nan_and_infinity_are_where_torch_has_them(backend, mode, channels):
    for size in ((18, 90), (5, 23)):
        x = torch.randn(1, channels, 9, 45).contiguous(memory_format=torch.channels_last)
        x[0, 0, 4, 7], x[0, 1, 0, 0], x[0, 1, 8, 44] = float("nan"), float("inf"), -float("inf")
        x[0, 1, 3, 40] = float("inf")
        dy = torch.randn(1, channels, *size)
        dy[0, 0, 2, 2], dy[0, 1, 4, 20], dy[0, 1, 0, 0] = float("nan"), float("inf"), -float("inf")
        ours = run(lambda x, size=size: PF.interpolate(x, size, mode=mode), [x], dy, backend=backend)
        theirs = run(lambda x, size=size: F.interpolate(x, size, mode=mode), [x], dy)
        for our, their in zip(ours, theirs):
            torch.testing.assert_close(our, their, equal_nan=True, rtol=1e-4, atol=1e-4)
            assert torch.equal(our.isinf(), their.isinf())


def test_minus_zero_stays():
    with use("cpu"):
        y = PF.interpolate(-torch.zeros(1, 2, 8, 20), scale_factor=2)
    assert torch.equal(y.signbit(), torch.ones(1, 2, 16, 40, dtype=torch.bool))


DERIVED = [
    ((1, 2, 3, 5), dict(scale_factor=2, mode="bilinear")),
    ((1, 2, 4, 3), dict(size=(3, 5), mode="bicubic")),
    ((1, 2, 5, 6), dict(size=(3, 4), mode="bilinear", antialias=True)),
    ((1, 2, 5), dict(size=3)),
    ((1, 1, 2, 3, 2), dict(size=(3, 2, 4), mode="trilinear")),
]


@pytest.mark.parametrize("shape, arguments", DERIVED, ids=[kw.get("mode", "nearest") for _, kw in DERIVED])
def test_gradients_of_gradients(shape, arguments):
    """Triton's are the same two calls, and each takes the interpreter long."""
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    with use("cpu"):
        assert torch.autograd.gradcheck(lambda x: PF.interpolate(x, **arguments), x)
        assert torch.autograd.gradgradcheck(lambda x: PF.interpolate(x, **arguments).square(), x)


def test_the_reference_is_the_kernel_in_torch():
    for transposed in (False, True):
        x = torch.randn(2, 3, *((9, 7) if transposed else (4, 5)), dtype=torch.float64)
        for mode, antialias in (("nearest", False), ("nearest-exact", False), ("bilinear", True), ("bicubic", False)):
            args = x, [4, 5] if transposed else [9, 7], [2.3, 0.0], mode, False, antialias, transposed, False
            torch.testing.assert_close(_interpolate(*args, "cpu"), _interpolate(*args, "torch"))


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_the_operator_reads_no_memory_that_is_not_there(backend):
    """Called by itself, with a tensor that lies otherwise than is said."""
    x = torch.randn(1, 1, 4, 5).expand(2, 3, 4, 5)
    args = [8, 9], [0.0, 0.0], "bilinear", False, False, False
    for channels_last in (False, True):
        found = torch.ops.pyflash.interpolate(x, *args, channels_last, backend)
        torch.testing.assert_close(found, F.interpolate(x, (8, 9), mode="bilinear"))


def test_results_do_not_depend_on_the_threads():
    x, before = torch.randn(1, 1, 3, 40000), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            with use("cpu"):
                found.append(PF.interpolate(x, scale_factor=(2, 1.3), mode="bicubic"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


@pytest.mark.parametrize("backend", ["auto", "cpu", "torch"])
@pytest.mark.parametrize(
    "shape, arguments, error, message",
    [
        ((2, 3, 4, 5), {}, ValueError, "either size or scale_factor should be defined"),
        ((2, 3, 4, 5), dict(size=3, scale_factor=2), ValueError, "only one of size or scale_factor"),
        ((2, 3, 4, 5), dict(size=(3,)), ValueError, "same number of spatial dimensions"),
        ((2, 3, 4, 5), dict(scale_factor=(2, 2, 2)), ValueError, "same number of spatial dimensions"),
        ((2, 3, 4, 5), dict(size=(3, 1.5)), TypeError, "expected size to be one of int"),
        ((2, 3, 4, 5), dict(size=(0, 3)), RuntimeError, "sizes should be greater than 0"),
        ((2, 3, 4, 5), dict(scale_factor=0.01), RuntimeError, "sizes should be greater than 0"),
        ((2, 0, 4, 5), dict(size=3), RuntimeError, "Non-empty 4D data tensor expected"),
        ((2, 3, 4, 5), dict(size=3, mode="nearest", align_corners=True), ValueError, "align_corners option can only"),
        ((2, 3, 4, 5), dict(size=3, recompute_scale_factor=True), ValueError, "not meaningful with an explicit size"),
        ((2, 3, 4, 5), dict(size=3, mode="linear"), NotImplementedError, "Got 4D input, but linear mode needs 3D input"),
        ((2, 3, 4), dict(size=3, mode="bilinear"), NotImplementedError, "Got 3D input"),
        ((2, 3), dict(size=3), NotImplementedError, "Only 3D, 4D and 5D"),
        ((2, 3, 4, 5), dict(size=3, mode="cubic"), NotImplementedError, "for the modes"),
        ((2, 3, 4, 5), dict(size=3, antialias=True), ValueError, "Anti-alias option is restricted to"),
        ((2, 3, 4, 5, 6), dict(size=3, mode="trilinear", antialias=True), ValueError, "Anti-alias option is restricted"),
    ],
)  # fmt: skip
def test_what_torch_refuses(backend, shape, arguments, error, message):
    x = torch.randn(shape)
    with use(backend), pytest.raises(error, match=message) as ours:
        PF.interpolate(x, **arguments)
    with pytest.raises(error, match=message) as theirs:
        F.interpolate(x, **arguments)
    assert type(ours.value) is type(theirs.value)


def test_what_goes_to_torch():
    image = torch.randint(0, 255, (1, 3, 8, 8), dtype=torch.uint8)
    for x, arguments, reason in ((image, dict(size=4, mode="bilinear"), "only strided floating-point tensors"),):
        backends.call_counts(reset=True)
        with use("auto"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert torch.equal(PF.interpolate(x, **arguments), F.interpolate(x, **arguments))
        assert any(reason in why for _, backend, why in backends.call_counts() if backend == "torch")
        with use("cpu"), pytest.raises(NotImplementedError, match=reason):
            PF.interpolate(x, **arguments)


@pytest.mark.parametrize("shape, size", [((2, 3, 9), 4), ((2, 3, 9, 8), (4, 11)), ((1, 2, 5, 6, 7), (2, 3, 3))])
def test_area_is_adaptive_average_pooling(shape, size):
    x = torch.randn(shape)
    backends.call_counts(reset=True)
    with use("cpu"):
        y = PF.interpolate(x, size, mode="area")
    torch.testing.assert_close(y, F.interpolate(x, size, mode="area"))
    assert [name for name, backend, _ in backends.call_counts()] == [f"adaptive_avg_pool{len(shape) - 2}d"]


def test_autocast_changes_nothing():
    """As in torch, which resizes in the type that it is given."""
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(1, 2, 8, 8, dtype=dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16), use("cpu"):
            assert PF.interpolate(x, scale_factor=2, mode="bilinear").dtype == dtype
            assert F.interpolate(x, scale_factor=2, mode="bilinear").dtype == dtype


@pytest.mark.parametrize(
    "name, arguments, options",
    [
        ("upsample", (None, 2), dict(mode="bilinear", align_corners=True)),
        ("upsample", (5,), {}),
        ("upsample_nearest", (None, 2), {}),
        ("upsample_bilinear", ((7, 9),), {}),
    ],
)
def test_deprecated_names(name, arguments, options):
    x = torch.randn(1, 2, 4, 5)
    for module, backend in ((PF, "cpu"), (F, "torch")):
        with use(backend), pytest.warns(UserWarning, match=f"`nn.functional.{name}` is deprecated") as record:
            found = getattr(module, name)(x, *arguments, **options)
        assert record[0].filename == __file__
        if module is PF:
            ours = found
    torch.testing.assert_close(ours, found)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    @torch.compile(fullgraph=True, dynamic=dynamic, backend="aot_eager")
    def resized(x):
        return PF.interpolate(x, scale_factor=2, mode="bilinear") + PF.interpolate(x, x.shape[2] * 2).sum()

    with use("cpu"):
        for width in (6, 9):
            x = torch.randn(1, 2, 5, width, requires_grad=True)
            y = resized(x)
            expected = F.interpolate(x, scale_factor=2, mode="bilinear") + F.interpolate(x, x.shape[2] * 2).sum()
            torch.testing.assert_close(y, expected)
            dy = torch.randn_like(y)
            torch.testing.assert_close(*(torch.autograd.grad(out, x, dy)[0] for out in (y, expected)))


def test_export():
    with use("cpu"):
        program = torch.export.export(pyflash.nn.Upsample(scale_factor=2, mode="bilinear"), (torch.randn(1, 2, 5, 6),))
    assert any("pyflash.interpolate" in str(node.target) for node in program.graph.nodes)
    x = torch.randn(1, 2, 5, 6)
    torch.testing.assert_close(program.module()(x), F.interpolate(x, scale_factor=2, mode="bilinear"))


def test_functional_transforms():
    x = torch.randn(3, 1, 2, 4, 5)
    resize = {"scale_factor": 2, "mode": "bilinear"}
    torch.testing.assert_close(
        torch.func.vmap(lambda x: PF.interpolate(x, **resize))(x), torch.stack([F.interpolate(x, **resize) for x in x])
    )
    jacobian = torch.func.jacrev(lambda x: PF.interpolate(x, **resize))(x[0])
    torch.testing.assert_close(jacobian, torch.func.jacrev(lambda x: F.interpolate(x, **resize))(x[0]))
