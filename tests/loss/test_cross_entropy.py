"""Cross entropy against torch's own, of classes and of probabilities."""

import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import FLOAT_DTYPES, SOFTMAX_ULP, assert_error_within, backend_params, needs_values, run, use

import pyflash.functional as PF
from pyflash import nn
from pyflash.ops.core.registry import OPS
from tests.loss.class_scores import laid_out, targets_of

BACKENDS = backend_params("cpu", "triton")
every_backend = pytest.mark.parametrize("backend", BACKENDS)

CASES = [  # shape, layout, why it is here
    ((1, 1), "contiguous", "one class"),
    ((5, 3), "contiguous", "smaller than a vector"),
    ((3, 37), "contiguous", "odd width: tail of a vector"),
    ((3, 1500), "contiguous", "longer than a chunk"),
    ((1700, 10), "contiguous", "several chunks of rows"),
    ((7, 96), "row_strided", "stride is not the width"),
    ((8, 40), "transposed", "scores not adjacent: a copy"),
    ((2, 21, 9, 16), "contiguous", "columns: classes of an image, blocks and a tail"),
    ((2, 21, 4, 16), "channels_last", "classes that are adjacent"),
    ((3, 5, 70), "contiguous", "more columns than a chunk"),
    ((2, 1100, 20), "contiguous", "longer columns than a chunk"),
    ((2, 7, 1), "contiguous", "columns of one"),
]
OPTIONS = list(itertools.product((0.0, 0.1), (False, True), ("mean", "sum", "none")))


def compare(x, target, weight, backend, **options):
    def of(functional):
        def loss(x, target, weight):
            return functional.cross_entropy(x, target, None if weight is None else weight.detach(), **options)

        return loss

    theirs, inputs = of(F), (x, target, weight)
    dloss = torch.randn_like(theirs(*inputs))
    truth = run(theirs, inputs, dloss, torch.float64)
    torchs, ours = run(theirs, inputs, dloss), run(of(PF), inputs, dloss, backend=backend)
    # torch's sums of float16 are of that type, and overflow where ours do not.
    torchs = [t if t is None or t.isfinite().all() else true.to(t.dtype) for t, true in zip(torchs, truth)]
    # A probability is weighed by x and by the logarithm, which cancel; the classes' sum up to a row.
    terms = [dloss, x.detach().double(), *(t for t in truth if t is not None)]
    assert_error_within(ours, torchs, truth, *terms, floor_ulp=8 + SOFTMAX_ULP)


@every_backend
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_classes(backend, dtype):
    for i, (shape, layout, _why) in enumerate(CASES):
        for smoothing, weighted, reduction in OPTIONS if dtype == torch.float32 and i % 4 == 1 else OPTIONS[i % 5 :: 5]:
            x = laid_out(torch.randn(shape, dtype=dtype) * 3, layout)
            weight = torch.rand(shape[1], dtype=dtype) + 0.1 if weighted else None
            compare(x, targets_of(x), weight, backend, reduction=reduction, label_smoothing=smoothing)


@every_backend
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_probabilities(backend, dtype):
    for i, (shape, layout, _why) in enumerate(CASES):
        for smoothing, weighted, reduction in OPTIONS if dtype == torch.float32 and i % 4 == 1 else OPTIONS[i % 5 :: 5]:
            x = laid_out(torch.randn(shape, dtype=dtype) * 3, layout)
            weight = torch.rand(shape[1], dtype=dtype) + 0.1 if weighted else None
            target = torch.randn(shape, dtype=dtype).softmax(1)
            compare(x, target, weight, backend, reduction=reduction, label_smoothing=smoothing)


@every_backend
def test_scores_far_from_zero_and_maxima_that_grow_along_a_row(backend):
    for first, last in ((-300, 300), (1e4, 1e4 + 9), (300, -300)):
        x = torch.linspace(first, last, 2300) + torch.randn(2, 2300)
        x = x[:, ::30].clone() if backend == "triton" else x
        for scores in (x, x.t().contiguous().unsqueeze(0).expand(2, -1, -1)):
            compare(scores, targets_of(scores), None, backend, label_smoothing=0.1)
            compare(scores, torch.full(scores.shape, 1 / scores.shape[1]), None, backend)


