"""Average pooling, fixed and adaptive, against torch's own in float64; and adaptive max pooling."""

import pytest
import torch
import torch.nn.functional as F
from helpers import FLOAT_DTYPES, assert_error_within, backend_params, run, use

import pyflash
import pyflash.functional as PF
import pyflash.nn as nn
from pyflash.ops.core import backends
from tests.pool.pools import laid_out, of_rank

BACKENDS = backend_params("cpu", "triton")

CASES = [  # shape, (kernel, stride, padding, ceil_mode, count_include_pad), divisor_override, layout, why it is here
    ((2, 3, 19, 70), (3, 2, 1, False, True), None, "contiguous", "stride 2, padding counts"),
    ((2, 3, 19, 70), (3, 2, 1, False, False), None, "contiguous", "padding does not count"),
    (
        (2, 3, 9, 67),
        (2, 2, 0, False, True),
        None,
        "contiguous",
        "windows that do not overlap, a column in none of them",
    ),
    ((1, 2, 9, 40), (3, 2, 1, True, True), None, "contiguous", "the last window sticks out behind the padding"),
    ((1, 2, 9, 37), (3, 1, 1, False, False), 5, "contiguous", "stride 1, a divisor"),
    ((1, 2, 30, 61), (5, 3, 2, False, True), -2, "contiguous", "stride 3, a negative divisor"),
    ((1, 2, 9, 50), (2, 5, 0, True, True), None, "contiguous", "gaps between windows"),
    ((1, 2, 24, 75), (12, 12, 6, False, False), None, "contiguous", "long windows"),
    ((2, 3, 7, 9), ((7, 9), None, 0, False, True), None, "contiguous", "a window is a plane"),
    ((1, 2, 50, 60), ((50, 60), None, 0, False, True), None, "contiguous", "a large plane: sums of runs"),
    ((2, 3, 12, 9), ((5, 9), (3, 9), (2, 0), False, True), None, "contiguous", "a window is as wide as the plane"),
    ((2, 3, 8, 3), (3, 2, 1, False, False), None, "contiguous", "no window is whole"),
    ((2, 5, 9, 11), (3, 2, 1, False, False), None, "channels_last", "fewer channels than lanes"),
    ((1, 83, 8, 7), (3, 2, 1, True, True), 7, "channels_last", "blocks of channels, vectors, and a rest"),
    ((2, 5, 9, 11), ((3, 2), (1, 3), (1, 0), False, True), None, "transposed", "a copy"),
    ((2, 5, 9, 11), (2, 2, 0, False, True), None, "sliced", "a copy that is channels_last"),
    ((2, 3, 100), (3, 2, 1, False, False), None, "contiguous", "one dimension"),
    ((2, 3, 33), (4, 1, 2, True, True), None, "contiguous", "one dimension, stride 1"),
    ((1, 2, 5, 8, 37), (3, 2, 1, False, True), None, "contiguous", "three dimensions"),
    ((1, 5, 5, 8, 7), ((2, 3, 1), (1, 2, 2), (1, 1, 0), True, False), 3, "channels_last", "three, all different"),
    ((0, 3, 8, 8), (2, 2, 0, False, True), None, "contiguous", "empty batch"),
]
ADAPTIVE = [  # shape, output size, layout, why it is here
    ((3, 40, 7, 7), 1, "contiguous", "the global mean"),
    ((3, 40, 7, 7), 1, "channels_last", "the global mean"),
    ((2, 3, 6, 6), 6, "contiguous", "as large as the input"),
    ((2, 3, 13, 29), (6, 7), "contiguous", "windows of two lengths that overlap"),
    ((2, 21, 13, 10), (6, 3), "channels_last", "windows of two lengths that overlap"),
    ((2, 3, 30, 600), (4, 7), "contiguous", "rows too long to be folded into one"),
    ((2, 3, 9, 300), (2, 200), "contiguous", "more windows than are tabulated"),
    ((1, 40, 28, 27), 5, "contiguous", "few outputs of windows that overlap"),
    ((1, 40, 28, 27), 5, "channels_last", "few outputs of windows that overlap"),
    ((2, 3, 5, 4), (7, 9), "contiguous", "more outputs than inputs"),
    ((2, 3, 12, 36), (None, 9), "contiguous", "None, and windows of one length"),
    ((2, 3, 100), 7, "contiguous", "one dimension"),
    ((2, 3, 4, 6, 9), (2, 4, 3), "contiguous", "three dimensions"),
    ((2, 5, 4, 6, 9), (2, 4, 3), "channels_last", "three dimensions"),
    ((3, 7, 8, 8, 8), 2, "contiguous", "windows made of columns, several planes at once"),
    ((0, 3, 8, 8), 3, "contiguous", "empty batch"),
]


def arguments(args, divisor):
    return args if divisor is None else (*args, divisor)


def in_float32(function):
    """What torch has no kernel for in half types, in float32 and rounded."""

    def rounded(x, *args):
        return function(x.float(), *args).to(x.dtype)

    return rounded


