"""linear_cross_entropy against torch's linear and cross_entropy, and what it does not keep in memory."""

import itertools
import math
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import FLOAT_DTYPES, SOFTMAX_ULP, assert_error_within, backend_params, needs_values, run, use

import pyflash
import pyflash.functional as PF
from pyflash import nn
from pyflash.ops.core import workspace
from pyflash.ops.core.backends import call_counts
from pyflash.ops.core.registry import OPS, Op
from pyflash.ops.loss.linear_cross_entropy import unfused
from tests.loss.class_scores import laid_out

BACKENDS = backend_params("cpu", "triton")
every_backend = pytest.mark.parametrize("backend", BACKENDS)
is_torchs = hasattr(F, "linear_cross_entropy")
needs_torchs = pytest.mark.skipif(not is_torchs, reason="torch has no linear_cross_entropy before 2.13")

CASES = [  # rows, classes, features, layouts of input and weight, why it is here
    (1, 1, 1, "contiguous", "contiguous", "one class"),
    (5, 7, 3, "contiguous", "contiguous", "smaller than a vector"),
    (37, 130, 33, "contiguous", "contiguous", "tails of every tile"),
    (40, 300, 17, "transposed", "row_strided", "input that is packed, weight with holes"),
    (9, 200, 16, "row_strided", "transposed", "weight whose columns are adjacent"),
]
LARGE = [  # on a CPU alone
    (600, 9000, 5, "contiguous", "contiguous", "five parts of the classes, two blocks of rows"),
    (2200, 4100, 3, "contiguous", "contiguous", "a last part of four classes, three blocks of rows in the backward"),
]
OPTIONS = list(itertools.product((0.0, 0.1), (False, True), (False, True), ("mean", "sum", "none")))


def theirs(input, weight, target, bias=None, class_weight=None, **options):
    """torch's two calls, in any version."""
    options.setdefault("ignore_index", -100)
    return F.cross_entropy(F.linear(input, weight, bias), target, class_weight, **options)


def ours(input, weight, target, bias=None, class_weight=None, **options):
    return PF.linear_cross_entropy(input, weight, target, linear_bias=bias, weight=class_weight, **options)


def targets_of(rows, classes):
    targets = torch.randint(classes, (rows,))
    targets[2::3] = -100
    return targets


def tensors_of(case, dtype, has_bias=False, is_weighted=False):
    rows, classes, features, layout, weight_layout, *_ = case
    x = laid_out(torch.randn(rows, features, dtype=dtype), layout)
    weight = laid_out((torch.randn(classes, features) * 2 / features**0.5).to(dtype), weight_layout)
    bias = torch.randn(classes, dtype=dtype) if has_bias else None
    return x, weight, bias, torch.rand(classes, dtype=dtype) + 0.1 if is_weighted else None


def compare(x, weight, target, bias, class_weight, backend, **options):
    def of(function):
        return lambda x, weight, target, bias, class_weight: function(
            x, weight, target, bias, None if class_weight is None else class_weight.detach(), **options
        )

    inputs = x, weight, target, bias, class_weight
    dloss = torch.randn_like(of(theirs)(*inputs))
    truth = run(of(theirs), inputs, dloss, torch.float64)
    torchs, found = run(of(theirs), inputs, dloss), run(of(ours), inputs, dloss, backend=backend)
    # torch's sums of float16 are of that type, and overflow where ours do not.
    torchs = [t if t is None or t.isfinite().all() else true.to(t.dtype) for t, true in zip(torchs, truth)]
    # A score is a sum whose terms are as large as these, and its error is one of its exponential's exponent.
    terms = [dloss, *(t for t in truth if t is not None), x.abs().max() * weight.abs().max() * dloss.abs().max()]
    assert_error_within(found, torchs, truth, *terms, floor_ulp=8 + SOFTMAX_ULP)


@every_backend
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_matches_float64(backend, dtype):
    if backend == "triton" and dtype == torch.float64:
        pytest.skip("products of float64 are not Triton's")
    for i, case in enumerate(CASES if backend == "triton" else CASES + LARGE):
        few = OPTIONS[i % 7 :: 7]
        for smoothing, has_bias, is_weighted, reduction in OPTIONS if dtype == torch.float32 and i == 2 else few:
            x, weight, bias, class_weight = tensors_of(case, dtype, has_bias, is_weighted)
            options = dict(reduction=reduction, label_smoothing=smoothing)
            compare(x, weight, targets_of(*case[:2]), bias, class_weight, backend, **options)


