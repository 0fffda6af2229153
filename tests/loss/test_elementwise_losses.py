"""Losses of an input and a target, element by element, against torch's own."""

import itertools
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import FLOAT_DTYPES, assert_error_within, backend_params, needs_values, run, use

import pyflash.functional as PF
from pyflash import nn
from pyflash.kernels.periods import period_of
from pyflash.ops.core import backends

BACKENDS = backend_params("cpu", "triton")
every_backend = pytest.mark.parametrize("backend", BACKENDS)
pytestmark = pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")  # kl_div's, which has a test of its own
INF, NAN = float("inf"), float("nan")
CHUNK = 16384


def numbers(shape):
    """Of which some are as in the other tensor, and some a difference of 1 apart, where a loss has its corner."""
    x = torch.randn(shape) * 2
    x.view(-1)[::5] = 1.0
    x.view(-1)[1::7] = 2.0
    return x


def probabilities(shape):
    p = torch.rand(shape)
    p.view(-1)[::6] = 0.0
    p.view(-1)[1::8] = 1.0
    return p


def rows(shape):
    return torch.randn(shape if shape else (1,)).softmax(-1).view(shape)


def counts(shape):
    return torch.rand(shape).mul(5).floor()


def signs(shape):
    return torch.randn(shape).sign()


FUNCTIONS = {  # name -> keywords, and what makes an input and a target
    "mse_loss": ([{}], numbers, numbers),
    "l1_loss": ([{}], numbers, numbers),
    "smooth_l1_loss": ([{}, {"beta": 0.3}, {"beta": 0.0}], numbers, numbers),
    "huber_loss": ([{}, {"delta": 0.3}], numbers, numbers),
    "binary_cross_entropy": ([{}], lambda shape: torch.rand(shape) * 0.9 + 0.05, probabilities),
    "binary_cross_entropy_with_logits": ([{}], lambda shape: torch.randn(shape) * 3, probabilities),
    "kl_div": ([{}], lambda shape: rows(shape).log(), lambda shape: rows(shape) + 0.01),
    "kl_div of logarithms": ([{"log_target": True}], lambda shape: rows(shape).log(), lambda shape: rows(shape).log()),
    "poisson_nll_loss": ([{}], torch.randn, counts),
    "poisson_nll_loss of rates": ([{"log_input": False}, {"log_input": False, "eps": 0.1}], probabilities, counts),
    "poisson_nll_loss in full": ([{"full": True}], torch.randn, counts),
    "poisson_nll_loss of rates in full": ([{"full": True, "log_input": False, "eps": 0.1}], probabilities, counts),
    "soft_margin_loss": ([{}], lambda shape: torch.randn(shape) * 3, signs),
    "margin_ranking_loss": ([{"margin": 1.0}, {}, {"margin": -0.3}], numbers, numbers),
    "hinge_embedding_loss": ([{}, {"margin": 0.3}], numbers, signs),
}
WITHOUT_GRADIENT = "soft_margin_loss", "hinge_embedding_loss"  # of the target
CASES = [  # shape, layout, why it is here
    ((), "contiguous", "a number"),
    ((3,), "contiguous", "smaller than a vector"),
    ((5, 37), "contiguous", "a tail"),
    ((3, 1100), "contiguous", "longer than a block"),
    ((CHUNK + 100, 2), "contiguous", "several chunks of a sum"),
    ((2, 3, 5, 4), "channels_last", "dense, in another order"),
    ((2, 3, 5, 4), "mixed", "two orders: a copy"),
    ((6, 50), "sliced", "copies"),
    ((0, 4), "contiguous", "nothing"),
]
REDUCTIONS = ("mean", "sum", "none")


def of(functional, name, **options):
    function = partial(getattr(functional, name.split()[0]), **options)
    if name == "margin_ranking_loss":  # of two tensors, and of which is to rank higher
        return lambda x, t: function(x, t, (1 - 2 * (torch.arange(x.numel()) % 3 % 2)).view(x.shape).to(x.dtype))
    return function


def laid_out(x, layout, is_target):
    if layout == "channels_last" or (layout == "mixed" and is_target):
        return x.contiguous(memory_format=torch.channels_last)
    return torch.cat([x, x], -1)[..., : x.shape[-1]] if layout == "sliced" else x


