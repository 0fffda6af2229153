"""Max pooling against torch's own: values and indices are the same to the bit, gradients within torch's error."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import FLOAT_DTYPES, assert_error_within, backend_params, by_cpu, run, use

import pyflash
import pyflash.functional as PF
import pyflash.nn as nn
from pyflash.ops.core import backends
from tests.pool.operators import PADDED
from tests.pool.pools import laid_out, of_rank

BACKENDS = backend_params("cpu", "triton")

CASES = [  # shape, (kernel, stride, padding, dilation, ceil_mode), layout, why it is here
    ((2, 3, 19, 70), (3, 2, 1, 1, False), "contiguous", "stride 2, and windows over both edges"),
    ((2, 3, 9, 67), (2, 2, 0, 1, False), "contiguous", "windows that do not overlap, a column in none of them"),
    ((2, 3, 9, 37), (3, 1, 1, 1, False), "contiguous", "stride 1"),
    ((1, 2, 9, 40), (3, 2, 0, 1, True), "contiguous", "the last window sticks out"),
    ((1, 2, 30, 61), (5, 3, 2, 1, False), "contiguous", "stride 3, windows overlap"),
    ((1, 2, 9, 50), (2, 5, 0, 1, True), "contiguous", "gaps between windows"),
    ((1, 2, 24, 75), (12, 12, 6, 1, False), "contiguous", "long windows"),
    ((2, 3, 16, 43), (4, 4, 0, 1, False), "contiguous", "windows made of columns"),
    (
        (2, 3, 17, 30),
        ((3, 4), (2, 6), (1, 2), 1, True),
        "contiguous",
        "columns in no window, and windows over the edges",
    ),
    ((1, 2, 9, 600), (3, 4, 1, 1, False), "contiguous", "a row too long for columns"),
    ((1, 2, 11, 40), (2, 2, 1, 3, False), "contiguous", "dilation and stride 2"),
    ((1, 2, 11, 40), (3, 1, 1, 2, False), "contiguous", "dilation"),
    ((1, 2, 9, 40), (1, 2, 0, 1, False), "contiguous", "every second element"),
    ((2, 3, 7, 9), ((7, 9), None, 0, 1, False), "contiguous", "a window is a plane"),
    ((2, 3, 12, 9), ((5, 9), (3, 9), (2, 0), 1, False), "contiguous", "a window is as wide as the plane"),
    ((2, 3, 8, 3), (3, 2, 1, 1, False), "contiguous", "no window is whole"),
    ((2, 5, 9, 11), (3, 2, 1, 1, False), "channels_last", "fewer channels than lanes"),
    ((1, 83, 8, 7), (3, 2, 1, 2, True), "channels_last", "blocks of channels, vectors, and a rest"),
    ((2, 40, 13, 12), (4, 4, 0, 1, False), "channels_last", "windows of many elements, apart"),
    ((1, 37, 13, 40), (5, 4, 2, 1, False), "channels_last", "windows of many elements that overlap, few outputs"),
    ((2, 5, 9, 11), ((3, 2), (1, 3), (1, 0), 1, False), "transposed", "a copy"),
    ((2, 5, 9, 11), (2, 2, 0, 1, False), "sliced", "a copy that is channels_last"),
    ((2, 3, 100), (3, 2, 1, 1, False), "contiguous", "one dimension"),
    ((2, 3, 33), (2, 1, 0, 4, True), "contiguous", "one dimension, dilation"),
    ((1, 2, 5, 8, 37), (3, 2, 1, 1, False), "contiguous", "three dimensions"),
    ((1, 5, 5, 8, 7), ((2, 3, 1), (1, 2, 2), (1, 1, 0), (2, 1, 1), True), "channels_last", "three, all different"),
    ((0, 3, 8, 8), (2, 2, 0, 1, False), "contiguous", "empty batch"),
]


def the_same(ours, theirs):
    """To the bit; a NaN is a NaN."""
    is_nan = theirs.isnan()
    assert torch.equal(ours.isnan(), is_nan) and ours.dtype == theirs.dtype and ours.stride() == theirs.stride()
    ours, theirs = ours.masked_fill(is_nan, 1), theirs.masked_fill(is_nan, 1)
    return torch.equal(ours, theirs) and torch.equal(ours.signbit(), theirs.signbit())


def cases_for(backend, dtype):
    """The interpreter takes a third of a second each: there every dtype has a share of them."""
    return CASES[FLOAT_DTYPES.index(dtype) :: len(FLOAT_DTYPES)] if backend == "triton" else CASES


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_is_torchs(backend, dtype):
    for shape, args, layout, why in cases_for(backend, dtype):
        x = laid_out(shape, layout, dtype)
        ours, theirs = of_rank(PF, "max_pool{}d", shape), of_rank(F, "max_pool{}d", shape)
        y, indices = theirs(x, *args, return_indices=True)
        dy = torch.randn(y.shape, dtype=dtype)
        truth, torchs = run(theirs, [x, *args], dy, torch.float64), run(theirs, [x, *args], dy)
        with use(backend):
            alone, (of_both, ours_indices) = ours(x, *args), ours(x, *args, return_indices=True)
        assert the_same(alone, y) and the_same(of_both, y) and torch.equal(ours_indices, indices), why
        trained = run(ours, [x, *args], dy, backend=backend)
        assert_error_within(trained, torchs, truth, dy)
        with_indices = run(lambda *a, f=ours: f(*a, return_indices=True)[0], [x, *args], dy, backend=backend)
        assert all(torch.equal(a, b) for a, b in zip(trained, with_indices)), why
        assert trained[1].stride() == torchs[1].stride() or x.numel() == 0 or layout in ("transposed", "sliced"), why


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_nan_infinity_and_zeros_of_both_signs(backend, dtype, layout):
    values = torch.tensor([float("nan"), -float("inf"), float("inf"), -0.0, 0.0, -0.0, 0.0, -1.0, -float("inf")])
    x = values[torch.randint(9, (2, 20, 18, 43))].to(dtype)
    x[:, :, 9:] = values[3:][torch.randint(6, (2, 20, 9, 43))].to(dtype)
    x[:, :, :3, :9] = -float("inf")
    x = x.contiguous(memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format)
    few = (3, 2, 1), (2, 2)
    for args in few if backend == "triton" else (*few, (3, 1, 1), (9, 9), (1, 1), (3, 3, 1), (5, 4), (18, 43)):
        expect_torchs(backend, "max_pool2d", x, *args)
    for size in (5, 4) if backend == "triton" else (5, (4, 3), (7, 20), 16):
        expect_torchs(backend, "adaptive_max_pool2d", x, size)


def expect_torchs(backend, name, x, *args):
    expected, their_indices = by_cpu(partial(getattr(F, name), return_indices=True))(x, *args)
    function = getattr(PF, name)
    with use(backend):
        alone, (y, indices) = function(x, *args), function(x, *args, return_indices=True)
    assert the_same(alone, expected) and the_same(y, expected) and torch.equal(indices, their_indices), args


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_in_the_gradient_stays_where_it_belongs(backend):
    x, dy = torch.randn(1, 2, 9, 40), torch.randn(1, 2, 5, 20)
    dy[0, 0, 2, 3], dy[0, 1, 4, 19] = float("nan"), float("inf")
    ours, theirs = (run(f, [x, 3, 2, 1], dy, backend=b)[1] for f, b in ((PF.max_pool2d, backend), (F.max_pool2d, None)))
    assert theirs.isnan().sum() == 1 and torch.equal(ours.isnan(), theirs.isnan())
    assert torch.equal(ours.isinf(), theirs.isinf())


@pytest.mark.parametrize("backend", backend_params("cpu"))
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_an_index_that_is_no_place_is_not_followed(backend, dtype):
    """Of an exported program, say, whose indices another wrote: nothing is written outside of the plane."""
    dy = torch.ones(2, 3, 2, 2, dtype=dtype)
    indices = torch.tensor([0, -1, 16, 15]).view(2, 2).expand(2, 3, 2, 2)
    wide = torch.tensor([1 << 40, -(1 << 40), 3, 3]).view(2, 2).expand(2, 3, 2, 2)
    windows = (2, 2), (2, 2), (2, 2), (0, 0), (1, 1)
    with use(backend):
        name = backend.partition(":")[0]
        for given, places in ((indices.int(), {0: 1, 15: 1}), (indices, {0: 1, 15: 1}), (wide, {3: 2})):
            dx = torch.ops.pyflash.max_pool_bwd(dy, given.contiguous(), (2, 3, 4, 4), False, *windows, name)
            expected = torch.zeros(16, dtype=dtype)
            for place, times in places.items():
                expected[place] = times
            assert torch.equal(dx, expected.view(4, 4).expand(2, 3, 4, 4))


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_gradients_of_gradients(backend):
    with use(backend):
        for shape, args, layout, why in CASES[:: 7 if backend == "triton" else 1]:
            if shape[0] == 0:
                continue
            shape = (1, 2, *(min(size, 9) for size in shape[2:])) if layout == "contiguous" else shape
            x = torch.randperm(torch.Size(shape).numel(), dtype=torch.float64).view(shape)  # no two are near
            x = laid_out(shape, layout, torch.float64).copy_(x).requires_grad_()
            pool = of_rank(PF, "max_pool{}d", shape)
            try:
                y = pool(x, *args)
            except NotImplementedError:  # the smaller shape is none for these windows
                continue
            if y.numel() <= 300:
                assert torch.autograd.gradcheck(pool, (x, *args), fast_mode=True), why
                assert torch.autograd.gradgradcheck(lambda x, f=pool, a=args: f(x, *a), (x,), fast_mode=True), why


def test_results_do_not_depend_on_threads():
    x, dy = torch.randn(4, 32, 56, 56), torch.randn(4, 32, 28, 28)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run(PF.max_pool2d, [x, 3, 2, 1], dy, backend="cpu"))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.parametrize("backend", BACKENDS)
def test_unbatched_and_arguments_in_every_form(backend):
    x = torch.randn(3, 9, 20)
    forms = [
        lambda f: f.max_pool2d(x, 2), lambda f: f.max_pool2d(x, (2,), [], [1]), lambda f: f.max_pool2d(x, [3, 2], stride=(2, 1)),
        lambda f: f.max_pool1d(x[0], 3, 2), lambda f: f.max_pool1d(x[0], (3,), (2,), (1,), (2,)),
        lambda f: f.max_pool3d(x[None], 2), lambda f: f.max_pool2d(x, 2, return_indices=True)[1],
        lambda f: f.max_pool2d_with_indices(x, 2)[1], lambda f: f.max_pool1d_with_indices(x, 2)[1],
        lambda f: f.max_pool3d_with_indices(x[None, None], 2)[1],
    ]  # fmt: skip
    for form in forms:
        expected = form(F)
        with use(backend):
            assert torch.equal(form(PF), expected)


WRONG = [  # calls that torch refuses
    lambda f: f.max_pool2d(torch.randn(2, 3, 8, 8), 0),
    lambda f: f.max_pool2d(torch.randn(2, 3, 8, 8), 2, 2, 2),
    lambda f: f.max_pool2d(torch.randn(2, 3, 8, 8), 2, 0),
    lambda f: f.max_pool2d(torch.randn(2, 3, 8, 8), 2, 1, -1),
    lambda f: f.max_pool2d(torch.randn(2, 3, 8, 8), 2, 1, 0, 0),
    lambda f: f.max_pool2d(torch.randn(2, 3, 8, 8), 9),
    lambda f: f.max_pool2d(torch.randn(2, 3, 8, 8), (2, 2, 2)),
    lambda f: f.max_pool2d(torch.randn(2, 3, 8, 8), 2.0),
    lambda f: f.max_pool2d(torch.randn(2, 0, 8, 8), 2),
    lambda f: f.max_pool2d(torch.randn(8, 8), 2),
    lambda f: f.max_pool1d(torch.randn(8), 2),
    lambda f: f.max_pool1d(torch.randn(2, 3, 8), 2, 2, 2, 4),
    lambda f: f.max_pool3d(torch.randn(2, 8, 8), 2),
    lambda f: f.max_pool2d([1.0], 2),
]


@pytest.mark.parametrize("backend", ["auto", "cpu", "torch"])
@pytest.mark.parametrize("call", WRONG)
def test_what_torch_refuses(backend, call):
    with pytest.raises((RuntimeError, TypeError)) as theirs:
        call(F)
    with use(backend), pytest.raises(theirs.type) as ours:
        call(PF)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.filterwarnings("ignore::pyflash.ops.core.backends.FallbackWarning")
def test_what_no_kernel_takes_is_torchs_and_counted():
    x = torch.randn(3, 8, 8)
    calls = [
        lambda f: f.max_pool2d(torch.arange(64).view(1, 8, 8), 2),
        lambda f: f.max_pool2d(x, torch.tensor(2)),
        lambda f: f.max_pool1d(x[..., :4], 2, 1, 1, 5),  # a window without an element
    ]
    for call in calls:
        before = backends.counts.copy()
        assert torch.equal(call(PF), call(F))
        assert any(backend == "torch" for _, backend, _ in backends.counts - before)
        with use("cpu"), pytest.raises(NotImplementedError):
            call(PF)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_autocast_as_torchs(n):
    x = torch.randn(2, 3, *(8,) * n)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        with use("cpu"), torch.autocast("cpu", torch.bfloat16):
            ours, theirs = (getattr(f, f"max_pool{n}d")(x.to(dtype), 2) for f in (PF, F))
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_modules(n):
    options = {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True}
    for extra in ({}, {"return_indices": True}, {"dilation": 2}):
        theirs = getattr(torch.nn, f"MaxPool{n}d")(**options, **extra)
        ours, x = getattr(nn, f"MaxPool{n}d")(**options, **extra), torch.randn(2, 3, *(9,) * n)
        assert repr(ours) == repr(theirs) and isinstance(ours, type(theirs))
        replaced = pyflash.replace(torch.nn.Sequential(theirs))[0]
        assert type(replaced) is type(ours)
        expected = getattr(torch.nn, f"MaxPool{n}d")(**options, **extra)(x)
        with use("cpu"):
            for module in (ours, replaced):
                torch.testing.assert_close(module(x), expected, rtol=0, atol=0)


def test_compile_export_and_functorch():
    x = torch.randn(2, 3, 9, 20, requires_grad=True)

    def function(x):
        y, indices = PF.max_pool2d(x, 3, 2, 1, return_indices=True)
        return PF.max_pool2d(y, 2) + indices.sum()

    def results(function):
        y = function(x)
        return y.detach(), torch.autograd.grad(y.square().sum(), x)[0]

    with use("cpu"):
        torch.testing.assert_close(
            results(torch.compile(function, fullgraph=True, backend="aot_eager")), results(function)
        )
        dynamic = torch.compile(lambda x: PF.max_pool2d(x, 3, 2, 1, 1, True), backend="aot_eager", dynamic=True)
        for width in (20, 23, 30):
            y = torch.randn(2, 3, 9, width, requires_grad=True)
            torch.testing.assert_close(dynamic(y), F.max_pool2d(y, 3, 2, 1, 1, True))
        program = torch.export.export(nn.MaxPool2d(3, 2, 1), (x.detach(),))
        assert any("pyflash.max_pool_fwd" in str(node.target) for node in program.graph.nodes)
        torch.testing.assert_close(program.module()(x.detach()), F.max_pool2d(x.detach(), 3, 2, 1))
        torch.testing.assert_close(torch.func.vmap(lambda x: PF.max_pool2d(x, 2))(x), F.max_pool2d(x, 2))
        hessian = torch.func.hessian(lambda x: PF.max_pool1d(x, 2).square().sum())(x[0, 0])
        torch.testing.assert_close(hessian, torch.func.hessian(lambda x: F.max_pool1d(x, 2).square().sum())(x[0, 0]))


def test_only_what_is_needed_is_kept():
    """No indices without a gradient; 32 bits of each where nobody asked for them."""
    x, kinds = torch.randn(2, 3, 8, 8), []

    def pack(tensor):
        kinds.append(tensor.dtype)
        return tensor

    with use("cpu"), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        PF.max_pool2d(x, 2)
        assert kinds == []
        PF.max_pool2d(x.requires_grad_(), 2)
        assert kinds == [torch.int32]
        PF.max_pool2d(x, 2, return_indices=True)
        assert kinds == [torch.int32, torch.int64]
    _, indices = torch.ops.pyflash.max_pool_fwd(torch.randn(2, 3, 7, 9), *PADDED, 0, "cpu")
    assert indices.numel() == 0