@every_backend
def test_scores_far_from_zero_and_maxima_that_grow_along_the_classes(backend):
    classes = 9000 if backend != "triton" else 400
    for first, last, of_all in ((-300, 300, 0), (0, 9, 1e4), (300, -300, 0)):
        weight, bias = torch.linspace(first, last, classes)[:, None], torch.full((classes,), float(of_all))
        x, target = torch.tensor([[1.0], [0.5], [1.0]]), torch.tensor([0, classes - 1, -100])
        for smoothing in (0.0, 0.1):
            compare(x, weight, target, bias, None, backend, label_smoothing=smoothing)


@every_backend
def test_nan_and_infinity_as_torchs(backend):
    inf, nan = float("inf"), float("nan")
    for value, smoothing, reduction in itertools.product((nan, inf, -inf), (0.0, 0.1), ("none", "mean")):
        for classes in (9, 5000) if backend != "triton" else (9, 200):
            x, target = torch.ones(3, 1), torch.tensor([0, classes - 1, 4])
            weight = torch.randn(classes, 1)
            weight[4] = value
            options = dict(reduction=reduction, label_smoothing=smoothing)
            dloss = torch.ones(3 if reduction == "none" else ())
            expected = run(partial(theirs, **options), (x, weight, target), dloss)
            found = run(partial(ours, **options), (x, weight, target), dloss, backend=backend)
            torch.testing.assert_close(found[0], expected[0], equal_nan=True)


@every_backend
def test_classes_that_a_bias_rules_out(backend):
    """More than a block of them, before and behind those that count; and all, where torch's gradient of an ignored row is NaN."""
    classes, of_few = (9000, 8200) if backend != "triton" else (400, 300)
    x, weight, target = torch.randn(3, 2), torch.randn(classes, 2), torch.tensor([of_few, of_few, -100])
    for ruled_out in (slice(0, of_few), slice(of_few + 1, None), slice(None)):
        bias = torch.zeros(classes)
        bias[ruled_out] = -math.inf
        expected = run(partial(theirs, reduction="none"), (x, weight, target, bias), torch.ones(3))
        found = run(partial(ours, reduction="none"), (x, weight, target, bias), torch.ones(3), backend=backend)
        for a, b in zip(found[: 1 if ruled_out == slice(None) else None], expected):
            torch.testing.assert_close(a, b, equal_nan=True)


@every_backend
def test_nothing_that_counts(backend):
    x, weight, target = torch.randn(3, 4), torch.randn(5, 4), torch.full((3,), 2)
    for reduction in ("none", "sum", "mean"):
        function = partial(ours, ignore_index=2, reduction=reduction)
        loss, *gradients = run(
            function, (x, weight, target), torch.ones(3 if reduction == "none" else ()), backend=backend
        )
        assert loss.isnan() if reduction == "mean" else not loss.any()
        assert not any(g.any() for g in gradients)


@every_backend
def test_a_target_that_is_no_class(backend):
    needs_values(backend)
    for wrong in (5, -1, -100):
        with use(backend), pytest.raises(IndexError, match=f"Target {wrong} is out of bounds"):
            ours(torch.randn(2, 3), torch.randn(5, 3), torch.tensor([1, wrong]), ignore_index=0)


@every_backend
def test_a_target_that_is_no_class_reads_nothing(backend):
    """The operator itself, as a compiled graph calls it, cannot look at them."""
    x, weight, targets = torch.randn(3, 4), torch.randn(5, 4), torch.tensor([1, 1 << 40, -7])
    options, needs = (-100, 0.0, "mean"), (True, True, False)
    with use(backend):
        fwd, bwd = OPS["linear_cross_entropy_fwd"], OPS["linear_cross_entropy_bwd"]
        loss, *kept, dx, dweight, _ = fwd(x, weight, None, targets, None, *options, x.dtype, *needs, "auto")
        one = fwd(x[:1], weight, None, targets[:1], None, *options, x.dtype, *(False,) * 3, "auto")[0]
        again = bwd(torch.ones(()), x, weight, None, targets, None, *kept, *options, *needs, "auto")
    assert loss == one and not dx[1:].any()
    torch.testing.assert_close(again[:2], (dx, dweight))