def made(name, shape, layout="contiguous", dtype=torch.float32):
    _, *make = FUNCTIONS[name]
    return [laid_out(f(shape).to(dtype), layout, i == 1) for i, f in enumerate(make)]


def weighted_l1_loss(x, t, reduction, weight):
    """torch's own forgets the weight where a torch function mode is on, as a default device is."""
    losses = (x - t).abs() * weight
    return losses if reduction == "none" else losses.sum() / (weight.sum() if reduction == "mean" else 1)


def compare(name, x, t, backend, reduction, divisor=None, **options):
    ours, theirs = (of(functional, name, reduction=reduction, **options) for functional in (PF, F))
    if name == "l1_loss" and "weight" in options:
        theirs = partial(weighted_l1_loss, reduction=reduction, **options)
    inputs = [x, t]
    if name in WITHOUT_GRADIENT:
        ours, theirs = (partial(lambda f, t, x: f(x, t.to(x.dtype)), f, t) for f in (ours, theirs))
        inputs = [x]
    dloss = torch.randn_like(theirs(*inputs))
    truth = run(theirs, inputs, dloss, torch.float64)
    torchs, found = run(theirs, inputs, dloss), run(ours, inputs, dloss, backend=backend)
    # torch's sums of float16 are of that type, and overflow where ours do not; so do some of its gradients.
    torchs = [a if not b.isfinite().all() or a.isfinite().all() else b.to(a.dtype) for a, b in zip(torchs, truth)]
    term = 1 + max([v.double().abs().nan_to_num(0, 0, 0).max() for v in (x, t) if v.numel()], default=torch.tensor(0.0))
    weight = max(
        [w.double().abs().max() for w in (options.get("weight"), options.get("pos_weight")) if w is not None] + [1]
    )
    divisor = divisor or {"mean": max(x.numel(), 1), "batchmean": max(x.shape[:1], default=1) or 1}.get(reduction, 1)
    assert_error_within(found[:1], torchs[:1], truth[:1], torch.as_tensor(term * term * weight).double())
    arrives = dloss.double().abs().max() / divisor if dloss.numel() else torch.tensor(1.0)
    assert_error_within(found[1:], torchs[1:], truth[1:], torch.as_tensor(arrives * term * weight), floor_ulp=8)


@every_backend
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_matches_float64(backend, name, dtype):
    for i, (shape, layout, _why) in enumerate(CASES):
        options = FUNCTIONS[name][0]
        for j, reduction in enumerate(REDUCTIONS):
            if dtype != torch.float32 and (i + j) % 2:
                continue
            x, t = made(name, shape, layout, dtype)
            compare(name, x, t, backend, reduction, **options[(i + j) % len(options)])
            if name.startswith("kl_div") and reduction == "sum" and shape:
                compare(name, x, t, backend, "batchmean", **options[0])


WEIGHTS = [  # shapes of the input and of a weight, why it is here
    ((40, 33), (40, 33), "one for each element"),
    ((40, 33), (33,), "of columns"),
    ((700, 3), (3,), "of few columns"),
    ((40, 33), (40, 1), "of rows"),
    ((2, 3, 5, 4), (3, 1, 1), "of channels"),
    ((2, 3, 5, 4), (2, 1, 5, 4), "no period: a copy"),
    ((2, 3, 5, 4), (1,), "one number"),
    ((2, 3, 5, 4), (), "a number without a dimension"),
    ((2, 7, 1500), (7, 1), "of channels longer than a block"),
]


@every_backend
@pytest.mark.parametrize("name", ["binary_cross_entropy", "binary_cross_entropy_with_logits"])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_weights_that_are_broadcast(backend, name, dtype):
    for i, (shape, of_weight, _why) in enumerate(WEIGHTS):
        x, t = made(name, shape, "channels_last" if len(shape) == 4 and i % 2 else "contiguous", dtype)
        weight, positive = torch.rand(of_weight).to(dtype), torch.rand(WEIGHTS[i][1]).add(0.5).to(dtype)
        options = [{"weight": weight}]
        if name.endswith("logits"):
            options += [{"pos_weight": positive}, {"weight": weight, "pos_weight": positive}]
        for j, chosen in enumerate(options):
            compare(name, x, t, backend, REDUCTIONS[(i + j) % 3], **chosen)


