"""Max unpooling against torch's own: values are moved, so all is the same to the bit; and what torch leaves open."""

import pytest
import torch
import torch.nn.functional as F
from helpers import DEVICE, FLOAT_DTYPES, backend_params, by_cpu, needs_values, on_its_device, run, use

import pyflash
import pyflash.functional as PF
import pyflash.nn as nn
from pyflash.ops.core import backends
from tests.pool.pools import FORMATS, laid_out, of_rank

BACKENDS = backend_params("cpu", "triton")

CASES = [  # shape that is pooled, (kernel, stride, padding) of both, output size, layout, why it is here
    ((2, 3, 18, 70), (2, 2, 0), None, "contiguous", "windows that do not overlap"),
    ((2, 3, 9, 37), (2, None, 0), (9, 37), "contiguous", "a row and a column in no window"),
    ((2, 3, 19, 33), (3, 2, 1), (2, 3, 19, 33), "contiguous", "windows overlap: equal indices, of equal values"),
    ((1, 2, 8, 26), ((2, 3), (2, 3), 0), (8, 26), "contiguous", "height and width differ"),
    ((1, 1, 90, 90), (2, 2, 0), None, "contiguous", "one plane, several runs of indices"),
    ((2, 5, 8, 12), (2, 2, 0), None, "channels_last", "fewer channels than a line of memory"),
    ((1, 83, 8, 6), (2, 2, 0), None, "channels_last", "one image, whose channels threads share"),
    ((2, 70, 2, 2), (2, 2, 0), None, "channels_last", "pixels that are alone in their plane"),
    ((1, 600, 4, 4), (2, 2, 0), None, "channels_last", "more channels than a run has indices"),
    ((2, 5, 8, 12), (2, 2, 0), None, "transposed", "a copy"),
    ((2, 5, 8, 12), (2, 2, 0), None, "sliced", "a copy that is channels_last"),
    ((2, 3, 100), (3, 3, 0), (100,), "contiguous", "one dimension"),
    ((1, 2, 4, 8, 30), (2, 2, 0), None, "contiguous", "three dimensions"),
    ((1, 5, 4, 6, 6), ((2, 3, 1), (2, 3, 1), 0), None, "channels_last", "three, all different"),
    ((0, 3, 8, 8), (2, 2, 0), None, "contiguous", "empty batch"),
]


def pooled(shape, args, layout, dtype):
    """(what was pooled, its indices), laid out as said: not as torch's pooling lays them out."""
    x = laid_out(shape, layout, dtype)
    y, indices = of_rank(F, "max_pool{}d", shape)(x.float(), *args, return_indices=True)
    y = torch.gather(x.flatten(2), 2, indices.flatten(2)).view(y.shape)
    if layout == "channels_last":
        return (t.contiguous(memory_format=FORMATS[len(shape)]) for t in (y, indices))
    if layout == "transposed":
        return y.mT.contiguous().mT, indices
    if layout == "sliced":
        both = torch.cat([y, y], 1).contiguous(memory_format=FORMATS[len(shape)])
        return both[:, : shape[1]], indices
    return y, indices


