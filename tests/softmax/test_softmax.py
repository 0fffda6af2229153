"""Softmax, its logarithm and softmin against torch's own."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers import FLOAT_DTYPES, SOFTMAX_ULP, assert_error_within, backend_params, on_its_device, run, use

import pyflash.functional as PF
from pyflash.ops.core.dtypes import HALVES
from pyflash.ops.core.registry import OPS, Op

BACKENDS = backend_params("cpu", "triton", "cuda")
KINDS = ("softmax", "log_softmax", "softmin")
every_kind = pytest.mark.parametrize("kind", KINDS)

CASES = [  # shape, dim, layout, why it is here
    ((1, 1), 1, "contiguous", "one element"),
    ((5, 3), -1, "contiguous", "smaller than a vector"),
    ((3, 37), 1, "contiguous", "odd width: tail of a vector"),
    ((2, 3, 64), 2, "contiguous", "leading dimensions"),
    ((3, 1500), 1, "contiguous", "longer than a chunk"),
    ((7, 96), 1, "row_strided", "stride is not the width"),
    ((8, 40), 1, "transposed", "elements not adjacent: a copy"),
    ((6, 5, 40), -1, "swapped", "rows without a common stride: a copy"),
    ((6, 40), 1, "expanded", "one row read many times"),
    ((40,), 0, "contiguous", "one row"),
    ((40, 3), 0, "contiguous", "fewer columns than a vector has lanes"),
    ((2, 21, 9, 16), 1, "contiguous", "columns: channels of an image, blocks and a tail"),
    ((2, 21, 4, 16), -3, "channels_last", "channels that are adjacent"),
    ((3, 20, 70), 1, "row_strided", "columns of a wider tensor"),
    ((5, 1, 33), 1, "contiguous", "columns of one element"),
    ((3, 0), 1, "contiguous", "nothing in a row"),
    ((0, 3), 1, "contiguous", "no rows"),
    ((), 0, "contiguous", "a number"),
]
LONG = {  # shape, dim: more elements than are kept
    "cpu": [((1, 66000), 1), ((1, 1100, 20), 1), ((1, 4100, 20), 1)],  # rows; columns: one vector is kept, and nothing
    "triton": [((2, 9000), 1), ((2, 35, 40), 1)],
    "cuda": [((2, 9000), 1), ((2, 300, 40), 1)],
}


def laid_out(shape, layout, dtype):
    """Random numbers of a shape that lie in memory as `layout` says."""
    x = torch.randn(shape, dtype=dtype) * 3
    if layout == "row_strided":
        return (torch.randn(*shape[:-1], 2 * shape[-1]) * 3).to(dtype)[..., : shape[-1]]
    if layout == "transposed":
        return x.t().contiguous().t()
    if layout == "swapped":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "expanded":
        return x[:1].expand(shape)
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    return x


def floor():
    return 4 + SOFTMAX_ULP


def compare(kind, x, dim, backend, floor_ulp=None, **options):
    def of(functional):
        return lambda x: getattr(functional, kind)(x, dim, **options)

    dy = torch.randn(x.shape, dtype=options.get("dtype", x.dtype))
    truth = run(lambda x: getattr(F, kind)(x, dim), [x], dy, torch.float64)
    theirs, ours = run(of(F), [x], dy), run(of(PF), [x], dy, backend=backend)
    assert ours[0].stride() == theirs[0].stride()
    assert_error_within(ours, theirs, truth, dy, floor_ulp=floor_ulp or floor())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_matches_float64(backend, dtype):
    for i, (shape, dim, layout, _why) in enumerate(CASES):
        for kind in KINDS if dtype == torch.float32 else KINDS[i % 3 : i % 3 + 1]:
            compare(kind, laid_out(shape, layout, dtype), dim, backend)


@every_kind
@pytest.mark.parametrize("backend", BACKENDS)
def test_more_elements_than_fast_memory_holds(kind, backend):
    for shape, dim in LONG[backend.partition(":")[0]]:
        for dtype in (torch.float32, torch.bfloat16) if kind == "log_softmax" else (torch.float32,):
            compare(kind, laid_out(shape, "contiguous", dtype), dim, backend)


@every_kind
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_half_type_becomes_float32_in_the_same_pass(kind, backend, dtype):
    for shape, dim in (((5, 3), 1), ((4, 1500), 1), ((2, 21, 80), 1)):
        compare(kind, laid_out(shape, "contiguous", dtype), dim, backend, dtype=torch.float32)


@every_kind
def test_a_half_type_is_not_copied_on_its_way_to_float32(kind, monkeypatch):
    monkeypatch.setattr(Op, "paranoid", False)
    x = torch.randn(4, 8).bfloat16()
    names = []
    for functional, backend in ((PF, "cpu"), (F, "torch")):
        with use(backend), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            getattr(functional, kind)(x, 1, dtype=torch.float32)
        names.append({event.name for event in profile.events()})
    assert "aten::copy_" in names[1] and "aten::copy_" not in names[0]


@every_kind
@pytest.mark.parametrize("backend", BACKENDS)
def test_maxima_that_grow_along_a_row(kind, backend):
    """Each chunk counts from another maximum; what is far below the last of them is 0, as torch's."""
    for first, last in ((-300, 300), (0, 9), (300, -300)):
        rows = torch.linspace(first, last, 4500) + torch.randn(2, 4500)
        if backend == "triton":
            rows = rows[:, ::60].clone()  # 75: the interpreter walks columns in blocks of 8
        for x, dim in ((rows, 1), (rows.t().contiguous(), 0)):
            terms = x.double()  # of the logarithm: the exponential sees their last place
            dy = torch.randn(x.shape)
            truth = run(lambda x, dim=dim: getattr(F, kind)(x, dim), [x], dy, torch.float64)
            theirs = run(lambda x, dim=dim: getattr(F, kind)(x, dim), [x], dy)
            ours = run(lambda x, dim=dim: getattr(PF, kind)(x, dim), [x], dy, backend=backend)
            assert_error_within(ours, theirs, truth, *([terms] if kind == "log_softmax" else []), dy, floor_ulp=floor())