@every_backend
@pytest.mark.parametrize("name", ["mse_loss", "l1_loss", "huber_loss"])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_weights_of_differences(backend, name, dtype):
    for shape, reduction in itertools.product(((5, 37), (3, CHUNK)), REDUCTIONS):
        x, t = made(name, shape, dtype=dtype)
        weight = torch.rand(shape).to(dtype)
        by_weight = name != "huber_loss" and reduction == "mean"
        compare(name, x, t, backend, reduction, weight.double().sum().item() if by_weight else None, weight=weight)


def test_periods():
    for shape, of_shape, expected in (
        ((), (2, 3), (1, 1)), ((3,), (2, 3), (3, 1)), ((2, 1), (2, 3), (2, 3)), ((2, 3), (2, 3), (6, 1)), ((1, 1), (2, 3), (1, 1)),
        ((3, 1, 1), (2, 3, 5, 4), (3, 20)), ((2, 1, 5), (2, 3, 5), None), ((2,), (2, 3), None), ((1, 2, 3), (2, 3), None),
    ):  # fmt: skip
        assert period_of(shape, of_shape) == expected
        if expected:
            weight, n = torch.arange(torch.Size(shape).numel()), torch.Size(of_shape).numel()
            count, inner = expected
            assert torch.equal(
                weight.view(shape).expand(of_shape).reshape(-1), weight[torch.arange(n) // inner % count]
            )


@every_backend
@pytest.mark.parametrize("name", FUNCTIONS)
def test_nan_and_infinity_as_torchs(backend, name):
    if name in ("binary_cross_entropy", "soft_margin_loss"):
        pytest.skip("refused, or a difference that docs/differences.md says")
    values = torch.tensor([NAN, INF, -INF, 0.0, -0.0, 1.0, -1.0, 1e-30, 2.0])
    x, t = torch.cartesian_prod(values, values).unbind(1)
    for options in FUNCTIONS[name][0]:
        for more in ({}, {"pos_weight": torch.tensor([2.0])} if name.endswith("logits") else {}):
            theirs, ours = (of(functional, name, reduction="none", **options, **more) for functional in (F, PF))
            inputs = [x, t]
            if name in WITHOUT_GRADIENT:
                theirs, ours, inputs = partial(lambda f, x: f(x, t), theirs), partial(lambda f, x: f(x, t), ours), [x]
            expected = run(theirs, inputs, torch.ones_like(x))
            for a, b in zip(run(ours, inputs, torch.ones_like(x), backend=backend), expected):
                torch.testing.assert_close(a, b, equal_nan=True)


@every_backend
def test_probabilities_at_their_ends(backend):
    x, t = torch.cartesian_prod(*[torch.tensor([0.0, 1.0, 0.5, 1e-30, 1e-40, 1 - 6e-8])] * 2).unbind(1)
    theirs = run(of(F, "binary_cross_entropy", reduction="none"), [x, t], torch.ones_like(x))
    ours = run(of(PF, "binary_cross_entropy", reduction="none"), [x, t], torch.ones_like(x), backend=backend)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b)


@every_backend
def test_what_is_no_probability(backend):
    needs_values(backend)
    right = torch.full((3, 40), 0.5)
    for wrong, which, reduction in itertools.product((1.5, -1e-3, NAN, INF), ("input", "target"), REDUCTIONS):
        bad = right.clone()
        bad[1, 30] = wrong
        arguments = (bad, right) if which == "input" else (right, bad)
        for function in (F.binary_cross_entropy, PF.binary_cross_entropy):
            with use(backend), pytest.raises(RuntimeError, match=f"all elements of {which} should be between 0 and 1"):
                function(*arguments, reduction=reduction)
    with use(backend):  # weights may be what they like
        assert PF.binary_cross_entropy(right, right, torch.tensor(NAN)).isnan()


@every_backend
def test_logits_that_cancel_keep_their_digits(backend):
    """Where a loss is log(1 + exp(x)) of an x far below 0."""
    x = torch.linspace(-80, 80, 100)
    with use(backend):
        ours = PF.binary_cross_entropy_with_logits(x, torch.zeros(100), reduction="none")
        assert PF.soft_margin_loss(torch.tensor([-1e4]), torch.ones(1)) == 1e4
    truth = F.softplus(x.double(), threshold=1e3)
    assert ((ours - truth).abs() <= 1e-6 * truth).all()