def cases_for(backend, dtype):
    return CASES[FLOAT_DTYPES.index(dtype) :: len(FLOAT_DTYPES)] if backend == "triton" else CASES


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_is_torchs(backend, dtype):
    for shape, args, size, layout, why in cases_for(backend, dtype):
        x, indices = pooled(shape, args, layout, dtype)
        x.flatten()[:1] = float("nan")
        ours, theirs = (of_rank(f, "max_unpool{}d", shape) for f in (PF, F))
        theirs = by_cpu(theirs)
        expected = theirs(x, indices, *args, size)
        dy = torch.randn_like(expected)
        for a, b in zip(
            run(ours, [x, indices, *args, size], dy, backend=backend), run(theirs, [x, indices, *args, size], dy)
        ):
            assert torch.equal(a.nan_to_num(7), b.nan_to_num(7)) and a.dtype == b.dtype, why
        with use(backend):
            y = ours(x, indices, *args, output_size=size)
        if len(shape) == 5 and layout == "channels_last":
            assert y.is_contiguous(memory_format=torch.channels_last_3d)
        elif layout in ("contiguous", "channels_last") and y.numel():
            assert y.stride() == expected.stride(), why


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_of_equal_indices_the_last_one_stays(backend, layout):
    x, indices = torch.randn(2, 37, 6, 30), torch.randint(300, (2, 37, 6, 30))
    truth, flat = torch.zeros(2, 37, 12 * 60), indices.flatten(2)
    for place in range(180):
        truth.scatter_(2, flat[..., place : place + 1], x.flatten(2)[..., place : place + 1])
    if layout == "channels_last":
        x, indices = (t.contiguous(memory_format=torch.channels_last) for t in (x, indices))
    dy = torch.randn(2, 37, 12, 60)
    y, dx = run(PF.max_unpool2d, [x, indices, 2], dy, backend=backend)
    assert torch.equal(y.flatten(2), truth)
    assert torch.equal(dx.flatten(2), dy.flatten(2).gather(2, flat))  # of those that were overwritten too, as torch


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("index", [-1, 64, 1 << 40, -(1 << 62)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_an_index_out_of_range(backend, index, layout):
    needs_values(backend)
    for shape in ((2, 3, 64), (2, 3, 8, 8), (2, 3, 4, 4, 4)):
        x = torch.randn(shape)
        args = [1]
        indices = torch.arange(64).expand(2, 3, 64).reshape(shape).clone()
        indices[1, 2].flatten()[37] = index
        if layout == "channels_last" and len(shape) == 4:
            x, indices = (t.contiguous(memory_format=torch.channels_last) for t in (x, indices))
        with pytest.raises(RuntimeError) as theirs:
            of_rank(F, "max_unpool{}d", shape)(x, indices, *args)
        with use(backend), pytest.raises(RuntimeError) as ours:
            of_rank(PF, "max_unpool{}d", shape)(x, indices, *args)
        assert str(theirs.value) in str(ours.value)
        if backend != "triton":  # nor does the gradient follow one
            with use(backend), pytest.raises(RuntimeError, match="invalid max index"):
                torch.ops.pyflash.max_unpool_bwd(x.contiguous(), indices.contiguous(), len(shape) - 2, False, "cpu")


def test_a_gpu_passes_over_indices_out_of_range():
    if backends.MISSING["triton"]:
        pytest.skip(backends.MISSING["triton"])
    x, indices = torch.randn(1, 1, 4), torch.tensor([[[3, -1, 0, 1 << 40]]])
    y = torch.ops.pyflash.max_unpool_fwd(x, indices, [4], False, "triton")
    assert torch.equal(y, torch.stack([x[..., 2], x[..., 0] * 0, x[..., 0] * 0, x[..., 0]], -1))
    dx = torch.ops.pyflash.max_unpool_bwd(x, indices, 1, False, "triton")
    assert torch.equal(dx, torch.stack([x[..., 3], x[..., 0] * 0, x[..., 0], x[..., 0] * 0], -1))


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_gradients_of_gradients(backend):
    for shape, args, size, layout, why in CASES[:: 5 if backend == "triton" else 1]:
        if shape[0] == 0 or torch.Size(shape).numel() > 1000 or "equal indices" in why:
            continue
        x, indices = pooled(shape, args, layout, torch.float64)
        unpool, x = of_rank(PF, "max_unpool{}d", shape), x.requires_grad_()
        for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
            with use(backend):
                assert check(lambda x, f=unpool, i=indices, a=args, s=size: f(x, i, *a, s), (x,), fast_mode=True), why
    x, indices = torch.randn(2, 3, dtype=torch.float64, requires_grad=True), torch.tensor([[1, 1, 0], [2, 0, 2]])

    dy = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)

    def second(f):  # equal indices: what goes back to their place is added up
        (dx,) = torch.autograd.grad(f.max_unpool1d(x, indices, 2, 1), x, dy, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), dy)[0]

    with use(backend):
        torch.testing.assert_close(second(PF), second(F), rtol=0, atol=0)


def test_results_do_not_depend_on_threads():
    for shape in ((4, 64, 28, 28), (1, 128, 28, 28)):
        x, indices = torch.randn(shape), torch.randint(56 * 56, shape)
        dy = torch.randn(*shape[:2], 56, 56)
        threads, results = torch.get_num_threads(), []
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                for layout in (torch.contiguous_format, torch.channels_last):
                    results.append(
                        run(PF.max_unpool2d, [x.contiguous(memory_format=layout), indices, 2], dy, backend="cpu")
                    )
        finally:
            torch.set_num_threads(threads)
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other))


X, I = F.max_pool2d(torch.randn(2, 3, 8, 8), 2, return_indices=True)
X1, I1 = F.max_pool1d(torch.randn(2, 3, 8), 2, return_indices=True)
X3, I3 = F.max_pool3d(torch.randn(2, 3, 8, 8, 8), 2, return_indices=True)
INPUTS = X, I, X1, I1, X3, I3


@pytest.mark.parametrize("backend", BACKENDS)
def test_unbatched_and_arguments_in_every_form(backend):
    X, I, X1, I1, X3, I3 = map(on_its_device, INPUTS)
    forms = [
        lambda f: f.max_unpool2d(X[0], I[0], 2), lambda f: f.max_unpool2d(X, I, [2, 2], (2, 2), [0, 0], [9, 8]),
        lambda f: f.max_unpool2d(X, I, 2, output_size=torch.Size((2, 3, 9, 9))), lambda f: f.max_unpool2d(X[:, :, ::2], I[:, :, ::2], 2, (4, 2)),
        lambda f: f.max_unpool1d(X1[0], I1[0], (2,)), lambda f: f.max_unpool1d(X1, I1, 2, output_size=[9]),
        lambda f: f.max_unpool3d(X3[0], I3[0], 2, 2), lambda f: f.max_unpool2d(X, I.contiguous(memory_format=torch.channels_last), 2),
    ]  # fmt: skip
    for form in forms:
        expected = form(F)
        with use(backend):
            y = form(PF)
        assert torch.equal(y, expected)
        assert y.stride() == expected.stride() or DEVICE != "cpu"  # torch's are contiguous there


