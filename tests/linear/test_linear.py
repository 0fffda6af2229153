"""Linear and Linear with an activation on every backend against float64 torch; packed weights: test_linear_cache."""

import itertools
import re
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from activations import CALLS
from helpers import FLOAT_DTYPES, assert_error_within, backend_params, run, use
from property_tests import given, settings, st

import pyflash.functional as PF
from pyflash import nn
from pyflash.ops.core.dtypes import acc_dtype
from pyflash.ops.core.registry import Op
from pyflash.ops.linear import linear as ops
from pyflash.ops.pointwise.argument import activated, resolve

BACKENDS = backend_params("cpu")

CASES = [  # input, weight, bias, layout, why it is here
    ((1, 1), (1, 1), (1,), "contiguous", "smallest"),
    ((3, 37), (5, 37), (5,), "contiguous", "odd sizes"),
    ((7, 129), (65, 129), (65,), "contiguous", "one more than a tile of rows, a chunk of K, a panel"),
    ((13, 300), (130, 300), (130,), "contiguous", "tails of every tile"),
    ((5, 64), (16, 64), None, "contiguous", "one vector of columns, no bias"),
    ((300, 20), (40, 20), (40,), "contiguous", "two blocks of rows"),
    ((17, 4200), (9, 4200), (9,), "contiguous", "long sums: three blocks of packed K"),
    ((2, 3, 4, 24), (48, 24), (48,), "contiguous", "leading dimensions"),
    ((24,), (48, 24), (48,), "contiguous", "input of one dimension"),
    ((24,), (24,), (), "contiguous", "a scalar"),
    ((6, 24), (24,), None, "contiguous", "weight of one dimension"),
    ((3, 4, 24), (24,), None, "contiguous", "weight of one dimension, leading dimensions"),
    ((20, 33), (34, 33), (34,), "input_transposed", "input columns not adjacent: A is packed"),
    ((20, 33), (34, 33), (34,), "weight_transposed", "weight columns not adjacent"),
    ((20, 33), (34, 33), (34,), "strided", "holes between elements of both"),
    ((20, 33), (34, 33), (34,), "expanded", "one row of input and weight, repeated"),
    ((0, 8), (4, 8), (4,), "contiguous", "no rows"),
    ((4, 0), (3, 0), (3,), "contiguous", "no columns: the bias"),
    ((4, 8), (0, 8), (0,), "contiguous", "no features"),
    ((2, 0, 8), (4, 8), None, "contiguous", "an empty leading dimension"),
    ((6, 8), (4, 8), (1,), "contiguous", "bias of one element"),
    ((6, 8), (4, 8), (), "contiguous", "bias without dimensions"),
    ((6, 8), (4, 8), (6, 4), "contiguous", "bias of the result's shape"),
    ((2, 6, 8), (4, 8), (2, 1, 4), "contiguous", "bias that repeats over rows"),
]


def make(input, weight, bias, layout, dtype=torch.float32):
    def tensor(shape, which):
        t = torch.randn(shape, dtype=torch.float64).to(dtype)
        if layout == which + "_transposed":
            return t.t().contiguous().t()
        if layout == "strided":
            return torch.randn(*shape[:-1], 3 * shape[-1], dtype=torch.float64).to(dtype)[..., 1::3]
        if layout == "expanded":
            return t[:1].expand(shape)
        return t

    return tensor(input, "input"), tensor(weight, "weight"), None if bias is None else torch.randn(bias).to(dtype)


def reference(activation):
    return lambda x, w, b: activated(F.linear(x, w, b), resolve("linear_act", activation or None))


def public(activation):
    return lambda x, w, b: PF.linear_act(x, w, b, activation or None)