@every_backend
@pytest.mark.parametrize("shape", [(4, 9), (2, 9, 5)], ids=str)
def test_nan_and_infinity_as_torchs(backend, shape):
    inf, nan = float("inf"), float("nan")
    for values in ((nan,), (inf,), (-inf,), (inf, inf), (inf, -inf, nan), (-inf,) * 9):
        for smoothing in (0.0, 0.1):
            x = torch.randn(shape)
            x[0].view(9, -1)[: len(values), 0] = torch.tensor(values)
            target = torch.zeros(shape[0], *shape[2:], dtype=torch.int64)
            for reduction in ("none", "mean"):
                options = dict(target=target, reduction=reduction, label_smoothing=smoothing)
                dloss = torch.ones(target.shape if reduction == "none" else ())
                theirs = run(partial(F.cross_entropy, **options), [x], dloss)
                ours = run(partial(PF.cross_entropy, **options), [x], dloss, backend=backend)
                for a, b in zip(ours, theirs):
                    torch.testing.assert_close(a, b, equal_nan=True)


@every_backend
def test_nothing_that_counts(backend):
    x = torch.randn(3, 5)
    target = torch.full((3,), 2)
    for reduction in ("none", "sum", "mean"):
        function = partial(PF.cross_entropy, target=target, ignore_index=2, reduction=reduction)
        loss, dx = run(function, [x], torch.ones(3 if reduction == "none" else ()), backend=backend)
        assert loss.isnan() if reduction == "mean" else not loss.any()
        assert not dx.any()


@every_backend
def test_a_target_that_is_no_class(backend):
    needs_values(backend)
    for wrong in (5, -1, -100):
        with use(backend), pytest.raises(IndexError, match=f"Target {wrong} is out of bounds"):
            PF.cross_entropy(torch.randn(2, 5), torch.tensor([1, wrong]), ignore_index=0)


@every_backend
def test_a_target_that_is_no_class_reads_nothing(backend):
    """The operator itself, as a compiled graph calls it, cannot look at them."""
    x, targets = torch.randn(3, 5), torch.tensor([1, 1 << 40, -7])
    with use(backend):
        loss, *kept = OPS["cross_entropy_fwd"](x, targets, None, None, -100, 0.0, "mean", x.dtype, "auto")
        one = OPS["cross_entropy_fwd"](x[:1], targets[:1], None, None, -100, 0.0, "mean", x.dtype, "auto")[0]
        options = -100, 0.0, "mean", True, False, "auto"
        dx, _ = OPS["cross_entropy_bwd"](torch.ones(()), x, targets, None, None, *kept, *options)
    assert loss == one and not dx[1:].any()


@every_backend
@pytest.mark.parametrize("of", ["classes", "probabilities"])
def test_derivatives_of_every_order(backend, of):
    x = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    target = torch.randn(3, 4, 2, dtype=torch.float64).softmax(1).requires_grad_()
    target = target if of == "probabilities" else torch.randint(4, (3, 2))

    def loss(x, target):
        return PF.cross_entropy(x, target, torch.arange(1.0, 5.0).double(), label_smoothing=0.2)

    with use(backend):
        assert torch.autograd.gradcheck(loss, (x, target))
        assert torch.autograd.gradgradcheck(loss, (x, target))


@every_backend
def test_one_sample_without_a_batch(backend):
    x, target = torch.randn(7), torch.tensor(3)
    for reduction in ("none", "mean"):
        with use(backend):
            ours = PF.cross_entropy(x, target, reduction=reduction)
        theirs = F.cross_entropy(x, target, reduction=reduction)
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs)