def is_supported(function, x, *args):
    try:
        function(x, *args)
    except NotImplementedError:
        return False
    return True


def cases_for(cases, backend, dtype):
    """The interpreter takes a third of a second each, and more of long windows: there every dtype has a share of them."""
    if backend != "triton":
        return cases
    return (
        [case for case in cases if "large" not in case[-1]][FLOAT_DTYPES.index(dtype) :: len(FLOAT_DTYPES)]
        if backend == "triton"
        else cases
    )


def check(name, x, args, backend, why):
    ours, theirs = of_rank(PF, name, x.shape), of_rank(F, name, x.shape)
    torchs = theirs if is_supported(theirs, x, *args) else in_float32(theirs)
    dy = torch.randn(torchs(x, *args).shape, dtype=x.dtype)
    truth, found = run(theirs, [x, *args], dy, torch.float64), run(ours, [x, *args], dy, backend=backend)
    assert_error_within(found, run(torchs, [x, *args], dy), truth, x, dy)
    if x.dim() == 4 and x.numel():
        assert found[0].stride() == torchs(x, *args).stride(), why


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_matches_float64(backend, dtype):
    for shape, args, divisor, layout, why in cases_for(CASES, backend, dtype):
        check("avg_pool{}d", laid_out(shape, layout, dtype), arguments(args, divisor), backend, why)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_adaptive_matches_float64(backend, dtype):
    for shape, size, layout, why in cases_for(ADAPTIVE, backend, dtype):
        check("adaptive_avg_pool{}d", laid_out(shape, layout, dtype), (size,), backend, why)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_adaptive_max_is_torchs(backend, dtype):
    for shape, size, layout, why in cases_for(ADAPTIVE, backend, dtype):
        x = laid_out(shape, layout, dtype)
        x[x == 1] = float("nan")
        ours, theirs = of_rank(PF, "adaptive_max_pool{}d", shape), of_rank(F, "adaptive_max_pool{}d", shape)
        y, indices = theirs(x, size, return_indices=True)
        with use(backend):
            alone, (both, ours_indices) = ours(x, size), ours(x, size, return_indices=True)
        assert torch.equal(ours_indices, indices), why
        for found in (alone, both):
            torch.testing.assert_close(found, y, rtol=0, atol=0, equal_nan=True, msg=why)
        x, dy = laid_out(shape, layout, dtype), torch.randn(y.shape, dtype=dtype)
        truth, torchs = run(theirs, [x, size], dy, torch.float64), run(theirs, [x, size], dy)
        assert_error_within(run(ours, [x, size], dy, backend=backend), torchs, truth, dy)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_and_infinity_are_where_torch_has_them(backend):
    for layout in ("contiguous", "channels_last"):
        x = laid_out((1, 20, 9, 40), layout, torch.float32)
        x[0, 0, 3, 3], x[0, 1, 4, 39], x[0, 2, 0, 0] = float("nan"), float("inf"), -float("inf")
        x[0, 2, 0, 1] = float("inf")
        for name, args in (("avg_pool2d", (3, 2, 1)), ("avg_pool2d", (3, 1)), ("adaptive_avg_pool2d", ((4, 7),))):
            with use(backend):
                ours = getattr(PF, name)(x, *args)
            torch.testing.assert_close(ours, getattr(F, name)(x, *args), equal_nan=True)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_gradients_of_gradients(backend):
    every = 7 if backend == "triton" else 1
    cases = [(shape, "avg_pool{}d", arguments(args, d), layout) for shape, args, d, layout, _ in CASES[::every]]
    cases += [
        (shape, f"adaptive_{kind}_pool{{}}d", (size,), layout)
        for shape, size, layout, _ in ADAPTIVE[::every] for kind in ("avg", "max")
    ]  # fmt: skip
    for shape, name, args, layout in cases:
        x = torch.randperm(torch.Size(shape).numel(), dtype=torch.float64).view(shape)  # no two are near
        x = laid_out(shape, layout, torch.float64).copy_(x).requires_grad_()
        if 0 < x.numel() < 3000:
            pool = of_rank(PF, name, shape)
            with use(backend):
                assert torch.autograd.gradcheck(pool, (x, *args), fast_mode=True), (name, shape)
                assert torch.autograd.gradgradcheck(lambda x, f=pool, a=args: f(x, *a), (x,), fast_mode=True), name


def test_results_do_not_depend_on_threads():
    x, dy = torch.randn(4, 32, 56, 56), torch.randn(4, 32, 28, 28)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run(PF.avg_pool2d, [x, 3, 2, 1], dy, backend="cpu"))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def image(*shape):
    return torch.ones(shape)