def compare(function, torchs, args, backend, factor=2.0):
    """Forward and backward (where anything takes a gradient), and the forward with gradients off."""
    dy = torch.randn_like(torchs(*args))
    truth = run(torchs, args, dy, torch.float64)
    theirs = run(torchs, args, dy)
    # One term of a sum is as large as the largest product of its factors.
    terms = [t.abs().max() * u.abs().max() for t in args[:2] for u in (args[1], dy) if t.numel() and u.numel()]
    assert_error_within(run(function, args, dy, backend=backend), theirs, truth, *terms, dy, factor=factor)
    with torch.no_grad():
        assert_error_within(run(function, args, backend=backend), theirs[:1], truth[:1], *terms, factor=factor)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c[-1])
def test_matches_float64(case, dtype, backend):
    x, weight, bias = make(*case[:4], dtype)
    # torch 2.9 takes only a bias for each feature.
    torchs = F.linear if bias is None or bias.dim() < 2 else lambda x, weight, bias: F.linear(x, weight) + bias
    compare(PF.linear, torchs, (x, weight, bias), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["", *(call.argument for call in CALLS.values())], ids=str)
def test_activations_match_float64(activation, dtype, backend):
    # Half types: torch rounds the pre-activation between its two steps as we do not; its error varies, ours is within.
    for shape in ((7, 20), (70, 20), (70,)), ((2, 3, 140), (9, 140), None):
        compare(public(activation), reference(activation), make(*shape, "contiguous", dtype), backend, factor=3.0)


