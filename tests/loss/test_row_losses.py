"""Losses of the rows of two or three tensors, cosines and distances, against torch's own."""

import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import FLOAT_DTYPES, assert_error_within, backend_params, run, use

import pyflash.functional as PF
from pyflash import nn
from pyflash.ops.core import backends

BACKENDS = backend_params("cpu", "triton")
every_backend = pytest.mark.parametrize("backend", BACKENDS)
REDUCTIONS = ("mean", "sum", "none")
NAN, INF = float("nan"), float("inf")

CASES = [  # rows, columns, layout, why it is here
    (1, 1, "contiguous", "smallest"),
    (5, 37, "contiguous", "a tail"),
    (3, 5000, "contiguous", "longer than a sum goes on in one type"),
    (700, 48, "contiguous", "several chunks of rows"),
    (6, 50, "sliced", "rows apart"),
    (6, 50, "turned", "columns apart: a copy"),
    (6, 50, "repeated", "one row that stands for all"),
    (0, 4, "contiguous", "no rows"),
    (3, 0, "contiguous", "no columns"),
    (None, 20, "contiguous", "a vector"),
]


def laid_out(x, layout):
    if layout == "sliced":
        return torch.cat([x, x], -1)[..., : x.shape[-1]]
    return x.mT.contiguous().mT if layout == "turned" else x[:1].expand(x.shape) if layout == "repeated" else x


def made(count, rows, columns, layout, dtype):
    """Tensors of which some rows are equal, and some of zeros."""
    shape = (columns,) if rows is None else (rows, columns)
    tensors = [torch.randn(shape).to(dtype) for _ in range(count)]
    if rows is not None:
        tensors[1][1::4] = tensors[0][1::4]
        tensors[0][2::7] = 0
    return [
        laid_out(t, layout if i else "contiguous" if layout == "repeated" else layout) for i, t in enumerate(tensors)
    ]


def targets(rows):
    return torch.tensor(-1.0) if rows is None else torch.tensor([1.0, -1.0, 1.0, 1.0, 0.0])[torch.arange(rows) % 5]


def cosine(functional, target, inputs, **options):
    return functional.cosine_embedding_loss(*inputs, target.to(inputs[0].dtype), **options)


def compare(function, inputs, backend, reduction, term):
    """function: (functional, inputs, reduction) -> a loss."""
    ours, theirs = (lambda *inputs, of=of: function(of, inputs, reduction=reduction) for of in (PF, F))
    dloss = torch.randn_like(theirs(*inputs))
    truth, torchs = run(theirs, inputs, dloss, torch.float64), run(theirs, inputs, dloss)
    found = run(ours, inputs, dloss, backend=backend)
    # torch's sums of float16 are of that type, and overflow where ours do not
    torchs = [a if not b.isfinite().all() or a.isfinite().all() else b.to(a.dtype) for a, b in zip(torchs, truth)]
    assert_error_within(found[:1], torchs[:1], truth[:1], torch.tensor(term, dtype=torch.float64))
    arrives = dloss.double().abs().max() if dloss.numel() else torch.tensor(1.0)
    assert_error_within(found[1:], torchs[1:], truth[1:], (arrives * 2).double(), floor_ulp=8)


@every_backend
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_cosine_embedding_loss_matches_float64(backend, dtype):
    for i, (rows, columns, layout, _why) in enumerate(CASES):
        for j, reduction in enumerate(REDUCTIONS):
            if dtype != torch.float32 and (i + j) % 2:
                continue
            inputs = made(2, rows, columns, layout, dtype)
            # a cosine of 1 has gradients that cancel, and one of rows of zeros huge ones
            inputs = [x + (0.5 + k) for k, x in enumerate(inputs)]
            function = partial(cosine, target=targets(rows), margin=(0.0, 0.3, -0.2)[(i + j) % 3])
            function = partial(lambda f, of, inputs, reduction: f(of, inputs=inputs, reduction=reduction), function)
            compare(function, inputs, backend, reduction, 2.0 * (1 if reduction != "sum" else max(rows or 1, 1)))