WRONG = [  # calls that torch refuses
    lambda f: f.avg_pool2d(image(2, 3, 8, 8), 0),
    lambda f: f.avg_pool2d(image(2, 3, 8, 8), 2, 2, 2),
    lambda f: f.avg_pool2d(image(2, 3, 8, 8), 3, 2, 1, False, True, 0),
    lambda f: f.avg_pool2d(image(2, 3, 8, 8), 9),
    lambda f: f.avg_pool2d(image(2, 0, 8, 8), 2),
    lambda f: f.avg_pool2d(image(8, 8), 2),
    lambda f: f.avg_pool1d(image(8), 2),
    lambda f: f.avg_pool3d(image(2, 8, 8), 2),
    lambda f: f.avg_pool2d(None, 2),
    lambda f: f.adaptive_avg_pool2d(image(2, 3, 8, 8), (3,)),
    lambda f: f.adaptive_avg_pool2d(image(2, 3, 8, 8), -1),
    lambda f: f.adaptive_avg_pool1d(image(3, 8), None),
    lambda f: f.adaptive_avg_pool2d(image(8, 8), 2),
    lambda f: f.adaptive_avg_pool2d(torch.ones(1, 8, 8, dtype=torch.int64), 2),
    lambda f: f.adaptive_max_pool2d(image(2, 0, 8, 8), 2),
    lambda f: f.adaptive_max_pool2d(image(2, 3, 8, 8), None),
    lambda f: f.adaptive_max_pool3d(image(3, 8, 8), (2, 2)),
]


@pytest.mark.filterwarnings("ignore::pyflash.ops.core.backends.FallbackWarning")
@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("call", WRONG)
def test_what_torch_refuses(backend, call):
    with pytest.raises((RuntimeError, TypeError, IndexError, AttributeError)) as theirs:
        call(F)
    with use(backend), pytest.raises(theirs.type) as ours:
        call(PF)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.filterwarnings("ignore::pyflash.ops.core.backends.FallbackWarning")
def test_what_no_kernel_takes_is_torchs_and_counted():
    x = torch.randn(3, 8, 8)
    calls = [
        lambda f: f.avg_pool2d(torch.arange(64).view(1, 8, 8), 2),
        lambda f: f.avg_pool2d(x, torch.tensor(2)),
        lambda f: f.adaptive_avg_pool2d(x, (0, 2)),
        lambda f: f.adaptive_avg_pool2d(x[:0], 2),
    ]
    for call in calls:
        before = backends.counts.copy()
        assert torch.equal(call(PF), call(F))
        assert any(backend == "torch" for _, backend, _ in backends.counts - before)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_autocast_as_torchs(n):
    x = torch.randn(2, 3, *(8,) * n)
    for name in ("avg", "adaptive_avg", "adaptive_max"):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            with use("cpu"), torch.autocast("cpu", torch.bfloat16):
                ours, theirs = (getattr(f, f"{name}_pool{n}d")(x.to(dtype), 2) for f in (PF, F))
            assert ours.dtype == theirs.dtype
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize(
    "name, options",
    [
        ("AvgPool", {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False}),
        ("AdaptiveAvgPool", {"output_size": 4}),
        ("AdaptiveMaxPool", {"output_size": 4, "return_indices": True}),
    ],
)
def test_modules(n, name, options):
    theirs, x = getattr(torch.nn, f"{name}{n}d")(**options), torch.randn(2, 3, *(9,) * n)
    ours, expected = getattr(nn, f"{name}{n}d")(**options), theirs(x)
    assert repr(ours) == repr(theirs) and isinstance(ours, type(theirs))
    replaced = pyflash.replace(torch.nn.Sequential(theirs))[0]
    assert type(replaced) is type(ours)
    with use("cpu"):
        for module in (ours, replaced):
            torch.testing.assert_close(module(x), expected)


def test_compile_export_and_functorch():
    x = torch.randn(2, 3, 9, 20, requires_grad=True)

    def function(x):
        return PF.adaptive_avg_pool2d(PF.avg_pool2d(x, 3, 2, 1, False, False), (2, 3))

    def results(function):
        y = function(x)
        return y.detach(), torch.autograd.grad(y.square().sum(), x)[0]

    with use("cpu"):
        torch.testing.assert_close(
            results(torch.compile(function, fullgraph=True, backend="aot_eager")), results(function)
        )
        dynamic = torch.compile(lambda x: PF.adaptive_avg_pool2d(x, (None, 1)), backend="aot_eager", dynamic=True)
        for width in (20, 23, 30):
            y = torch.randn(2, 3, 9, width, requires_grad=True)
            torch.testing.assert_close(dynamic(y), F.adaptive_avg_pool2d(y, (None, 1)))
        program = torch.export.export(nn.AdaptiveAvgPool2d(1), (x.detach(),))
        assert any("pyflash.avg_pool_fwd" in str(node.target) for node in program.graph.nodes)
        torch.testing.assert_close(program.module()(x.detach()), F.adaptive_avg_pool2d(x.detach(), 1))
        torch.testing.assert_close(torch.func.vmap(lambda x: PF.avg_pool2d(x, 2))(x), F.avg_pool2d(x, 2))