@pytest.mark.parametrize("backend", backend_params("triton"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_triton_matches_float64(dtype, backend):
    """The shapes in which the operation and the launcher could disagree; the launcher's own are in test_triton_layers."""
    for shape in (
        ((7, 20), (30, 20), (30,)),
        ((2, 3, 40), (9, 40), None),
        ((6, 20), (30, 20), (6, 30)),
        ((4, 24), (24,), None),
    ):
        compare(PF.linear, F.linear, make(*shape, "contiguous", dtype), backend)
    for activation in ("relu", "gelu"):
        compare(
            public(activation), reference(activation), make((7, 20), (30, 20), (30,), "strided", dtype), backend, 3.0
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_tail(backend):
    """All numbers of rows and columns up to two tiles, against the same product in float64."""
    x, weight = torch.randn(13, 19), torch.randn(140, 19)
    full = x.double() @ weight.double().t()
    with torch.no_grad(), use(backend):
        for m in range(1, 14):
            for n in (*range(1, 68), 127, 128, 129, 140):
                torch.testing.assert_close(PF.linear(x[:m], weight[:n]).double(), full[:m, :n], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_input_is_not_read_past_its_end(dtype, backend):
    """NaN after every row of the operands: what is read beyond them shows."""
    for m, k, n in (7, 33, 67), (64, 129, 5), (7, 34, 66), (1, 1, 1):
        for after in 16, 17:  # rows of bfloat16 begin at every fourth byte, or at every second
            x, weight, dy = (
                torch.full((r + 1, c + after), float("nan"), dtype=dtype) for r, c in ((m, k), (n, k), (m, n))
            )
            x, weight, dy = x[:m, :k].normal_(), weight[:n, :k].normal_(), dy[:m, :n].normal_()
            for result in run(PF.linear, [x, weight, None], dy, backend=backend):
                assert result.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("activation", [None, "relu", "gelu_tanh"])
def test_the_gradient_of_a_transposed_weight_lies_as_the_parameter(activation, dtype, backend):
    """So autograd keeps it instead of a copy."""
    x, weight, bias, dy = torch.randn(7, 5), torch.randn(5, 9), torch.randn(9), torch.randn(7, 9)

    def transposed(x, weight, bias):
        return PF.linear_act(x, weight.t(), bias, activation)

    def torchs(x, weight, bias):
        return activated(x @ weight + bias, resolve("linear_act", activation))

    ours = run(transposed, (x, weight, bias), dy, dtype, backend)
    assert_error_within(
        ours,
        run(torchs, (x, weight, bias), dy, dtype),
        run(torchs, (x, weight, bias), dy, torch.float64),
        x,
        dy,
    )
    assert ours[2].is_contiguous()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nan_and_infinity_propagate(dtype, backend):
    x, weight, bias = (torch.randn(shape).to(dtype) for shape in ((9, 70), (66, 70), (66,)))
    x[2, 69], x[4, 0], weight[65, 3], bias[7] = float("nan"), float("inf"), float("-inf"), float("nan")
    for activation in "", "relu", "sigmoid", "tanh":  # torch's own GELU of infinity is NaN
        ours = run(public(activation), [x, weight, bias], backend=backend)[0]
        theirs, scale = (
            reference(activation)(x, weight, bias),
            {} if dtype == torch.bfloat16 else {"atol": 1e-4, "rtol": 1e-4},
        )
        torch.testing.assert_close(ours, theirs, equal_nan=True, **scale)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_shape_and_stride(data):
    sizes, dtype = st.integers(0, 40), data.draw(st.sampled_from(FLOAT_DTYPES))
    m, n, k = data.draw(sizes), data.draw(sizes), data.draw(st.integers(0, 300))
    backend = data.draw(st.sampled_from([b for b in BACKENDS if isinstance(b, str)] or ["torch"]))

    def matrix(rows, columns):
        steps = [data.draw(st.integers(0, 3)) for _ in range(2)]
        order = data.draw(st.booleans())
        strides = (steps[0] * (1 + max(columns - 1, 0) * steps[1]), steps[1])
        if order:
            strides = (steps[1], steps[1] * steps[0] * max(rows, 1))
        span = 1 + sum(max(s - 1, 0) * t for s, t in zip((rows, columns), strides))
        return torch.randn(span).to(dtype).as_strided((rows, columns), strides)

    x, weight, bias = matrix(m, k), matrix(n, k), data.draw(st.sampled_from([None, torch.randn(n).to(dtype)]))
    with torch.no_grad(), use(backend):
        ours = PF.linear(x, weight, bias)
    truth = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    terms = F.linear(x.double().abs(), weight.double().abs(), None if bias is None else bias.double().abs())
    result, sums = torch.finfo(dtype), torch.finfo(acc_dtype(dtype))
    bound = (
        result.eps * (truth.abs() + result.tiny) + 128 * sums.eps * terms
    )  # 256 additions in a row, half an ulp each
    assert ((ours.double() - truth).abs() <= bound).all()


# ---- derivatives --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["", "relu", "gelu", "tanh"])
def test_gradients_of_gradients(activation):
    args = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 5), (4, 5), (4,))]
    with use("cpu"):
        assert torch.autograd.gradcheck(public(activation), args)
        assert torch.autograd.gradgradcheck(public(activation), args)
        bias = torch.randn(2, 1, 4, dtype=torch.float64, requires_grad=True)
        x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(public(activation), (x, args[1], bias))


@pytest.mark.parametrize("wanted", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)])
def test_only_what_is_needed_is_computed(wanted, monkeypatch):
    products = []
    from pyflash.ops.linear import _cpu as native

    matmul = native.matmul
    monkeypatch.setattr(native, "matmul", lambda *args: products.append(1) or matmul(*args))
    args = [torch.randn(s).requires_grad_(bool(r)) for s, r in zip(((3, 5), (4, 5), (4,)), wanted)]
    with use("cpu"):
        PF.linear_act(*args, "gelu").sum().backward()
    assert len(products) == wanted[0] + wanted[1]
    assert [a.grad is not None for a in args] == list(map(bool, wanted))


def test_backward_after_the_context_has_ended():
    args = [torch.randn(s, requires_grad=True) for s in ((3, 5), (4, 5), (4,))]
    with use("cpu"):
        y = PF.linear(*args)
    grads = torch.autograd.grad(y.sum(), args)
    for ours, theirs in zip(grads, torch.autograd.grad(F.linear(*args).sum(), args)):
        torch.testing.assert_close(ours, theirs)