TRIPLETS = [{}, {"margin": 0.3, "swap": True}, {"p": 1.0, "margin": 2.5}, {"p": 1, "swap": True, "eps": 0.0}]


@every_backend
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_triplet_margin_loss_matches_float64(backend, dtype):
    for (i, (rows, columns, layout, _why)), options in itertools.product(enumerate(CASES), TRIPLETS):
        for j, reduction in enumerate(REDUCTIONS):
            if (i + j) % (1 if dtype == torch.float32 else 3):
                continue
            inputs = made(3, rows, columns, layout, dtype)

            def function(of, inputs, reduction, options=options):
                return of.triplet_margin_loss(*inputs, reduction=reduction, **options)

            largest = 4.0 * max(columns, 1) * (1 if reduction != "sum" else max(rows or 1, 1))
            compare(function, inputs, backend, reduction, largest)


@every_backend
def test_corners_are_torchs(backend):
    """A margin that is met exactly, equal distances, a distance of 0, NaN and infinity."""
    a = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 2.0], [NAN, 0.0], [INF, 0.0], [0.0, 0.0]])
    p = torch.tensor([[0.0, 1.0], [0.0, 3.0], [1.0, 2.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    n = torch.tensor([[0.0, 2.0], [4.0, 0.0], [1.0, 2.0], [1.0, 0.0], [1.0, 0.0], [2.0, NAN]])
    for options in ({}, {"swap": True}, {"p": 1}, {"p": 1, "swap": True}):
        ours, theirs = (partial(of.triplet_margin_loss, eps=0.0, reduction="none", **options) for of in (PF, F))
        expected = run(theirs, [a, p, n], torch.ones(len(a)))
        for x, y in zip(run(ours, [a, p, n], torch.ones(len(a)), backend=backend), expected):
            torch.testing.assert_close(x, y, equal_nan=True)
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [NAN, 1.0], [3.0, 4.0], [1.0, 0.0]])
    y = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [6.0, 8.0], [-1.0, 0.0]])
    for sign in (1.0, -1.0, 0.0):
        ours, theirs = (
            partial(lambda f, x, y, sign: f(x, y, torch.full((len(x),), sign), reduction="none"), of.cosine_embedding_loss, sign=sign)
            for of in (PF, F)
        )  # fmt: skip
        expected = run(theirs, [x, y], torch.ones(len(x)))
        for found, wanted in zip(run(ours, [x, y], torch.ones(len(x)), backend=backend), expected):
            torch.testing.assert_close(found, wanted, equal_nan=True)


@every_backend
def test_shapes_are_broadcast(backend):
    a, p, n = torch.randn(3, 4, 6), torch.randn(3, 1, 6), torch.randn(1, 4, 6)
    for reduction in REDUCTIONS:
        expected = run(partial(F.triplet_margin_loss, reduction=reduction), [a, p, n], torch.ones(()).expand(3, 4) if reduction == "none" else torch.ones(()))  # fmt: skip
        dloss = torch.ones(3, 4) if reduction == "none" else torch.ones(())
        found = run(partial(PF.triplet_margin_loss, reduction=reduction), [a, p, n], dloss, backend=backend)
        for x, y in zip(found, expected):
            torch.testing.assert_close(x, y)
    x, y = torch.randn(5, 6), torch.randn(1, 6)
    for target in (torch.ones(5), torch.ones(1), torch.tensor([1, -1, 1, -1, 1])):
        ours, theirs = (partial(lambda f, x, y, t: f(x, y, t), of.cosine_embedding_loss, t=target) for of in (PF, F))
        expected = run(theirs, [x, y], torch.ones(()))
        for found, wanted in zip(run(ours, [x, y], torch.ones(()), backend=backend), expected):
            torch.testing.assert_close(found, wanted)