INFINITY, NAN = float("inf"), float("nan")
SPECIAL = {  # (place, value)...; None: everywhere
    "all -inf": [(None, -INFINITY)],
    "all inf": [(None, INFINITY)],
    "one -inf": [(3, -INFINITY)],
    "one inf": [(2000, INFINITY)],
    "one NaN": [(2100, NAN)],
    "NaN first": [(0, NAN)],
    "-inf but one": [(None, -INFINITY), (2100, 1.0)],
    "lowest": [(None, torch.finfo(torch.float32).min)],
    "lowest and -inf": [(None, -INFINITY), (5, torch.finfo(torch.float32).min)],
    "largest": [(7, torch.finfo(torch.float32).max), (2001, -torch.finfo(torch.float32).max)],
    "-0": [(None, -0.0)],
}


@every_kind
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [2200, 70, 7])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's numpy
def test_what_is_not_finite_is_where_torch_has_it(kind, backend, length):
    if length > 1000 and backend == "triton":
        pytest.skip("the interpreter walks 70 columns in blocks, too")
    x, dy = torch.randn(length, len(SPECIAL) + 1), torch.randn(length, len(SPECIAL) + 1)
    for column, values in enumerate(SPECIAL.values()):
        for place, value in values:
            x[slice(None) if place is None else place % length, column] = value
    x = -x if kind == "softmin" else x
    for dim in (0, 1):
        inputs, dout = ([x], dy) if dim == 0 else ([x.t().contiguous()], dy.t().contiguous())
        ours, theirs = (
            run(lambda x, f=functional, dim=dim: getattr(f, kind)(x, dim), inputs, dout, backend=b)
            for functional, b in ((PF, backend), (F, None))
        )
        for our, their in zip(ours, theirs):
            torch.testing.assert_close(our, their, equal_nan=True, rtol=1e-5, atol=1e-5)


