"""The second derivative of the norms of tensors with channels, which has kernels of its own, against torch's own norms and
activations differentiated twice."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from helpers import FLOAT_DTYPES, assert_error_within, backend_params, by_cpu, use

import pyflash.functional as PF
from pyflash.activations import ACTIVATIONS
from pyflash.ops.norm import channels
from pyflash.ops.norm.channels import _bwd_bwd, channel_norm
from pyflash.ops.pointwise.activation import CURVED
from tests.norm.norms import in_order

BACKENDS = backend_params("cpu", "triton")

CASES = [  # shape, groups (0: BatchNorm), layout, parameters, activation, with a residual, why it is here
    ((5, 3), 0, "contiguous", "wb", None, False, "no positions: channels are adjacent"),
    ((3, 5, 7, 6), 0, "channels_last", "wb", ("leaky_relu", {"negative_slope": 0.2}), False, "a discriminator's"),
    ((4, 6, 37), 2, "contiguous", "wb", "silu", True, "groups, an odd number of positions; curved, in registers"),
    ((3, 20, 5, 4), 0, "channels_last", "w", "relu", True, "flat, in registers, rows of channels"),
    ((2, 600, 3, 3), 0, "channels_last", "wb", "gelu", True, "channels in more than one piece; curved, of a tile"),
    ((2, 18, 40, 9), 3, "channels_last", "wb", "tanh", False, "several blocks of rows; by the output"),
    ((2, 3, 40, 45), 0, "contiguous", "wb", "mish", False, "positions in more than one piece"),
    ((2, 2, 13000), 0, "contiguous", "", "softplus", False, "a unit that is larger than the cache"),
]


def make_case(case, dtype):
    shape, _groups, layout, parameters, _activation, has_residual, _why = case
    x, residual, dy, ddx, ddresidual = (in_order(torch.randn(shape, dtype=dtype), layout) for _ in range(5))
    weight, bias, ddweight, ddbias = (torch.randn(shape[1], dtype=dtype) for _ in range(4))
    dy, ddx, ddresidual = dy / 8, ddx / 8, ddresidual / 8  # torch's sums of half types are past them else
    given = [x, weight + 1.5 if "w" in parameters else None, bias if "b" in parameters else None]
    arriving = [ddx, ddweight if "w" in parameters else None, ddbias if "b" in parameters else None]
    return [*given, residual if has_residual else None], dy, [*arriving, ddresidual if has_residual else None]


def torchs(case, training):
    _, groups, _, _, activation, _, _ = case
    name, values = activation if isinstance(activation, tuple) else (activation, {})

    def function(x, weight, bias, residual):
        if groups:
            y = F.group_norm(x, groups, weight, bias)
        else:
            y = F.batch_norm(x, *running(x), weight, bias, training)
        y = y if residual is None else y + residual
        return y if name is None else ACTIVATIONS[name].reference(y, **values)

    return function


def ours(case, training):
    _, groups, _, _, activation, _, _ = case

    def function(x, weight, bias, residual):
        options = dict(activation=activation, residual=residual)
        if groups:
            return PF.group_norm_act(x, groups, weight, bias, **options)
        return PF.batch_norm_act(x, *running(x), weight, bias, training, **options)

    return function


def running(x):
    channels = torch.arange(x.shape[1], dtype=x.dtype)
    return channels.cos(), channels.sin().square() + 0.5


def twice(function, tensors, dy, arriving, dtype=None, backend="torch"):
    """What `arriving` at the gradients of function(*tensors) gives to dy and to the tensors; None where nothing arrives."""

    def leaf(t):
        return None if t is None else torch.empty_like(t, dtype=dtype or t.dtype).copy_(t).requires_grad_()

    leaves, dy = [leaf(t) for t in tensors], leaf(dy)
    with use(backend):
        given = [t for t in leaves if t is not None]
        first = torch.autograd.grad(function(*leaves), given, dy, create_graph=True)
        dds = [dd.to(t.dtype) for dd, t in zip([dd for dd in arriving if dd is not None], given)]
        return torch.autograd.grad(first, [dy, *given], dds, allow_unused=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_matches_float64(backend, dtype, training):
    for case in CASES[1:4] if backend == "triton" else CASES:
        tensors, dy, arriving = make_case(case, dtype)
        theirs = by_cpu(lambda *t, c=case: torchs(c, training)(*t))
        truth = twice(theirs, tensors, dy, arriving, torch.float64)
        expected = twice(theirs, tensors, dy, arriving)
        found = twice(ours(case, training), tensors, dy, arriving, backend=backend)
        # torch says 0 where we say that nothing arrives.
        nothing = [i for i, f in enumerate(found) if f is None]
        assert all(truth[i] is None or not truth[i].any() for i in nothing), case
        is_channels = [t is not None and t.dim() == 1 and dy.dim() > 1 for t in truth]
        terms = [torch.stack([t.double().abs().max() for t in (dy, *tensors, *arriving) if t is not None]).prod()]
        sums = [terms[0] * (dy.numel() / dy.shape[1]) ** 0.5]
        for of_channels, scales in ((False, terms), (True, sums)):
            kept = [i for i, of in enumerate(is_channels) if of == of_channels and i not in nothing]
            assert_error_within(*([r[i] for i in kept] for r in (found, expected, truth)), *scales)


ARRIVING = [(1, 1, 1, 1), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (1, 1, 0, 0), (0, 0, 1, 1)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("groups, uses_input", [(0, True), (0, False), (2, True), (4, True)])
def test_the_kernels_are_the_reference(backend, layout, groups, uses_input):
    """Whatever arrives, and whatever is wanted of what it gives."""
    activations = ("", "relu", "silu", "sigmoid", "elu")
    sizes = zip(itertools.cycle([(3, 30), (2, 1)]), itertools.product(activations, ARRIVING))
    for i, ((batch, positions), (activation, present)) in enumerate(sizes):
        if backend == "triton" and i % 5:
            continue
        shape = (batch, 4, positions, 1)
        elements = [in_order(torch.randn(shape, dtype=torch.float64), layout).flatten(2) for _ in range(5)]
        dy, x, residual, ddx, ddresidual = elements
        parameters = torch.randn(4, 4, dtype=torch.float64)
        mean, rstd = torch.rand(2, batch * groups if groups else 4, dtype=torch.float64) + 0.5
        arriving = [t if p else None for t, p in zip((ddx, ddresidual, *parameters[2:]), present)]
        wanted = [i % 3 != 0, i % 4 != 1, activation in CURVED, i % 2 == 0, activation in CURVED and i % 3 == 2]
        values = (0.7, 0.0) if activation == "elu" else (0.0, 0.0)
        args = (dy, x, residual if i % 2 else None, *parameters[:2], mean, rstd, *arriving, groups, uses_input)
        args = *args, activation, *values, *wanted
        with use(backend):
            found = _bwd_bwd(*args, backend.partition(":")[0])
        torch.testing.assert_close(found, _bwd_bwd(*args, "torch"), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", backend_params("cpu"))
@pytest.mark.parametrize("name", ["", "relu", "silu", "tanh"])
@pytest.mark.parametrize("groups, training", [(0, True), (0, False), (2, True)])
def test_derivatives_to_the_fourth(backend, name, groups, training):
    """Of the second derivative by gradcheck, and of the third, which is made of torch operations."""
    leaves = [torch.randn(2, 4, 2, 1, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    leaves += [(torch.randn(4, dtype=torch.float64) + 1).requires_grad_() for _ in range(2)]
    statistics = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)

    def gradients(dy, x, residual, weight, bias):
        args = *statistics, groups, training, 0.1, 1e-5, (name, 0.0, 0.0), "cpu"
        y, _, _ = channel_norm(x, residual, weight, bias, *args)
        return torch.autograd.grad(y, (x, residual, weight, bias), dy, create_graph=True)

    with use(backend):
        assert torch.autograd.gradcheck(gradients, leaves)
        assert torch.autograd.gradgradcheck(gradients, leaves)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_arrives_in_another_order_of_memory(backend):
    x, dy, ddx = (torch.randn(3, 4, 5, 6, dtype=torch.float64) for _ in range(3))
    case = ((3, 4, 5, 6), 0, "", "", "silu", True, "")
    layouts = itertools.product(("contiguous", "channels_last", "transposed"), repeat=3)
    for of_x, of_dy, of_ddx in itertools.islice(layouts, 0, None, 3 if backend == "triton" else 1):
        tensors = [in_order(x, of_x), None, None, in_order(x * 2, of_dy)]
        given = in_order(dy, of_dy), [in_order(ddx, of_ddx), None, None, in_order(ddx * 3, of_ddx)]
        found = twice(ours(case, True), tensors, *given, backend=backend)
        torch.testing.assert_close(found, twice(torchs(case, True), tensors, *given))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_number_seen_everywhere(backend):
    """As the gradient of a sum arrives."""
    for layout in ("contiguous", "channels_last"):
        case = ((3, 4, 5, 6), 0, layout, "wb", "silu", True, "")
        tensors, dy, arriving = make_case(case, torch.float64)
        arriving = [torch.tensor(0.5, dtype=torch.float64).expand_as(t) for t in arriving]
        found = twice(ours(case, True), tensors, dy, arriving, backend=backend)
        torch.testing.assert_close(found, twice(torchs(case, True), tensors, dy, arriving))


def test_results_do_not_depend_on_threads():
    threads, found = torch.get_num_threads(), []
    cases = [
        (case, *make_case(case, torch.float32))
        for case in (*CASES[3:], ((3, 6, 4200), 2, "contiguous", "w", "elu", False, ""))
    ]
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append([twice(ours(case, True), *given, backend="cpu") for case, *given in cases])
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        for mine, its in zip(found[0], other):
            assert all(a is b or torch.equal(a, b) for a, b in zip(mine, its))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_outputs_past_the_caches_are_the_same(layout, activation):
    """Large outputs are streamed: 40 MB here, of half of the channels 20."""
    case = ((8, 64, 64, 64), 0, layout, "wb", activation, False, "")
    tensors, dy, arriving = make_case(case, torch.float32)

    def part(t, channels):
        return None if t is None else t[:channels] if t.dim() == 1 else in_order(t[:, :channels], layout)

    whole, half = (
        twice(
            ours(case, True),
            *([part(t, n) for t in ts] if isinstance(ts, list) else part(ts, n) for ts in (tensors, dy, arriving)),
            backend="cpu",
        )
        for n in (64, 32)
    )
    for a, b in zip(whole, half):
        torch.testing.assert_close(a if a is None else part(a, 32), b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_what_is_not_needed_is_not_computed(training, monkeypatch):
    """Of a flat activation nothing arrives at what is added, and in evaluation nothing at x."""
    asked, forward = [], channels._bwd_bwd.__call__
    monkeypatch.setattr(channels, "_bwd_bwd", lambda *args: asked.append(args[-6:-1]) or forward(*args))
    for activation in ("relu", "silu"):
        leaves = [torch.randn(3, 4, 5, requires_grad=True) for _ in range(2)]
        leaves += [torch.randn(4, requires_grad=True) for _ in range(2)]
        with use("cpu"):
            y = ours(((), 0, "", "", activation, True, ""), training)(leaves[0], *leaves[2:], leaves[1])
            (dx,) = torch.autograd.grad(y.sum(), leaves[0], create_graph=True)
            dx.square().sum().backward()
        assert [t.grad is None for t in leaves] == [
            activation == "relu" and not training,
            *[activation == "relu"],
            False,
            activation == "relu",
        ]
    assert asked == [(False, training, False, True, False), (False, True, True, True, True)]


def test_it_compiles_whole():
    x, w, b = torch.randn(3, 4, 5, 6), torch.randn(4), torch.randn(4)
    args = (
        x.flatten(2),
        x.sin().flatten(2),
        None,
        w,
        b,
        w.cos(),
        b.exp(),
        x.cos().flatten(2),
        None,
        w,
        None,
        0,
        True,
        "silu",
        0.0,
        0.0,
    )
    call = torch.compile(lambda *t: _bwd_bwd(*t, *[True] * 5, "cpu"), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(call(*args), _bwd_bwd(*args, *[True] * 5, "cpu"))
