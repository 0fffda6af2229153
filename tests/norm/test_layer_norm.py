"""LayerNorm and the fused residual sum against torch's own layer_norm."""

import pytest
import torch
import torch.nn.functional as F
from helpers import FLOAT_DTYPES, assert_error_within, backend_params, run, use
from property_tests import given, settings, st

import pyflash.functional as PF
from pyflash.ops.core.registry import Op
from pyflash.ops.norm.layer_norm import _apply, _bwd, _fwd
from tests.norm.norms import LARGE, laid_out

BACKENDS = backend_params("cpu", "triton", "cuda")

CASES = [  # shape, number of normalised dimensions, parameters, layout, why it is here
    ((1, 5), 1, "wb", "contiguous", "smaller than a vector"),
    ((3, 37), 1, "wb", "contiguous", "odd width: tail of a vector"),
    ((4, 5, 64), 1, "wb", "contiguous", "leading dimensions"),
    ((6, 3, 5, 7), 2, "wb", "contiguous", "two normalised dimensions"),
    ((9, 48), 2, "w", "contiguous", "one row: all dimensions are normalised"),
    ((33, 130), 1, "", "contiguous", "no parameters"),
    ((33, 130), 1, "w", "contiguous", "weight without bias"),
    ((33, 130), 1, "b", "contiguous", "bias without weight"),
    ((7, 96), 1, "wb", "row_strided", "stride is not the width"),
    ((8, 40), 1, "wb", "transposed", "columns not adjacent: a copy"),
    ((6, 5, 40), 1, "wb", "swapped", "rows without a common stride: a copy"),
    ((6, 40), 1, "wb", "expanded", "one row read many times"),
    ((300, 64), 1, "wb", "contiguous", "several blocks of rows for the parameters' gradients"),
    ((3, 2500), 1, "wb", "contiguous", "longer than one chunk of a sum"),
    ((2, 8200), 1, "wb", "contiguous", "longer than the registers of a block"),
    ((0, 64), 1, "wb", "contiguous", "no rows: gradients of the parameters are zero"),
    ((4, 0), 1, "wb", "contiguous", "nothing to normalise"),
]


def make_case(case, dtype, params_dtype=None):
    shape, dims, params, layout, _why = case
    normalized_shape = shape[len(shape) - dims :]
    weight, bias = ((torch.randn(normalized_shape) + 1).to(params_dtype or dtype) for _ in range(2))
    x, residual = laid_out(shape, layout, dtype), laid_out(shape, layout, dtype)
    return x, residual, normalized_shape, weight if "w" in params else None, bias if "b" in params else None