WRONG = [  # calls that torch refuses
    lambda f: f.max_unpool2d(X, I.int(), 2), lambda f: f.max_unpool2d(X, I[:1], 2), lambda f: f.max_unpool2d(X, None, 2),
    lambda f: f.max_unpool2d(None, I, 2), lambda f: f.max_unpool2d(X[0, 0], I[0, 0], 2),
    lambda f: f.max_unpool2d(X[:, :0], I[:, :0], 2), lambda f: f.max_unpool2d(X, I, (2,)), lambda f: f.max_unpool2d(X, I, (2, 2, 2)),
    lambda f: f.max_unpool2d(X, I, 2.0), lambda f: f.max_unpool2d(X, I, 2, -1), lambda f: f.max_unpool2d(X, I, 2, []),
    lambda f: f.max_unpool2d(X, I, 2, output_size=9), lambda f: f.max_unpool2d(X, I, 2, output_size=(9,)),
    lambda f: f.max_unpool2d(X, I, 2, output_size=(10, 8)), lambda f: f.max_unpool2d(X, I, 2, output_size=(6, 8)),
    lambda f: f.max_unpool2d(X, I, 2, output_size="ab"), lambda f: f.max_unpool2d(X, I, 2, 2, 9),
    lambda f: f.max_unpool1d(X1, I1, 2, 0), lambda f: f.max_unpool1d(X1[0, 0], I1[0, 0], 2), lambda f: f.max_unpool1d(X1, None, 2),
    lambda f: f.max_unpool3d(X3, I3, 2, 0), lambda f: f.max_unpool3d(X3, I3.int(), 2), lambda f: f.max_unpool3d(X[0], I[0], 2),
]  # fmt: skip


@pytest.mark.parametrize("backend", ["auto", "cpu", "torch"])
def test_what_torch_refuses(backend):
    for number, call in enumerate(WRONG):
        with pytest.raises((RuntimeError, TypeError, ValueError, IndexError, AttributeError)) as theirs:
            call(F)
        with use(backend), pytest.raises(theirs.type) as ours:
            call(PF)
        assert str(theirs.value) in str(ours.value), number


@pytest.mark.parametrize("n", [1, 2, 3])
def test_autocast_as_torchs(n):
    x, indices = {1: (X1, I1), 2: (X, I), 3: (X3, I3)}[n]
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        with use("cpu"), torch.autocast("cpu", torch.bfloat16):
            ours, theirs = (getattr(f, f"max_unpool{n}d")(x.to(dtype), indices, 2) for f in (PF, F))
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_modules(n):
    x, indices = {1: (X1, I1), 2: (X, I), 3: (X3, I3)}[n]
    for options in ({"kernel_size": 2}, {"kernel_size": 3, "stride": 2, "padding": 1}):
        theirs = getattr(torch.nn, f"MaxUnpool{n}d")(**options)
        ours, size = getattr(nn, f"MaxUnpool{n}d")(**options), (2, 3, *(8,) * n)
        assert repr(ours) == repr(theirs) and isinstance(ours, type(theirs))
        expected = theirs(x, indices, output_size=size)
        model = torch.nn.ModuleList([theirs])
        pyflash.replace(model)
        assert type(model[0]) is type(ours)
        with use("cpu"):
            before = backends.counts.copy()
            for module in (ours, model[0]):
                assert torch.equal(module(x, indices, output_size=size), expected)
            assert (backends.counts - before)[f"max_unpool{n}d", "cpu", ""] == 2


def test_compile_export_and_functorch():
    x = torch.randn(2, 3, 8, 20, requires_grad=True)

    def function(x):
        return PF.max_unpool2d(*PF.max_pool2d(x, 2, return_indices=True), 2, output_size=x.shape)

    def results(function):
        y = function(x)
        return y.detach(), torch.autograd.grad(y.square().sum(), x)[0]

    with use("cpu"):
        torch.testing.assert_close(
            results(torch.compile(function, fullgraph=True, backend="aot_eager")), results(function)
        )
        dynamic = torch.compile(function, backend="aot_eager", dynamic=True)
        for width in (20, 23, 30):
            y = torch.randn(2, 3, 9, width, requires_grad=True)
            torch.testing.assert_close(dynamic(y), function(y))
        program = torch.export.export(nn.MaxUnpool2d(2), (X, I))
        assert any("pyflash.max_unpool_fwd" in str(node.target) for node in program.graph.nodes)
        torch.testing.assert_close(program.module()(X, I), F.max_unpool2d(X, I, 2))
        torch.testing.assert_close(
            torch.func.vmap(lambda x, i: PF.max_unpool2d(x, i, 2))(X, I), F.max_unpool2d(X, I, 2)
        )
        hessian, expected = (
            torch.func.hessian(lambda x, f=f: f.max_unpool1d(x, I1[0], 2).square().sum())(X1[0]) for f in (PF, F)
        )
        torch.testing.assert_close(hessian, expected)