@every_backend
def test_autocast_gives_float32_of_scores_that_are_not_copied(backend):
    x, target = torch.randn(4, 9, dtype=torch.bfloat16), torch.tensor([0, 8, 3, 3])
    device = x.device.type
    with torch.autocast(device, torch.bfloat16), use(backend):
        ours = PF.cross_entropy(x, target, reduction="none")
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, F.cross_entropy(x.float(), target, reduction="none"))


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_refusals_are_torchs(reduction):
    x, target = torch.randn(4, 7), torch.tensor([1, 2, 3, 0])
    wrong = (
        dict(target=target.int()), dict(target=target[:3]), dict(target=target.view(2, 2)), dict(input=x.long()),
        dict(target=target + 5), dict(weight=torch.rand(6)), dict(weight=torch.rand(7).double()), dict(label_smoothing=1.5),
        dict(input=x.double(), weight=torch.rand(7)), dict(input=x.half(), weight=torch.rand(7)),
        dict(target=x.softmax(1), ignore_index=1), dict(target=x[:2]), dict(target=[1, 2, 3, 0]), dict(reduction="middle"),
    )  # fmt: skip
    for arguments in wrong:
        arguments = {"input": x, "target": target, "reduction": reduction, **arguments}
        with pytest.raises(Exception) as theirs:
            F.cross_entropy(**arguments)
        said = "out of bounds" if "Target" in str(theirs.value) else None
        with use("cpu"), pytest.raises(type(theirs.value), match=said) as ours:
            PF.cross_entropy(**arguments)
        assert type(ours.value) is type(theirs.value)  # and not NotImplementedError, which is a RuntimeError


@pytest.mark.filterwarnings("ignore::pyflash.FallbackWarning")
def test_what_no_kernel_serves_is_torchs():
    x, target = torch.randn(4, 7), torch.tensor([1, 2, 3, 0])
    cases = (
        dict(target=x.softmax(1).double()), dict(weight=torch.rand(7, requires_grad=True)),
        dict(input=torch.randn(0, 7), target=target[:0]),
    )  # fmt: skip
    for case in cases:
        case = {"input": x, "target": target, **case}
        if case["target"].is_floating_point() or case["input"].numel() == 0:
            torch.testing.assert_close(PF.cross_entropy(**case), F.cross_entropy(**case), equal_nan=True)
        with use("cpu"), pytest.raises(NotImplementedError, match="cross_entropy"):
            PF.cross_entropy(**case)


def test_compile_export_and_functorch():
    x, target = torch.randn(5, 7, requires_grad=True), torch.randint(7, (5,))

    def results(function):
        loss = function(x, target)
        return loss.detach(), torch.autograd.grad(loss, x)[0]

    with use("cpu"):
        for options in (dict(label_smoothing=0.1), dict(weight=torch.rand(7), reduction="sum")):
            function = partial(PF.cross_entropy, **options)
            compiled = torch.compile(
                lambda x, t, function=function: function(x, t), fullgraph=True, backend="aot_eager"
            )
            torch.testing.assert_close(results(compiled), results(partial(F.cross_entropy, **options)))
        dynamic = torch.compile(lambda x, t: PF.cross_entropy(x, t), backend="aot_eager", dynamic=True)
        for n in (5, 6, 9):
            y, classes = torch.randn(n, 7), torch.randint(7, (n,))
            torch.testing.assert_close(dynamic(y, classes), F.cross_entropy(y, classes))
        program = torch.export.export(nn.CrossEntropyLoss(), (x.detach(), target))
        assert any("pyflash.cross_entropy_fwd" in str(node.target) for node in program.graph.nodes)
        torch.testing.assert_close(program.module()(x.detach(), target), F.cross_entropy(x.detach(), target))
        of_rows = torch.func.vmap(lambda x, t: PF.cross_entropy(x, t))(x, target)
        torch.testing.assert_close(of_rows, F.cross_entropy(x, target, reduction="none"))
        hessian = torch.func.hessian(lambda x: PF.cross_entropy(x, target))(x)
        torch.testing.assert_close(hessian, torch.func.hessian(lambda x: F.cross_entropy(x, target))(x))


@every_backend
def test_the_module(backend):
    x, target = torch.randn(5, 6, 3, 2), torch.randint(6, (5, 3, 2))
    for options in ({}, {"label_smoothing": 0.3, "weight": torch.rand(6)}, {"ignore_index": 2, "reduction": "sum"}):
        ours, theirs = nn.CrossEntropyLoss(**options), torch.nn.CrossEntropyLoss(**options)
        with use(backend):
            found = ours(x, target)
        torch.testing.assert_close(found, theirs(x, target))
        assert repr(ours) == repr(theirs) and ours.state_dict().keys() == theirs.state_dict().keys()


@every_backend
def test_the_result_does_not_depend_on_threads(backend):
    x = torch.randn(300, 700) if backend != "triton" else torch.randn(30, 70)
    found = []
    for threads in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            found.append(
                run(PF.cross_entropy, [x, targets_of(torch.zeros(len(x), 1))], torch.ones(()), backend=backend)
            )
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found))