@every_backend
@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_of_every_order(backend, name):
    x, t = made(name, (2, 3, 2), dtype=torch.float64)
    x, t = x + 0.01 * torch.rand_like(x), t if name == "hinge_embedding_loss" else t * 0.9 + 0.02  # off the corners
    if name.startswith("binary_cross_entropy") or "rates" in name:
        x = x.clamp(0.1, 0.9)
    x, t = x.requires_grad_(), t.requires_grad_(name not in WITHOUT_GRADIENT)
    weights = {"weight": torch.rand(3, 1)} if name.startswith("binary") else {}
    weights = {"weight": torch.rand(2, 3, 2)} if name in ("mse_loss", "l1_loss", "huber_loss") else weights
    if name.endswith("logits"):
        weights["pos_weight"] = torch.rand(2)
    weights = {key: w.double() for key, w in weights.items()}
    for options, reduction in zip(itertools.cycle(FUNCTIONS[name][0]), REDUCTIONS):
        with use(backend):
            function = of(PF, name, reduction=reduction, **options, **weights)
            assert torch.autograd.gradcheck(function, (x, t), fast_mode=backend == "triton")
            assert torch.autograd.gradgradcheck(function, (x, t), fast_mode=backend == "triton")


@every_backend
def test_only_what_needs_a_gradient_gets_one(backend):
    x, t = made("huber_loss", (4, 5))
    for needs in ((True, False), (False, True)):
        leaves = [v.clone().requires_grad_(need) for v, need in zip((x, t), needs)]
        copies = [v.detach().clone().requires_grad_(need) for v, need in zip((x, t), needs)]
        with use(backend):
            PF.huber_loss(*leaves).backward()
        F.huber_loss(*copies).backward()
        for a, b in zip(leaves, copies):
            assert (a.grad is None) == (b.grad is None)
            if a.grad is not None:
                torch.testing.assert_close(a.grad, b.grad)


@every_backend
def test_autocast_gives_float32(backend):
    for name in FUNCTIONS:
        x, t = made(name, (4, 6), dtype=torch.bfloat16)
        for target in (t, t.float()):
            leaf = x.clone().requires_grad_()
            with torch.autocast(x.device.type, torch.bfloat16), use(backend):
                loss = of(PF, name, **FUNCTIONS[name][0][0])(leaf, target)
            assert loss.dtype == torch.float32
            torch.testing.assert_close(loss, of(F, name, **FUNCTIONS[name][0][0])(x.float(), t.float()))
            (grad,) = torch.autograd.grad(loss, leaf)
            assert grad.dtype == torch.bfloat16
    x, t = made("binary_cross_entropy_with_logits", (4, 6), dtype=torch.bfloat16)
    weight = torch.rand(6)
    with torch.autocast(x.device.type, torch.bfloat16), use(backend):  # as a module's buffer
        ours = PF.binary_cross_entropy_with_logits(x, t, pos_weight=weight)
    torch.testing.assert_close(ours, F.binary_cross_entropy_with_logits(x.float(), t.float(), pos_weight=weight))


@every_backend
def test_sizes_of_margins_are_broadcast(backend):
    x, y = torch.randn(4, 3), torch.randn(1, 3)
    for target in (torch.ones(4, 1), torch.ones(1, 1), -torch.ones(5, 4, 3), torch.ones(4, 3, dtype=torch.int64)):
        cases = [("hinge_embedding_loss", [x])] + [("margin_ranking_loss", [x, y])] * (target.dim() == 2)
        for name, inputs in cases:
            theirs, ours = (partial(lambda f, *inputs, t: f(*inputs, t), getattr(of, name), t=target) for of in (F, PF))
            expected = run(theirs, inputs, torch.ones(()))
            for a, b in zip(run(ours, inputs, torch.ones(()), backend=backend), expected):
                torch.testing.assert_close(a, b)
    with use(backend):  # of one number each, which the target repeats
        found = PF.margin_ranking_loss(x[:1], y, torch.ones(4, 3), 0.5, reduction="none")
    torch.testing.assert_close(found, F.margin_ranking_loss(x[:1], y, torch.ones(4, 3), 0.5, reduction="none"))