@every_backend
def test_second_backward_and_scaled_losses(backend):
    """The gradients that the forward computed are given away once, and scaled in place."""
    case = CASES[2]
    x, weight, bias, _ = (t if t is None else t.requires_grad_() for t in tensors_of(case, torch.float32, True))
    target = targets_of(*case[:2])
    wanted = x, weight, bias
    expected = torch.autograd.grad(theirs(x, weight, target, bias), wanted)
    with use(backend):
        loss = ours(x, weight, target, bias)
        first = torch.autograd.grad(loss, wanted, torch.tensor(3.0), retain_graph=True)
        kept = [g.clone() for g in first]
        second = torch.autograd.grad(loss, wanted, torch.tensor(1.0), retain_graph=True)
        of_weight = torch.autograd.grad(loss, weight)[0]
    for a, b, c, d in zip(first, kept, second, expected):
        assert torch.equal(a, b)
        torch.testing.assert_close((a / 3, c), (d, d))
    torch.testing.assert_close(of_weight, expected[1])


@every_backend
def test_a_change_of_the_weight_before_the_backward_is_refused(backend):
    x, weight = torch.randn(4, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    with use(backend):
        loss = ours(x, weight, torch.tensor([0, 1, 2, 3]))
        with torch.no_grad():
            weight.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize("backend", backend_params("cpu"))
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_derivatives_of_every_order(backend, reduction):
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)
    target, class_weight = torch.tensor([1, -100, 3]), torch.arange(1.0, 5.0).double()

    def loss(x, weight, bias):
        return ours(x, weight, target, bias, class_weight, label_smoothing=0.2, reduction=reduction)

    with use(backend):
        assert torch.autograd.gradcheck(loss, (x, weight, bias))
        assert torch.autograd.gradgradcheck(loss, (x, weight, bias))


def test_second_derivative_of_triton():
    case = CASES[1]
    x, weight, *_ = (t if t is None else t.requires_grad_() for t in tensors_of(case, torch.float32))
    target, found = targets_of(*case[:2]), []
    for function, backend in ((ours, "triton"), (theirs, "torch")):
        with use(backend):
            gradients = torch.autograd.grad(function(x, weight, target), (x, weight), create_graph=True)
            found.append(torch.autograd.grad(sum(g.square().sum() for g in gradients), (x, weight)))
    torch.testing.assert_close(*found)


def bytes_at_once(function) -> int:
    """The most that `function` holds at a time of what it allocates, as torch's allocator reports it."""
    vars(workspace._kept).clear()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    held = most = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert events
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.parametrize("backend", backend_params("cpu")[-1:])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("features", [16, pytest.param(512, marks=pytest.mark.slow)])
def test_memory_of_a_language_model(features, dtype, backend, monkeypatch):
    """Of 4096 tokens and 50257 classes, beyond what is given and returned, less than a tenth of the scores' memory."""
    tokens, classes = 4096, 50257
    x, weight = torch.randn(tokens, features, dtype=dtype), torch.randn(classes, features, dtype=dtype)
    target, kept = torch.randint(classes, (tokens,)), []

    def step():
        loss = ours(x.requires_grad_(), weight.requires_grad_(), target)
        kept.extend([loss, *torch.autograd.grad(loss, (x, weight))])

    monkeypatch.setattr(Op, "paranoid", False)  # whose outputs are made twice
    with use(backend):
        beyond = bytes_at_once(step) - sum(t.nbytes for t in kept)
    assert 0 < beyond < tokens * classes * dtype.itemsize / 10


@every_backend
def test_one_sample_without_a_batch(backend):
    x, weight, target = torch.randn(3), torch.randn(7, 3), torch.tensor(3)
    for reduction in ("none", "mean"):
        with use(backend):
            found = ours(x, weight, target, reduction=reduction)
        expected = theirs(x, weight, target, reduction=reduction)
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected)


@every_backend
def test_autocast(backend):
    x, weight = torch.randn(4, 3, requires_grad=True), torch.randn(9, 3, requires_grad=True)
    target, device = torch.tensor([0, 8, 3, 3]), x.device.type
    found = []
    for function, of in ((ours, backend), (theirs, "torch")):
        with torch.autocast(device, torch.bfloat16), use(of):
            loss = function(x, weight, target)
        found.append((loss, *torch.autograd.grad(loss, (x, weight))))
    assert all(t.dtype == torch.float32 for t in found[0])
    torch.testing.assert_close(*found, rtol=2e-2, atol=2e-2)


