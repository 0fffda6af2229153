"""BatchNorm with and without a residual and an activation, against torch's operations one after another."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from helpers import DEVICE, FLOAT_DTYPES, assert_error_within, backend_params, run, use

import pyflash
import pyflash.functional as PF
import pyflash.nn as nn
from pyflash.activations import ACTIVATIONS
from pyflash.auto import SMALL, tables
from pyflash.auto.batch_norm import rules
from pyflash.ops.core import backends
from pyflash.ops.norm import batch_norm
from pyflash.ops.norm.channels import _bwd, _fwd
from tests.norm.norms import in_order

BACKENDS = backend_params("cpu", "triton")

CASES = [  # shape, layout, parameters, activation, with a residual, why it is here
    ((5, 3), "contiguous", "wb", None, False, "no positions: channels are adjacent"),
    ((4, 7, 37), "contiguous", "wb", "relu", False, "odd number of positions"),
    ((3, 5, 7, 6), "contiguous", "wb", "relu", True, "as at the end of a residual block"),
    ((3, 20, 5, 4), "channels_last", "wb", "relu", True, "the same with the channels last"),
    ((2, 600, 3, 3), "channels_last", "wb", "gelu", True, "channels in more than one piece, rows that are no four"),
    ((2, 3, 40, 45), "contiguous", "w", "mish", False, "positions in more than one piece"),
    ((2, 19, 40, 9), "channels_last", "b", ("leaky_relu", {"negative_slope": 0.2}), False, "several blocks of rows"),
    (
        (2, 4, 2, 3, 5),
        "channels_last",
        "",
        "tanh",
        True,
        "three dimensions; the derivative is a function of the output",
    ),
    ((3, 4, 6), "transposed", "wb", None, True, "in no order that is read: a copy"),
    ((2, 2, 20000), "contiguous", "wb", "relu", False, "a unit that is larger than the cache"),
    ((3, 2061, 3, 1), "channels_last", "wb", "relu", True, "tables beyond the first cache, by fours"),
    ((3, 3001, 2, 3), "contiguous", "wb", "silu", False, "small planes, many units together"),
]


def make_case(case, dtype, parameters_dtype=None):
    shape, layout, parameters, activation, has_residual, _why = case
    dtype_of = parameters_dtype or dtype
    weight, bias, mean, var = (torch.randn(shape[1]).to(dtype_of) for _ in range(4))
    x, residual, dy = (in_order(torch.randn(shape, dtype=dtype), layout) for _ in range(3))
    kept = weight + 1 if "w" in parameters else None, bias if "b" in parameters else None
    tensors = [x, *kept, residual if has_residual else None]
    return tensors, (mean, var.abs() + 0.5), activation, dy


def torchs(activation):
    def function(x, weight, bias, residual, mean, var, training, momentum=0.1, eps=1e-5):
        y = F.batch_norm(x, mean, var, weight, bias, training, momentum, eps)
        y = y if residual is None else y + residual
        if activation is None:
            return y
        name, values = activation if isinstance(activation, tuple) else (activation, {})
        return ACTIVATIONS[name].reference(y, **values)

    return function


def ours(activation):
    def function(x, weight, bias, residual, mean, var, training, momentum=0.1, eps=1e-5):
        if activation is None and residual is None:
            return PF.batch_norm(x, mean, var, weight, bias, training, momentum, eps)
        options = dict(activation=activation, residual=residual)
        return PF.batch_norm_act(x, mean, var, weight, bias, training, momentum, eps, **options)

    return function


def results(function, tensors, running, training, dy, dtype=None, backend=None):
    """Outputs, gradients, and the running statistics after the call, which get no gradient."""
    mean, var = (t.clone() if dtype is None else t.to(dtype) for t in running)
    kept = [t for t in (mean, var)]
    found = run(lambda *args: function(*args, *kept, training), tensors, dy, dtype, backend)
    return *found, *kept


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_matches_float64(backend, dtype, training):
    for case in CASES[:: 3 if backend == "triton" else 1]:
        tensors, running, activation, dy = make_case(case, dtype)
        if DEVICE != "cpu" and tensors[1] is None and tensors[2] is not None:
            continue  # a bias alone is an error in torch's CUDA backward
        args = tensors, running, training, dy
        truth = results(torchs(activation), *args, dtype=torch.float64)
        theirs, found = results(torchs(activation), *args), results(ours(activation), *args, backend=backend)
        assert found[0].stride() == theirs[0].stride() or case[1] == "transposed", case
        assert_channels_within(found, theirs, truth, dy, tensors)


def assert_channels_within(found, theirs, truth, dy, tensors, **options):
    """What has an element for each of x is compared with the largest of these, what is a channel's with sums over it."""
    factor = 4 if tensors[1] is None else 4 * tensors[1].double().abs().max()
    terms = [dy.double() * factor, tensors[0]]
    sums = [dy.double().abs().transpose(0, 1).flatten(1).sum(1), tensors[0]]
    for is_element, scales in ((True, terms), (False, sums)):
        chosen = [i for i, t in enumerate(truth) if t is not None and (t.shape == dy.shape) == is_element]
        assert_error_within(*([results[i] for i in chosen] for results in (found, theirs, truth)), *scales, **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_float32_parameters_beside_a_half_input(backend, dtype):
    for training in (True, False):
        tensors, running, activation, dy = make_case(CASES[3], dtype, torch.float32)
        args = tensors, running, training, dy
        truth = results(torchs(activation), *args, dtype=torch.float64)
        theirs, found = results(torchs(activation), *args), results(ours(activation), *args, backend=backend)
        assert [t.dtype for t in found] == [t.dtype for t in theirs]
        assert_error_within(found, theirs, truth, dy * 8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(backend, activation):
    values = {"threshold": ("threshold", {"threshold": 0.1, "value": 0.2})}
    for layout in ("contiguous", "channels_last")[: 1 if backend == "triton" else 2]:
        case = ((2, 17, 5, 4), layout, "wb", values.get(activation, activation), True, "")
        tensors, running, named, dy = make_case(case, torch.float32)
        args = tensors, running, True, dy
        truth = results(torchs(named), *args, dtype=torch.float64)
        theirs, found = results(torchs(named), *args), results(ours(named), *args, backend=backend)
        assert_error_within(found, theirs, truth, dy * 8, tensors[0] * 2, floor_ulp=8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mean, deviation", [(1e4, 1.0), (-1e6, 10.0), (0.0, 1e-4), (100.0, 1e-3), (0.0, 1e15)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_large_means(backend, layout, mean, deviation):
    x = in_order(torch.randn(4, 20, 9, 15) * deviation + mean, layout)
    x[:, 3, 0, 0] += 100 * deviation  # the first elements are a bad guess of the mean
    dy = in_order(torch.randn(4, 20, 9, 15), layout)
    tensors, running = [x, torch.ones(20), torch.zeros(20), None], (torch.zeros(20), torch.ones(20))
    truth = results(torchs(None), tensors, running, True, dy, dtype=torch.float64)
    theirs, found = (
        results(torchs(None), tensors, running, True, dy),
        results(ours(None), tensors, running, True, dy, backend=backend),
    )
    assert_error_within(found, theirs, truth, dy)


@pytest.mark.parametrize("backend", backend_params("cpu"))
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_values_whose_squares_are_past_the_type(backend, layout):
    x, dy = (in_order(torch.randn(4, 20, 9, 15), layout) for _ in range(2))
    scale = torch.ones(20)
    scale[::3] = 2.0**90
    running = torch.zeros(20), torch.ones(20)
    tensors = [x * scale[:, None, None], None, None, None]
    truth = results(torchs(None), tensors, running, True, dy, dtype=torch.float64)[:2]
    theirs = results(torchs(None), tensors, running, True, dy)[:2]
    assert_error_within(results(ours(None), tensors, running, True, dy, backend=backend)[:2], theirs, truth, dy)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_nan_and_infinity_stay_in_their_channel(backend, layout):
    x, dy = (in_order(torch.randn(3, 8, 5, 7), layout) for _ in range(2))
    x[1, 2, 3, 4], x[0, 5, 0, 0], x[2, 7, 4, 6] = float("nan"), float("inf"), -float("inf")
    dy[0, 3, 1, 1] = float("nan")
    tensors, running = [x, torch.randn(8), torch.randn(8), None], (torch.zeros(8), torch.ones(8))
    for training in (True, False):
        theirs = results(torchs("relu"), tensors, running, training, dy)
        found = results(ours("relu"), tensors, running, training, dy, backend=backend)
        if backend == "triton":  # where the mean of a batch with an infinity is NaN
            found, theirs = found[:-2], theirs[:-2]
        for our, their in zip(found, theirs):
            assert our is their is None or torch.equal(our.isnan(), their.isnan())


@pytest.mark.parametrize("backend", ["cpu"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_gradients_of_gradients(backend, layout, training):
    x, residual = (in_order(torch.randn(2, 3, 2, 2, dtype=torch.float64), layout) for _ in range(2))
    leaves = [t.requires_grad_() for t in (x, residual, *(torch.randn(3, dtype=torch.float64) + 1 for _ in range(2)))]
    running = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)

    def fused(x, residual, weight, bias):
        kept = [t.clone() for t in running]
        return PF.batch_norm_act(x, *kept, weight, bias, training, activation="silu", residual=residual)

    def plain(x, residual, weight, bias):
        return PF.batch_norm(x * residual, *[t.clone() for t in running], weight, None, training) + bias.sum()

    with use(backend):
        for function in (fused, plain):
            assert torch.autograd.gradcheck(function, leaves)
            assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_wanted_gradients(backend):
    for activation in (None, "relu"):
        for training in (True, False):
            for wanted in ({0}, {1}, {2}, {3}, {0, 1}, {3, 2})[:: 2 if backend == "triton" else 1]:
                tensors, running, _, dy = make_case(CASES[3], torch.float64)
                leaves = [t.requires_grad_(i in wanted) for i, t in enumerate(tensors)]

                def grads(function, leaves=leaves, running=running, training=training, dy=dy):
                    y = function(*leaves, *[t.clone() for t in running], training)
                    return torch.autograd.grad(y, [t for t in leaves if t.requires_grad], dy)

                with use(backend):
                    found = grads(ours(activation))
                torch.testing.assert_close(found, grads(torchs(activation)))


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_a_penalty_of_the_gradient(backend):
    tensors, running, _, _ = make_case(((3, 4, 3, 2), "channels_last", "wb", None, True, ""), torch.float64)
    leaves = [t.requires_grad_() for t in tensors]

    def twice(function):
        y = function(*leaves, *[t.clone() for t in running], True)
        (dx,) = torch.autograd.grad(y.square().sum(), leaves[0], create_graph=True)
        return torch.autograd.grad(dx.square().sum(), leaves)

    with use(backend):
        found = twice(ours("silu"))
    torch.testing.assert_close(found, twice(torchs("silu")))


def test_results_do_not_depend_on_threads():
    threads, found = torch.get_num_threads(), []
    cases = [
        make_case(case, torch.float32) for case in (*CASES[3:7], ((3, 5, 7, 600), "contiguous", "wb", None, False, ""))
    ]
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(
                [results(ours(act), tensors, running, True, dy, backend="cpu") for tensors, running, act, dy in cases]
            )
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        for mine, its in zip(found[0], other):
            assert all(a is b or torch.equal(a, b) for a, b in zip(mine, its))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_outputs_past_the_caches_are_the_same(layout):
    """Large outputs are streamed: 36 MB here; half of the channels in a call, and all of them, give the same."""
    x, dy = (in_order(torch.randn(16, 64, 48, 96), layout) for _ in range(2))
    for activation in ("relu", "sigmoid"):
        whole = results(
            ours(activation), [x, None, None, None], (torch.zeros(64), torch.ones(64)), True, dy, backend="cpu"
        )
        part = [in_order(t[:, :32], layout) for t in (x, dy)]
        half = results(
            ours(activation),
            [part[0], None, None, None],
            (torch.zeros(32), torch.ones(32)),
            True,
            part[1],
            backend="cpu",
        )
        torch.testing.assert_close(half[:2], tuple(t[:, :32] for t in whole[:2]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("groups, uses_input", [(0, True), (0, False), (2, True), (4, True)])
def test_the_reference_is_the_kernel_in_torch(layout, groups, uses_input):
    x, residual, dy = (in_order(torch.randn(3, 4, 5, 6, dtype=torch.float64), layout).flatten(2) for _ in range(3))
    weight, bias, mean, var = (torch.rand(4, dtype=torch.float64) + 0.5 for _ in range(4))
    tracked = (None, None) if groups == 2 else (mean, var)
    args = (x, residual, weight, bias, *tracked, groups, uses_input, 0.3, 1e-5, "tanh", 0.0, 0.0)
    kernel, reference = _fwd(*args, "cpu"), _fwd(*args, "torch")
    torch.testing.assert_close(kernel, reference)
    args = (dy, x, residual, weight, bias, *kernel[1:3], groups, uses_input, "tanh", 0.0, 0.0, True, *[True] * 4)
    torch.testing.assert_close(_bwd(*args, "cpu"), _bwd(*args, "torch"))


WRONG = [  # shape, changes to the arguments, error, message
    ((1, 4), {"training": True}, ValueError, "Expected more than 1 value per channel when training, got input size"),
    ((1, 4, 1, 1), {"training": True}, ValueError, "Expected more than 1 value per channel when training"),
    ((3, 5), {"training": True}, RuntimeError, "running_mean should contain 5 elements not 4"),
    ((3, 4), {"weight": torch.ones(3)}, RuntimeError, "weight should contain 4 elements not 3"),
    ((3, 4), {"bias": torch.ones(3), "training": True}, RuntimeError, "bias should contain 4 elements not 3"),
    ((3, 4), {"running_mean": None}, RuntimeError, "running_mean must be defined in evaluation mode"),
    ((3, 4), {"running_var": None}, RuntimeError, "running_var must be defined in evaluation mode"),
    ((3, 4), {"training": True, "eps": 0.0}, ValueError, "eps must be positive during training"),
    ((3, 4), {"eps": -1.0}, ValueError, "eps must be non-negative"),
    ((3, 4), {"training": True, "eps": "1"}, TypeError, ""),
]


@pytest.mark.parametrize("backend", ["auto", "cpu", "torch"])
@pytest.mark.parametrize("shape, changes, error, message", WRONG)
def test_what_torch_refuses(backend, shape, changes, error, message):
    args = dict(running_mean=torch.zeros(4), running_var=torch.ones(4), weight=torch.ones(4), bias=None) | changes
    x = torch.randn(shape)
    with use(backend):
        for function in (PF.batch_norm, PF.batch_norm_act):
            with pytest.raises(error, match=message):
                function(x, **args)
        with pytest.raises(error, match=message):
            F.batch_norm(x, **args)
    for name, value in (("running_mean", 0), ("running_var", 1)):  # a call that raises has touched nothing
        assert args[name] is None or bool((args[name] == value).all())


@pytest.mark.skipif(bool(backends.MISSING["cpu"]), reason=backends.MISSING["cpu"])
@pytest.mark.parametrize("shape, changes, error, message", WRONG)
def test_what_torch_refuses_where_the_rules_said_ours(shape, changes, error, message, monkeypatch):
    monkeypatch.setattr(batch_norm._refused, "holds", lambda *tensors: False)
    args = dict(running_mean=torch.zeros(4), running_var=torch.ones(4), weight=torch.ones(4), bias=None) | changes
    with pytest.raises(error, match=message):
        PF.batch_norm(torch.randn(shape), **args)
    for name, value in (("running_mean", 0), ("running_var", 1)):
        assert args[name] is None or bool((args[name] == value).all())


@pytest.mark.skipif(bool(backends.MISSING["cpu"]), reason=backends.MISSING["cpu"])
def test_a_usual_call_of_ours_is_what_all_others_are(monkeypatch):
    """By the short way, where the rules gave it to our kernels, and by the long one."""
    for layout, training in itertools.product(("contiguous", "channels_last"), (True, False)):
        x, dy = (in_order(torch.randn(3, 4, 5, 2), layout) for _ in range(2))

        def called(function, backend):
            kept = torch.full((4,), 0.5), torch.full((4,), 2.0)
            before = backends.counts.copy()
            inputs = x, torch.ones(4), torch.ones(4)  # noqa: B023
            y, dx, *_ = run(lambda x, w, b: function(x, *kept, w, b, training), inputs, dy, backend=backend)  # noqa: B023
            assert list(backends.counts - before) == [(function.__name__, "cpu", "")]
            return y, dx, *kept

        with monkeypatch.context() as patched:
            patched.setattr(batch_norm._refused, "holds", lambda *tensors: False)
            patched.setattr(batch_norm, "_batch_norm", None)  # is not asked
            short = called(PF.batch_norm, "auto")
        assert all(torch.equal(*pair) for pair in zip(short, called(PF.batch_norm_act, "cpu"), strict=True))


def test_wrong_devices_and_kinds():
    x, four = torch.randn(3, 4), torch.ones(4)
    with use("cpu"):
        with pytest.raises(RuntimeError, match="weight is on meta"):
            PF.batch_norm(x, four, four, four.to("meta"))
        with pytest.raises(TypeError, match="weight is a float"):
            PF.batch_norm(x, four, four, 2.0)
        with pytest.raises(NotImplementedError, match=r"weight is torch\.float64"):
            PF.batch_norm(x, four, four, four.double())
        with pytest.raises(NotImplementedError, match="residual is"):
            PF.batch_norm_act(x, four, four, residual=x.double())
        with pytest.raises(RuntimeError, match="expand"):
            PF.batch_norm_act(x, four, four, residual=torch.randn(2, 4))
        with pytest.raises(ValueError, match="activation is 'nothing'"):
            PF.batch_norm_act(x, four, four, activation="nothing")


@pytest.mark.parametrize("backend", ["cpu", "auto"])
def test_empty(backend):
    """torch's result; nothing is tracked."""
    for shape in ((0, 4), (0, 4, 3, 3), (2, 4, 0)):
        x, running = torch.randn(shape), (torch.zeros(4), torch.ones(4))
        found = results(ours(None), [x, torch.ones(4), torch.ones(4), None], running, True, x, backend=backend)
        theirs = results(torchs(None), [x, torch.ones(4), torch.ones(4), None], running, True, x)
        torch.testing.assert_close(found, theirs)


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": None}, {"momentum": 0.3}, {"affine": False}, {"track_running_stats": False}, {"eps": 0.1}],
    ids=str,
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_statistics_after_many_steps(options, backend):
    mine, its = nn.BatchNorm2d(6, **options), torch.nn.BatchNorm2d(6, **options)
    its64 = copy.deepcopy(its).double()
    steps = range(100 if backend.startswith("cpu") else 5)
    batches = [torch.randn(3, 6, 4, 4) * (step % 3 + 1) + step % 7 for step in steps]
    with use(backend):
        for x in batches:
            mine(x), its(x), its64(x.double())
        assert list(mine.state_dict()) == list(its.state_dict())
        if options.get("track_running_stats", True):
            assert mine.num_batches_tracked.equal(its.num_batches_tracked)
            statistics = [(m.running_mean, m.running_var) for m in (mine, its, its64)]
            assert_error_within(*statistics)
        mine.eval(), its.eval()
        torch.testing.assert_close(mine(x), its(x))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_compile(momentum):
    """One graph, in which the running statistics move; `momentum` None reads a number, as torch's does."""
    module = nn.BatchNorm2d(6, momentum=momentum)
    twin = copy.deepcopy(module)
    x, dy = torch.randn(3, 6, 4, 5, requires_grad=True), torch.randn(3, 6, 4, 5)
    function = torch.compile(module, fullgraph=momentum is not None, backend="aot_eager")
    with use("cpu"):
        for _ in range(2):
            found, expected = function(x), twin(x)
            grads = [torch.autograd.grad(y, (x, m.weight, m.bias), dy) for y, m in ((found, module), (expected, twin))]
            torch.testing.assert_close((found, grads[0]), (expected, grads[1]))
    torch.testing.assert_close(dict(module.named_buffers()), dict(twin.named_buffers()))


def test_export():
    x = torch.randn(3, 6, 4, 5)
    module = nn.BatchNorm2d(6).eval()
    with use("cpu"):
        program = torch.export.export(module, (x,))
    assert any("pyflash.channel_norm_fwd" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), x / (1 + 1e-5) ** 0.5)


def test_functorch_takes_torch():
    x, weight, running = torch.randn(3, 4, 6, 5), torch.randn(6), (torch.zeros(6), torch.ones(6))

    def loss(f):
        return lambda x: f(x, None, None, weight, None, True).square().sum()

    with use("cpu"):
        torch.testing.assert_close(
            torch.func.vmap(lambda x: PF.batch_norm(x, *running, weight))(x),
            torch.func.vmap(lambda x: F.batch_norm(x, *running, weight))(x),
        )
        found = torch.func.jvp(loss(PF.batch_norm), (x[0],), (x[1],))
        torch.testing.assert_close(found, torch.func.jvp(loss(F.batch_norm), (x[0],), (x[1],)))


def test_symbolic_trace_has_a_node_of_it():
    module = torch.nn.Sequential(nn.BatchNorm2d(3), torch.nn.ReLU())
    traced = torch.fx.symbolic_trace(module)
    assert [node.op for node in traced.graph.nodes] == ["placeholder", "call_module", "call_module", "output"]
    assert module[0].num_batches_tracked == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_leaves_the_types_alone(dtype):
    x, module = torch.randn(3, 6, 4, 5, dtype=dtype), nn.BatchNorm2d(6)
    with use("cpu"), torch.autocast("cpu", torch.bfloat16):
        y, theirs = module(x), pyflash.restore(copy.deepcopy(module))(x)
    assert y.dtype == theirs.dtype == dtype
    torch.testing.assert_close(y, theirs)


def test_a_call_of_ours_between_a_forward_and_a_backward_of_torchs():
    module, x = nn.BatchNorm1d(4), torch.randn(6, 4, requires_grad=True)
    with use("torch"):
        y = module(x)
    with use("cpu"):
        z = module(x * 2)
    (y.sum() + z.sum()).backward()
    assert module.num_batches_tracked == 2


def test_module_counts_no_call_that_raises():
    module = nn.BatchNorm1d(4)
    with use("cpu"), pytest.raises(ValueError):
        module(torch.randn(1, 4))
    assert module.num_batches_tracked == 0 and not module.running_mean.any()


def test_an_answer_of_auto_is_of_its_mode():
    """In evaluation torch makes one pass, too; the same batch in training is the table's to say."""
    x, mean, var = torch.randn(8, 64, 28, 28), torch.zeros(64), torch.ones(64)
    place = tables.place("cpu")
    for training in (True, False, True):
        before = backends.counts.copy()
        with use("auto"):
            PF.batch_norm(x, mean, var, training=training)
        reason = rules("batch_norm").decide(place, (8 * 28 * 28, 64, False, not training), x.dtype)
        assert list(backends.counts - before) == [("batch_norm", "torch" if reason else "cpu", reason)]
        assert training or reason == SMALL