@every_backend
def test_sizes_that_differ_are_broadcast_with_torchs_warning(backend):
    x = torch.randn(4, 3)
    for name, t in itertools.product(
        ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"), (torch.randn(3), torch.randn(5, 4, 3))
    ):
        with pytest.warns(UserWarning, match="Using a target size") as theirs:
            expected = run(getattr(F, name), [x, t], torch.ones(()))
        with pytest.warns(UserWarning, match="Using a target size") as ours:
            found = run(getattr(PF, name), [x, t], torch.ones(()), backend=backend)
        assert str(ours[0].message) == str(theirs[0].message)
        for a, b in zip(found, expected):
            torch.testing.assert_close(a, b)
    with use(backend), pytest.warns(UserWarning, match="Using a target size") as ours:
        PF.mse_loss(x, torch.randn(3))
    assert ours[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        t = rows((2, 1, 3))
        expected = F.kl_div(x, t, reduction="batchmean")
        with use(backend):
            torch.testing.assert_close(PF.kl_div(x, t, reduction="batchmean"), expected)


@pytest.mark.filterwarnings("default")
@every_backend
def test_the_mean_of_kl_div_warns(backend):
    x, t = made("kl_div", (2, 3))
    for function in (F.kl_div, PF.kl_div):
        with use(backend), pytest.warns(UserWarning, match="reduction: 'mean' divides the total loss"):
            function(x, t)


@every_backend
def test_the_deprecated_arguments(backend):
    for name, (size_average, reduce) in itertools.product(FUNCTIONS, ((None, False), (False, None), (True, True))):
        if name == "huber_loss":
            continue
        x, t = made(name, (3, 4))
        options = {**FUNCTIONS[name][0][0], "size_average": size_average, "reduce": reduce}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with use(backend):
                ours = of(PF, name, **options)(x, t)
            torch.testing.assert_close(ours, of(F, name, **options)(x, t))


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_refusals_are_torchs():
    x, p = torch.randn(4, 3), torch.rand(4, 3)
    three = ("margin_ranking_loss", (x, x), {}), ("margin_ranking_loss", (x, x, x[0]), {})
    wrong = [
        *three, ("margin_ranking_loss", (x, x, p), {"reduction": "middle"}), ("margin_ranking_loss", (x, x, x > 0), {}),
        ("margin_ranking_loss", (x, x, torch.rand(5, 3)), {}),
        *((name, (p, p), {"reduction": "middle"}) for name in PF_NAMES),
        *((name, (p, torch.rand(5, 3)), {}) for name in PF_NAMES),
        *((name, (p.long(), p.long()), {}) for name in PF_NAMES if name not in ("poisson_nll_loss",)),
        *((name, ([0.5], p), {}) for name in PF_NAMES),
        ("mse_loss", (x, x), {"weight": torch.rand(3)}), ("huber_loss", (x, x), {"delta": -1.0}), ("huber_loss", (x, x), {"delta": 0.0}),
        ("smooth_l1_loss", (x, x), {"beta": -1.0}), ("binary_cross_entropy", (p, p), {"weight": torch.rand(2, 4, 3)}),
        ("binary_cross_entropy", (p, p), {"weight": torch.rand(4)}), ("binary_cross_entropy", (p, p.double()), {}),
        ("binary_cross_entropy_with_logits", (x, p), {"weight": torch.rand(2, 4, 3)}),
        ("binary_cross_entropy_with_logits", (x, p), {"pos_weight": torch.rand(2, 4, 3)}),
        ("binary_cross_entropy_with_logits", (x, p), {"weight": torch.rand(3, requires_grad=True)}),
        ("binary_cross_entropy_with_logits", (x, p[:1]), {}), ("soft_margin_loss", (x, p.clone().requires_grad_()), {}),
    ]  # fmt: skip
    for name, arguments, options in wrong:
        with pytest.raises(Exception) as theirs:
            getattr(F, name)(*arguments, **options)
        with pytest.raises(type(theirs.value)) as ours:
            getattr(PF, name)(*arguments, **options)
        assert type(ours.value) is type(theirs.value), (name, options)


PF_NAMES = sorted({name.split()[0] for name in FUNCTIONS} - {"margin_ranking_loss"})


@pytest.mark.filterwarnings("ignore::pyflash.FallbackWarning")
def test_what_no_kernel_serves_is_torchs():
    x, p = torch.randn(4, 3), torch.rand(4, 3)
    cases = (
        ("mse_loss", (x, x.double()), {}), ("mse_loss", (x, p), {"weight": torch.rand(4, 3, requires_grad=True)}),
        ("binary_cross_entropy_with_logits", (x, p), {"pos_weight": torch.rand(3).double()}),
        ("l1_loss", (x, p[:1]), {"weight": torch.rand(4, 3)}),
    )  # fmt: skip
    for name, arguments, options in cases:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.testing.assert_close(
                getattr(PF, name)(*arguments, **options), getattr(F, name)(*arguments, **options)
            )
            with use("cpu"), pytest.raises(NotImplementedError, match=name):
                getattr(PF, name)(*arguments, **options)


def test_small_losses_are_torchs_and_counted():
    before = backends.counts.copy()
    for n in (4, 1 << 20):
        PF.mse_loss(torch.randn(n), torch.randn(n))
    taken = [(name, backend) for name, backend, _ in backends.counts - before]
    assert sorted(taken) == [("mse_loss", "cpu"), ("mse_loss", "torch")]


@pytest.mark.slow
def test_compile_export_and_functorch():
    weight = torch.rand(3)
    for name in ("smooth_l1_loss", "binary_cross_entropy_with_logits", "kl_div", "binary_cross_entropy"):
        x, t = made(name, (4, 3))
        x.requires_grad_()
        options = (
            {"pos_weight": weight}
            if name.endswith("logits")
            else {"reduction": "batchmean"}
            if name == "kl_div"
            else {}
        )

        def results(function, x=x, t=t):
            loss = function(x, t)
            return loss.detach(), torch.autograd.grad(loss, x)[0]

        ours, theirs = of(PF, name, **options), of(F, name, **options)
        with use("cpu"):
            compiled = torch.compile(lambda x, t, ours=ours: ours(x, t), fullgraph=True, backend="aot_eager")
            torch.testing.assert_close(results(compiled), results(theirs))
            dynamic = torch.compile(lambda x, t, ours=ours: ours(x, t), backend="aot_eager", dynamic=True)
            for n in (5, 6, 9):
                other = made(name, (n, 3))
                torch.testing.assert_close(dynamic(*other), theirs(*other))
            of_rows = torch.func.vmap(lambda x, t, ours=ours: ours(x, t))(x, t)
            torch.testing.assert_close(of_rows, torch.stack([theirs(*row) for row in zip(x, t)]))
            hessians = [torch.func.hessian(lambda x, f=f, t=t: f(x, t))(x.detach()) for f in (ours, theirs)]
            torch.testing.assert_close(*hessians)
    module = nn.BCEWithLogitsLoss(pos_weight=weight)
    x, t = made("binary_cross_entropy_with_logits", (4, 3))
    with use("cpu"):
        program = torch.export.export(module, (x, t))
        assert any("pyflash.elementwise_loss_fwd" in str(node.target) for node in program.graph.nodes)
        torch.testing.assert_close(program.module()(x, t), module(x, t))


MODULES = {
    "MSELoss": ({},), "L1Loss": ({"reduction": "sum"},), "SmoothL1Loss": ({"beta": 0.5},), "HuberLoss": ({"delta": 0.5},),
    "BCELoss": ({"weight": torch.rand(3)},), "BCEWithLogitsLoss": ({"pos_weight": torch.rand(3), "weight": torch.rand(4, 1)},),
    "KLDivLoss": ({"reduction": "batchmean"}, {"reduction": "sum", "log_target": True}), "PoissonNLLLoss": ({"log_input": False},),
    "SoftMarginLoss": ({"reduction": "none"},), "HingeEmbeddingLoss": ({"margin": 0.5},), "MarginRankingLoss": ({"margin": 0.5},),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_modules(name):
    for options in MODULES[name]:
        ours, theirs = (getattr(of_torch, name)(**options) for of_torch in (nn, torch.nn))
        tensors = [torch.rand(4, 3) for _ in range(3 if name == "MarginRankingLoss" else 2)]
        before = backends.counts.copy()
        with use("cpu"):
            found = ours(*tensors)
        assert sum((backends.counts - before).values()) == 1
        torch.testing.assert_close(found, theirs(*tensors))
        assert repr(ours) == repr(theirs) and ours.state_dict().keys() == theirs.state_dict().keys()


def test_the_result_does_not_depend_on_threads():
    x, t = made("huber_loss", (7, CHUNK + 5))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(run(partial(PF.huber_loss, weight=x.abs()), [x, t], torch.ones(()), backend="cpu"))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))