@every_kind
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_gradient_that_is_not_finite(kind, backend):
    x, dy = torch.randn(6, 70), torch.randn(6, 70)
    dy[1, 3], dy[2, 69], dy[3, 0] = NAN, INFINITY, -INFINITY
    x[4, :5] = -INFINITY
    for dim in (0, 1):
        ours, theirs = (
            run(lambda x, f=functional, dim=dim: getattr(f, kind)(x, dim), [x], dy, backend=b)
            for functional, b in ((PF, backend), (F, None))
        )
        for our, their in zip(ours, theirs):
            torch.testing.assert_close(our, their, equal_nan=True, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("scale, shift", [(1, 0), (30, 0), (1, 1e4), (1e4, -3e5), (1e-3, 0)])
def test_the_logarithm_is_as_near_as_torchs(backend, dim, scale, shift):
    x = torch.randn(100, 500) * scale + shift
    truth = F.log_softmax(x.double(), dim)
    with use(backend):
        ours = PF.log_softmax(x, dim)
    assert_error_within((ours,), (F.log_softmax(x, dim),), (truth,), factor=1, floor_ulp=1 + SOFTMAX_ULP)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@every_kind
@pytest.mark.parametrize("dim", [1, 2])
def test_gradients_of_gradients(backend, kind, dim):
    shape = (3, 4, 5) if backend == "cpu" else (1, 3, 2)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    with use(backend):
        assert torch.autograd.gradcheck(lambda x: getattr(PF, kind)(x, dim), (x,))
        assert torch.autograd.gradgradcheck(lambda x: getattr(PF, kind)(x, dim), (x,))


@every_kind
@pytest.mark.parametrize("dtype, wide", [(torch.float32, None), (torch.bfloat16, torch.float32)], ids=str)
def test_a_gradient_penalty(kind, dtype, wide):
    """After the context has ended: the backward takes what the forward took."""

    def penalty(functional, x, backend):
        with use(backend):
            y = getattr(functional, kind)(x, 1, dtype=wide)
        (dx,) = torch.autograd.grad(y.square().sum() * 3, x, create_graph=True)
        return (dx, *torch.autograd.grad(dx.float().square().sum(), x))

    x = torch.randn(6, 33, 5).to(dtype)
    ours, theirs = (penalty(f, x.clone().requires_grad_(), b) for f, b in ((PF, "cpu"), (F, "torch")))
    truth = penalty(F, x.double().requires_grad_(), "torch") if wide is None else None
    if truth is None:
        for our, their in zip(ours, theirs):
            torch.testing.assert_close(our, their, rtol=0.05, atol=0.05)
    else:
        assert_error_within(ours, theirs, truth, floor_ulp=8)


@every_kind
def test_the_reference_is_the_kernel_in_torch(kind):
    x, dy = torch.randn(2, 5, 7, dtype=torch.float64), torch.randn(2, 5, 7, dtype=torch.float64)
    fwd, bwd = OPS["softmax_fwd"], OPS["softmax_bwd"]
    for dim in range(3):
        ys = [fwd(x, dim, kind, x.dtype, backend) for backend in ("cpu", "triton", "torch")]
        dxs = [bwd(dy, ys[2], dim, kind, x.dtype, backend) for backend in ("cpu", "triton", "torch")]
        for one, other, truth in (ys, dxs):
            torch.testing.assert_close((one, other), (truth, truth))


@pytest.mark.parametrize("backend", backend_params("cpu"))
@pytest.mark.parametrize("dim", [0, 1])
@every_kind
def test_outputs_past_the_caches_are_the_same(backend, dim, kind):
    """Large outputs are streamed: 32 MB here, and the same in two calls."""
    x, dy = torch.randn(2080, 2048), torch.randn(2080, 2048)

    def part(a, b):
        rows = (slice(a, b), slice(None)) if dim else (slice(None), slice(a, b))
        return run(lambda x: getattr(PF, kind)(x, dim), [x[rows]], dy[rows], backend=backend)

    whole, halves = part(0, 2080), [part(0, 1040), part(1040, 2080)]
    for a, b in zip(whole, zip(*halves)):
        assert torch.equal(a, torch.cat(b, 1 - dim))


@every_kind
def test_results_do_not_depend_on_threads(kind):
    threads, results = torch.get_num_threads(), []
    x, dy = torch.randn(7, 90, 250), torch.randn(7, 90, 250)
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append([
                t for dim in range(3)
                for t in run(lambda x, dim=dim: getattr(PF, kind)(x, dim), [x], dy, backend="cpu")
            ])  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


# ---- arguments


@every_kind
@pytest.mark.parametrize("backend", ["auto", "cpu", "torch"])
def test_an_implicit_dimension_is_deprecated(kind, backend):
    for shape, dim in (((4,), 0), ((3, 4), 1), ((2, 3, 4), 0), ((2, 3, 4, 5), 1), ((), 0)):
        x = torch.randn(shape)
        with use(backend), pytest.warns(UserWarning, match=f"Implicit dimension choice for {kind} has been") as caught:
            y = getattr(PF, kind)(x)
        assert caught[0].filename == __file__ and len(caught) == 1
        torch.testing.assert_close(y, getattr(F, kind)(x, dim))


WRONG = [
    ((torch.zeros(2, 3), 2), {}),
    ((torch.zeros(2, 3), -3), {}),
    ((torch.tensor(1.0), 1), {}),
    ((torch.zeros(2, 3), 1.0), {}),
    ((torch.zeros(2, 3), "C"), {}),
    ((torch.zeros(2, 3), True), {}),
    ((torch.zeros(2, 3), [1]), {}),
    ((torch.zeros(2, 3), 1), {"dtype": "float32"}),
    ((torch.zeros(2, 3), 1), {"dtype": torch.int64}),
    ((torch.arange(3), 0), {}),
    ((torch.zeros(3, dtype=torch.bool), 0), {}),
    ((torch.zeros(3, dtype=torch.complex64), 0), {}),
    (([1.0, 2.0], 0), {}),
    ((None, 0), {}),
]


@every_kind
@pytest.mark.parametrize("backend", ["auto", "cpu", "torch"])
@pytest.mark.parametrize("args, options", WRONG)
def test_what_torch_refuses(kind, backend, args, options):
    with pytest.raises(Exception) as theirs:
        getattr(F, kind)(*args, **options)
    with use(backend), pytest.raises(type(theirs.value)) as ours:
        getattr(PF, kind)(*args, **options)
    assert str(theirs.value).splitlines()[0].rstrip(")") in str(ours.value)


@every_kind
@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_dtype(kind, backend):
    numbers = torch.randn(4, 6) * 3
    for given, wanted in ((torch.float32, torch.float64), (torch.float64, torch.float32), (torch.float32, torch.bfloat16),
                          (torch.int64, torch.float32), (torch.bool, torch.float16), (torch.bfloat16, torch.float16),
                          (torch.float16, torch.float16)):  # fmt: skip
        x = numbers.to(given)
        if kind == "softmin" and given == torch.bool:
            continue  # torch negates no bool
        with use(backend):
            y = getattr(PF, kind)(x, 1, dtype=wanted)
        expected, truth = getattr(F, kind)(x, 1, dtype=wanted), getattr(F, kind)(x.to(wanted).double(), 1)
        assert_error_within((y,), (expected,), (truth,))


def test_a_bool_has_no_negative():
    for functional in (PF, F):
        with use("cpu"), pytest.raises(RuntimeError, match="Negation"):
            functional.softmin(torch.ones(3, dtype=torch.bool), 0, dtype=torch.float32)
    x = torch.tensor([1, 2, 200], dtype=torch.uint8)  # whose negative is 256 less it
    with use("cpu"):
        torch.testing.assert_close(PF.softmin(x, 0, dtype=torch.float32), F.softmin(x, 0, dtype=torch.float32))


@pytest.mark.filterwarnings("ignore::pyflash.ops.core.backends.FallbackWarning")
def test_auto_leaves_to_torch_what_no_kernel_takes():
    z = torch.randn(3, 4)
    nested = torch.nested.nested_tensor([z, z[:2]])
    for a, b in zip(PF.softmax(nested, -1).unbind(), F.softmax(nested, -1).unbind()):
        assert torch.equal(a, b)
    with use("cpu"), pytest.raises(NotImplementedError, match="only strided"):
        PF.softmax(nested, -1)


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_on_the_cpu_leaves_the_types_alone(autocast):
    for x in (torch.randn(3, 8), torch.randn(3, 8).bfloat16()):
        with use("cpu"), torch.autocast("cpu", autocast):
            for kind in KINDS:
                assert getattr(PF, kind)(x, 1).dtype == getattr(F, kind)(x, 1).dtype == x.dtype


def test_a_result_that_was_changed_is_noticed(monkeypatch):
    """The backward reads it."""
    monkeypatch.setattr(Op, "paranoid", False)  # whose outputs are views
    for shape in ((4, 6), (2, 3, 4)):
        x = torch.randn(shape, requires_grad=True)
        with use("cpu"):
            y = PF.softmax(x, 1)
        y.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


@every_kind
def test_compile_and_export(kind):
    class Module(torch.nn.Module):
        def forward(self, x):
            return getattr(PF, kind)(x, 1) + getattr(PF, kind)(x.bfloat16(), -1, dtype=torch.float32)

    def loss(function, x):
        with use("cpu"):
            y = function(x)
        return y.detach(), *torch.autograd.grad(y.square().sum(), x)

    module, x = Module(), torch.randn(3, 5, 8, requires_grad=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in (3, 7):
        x = torch.randn(size, 5, 8, requires_grad=True)
        torch.testing.assert_close(loss(compiled, x), loss(module, x))
    with use("cpu"):
        program = torch.export.export(module, (x,))
    assert sum("pyflash.softmax_fwd" in str(node.target) for node in program.graph.nodes) == 2
    torch.testing.assert_close(loss(program.module(), x), loss(module, x))


@every_kind
def test_functorch_takes_torch(kind):
    x, ours, theirs = torch.randn(3, 5, 8), getattr(PF, kind), getattr(F, kind)
    with use("cpu"):
        torch.testing.assert_close(torch.func.vmap(lambda x: ours(x, 0))(x), theirs(x, 1))
        hessian = [torch.func.hessian(lambda x, f=f: f(x, 0).square().sum())(x[0, 0]) for f in (ours, theirs)]
        torch.testing.assert_close(*hessian)
        _, tangent = torch.func.jvp(lambda x: ours(x, 1), (x,), (x,))
        torch.testing.assert_close(tangent, torch.func.jvp(lambda x: theirs(x, 1), (x,), (x,))[1])


def test_the_native_module_takes_no_other_types():
    _cpu = pytest.importorskip("pyflash._cpu")
    fwd, bwd = (*(0,) * 8, 0), (*(0,) * 11, 0)
    for types in ((0, 1), (1, 0), (0, 2), (2, 3), (2, 1)):
        with pytest.raises(TypeError, match="one type nor float32 beside"):
            _cpu.softmax_fwd((*fwd, *types), 1)
        with pytest.raises(TypeError, match="one type nor float32 beside"):
            _cpu.softmax_bwd((*bwd, *types[::-1]), 1)
    with pytest.raises(TypeError, match="softmax_fwd: kind is 3, expected a number from 0 to 2"):
        _cpu.softmax_fwd((*fwd[:-1], 3, 0, 0), 1)
    with pytest.raises(RuntimeError, match="one type and shape"):
        torch.ops.pyflash.softmax_bwd(torch.zeros(3), torch.zeros(4), 0, "softmax", torch.float32, "cpu")


# ---- other names of the same


@pytest.mark.parametrize("form", [torch, torch.Tensor, torch.special], ids=lambda form: form.__name__)
@pytest.mark.parametrize("kind", ["softmax", "log_softmax"])
def test_torchs_other_forms_under_overrides(form, kind):
    import pyflash

    x, call = torch.randn(4, 6), getattr(form, kind)
    calls = [lambda: call(x, 0), lambda: call(x, dim=-1), lambda: call(x, 1, dtype=torch.float64)]
    if form is not torch.special:
        calls.append(lambda: call(x, 1, torch.float64))
    for expected, function in [(function(), function) for function in calls]:
        pyflash.counts(reset=True)
        with use("cpu"), pyflash.overrides():
            y = function()
        assert pyflash.counts()[kind, "cpu", ""] == 1
        torch.testing.assert_close(y, expected)
    with pyflash.overrides(), pytest.raises(TypeError, match="NoneType"):
        call(x, None)


def test_overrides_keep_the_place_of_the_warning():
    import pyflash

    with pyflash.overrides(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        y = F.softmax(torch.zeros(3, 4))
    assert len(caught) == 1 and y.shape == (3, 4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "name, options, shape",
    [("Softmax", {"dim": 1}, (3, 5)), ("LogSoftmax", {"dim": 0}, (3, 5)), ("Softmin", {"dim": -1}, (3, 5)),
     ("Softmax2d", {}, (2, 3, 4, 5)), ("Softmax2d", {}, (3, 4, 5))],
)  # fmt: skip
def test_modules(backend, name, options, shape):
    import pyflash.nn as nn

    ours, theirs = getattr(nn, name)(**options), getattr(torch.nn, name)(**options)
    assert repr(ours) == repr(theirs) and not ours.state_dict()
    x = on_its_device(torch.randn(shape))
    with use(backend):
        torch.testing.assert_close(ours(x), theirs(x))
        torch.testing.assert_close(ours(input=x), theirs(input=x))


def test_torch_fx_records_a_call_each():
    import pyflash.nn as nn

    modules = torch.nn.Sequential(nn.Softmax2d(), nn.LogSoftmax(1), nn.Softmin(-1), nn.Softmax(0))
    traced, x = torch.fx.symbolic_trace(modules), torch.randn(2, 3, 4, 5)
    assert len(traced.graph.nodes) == 6
    torch.testing.assert_close(traced(x), modules(x))


def test_softmax2d_refuses_what_torchs_does():
    import pyflash.nn as nn

    for module in (nn.Softmax2d(), torch.nn.Softmax2d()):
        with pytest.raises(ValueError, match="expected input to be 3D or 4D, got 2D instead"):
            module(torch.zeros(2, 3))


def test_a_module_without_a_dimension():
    import pyflash.nn as nn

    with pytest.warns(UserWarning, match="Implicit dimension choice for log_softmax"):
        y = nn.LogSoftmax()(torch.zeros(3, 4))
    torch.testing.assert_close(y, F.log_softmax(torch.zeros(3, 4), 1))