def torch_add_layer_norm(x, residual, *args):
    return F.layer_norm(x + residual, *args), x + residual


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_matches_float64(backend, dtype):
    for case in CASES:
        x, _, *args = make_case(case, dtype)
        dy = torch.randn(case[0], dtype=dtype)
        truth = run(F.layer_norm, [x, *args], dy, torch.float64)
        theirs = run(F.layer_norm, [x, *args], dy)
        assert_error_within(run(PF.layer_norm, [x, *args], dy, backend=backend), theirs, truth, dy)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_add_matches_float64(backend, dtype):
    for case in CASES:
        inputs = make_case(case, dtype)
        douts = torch.randn(case[0], dtype=dtype), torch.randn(case[0], dtype=dtype)
        truth = run(torch_add_layer_norm, inputs, douts, torch.float64)
        theirs = run(torch_add_layer_norm, inputs, douts)
        ours = run(PF.add_layer_norm, inputs, douts, backend=backend)
        assert torch.equal(ours[1], theirs[1])
        assert_error_within(ours, theirs, truth, *douts, inputs[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("params", ["wb", "w", "b"])
def test_float32_parameters_beside_a_half_input(backend, dtype, params):
    case = ((20, 130), 1, params, "contiguous", "")
    x, _, *args = make_case(case, dtype, torch.float32)
    dy = None if params == "b" else torch.randn(case[0], dtype=dtype)  # torch's own backward fails without a weight
    truth = run(F.layer_norm, [x, *args], dy, torch.float64)
    # On CUDA torch refuses mixed types; its own error is the CPU's then.
    on_cpu = [t.cpu() if isinstance(t, torch.Tensor) else t for t in (x, *args)]
    theirs = [t.to(x.device) for t in run(F.layer_norm, on_cpu, None if dy is None else dy.cpu())]
    ours = run(PF.layer_norm, [x, *args], dy, backend=backend)
    assert [t.dtype for t in ours] == [t.dtype for t in theirs]
    assert_error_within(ours, theirs, truth, *(() if dy is None else (dy,)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mean, std", [(1e4, 1.0), (-1e6, 10.0), (0.0, 1e-4), (100.0, 1e-3), (0.0, 1e15)])
def test_large_means(backend, mean, std):
    """Subtracting a large mean must not cost more digits than the input has lost already."""
    for cols in (64, 1000, 5000):
        x = torch.randn(16, cols) * std + mean
        weight, bias, dy = torch.randn(cols), torch.randn(cols), torch.randn(16, cols)
        inputs = [x, (cols,), weight, bias]
        truth, theirs = run(F.layer_norm, inputs, dy, torch.float64), run(F.layer_norm, inputs, dy)
        assert_error_within(run(PF.layer_norm, inputs, dy, backend=backend), theirs, truth, dy)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_that_starts_far_from_its_mean(backend):
    """The kernel guesses the mean from the first elements; a bad guess must not cost digits."""
    for first, value in ((64, 1e4), (1, 1e6), (16, -1e3)):
        x, dy = torch.randn(8, 1500), torch.randn(8, 1500)
        x[:, :first] += value
        truth, theirs = run(F.layer_norm, [x, (1500,)], dy, torch.float64), run(F.layer_norm, [x, (1500,)], dy)
        assert_error_within(run(PF.layer_norm, [x, (1500,)], dy, backend=backend), theirs, truth, dy)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_one_column_is_the_bias(backend, dtype):
    """Exactly: rounding errors would be multiplied by 1 / sqrt(eps). float64 torch is no truth here, it has some."""
    x, dy = torch.randn(9, 1, dtype=dtype), torch.randn(9, 1, dtype=dtype)
    inputs = [x, (1,), torch.randn(1, dtype=dtype), torch.randn(1, dtype=dtype)]
    y, dx, dweight, dbias = run(PF.layer_norm, inputs, dy, backend=backend)
    assert torch.equal(y, inputs[3].expand(9, 1)) and not dx.any() and not dweight.any()
    torch.testing.assert_close(dbias, dy.double().sum(0).to(dtype))


@pytest.mark.parametrize("backend", [*backend_params("cpu"), "reference"])
@pytest.mark.parametrize("dtype", LARGE, ids=str)
@pytest.mark.parametrize("with_residual", [False, True])
def test_values_whose_squares_are_past_the_type(backend, dtype, with_residual):
    """torch gives NaN. A power of two costs no digit: the result is that of the values without it, and without eps."""
    for cols in (5, 64, 1500):
        x, residual, dy = (torch.randn(6, cols, dtype=dtype) for _ in range(3))
        x[0, : cols // 2] += 10  # the first elements are a bad guess of the mean
        x[1] += 2
        scale = torch.full((6, 1), LARGE[dtype], dtype=dtype)
        scale[2] = 1  # a row among the others that is not large
        params = [torch.randn(cols, dtype=dtype) for _ in range(2)]

        def small(x, residual, *args, cols=cols):
            total = x + residual if with_residual else x
            eps = [1e-5 if row == 2 else 0.0 for row in range(6)]
            return torch.cat([F.layer_norm(total[i : i + 1], (cols,), *args, eps=e) for i, e in enumerate(eps)])

        def large(x, residual, *args, scale=scale, cols=cols):
            if backend == "reference":
                return _apply(
                    x * scale, residual if residual is None else residual * scale, (cols,), *args, 1e-5, "torch"
                )[0]
            if with_residual:
                return PF.add_layer_norm(x * scale, residual * scale, (cols,), *args)[0]
            return PF.layer_norm(x * scale, (cols,), *args)

        inputs = [x, residual if with_residual else None, *params]
        truth, theirs = run(small, inputs, dy, torch.float64), run(small, inputs, dy)
        ours = run(large, inputs, dy, backend=None if backend == "reference" else backend)
        assert_error_within(ours, theirs, truth, dy)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_constant_row_is_zero(backend):
    for value in (0.1, 1e6, -3.3e-5):
        x = torch.full((3, 1001), value)
        with use(backend):
            y = PF.layer_norm(x, (1001,))
        assert y.abs().max() <= 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_and_infinity_stay_in_their_row(backend):
    x = torch.randn(6, 70)
    x[1, 3], x[3, 69], x[4, 0] = float("nan"), float("inf"), -float("inf")
    dy = torch.randn(6, 70)
    ours, theirs = run(PF.layer_norm, [x, (70,)], dy, backend=backend), run(F.layer_norm, [x, (70,)], dy)
    for our, their in zip(ours, theirs):
        assert torch.equal(our.isnan(), their.isnan())
    dy[2, 2] = float("nan")
    x, weight = torch.randn(6, 70), torch.randn(70)
    ours, theirs = (
        run(function, [x, (70,), weight, weight], dy, backend=b)
        for function, b in ((PF.layer_norm, backend), (F.layer_norm, None))
    )
    for our, their in zip(ours, theirs):
        assert torch.equal(our.isnan(), their.isnan())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("eps", [0.0, 1e-12, 1.0])
def test_eps(backend, eps):
    x, dy = torch.randn(9, 33), torch.randn(9, 33)
    inputs = [x, (33,), None, None, eps]
    truth, theirs = run(F.layer_norm, inputs, dy, torch.float64), run(F.layer_norm, inputs, dy)
    assert_error_within(run(PF.layer_norm, inputs, dy, backend=backend), theirs, truth, dy)


@pytest.mark.parametrize("params", ["", "w", "b", "wb"])
def test_gradients_of_gradients(params):
    case = ((4, 3, 6), 2, params, "contiguous", "")
    x, residual, shape, weight, bias = make_case(case, torch.float64)
    leaves = [t.requires_grad_() for t in (x, residual, weight, bias) if t is not None]

    def unpack(tensors):
        tensors = list(tensors)
        return *tensors[:2], tensors[2] if "w" in params else None, tensors[-1] if "b" in params else None

    def add(*tensors):
        x, residual, weight, bias = unpack(tensors)
        return PF.add_layer_norm(x, residual, shape, weight, bias)

    def plain(*tensors):
        x, residual, weight, bias = unpack(tensors)
        return PF.layer_norm(x * residual, shape, weight, bias)

    with use("cpu"):
        for function in (add, plain):
            assert torch.autograd.gradcheck(function, leaves)
            assert torch.autograd.gradgradcheck(function, leaves)


def test_backward_after_the_context_has_ended():
    x = torch.randn(10, 20, requires_grad=True)
    with use("cpu"):
        y = PF.layer_norm(x, (20,))
    (dx,) = torch.autograd.grad(y.square().sum() / 2, x, create_graph=True)
    penalty = dx.square().sum()
    (ours,) = torch.autograd.grad(penalty, x)
    (dx,) = torch.autograd.grad(F.layer_norm(x, (20,)).square().sum() / 2, x, create_graph=True)
    (theirs,) = torch.autograd.grad(dx.square().sum(), x)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_the_reference_is_the_kernel_in_torch():
    x, residual, weight, bias, dy = (torch.randn(s, dtype=torch.float64) for s in ((6, 9), (6, 9), (9,), (9,), (6, 9)))
    ours, theirs = _fwd(x, residual, weight, bias, 1e-5, "cpu"), _fwd(x, residual, weight, bias, 1e-5, "torch")
    torch.testing.assert_close(ours, theirs)
    args = (dy, dy, ours[1], weight, ours[2], ours[3], True, True, True)
    torch.testing.assert_close(_bwd(*args, "cpu"), _bwd(*args, "torch"))


def test_export():
    class Module(torch.nn.Module):
        def forward(self, x, weight):
            return PF.layer_norm(x, (40,), weight)

    x, weight = torch.randn(4, 40), torch.randn(40)
    with use("cpu"):
        program = torch.export.export(Module(), (x, weight))
    assert any("pyflash.layer_norm_fwd" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x, weight), F.layer_norm(x, (40,), weight))


@pytest.mark.parametrize("backend", ["auto", "cpu", "torch"])
@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (((4, 6), (5,)), RuntimeError, r"normalized_shape=\[5\], .* got input of size\[4, 6\]"),
        (((4, 6), ()), RuntimeError, "at least 1-dimensional"),
        (((4, 6), (2, 4, 6)), RuntimeError, r"normalized_shape=\[2, 4, 6\]"),
        (((4, 6), 6), TypeError, "expected a tuple of ints"),
        (((4, 6), (6,), (3,)), RuntimeError, r"weight of shape \[3\]"),
        (((4, 6), (6,), (1, 6)), RuntimeError, r"weight of shape \[1, 6\]"),
        (((4, 6), (6,), None, (7,)), RuntimeError, r"bias of shape \[7\]"),
    ],
)
def test_wrong_shapes(backend, arguments, error, message):
    shape, normalized_shape, *params = arguments
    params = [None if p is None else torch.randn(p) for p in params]
    x = torch.randn(shape)
    with use(backend):
        for function in (PF.layer_norm, lambda x, *args: PF.add_layer_norm(x, x, *args)):
            with pytest.raises(error, match=message):
                function(x, normalized_shape, *params)
        with pytest.raises(error):
            F.layer_norm(x, normalized_shape, *params)


@pytest.mark.parametrize("backend", ["auto", "cpu", "torch"])
@pytest.mark.parametrize(
    "x, weight, bias",
    [
        (torch.float32, torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float64, None),
        (torch.float64, torch.float32, torch.float32),
        (torch.bfloat16, torch.float16, None),
        (torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.float32, torch.bfloat16),
    ],
)
def test_wrong_types(backend, x, weight, bias):
    x = torch.randn(3, 4).to(x)
    weight, bias = (None if d is None else torch.ones(4, dtype=d) for d in (weight, bias))
    with use(backend), pytest.raises(RuntimeError, match=r"(weight|bias) is"):
        PF.layer_norm(x, (4,), weight, bias)
    with pytest.raises(RuntimeError):
        F.layer_norm(x, (4,), weight, bias)


def test_wrong_devices_and_kinds():
    x = torch.randn(3, 4)
    with use("cpu"):
        with pytest.raises(RuntimeError, match="weight is on meta"):
            PF.layer_norm(x, (4,), torch.ones(4, device="meta"))
        with pytest.raises(RuntimeError, match="residual on meta"):
            PF.add_layer_norm(x, x.to("meta"), (4,))
        with pytest.raises(RuntimeError):
            PF.add_layer_norm(x, torch.randn(3, 5), (4,))
        with pytest.raises(NotImplementedError):
            PF.layer_norm(torch.arange(4), (4,))


def test_rows_with_a_stride_are_not_copied(monkeypatch):
    monkeypatch.setattr(Op, "paranoid", False)  # it fills and compares with torch's operations
    x = torch.randn(40, 100)[:, 10:60]
    with use("cpu"), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        PF.layer_norm(x, (50,), torch.ones(50), torch.zeros(50))
    names = {event.key for event in profile.key_averages()}
    assert "pyflash::layer_norm_fwd" in names
    assert not names & {"aten::copy_", "aten::clone", "aten::layer_norm", "aten::native_layer_norm", "aten::add"}


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(0, 6), max_size=2), st.lists(st.integers(1, 40), min_size=1, max_size=2),
    st.booleans(), st.booleans(), st.randoms(),
)  # fmt: skip
def test_any_shape(leading, normalized, has_weight, has_bias, random):
    order = list(range(len(leading) + len(normalized)))
    random.shuffle(order)
    shape = [*leading, *normalized]
    torch.manual_seed(random.getrandbits(32))  # a failing example can be repeated
    x = torch.randn([shape[d] for d in order]).permute([order.index(d) for d in range(len(order))])
    weight, bias = (torch.randn(normalized) if has else None for has in (has_weight, has_bias))
    dy = torch.randn(shape)
    inputs = [x, tuple(normalized), weight, bias]
    truth, theirs = run(F.layer_norm, inputs, dy, torch.float64), run(F.layer_norm, inputs, dy)
    ours = run(PF.layer_norm, inputs, dy, backend="cpu")
    # In a row of two or three nearly equal elements the deviations have few digits, and 1 / std makes them large, twice
    # in the gradient.
    rows = x.double().reshape(-1, torch.Size(normalized).numel())
    if rows.numel():
        rstd = (rows.var(1, unbiased=False) + 1e-5).rsqrt().max()
        scale = (rstd * rows.abs().max()).clamp(min=1) * rstd.clamp(min=1) * dy.abs().max()
    else:
        scale = torch.ones(())
    weights = torch.ones(()) if weight is None else weight.abs().max().clamp(min=1)
    assert_error_within(ours, theirs, truth, scale * weights)