@every_backend
def test_derivatives_of_every_order(backend):
    a, p, n = (torch.randn(4, 5, dtype=torch.float64, requires_grad=True) for _ in range(3))
    target = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    for options, reduction in zip(TRIPLETS, itertools.cycle(REDUCTIONS)):
        options = {**options, "margin": 3.0}
        with use(backend):
            function = partial(PF.triplet_margin_loss, reduction=reduction, **options)
            assert torch.autograd.gradcheck(function, (a, p, n), fast_mode=True)
            assert torch.autograd.gradgradcheck(function, (a, p, n), fast_mode=True)
            function = partial(PF.cosine_embedding_loss, target=target, margin=-1.1, reduction=reduction)
            assert torch.autograd.gradcheck(function, (a, p), fast_mode=True)
            assert torch.autograd.gradgradcheck(function, (a, p), fast_mode=True)


@every_backend
def test_only_what_needs_a_gradient_gets_one(backend):
    tensors = torch.randn(3, 4, 5)
    for needs in itertools.product((True, False), repeat=3):
        if not any(needs):
            continue
        leaves = [v.clone().requires_grad_(need) for v, need in zip(tensors, needs)]
        copies = [v.clone().requires_grad_(need) for v, need in zip(tensors, needs)]
        with use(backend):
            PF.triplet_margin_loss(*leaves, swap=True).backward()
        F.triplet_margin_loss(*copies, swap=True).backward()
        for a, b in zip(leaves, copies):
            assert (a.grad is None) == (b.grad is None)
            if a.grad is not None:
                torch.testing.assert_close(a.grad, b.grad)


@every_backend
def test_autocast_gives_float32(backend):
    a, p, n = torch.randn(3, 4, 6).to(torch.bfloat16)
    for name, tensors in (
        ("triplet_margin_loss", (a, p, n)), ("triplet_margin_loss", (a, p.float(), n)),
        ("cosine_embedding_loss", (a, p, torch.ones(4))),
    ):  # fmt: skip
        leaf = a.clone().requires_grad_()
        with torch.autocast(a.device.type, torch.bfloat16), use(backend):
            loss = getattr(PF, name)(leaf, *tensors[1:])
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, getattr(F, name)(a.float(), *[t.float() for t in tensors[1:]]))
        (grad,) = torch.autograd.grad(loss, leaf)
        assert grad.dtype == torch.bfloat16


@every_backend
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_distances_of_ones_own(backend):
    a, p, n = torch.randn(3, 4, 6)
    for options in (
        {}, {"swap": True}, {"distance_function": lambda x, y: (x - y).abs().amax(-1), "swap": True, "margin": 0.5},
        {"distance_function": torch.nn.PairwiseDistance(3.0), "reduction": "none"},
    ):  # fmt: skip
        before = backends.counts.copy()
        expected = F.triplet_margin_with_distance_loss(a, p, n, **options)
        with use(backend):
            torch.testing.assert_close(PF.triplet_margin_with_distance_loss(a, p, n, **options), expected)
        assert sum((backends.counts - before).values()) == 1


def test_refusals_are_torchs():
    x, one = torch.randn(4, 3), torch.ones(4)
    wrong = [
        ("cosine_embedding_loss", (x, x, torch.ones(4, 3)), {}), ("cosine_embedding_loss", (x, x, torch.tensor(1.0)), {}),
        ("cosine_embedding_loss", (x[0], x, one), {}), ("cosine_embedding_loss", (x, torch.randn(5, 3), one), {}),
        ("cosine_embedding_loss", (x, torch.randn(4, 2), one), {}), ("cosine_embedding_loss", (x, x, torch.ones(5)), {}),
        ("cosine_embedding_loss", (x, x, one), {"reduction": "middle"}), ("cosine_embedding_loss", ([0.5], x, one), {}),
        ("triplet_margin_loss", (x, x, x[0]), {}), ("triplet_margin_loss", (x, x, torch.randn(5, 3)), {}),
        ("triplet_margin_loss", (x, x, x), {"margin": 0.0}), ("triplet_margin_loss", (x, x, x), {"margin": -1.0}),
        ("triplet_margin_loss", (x, x, x), {"reduction": "middle"}), ("triplet_margin_loss", (x, x, None), {}),
        ("triplet_margin_with_distance_loss", (x, x, x), {"margin": 0.0}),
        ("triplet_margin_with_distance_loss", (x, x, x), {"reduction": "middle"}),
        ("triplet_margin_with_distance_loss", (x, x, x[0]), {}),
    ]  # fmt: skip
    for name, arguments, options in wrong:
        with pytest.raises(Exception) as theirs:
            getattr(F, name)(*arguments, **options)
        with use("cpu"), pytest.raises(type(theirs.value)) as ours:
            getattr(PF, name)(*arguments, **options)
        assert type(ours.value) is type(theirs.value), (name, options)