@needs_torchs
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_refusals_are_torchs(reduction):
    x, weight, target = torch.randn(4, 3), torch.randn(7, 3), torch.tensor([1, 2, 3, 0])
    wrong = (
        dict(target=target.int()), dict(target=target[:3]), dict(target=target.view(2, 2)), dict(input=x.long()),
        dict(target=target + 5), dict(weight=torch.rand(6)), dict(weight=torch.rand(7).double()), dict(label_smoothing=1.5),
        dict(input=x.double()), dict(linear_weight=weight.half()), dict(linear_weight=weight[:, :2]),
        dict(linear_weight=weight[0]), dict(linear_bias=torch.rand(6)), dict(linear_bias=torch.rand(7).double()),
        dict(input=x[None]), dict(input=x[0, 0]), dict(target=(x @ weight.t()).softmax(1), ignore_index=1),
        dict(target=[1, 2, 3, 0]), dict(reduction="middle"), dict(input=x[0], linear_weight=weight[:, None]),
    )  # fmt: skip
    for change in wrong:
        arguments = {"input": x, "linear_weight": weight, "target": target, "reduction": reduction, **change}
        with pytest.raises(Exception) as expected:
            F.linear_cross_entropy(**arguments)
        said = "out of bounds" if "Target" in str(expected.value) else None
        with use("cpu"), pytest.raises(type(expected.value), match=said) as found:
            PF.linear_cross_entropy(**arguments)
        assert type(found.value) is type(expected.value), change  # and not NotImplementedError, which is a RuntimeError
        if isinstance(expected.value, RuntimeError) and "linear_" in str(expected.value):
            of = {"linear_bias": None, "weight": None, "ignore_index": None, "label_smoothing": 0.0, **arguments}
            with pytest.raises(RuntimeError) as found:
                unfused(**of)
            assert str(found.value) == str(expected.value)


@pytest.mark.filterwarnings("ignore::pyflash.FallbackWarning")
def test_what_no_kernel_serves_is_torchs_and_counted():
    x, weight, target = torch.randn(4, 3), torch.randn(7, 3), torch.tensor([1, 2, 3, 0])
    cases = {
        "target contains probabilities": dict(target=(x @ weight.t()).softmax(1)),
        "linear_weight has 3 dimensions": dict(
            linear_weight=torch.randn(7, 2, 3), linear_bias=torch.randn(7, 2), target=torch.randint(7, (4, 2))
        ),
        "nothing in an empty tensor": dict(input=x[:0], target=target[:0], reduction="sum"),
    }
    for reason, change in cases.items():
        arguments = {"input": x, "linear_weight": weight, "target": target, **change}
        of = {"linear_bias": None, "weight": None, "ignore_index": None, "label_smoothing": 0.0, "reduction": "mean"}
        call_counts(reset=True)
        found = PF.linear_cross_entropy(**arguments)
        torch.testing.assert_close(found, unfused(**{**of, **arguments}))
        if is_torchs:
            torch.testing.assert_close(found, F.linear_cross_entropy(**arguments))
        assert any(key[:2] == ("linear_cross_entropy", "torch") for key in call_counts())
        with use("cpu"), pytest.raises(NotImplementedError, match=reason):
            PF.linear_cross_entropy(**arguments)


def test_without_torchs_function(monkeypatch):
    """As of torch before 2.13."""
    monkeypatch.delattr(F, "linear_cross_entropy", raising=False)
    x, weight, target = torch.randn(4, 3), torch.randn(7, 3), torch.tensor([1, 2, 3, 0])
    with use("torch"):
        torch.testing.assert_close(
            ours(x, weight, target, reduction="none"), theirs(x, weight, target, reduction="none")
        )


@needs_torchs
def test_torchs_options_of_chunks_change_nothing():
    x, weight, target = torch.randn(40, 3), torch.randn(70, 3), torch.randint(70, (40,))
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=8, chunking_method=None)
    with warnings.catch_warnings(), use("cpu"):
        warnings.simplefilter("error")
        assert torch.equal(ours(x, weight, target, options=options), ours(x, weight, target))
    with use("torch"):
        torch.testing.assert_close(ours(x, weight, target, options=options), theirs(x, weight, target))