# ---- compile, export, autocast, transforms ------------------------------------------------------------------------


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.slow
def test_compiles_without_a_break(dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(PF.linear_act, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    args = [torch.randn(s, requires_grad=True) for s in ((2, 7, 16), (9, 16), (9,))]
    for backend in "cpu", "auto":
        with use(backend):
            ours, eager = (torch.autograd.grad(f(*args).sum(), args) for f in (compiled, PF.linear_act))
            for a, b in zip(ours, eager):
                torch.testing.assert_close(a, b)
            with torch.no_grad():
                assert torch.equal(compiled(*args), PF.linear_act(*args))
    big = [torch.randn(s) for s in ((256, 256), (256, 256))]  # taken by the kernel under auto
    torch.testing.assert_close(compiled(*big), PF.linear_act(*big))


def test_exports():
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(9, 16))

        def forward(self, x):
            return PF.linear_act(x, self.weight, None, "gelu")

    layer, x = Layer(), torch.randn(5, 16)
    with use("cpu"):
        for context in torch.no_grad(), torch.enable_grad():
            with context:
                exported = torch.export.export(layer, (x,))
                assert any("pyflash" in str(node.target) for node in exported.graph.nodes)
                assert torch.equal(exported.module()(x), layer(x))


def test_a_compiled_graph_sees_a_changed_weight():
    weight, x = torch.nn.Parameter(torch.randn(9, 16)), torch.randn(5, 16)
    compiled = torch.compile(PF.linear, fullgraph=True, backend="aot_eager")
    with use("cpu"), torch.no_grad():
        compiled(x, weight)
        weight.data.mul_(-2)
        torch.testing.assert_close(compiled(x, weight), F.linear(x, weight))


@pytest.mark.parametrize("backend", ["cpu", "auto"])
def test_autocast_casts_as_torch_does(backend):
    args = [torch.randn(s, requires_grad=True) for s in ((3, 5), (4, 5), (4,))]
    with use(backend), torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = PF.linear(*args), F.linear(*args)
        assert ours.dtype == theirs.dtype == torch.bfloat16
        torch.testing.assert_close(ours, theirs)
        with pytest.raises(RuntimeError):
            PF.linear(args[0].double(), args[1])
    grads = torch.autograd.grad(ours.float().sum(), args)
    assert all(g.dtype == torch.float32 for g in grads)


def test_transforms_take_torchs_operations():
    x, weight = torch.randn(6, 3, 5), torch.randn(4, 5)
    with use("cpu"):
        ours = torch.func.vmap(lambda x: PF.linear(x, weight))(x)
        hessian = torch.func.hessian(lambda w: PF.linear_act(x[0], w).sum())(weight)
        tangent = torch.func.jvp(lambda w: PF.linear(x, w), (weight,), (weight,))[1]
    torch.testing.assert_close(ours, F.linear(x, weight))
    torch.testing.assert_close(hessian, torch.func.hessian(lambda w: F.gelu(F.linear(x[0], w)).sum())(weight))
    torch.testing.assert_close(tangent, F.linear(x, weight))


# ---- bad input ----------------------------------------------------------------------------------------------------

BAD = [  # arguments, what the message says
    ((torch.randn(2, 3), torch.randn(5, 4)), r"weight has shape \(5, 4\), expected 3 columns"),
    ((torch.randn(()), torch.randn(5, 4)), "0D and 2D: input has shape"),
    ((torch.randn(2, 3), torch.randn(())), r"2D and 0D: .* weight \(\)"),
    ((torch.randn(2, 3), torch.randn(1, 5, 3)), r"expected \[out_features, in_features\]"),
    ((torch.randn(2, 3), torch.randn(5, 3), torch.randn(4)), r"bias has shape \(4,\), expected one that expands"),
    ((torch.randn(3), torch.randn(5, 3), torch.randn(2, 5)), "expected one that expands"),
    ((torch.randn(2, 3), torch.randn(3), torch.randn(())), "expected a matrix"),
    ((torch.randn(2, 3), torch.randn(5, 3).double()), "weight is torch.float64 and input torch.float32"),
    ((torch.randn(2, 3), torch.randn(5, 3), torch.randn(5).half()), "bias is torch.float16"),
    ((torch.randn(2, 3), torch.randn(5, 3, device="meta")), "weight is on meta and input on cpu"),
]


@pytest.mark.parametrize("backend", ["cpu", "auto"])
@pytest.mark.parametrize("args, message", BAD, ids=[m for _, m in BAD])
def test_bad_input_is_refused(args, message, backend):
    with use(backend), pytest.raises(RuntimeError, match=r"pyflash\.linear: .*" + message):
        PF.linear(*args)
    if all(t.device.type == "cpu" for t in args):
        with pytest.raises(RuntimeError):
            F.linear(*args)


def test_other_arguments_are_refused():
    x, weight = torch.randn(2, 3), torch.randn(5, 3)
    with pytest.raises(ValueError, match="activation is 'swish', expected None or one of"):
        PF.linear_act(x, weight, activation="swish")
    with use("cpu"), pytest.raises(NotImplementedError, match="only strided floating-point"):
        PF.linear(x.to_sparse(), weight)
    integers = torch.arange(6).view(2, 3)
    assert torch.equal(PF.linear(integers, integers), F.linear(integers, integers))


@pytest.mark.parametrize(
    "activation, slope",
    [
        ("leaky_relu", 0.01),
        (("leaky_relu", {}), 0.01),
        (("leaky_relu", {"negative_slope": 0.2}), 0.2),
        (torch.nn.LeakyReLU(0.3), 0.3),
        (nn.LeakyReLU(0.3), 0.3),
    ],
    ids=str,
)
def test_what_an_activation_may_be(activation, slope):
    x, weight, bias = torch.randn(3, 4), torch.randn(5, 4), torch.randn(5)
    with use("cpu"):
        y = PF.linear_act(x, weight, bias, activation)
    torch.testing.assert_close(y, F.leaky_relu(F.linear(x, weight, bias), slope))


@pytest.mark.parametrize(
    "error, message, activation",
    [
        (ValueError, "activation is ('swish', {}), expected None or one of", ("swish", {})),
        (ValueError, "activation is a Linear, expected None or one of", torch.nn.Linear(2, 2)),
        (ValueError, "activation is 3, expected None or one of", 3),
        (
            ValueError,
            "activation 'leaky_relu' is given 'slope'; its parameters are negative_slope",
            ("leaky_relu", {"slope": 1}),
        ),
        (ValueError, "activation 'relu' is given 'slope'; its parameters are none", ("relu", {"slope": 1})),
        (ValueError, "activation 'celu' is given {'alpha': 0}, which torch refuses, too", ("celu", {"alpha": 0})),
        (ValueError, "activation 'hardtanh' is given {'min_val': 2, 'max_val': 1.0}", ("hardtanh", {"min_val": 2})),
        (
            TypeError,
            "negative_slope of activation 'leaky_relu' is 'a', expected a number",
            ("leaky_relu", {"negative_slope": "a"}),
        ),
    ],
    ids=str,
)
def test_what_an_activation_may_not_be(error, message, activation):
    with pytest.raises(error, match=re.escape(f"pyflash.linear_act: {message}")):
        PF.linear_act(torch.randn(3, 2), torch.randn(2, 2), None, activation)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_no_more_workspace_is_used_than_was_asked_for(dtype, monkeypatch):
    """Guards after it; rows of bfloat16 that begin at odd places are packed, which takes more."""
    from pyflash.ops.linear import _cpu

    guards = []

    def exact(size, *_):
        memory = torch.full((size + 64 + 4096,), 77, dtype=torch.uint8)
        begin = -memory.data_ptr() % 64
        guards.append(memory[begin + size :])
        return memory[begin : begin + size]

    monkeypatch.setattr(_cpu, "take_workspace", exact)
    before = torch.get_num_threads()
    try:
        for (m, k, n), extra, threads in itertools.product(
            ((70, 64, 130), (500, 1100, 70), (3, 33, 65)), (0, 1), (1, 2)
        ):
            torch.set_num_threads(threads)
            a, b = torch.randn(m, k + extra).to(dtype)[:, :k], torch.randn(n, k + extra).to(dtype)[:, :k].t()
            for left, right in ((a, b), (a.t().contiguous().t(), b), (b.t(), a.t())):
                assert_error_within(
                    (ops.matmul(left, right, "cpu"),), (left @ right,), (left.double() @ right.double(),),
                    left.abs().max() * right.abs().max(),
                )  # fmt: skip
    finally:
        torch.set_num_threads(before)
    assert guards and all([(guard == 77).all() for guard in guards])


# ---- threads ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(500, 513, 300), (1500, 129, 64), (130, 1100, 460), (130, 2201, 460)], ids=str)
def test_every_split_gives_the_same(shape, dtype):
    """Rows, panels or both over the threads, each packing its own panels or all sharing them."""
    rows, inner, columns = shape
    before = torch.get_num_threads()
    try:
        for a in (torch.randn(rows, inner).to(dtype), torch.randn(inner, rows).to(dtype).t()):
            for b in (torch.randn(inner, columns).to(dtype), torch.randn(columns, inner).to(dtype).t()):
                torch.set_num_threads(1)
                alone = ops.matmul(a, b, "cpu")
                truth = a.double() @ b.double()
                assert_error_within((alone,), (a @ b,), (truth,), a.abs().max() * b.abs().max())
                for threads in (2, 3, 5, 8):
                    torch.set_num_threads(threads)
                    assert torch.equal(ops.matmul(a, b, "cpu"), alone), threads
    finally:
        torch.set_num_threads(before)


def test_threads_do_not_change_a_bit():
    """The number of OpenMP threads, and Python threads at work on other shapes at the same time."""
    cases = [
        [torch.randn(m, k), torch.randn(n, k)]
        for m, k, n in ((64, 300, 200), (700, 64, 96), (5, 900, 130), (33, 65, 1000))
    ]
    before = torch.get_num_threads()

    def all_results(x, weight):
        with torch.no_grad():
            cached = PF.linear(x, weight)
        return cached, *run(PF.linear, [x, weight, None], torch.ones(len(x), len(weight)))

    with use("cpu"):
        torch.set_num_threads(1)
        expected = [all_results(*case) for case in cases]
        torch.set_num_threads(max(2, before))
        failures = []

        def work(index):
            for _ in range(3):
                for ours, theirs in zip(all_results(*cases[index]), expected[index]):
                    if theirs is not None and not torch.equal(ours, theirs):
                        failures.append(index)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    torch.set_num_threads(before)
    assert not failures


def test_a_forked_child_does_not_hang():
    """libgomp's pool does not survive a fork: the child's products run on one thread."""
    import os
    import time

    pytest.importorskip("pyflash._cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(max(2, before))
    x, weight, other = torch.randn(600, 300), torch.randn(700, 300), torch.randn(500, 300)
    with use("cpu"), torch.no_grad():
        PF.linear(x, weight)  # the pool is warm
        child = os.fork()
        if child == 0:
            Op.paranoid = False  # its fills are torch's, which would hang
            finite = [np.isfinite(PF.linear(x, w).numpy()).all() for w in (weight, other)]
            os._exit(0 if all(finite) else 1)
    torch.set_num_threads(before)
    for _ in range(200):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0
            return
        time.sleep(0.1)
    os.kill(child, 9)
    os.waitpid(child, 0)
    pytest.fail("the child hangs")