@pytest.mark.filterwarnings("ignore::pyflash.FallbackWarning")
def test_what_no_kernel_serves_is_torchs():
    x, one = torch.randn(4, 3), torch.randn(4, 1)
    for name, arguments, options in (
        ("triplet_margin_loss", (x, x.cos(), x.sin()), {"p": 3.0}), ("triplet_margin_loss", (x, x.cos(), one), {}),
        ("cosine_embedding_loss", (x, one, torch.ones(4)), {}), ("triplet_margin_loss", (x, x.double(), x), {}),
    ):  # fmt: skip
        torch.testing.assert_close(getattr(PF, name)(*arguments, **options), getattr(F, name)(*arguments, **options))
        with use("cpu"), pytest.raises(NotImplementedError, match=name):
            getattr(PF, name)(*arguments, **options)


@pytest.mark.slow
def test_compile_export_and_functorch():
    a, p, n = torch.randn(3, 4, 6)
    target = torch.tensor([1.0, -1.0, 1.0, -1.0])
    functions = {
        "triplet_margin_loss": lambda of, x: of.triplet_margin_loss(x, p, n, swap=True),
        "cosine_embedding_loss": lambda of, x: of.cosine_embedding_loss(x, p, target),
    }
    for function in functions.values():

        def results(function, x=a):
            x = x.clone().requires_grad_()
            loss = function(x)
            return loss.detach(), torch.autograd.grad(loss, x)[0]

        ours, theirs = partial(function, PF), partial(function, F)
        with use("cpu"):
            compiled = torch.compile(lambda x, ours=ours: ours(x), fullgraph=True, backend="aot_eager")
            torch.testing.assert_close(results(compiled), results(theirs))
            hessians = [torch.func.hessian(f)(a) for f in (ours, theirs)]
            torch.testing.assert_close(*hessians)
    module = nn.TripletMarginLoss()
    with use("cpu"):
        program = torch.export.export(module, (a, p, n))
        assert any("pyflash.row_loss_fwd" in str(node.target) for node in program.graph.nodes)
        torch.testing.assert_close(program.module()(a, p, n), module(a, p, n))


MODULES = {
    "CosineEmbeddingLoss": {"margin": 0.2}, "TripletMarginLoss": {"p": 1, "swap": True},
    "TripletMarginWithDistanceLoss": {"distance_function": torch.nn.PairwiseDistance(), "margin": 0.5},
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_modules(name):
    ours, theirs = (getattr(of_torch, name)(**MODULES[name]) for of_torch in (nn, torch.nn))
    tensors = [*torch.randn(2, 4, 3), torch.ones(4) if name.startswith("Cosine") else torch.randn(4, 3)]
    before = backends.counts.copy()
    with use("cpu"):
        found = ours(*tensors)
    assert sum((backends.counts - before).values()) == 1
    torch.testing.assert_close(found, theirs(*tensors))
    assert repr(ours) == repr(theirs) and ours.state_dict().keys() == theirs.state_dict().keys()


def test_the_result_does_not_depend_on_threads():
    tensors = made(3, 900, 100, "contiguous", torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run(partial(PF.triplet_margin_loss, swap=True), tensors, torch.ones(()), backend="cpu"))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))