def test_compile_export_and_functorch():
    x, weight = torch.randn(5, 3, requires_grad=True), torch.randn(7, 3, requires_grad=True)
    target = torch.randint(7, (5,))

    def results(function):
        loss = function(x, weight, target)
        return loss.detach(), *torch.autograd.grad(loss, (x, weight))

    with use("cpu"):
        for options in (dict(label_smoothing=0.1), dict(class_weight=torch.rand(7), reduction="sum")):
            function = partial(ours, **options)
            compiled = torch.compile(
                lambda x, w, t, function=function: function(x, w, t), fullgraph=True, backend="aot_eager"
            )
            torch.testing.assert_close(results(compiled), results(partial(theirs, **options)))
        dynamic = torch.compile(lambda x, w, t: ours(x, w, t), backend="aot_eager", dynamic=True)
        for n in (5, 6, 9):
            y, classes = torch.randn(n, 3), torch.randint(7, (n,))
            torch.testing.assert_close(dynamic(y, weight, classes), theirs(y, weight, classes))
        of_rows = torch.func.vmap(lambda x, t: ours(x, weight, t))(x, target)
        torch.testing.assert_close(of_rows, theirs(x, weight, target, reduction="none"))
        hessian = torch.func.hessian(lambda x: ours(x, weight, target))(x)
        torch.testing.assert_close(hessian, torch.func.hessian(lambda x: theirs(x, weight, target))(x))
        if is_torchs:
            module = nn.LinearCrossEntropyLoss(3, 7, bias=True)
            program = torch.export.export(module, (x.detach(), target))
            assert any("pyflash.linear_cross_entropy_fwd" in str(node.target) for node in program.graph.nodes)
            torch.testing.assert_close(program.module()(x.detach(), target), module(x.detach(), target))


@needs_torchs
@pytest.mark.filterwarnings("ignore::pyflash.FallbackWarning")
@every_backend
def test_the_module(backend):
    x, target = torch.randn(5, 6), torch.randint(7, (5,))
    for options in (
        {},
        {"bias": True, "label_smoothing": 0.3, "weight": torch.rand(7)},
        {"ignore_index": 2, "reduction": "sum"},
    ):
        made = torch.nn.LinearCrossEntropyLoss(6, 7, **options)
        expected, said = made(x, target), repr(made)
        replaced = pyflash.replace(made)
        assert type(replaced) is nn.LinearCrossEntropyLoss and repr(replaced) == said
        with use(backend):
            torch.testing.assert_close(replaced(x, target), expected)
    own = nn.LinearCrossEntropyLoss(6, 7, bias=True)
    assert own.state_dict().keys() == torch.nn.LinearCrossEntropyLoss(6, 7, bias=True).state_dict().keys()
    many = nn.LinearCrossEntropyLoss(6, 7, out_features=(2,))
    assert many(x, torch.randint(7, (5, 2))).shape == ()


@every_backend
def test_the_result_does_not_depend_on_threads(backend):
    rows, classes = (700, 5000) if backend != "triton" else (40, 70)
    x, weight, target = torch.randn(rows, 9), torch.randn(classes, 9), targets_of(rows, classes)
    for reduction in ("mean", "none"):
        found = []
        for threads in (1, 3):
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            dloss = torch.ones(rows if reduction == "none" else ())
            try:
                found.append(run(partial(ours, reduction=reduction), (x, weight, target), dloss, backend=backend))
            finally:
                torch.set_num_threads(before)
        assert all(torch.equal(a, b) for a, b in zip(*found))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_flops_are_counted(dtype):
    from torch.utils.flop_counter import FlopCounterMode

    x, weight = torch.randn(5, 3, dtype=dtype, requires_grad=True), torch.randn(7, 3, dtype=dtype, requires_grad=True)
    with use("cpu"), FlopCounterMode(display=False) as counter:
        ours(x, weight, torch.tensor([0, 1, 2, 3, 4])).backward()
    products = 3 if dtype == torch.float32 else 4  # of a half type the backward computes the scores again
    assert counter.get_total_flops() == products * 2 * math.prod((5, 3, 7))
