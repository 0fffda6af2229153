"""RMSNorm and the fused residual sum against torch's own rms_norm."""

import pytest
import torch
import torch.nn.functional as F
from helpers import FLOAT_DTYPES, assert_error_within, backend_params, by_cpu, run, use

from pyflash.nn.normalization import RMSNorm
from pyflash.ops.norm.rms_norm import _apply, _bwd, _fwd, add_rms_norm, rms_norm
from tests.norm.norms import LARGE, laid_out

BACKENDS = backend_params("cpu", "triton", "cuda")

CASES = [  # shape, number of normalised dimensions, with a weight, layout, why it is here
    ((1, 5), 1, True, "contiguous", "smaller than a vector"),
    ((3, 37), 1, True, "contiguous", "odd width: tail of a vector"),
    ((4, 5, 64), 1, True, "contiguous", "leading dimensions"),
    ((6, 3, 5, 7), 2, True, "contiguous", "two normalised dimensions"),
    ((9, 48), 2, True, "contiguous", "one row: all dimensions are normalised"),
    ((33, 130), 1, False, "contiguous", "no weight"),
    ((7, 96), 1, True, "row_strided", "stride is not the width"),
    ((8, 40), 1, True, "transposed", "columns not adjacent: a copy"),
    ((6, 5, 40), 1, True, "swapped", "rows without a common stride: a copy"),
    ((6, 40), 1, True, "expanded", "one row read many times"),
    ((300, 64), 1, True, "contiguous", "several blocks of rows for the weight's gradient"),
    ((3, 2500), 1, True, "contiguous", "longer than one chunk of a sum"),
    ((3, 20000), 1, True, "contiguous", "wider than a Triton program holds"),
    ((9, 1), 1, True, "contiguous", "one column"),
    ((0, 64), 1, True, "contiguous", "no rows: the weight's gradient is zero"),
    ((4, 0), 1, True, "contiguous", "nothing to normalise"),
]


def make_case(case, dtype, weight_dtype=None):
    shape, dims, has_weight, layout, _why = case
    normalized_shape = shape[len(shape) - dims :]
    weight = (torch.randn(normalized_shape) + 1).to(weight_dtype or dtype) if has_weight else None
    return laid_out(shape, layout, dtype), laid_out(shape, layout, dtype), normalized_shape, weight


def torch_add_rms_norm(x, residual, *args):
    return F.rms_norm(x + residual, *args), x + residual


def exactly(function, eps):
    """`function` with the eps that the type under test has by default: float64, the truth, has another."""
    return lambda *inputs: function(*inputs, eps)


def default_eps(dtype):
    return torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps


def terms(dy, x, normalized_shape, weight):
    """What dx is a difference of: dy weight / RMS(x); of one column nearly nothing is left."""
    rms = x.double().square().mean(list(range(-len(normalized_shape), 0)), True).sqrt()
    return dy.double() * (1 if weight is None else weight.double()) / rms


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_matches_float64(backend, dtype):
    for case in CASES:
        x, _, *args = make_case(case, dtype)
        dy = torch.randn(case[0], dtype=dtype)
        truth = run(exactly(F.rms_norm, default_eps(dtype)), [x, *args], dy, torch.float64)
        theirs = run(F.rms_norm, [x, *args], dy)
        assert_error_within(run(rms_norm, [x, *args], dy, backend=backend), theirs, truth, terms(dy, x, *args))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_add_matches_float64(backend, dtype):
    for case in CASES:
        inputs = make_case(case, dtype)
        douts = torch.randn(case[0], dtype=dtype), torch.randn(case[0], dtype=dtype)
        truth = run(exactly(torch_add_rms_norm, default_eps(dtype)), inputs, douts, torch.float64)
        theirs = run(torch_add_rms_norm, inputs, douts)
        ours = run(add_rms_norm, inputs, douts, backend=backend)
        assert torch.equal(ours[1], theirs[1])
        assert_error_within(ours, theirs, truth, *douts, terms(douts[0], truth[1], *inputs[2:]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "dtype, weight_dtype",
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float16),
        (torch.float32, torch.bfloat16),
        (torch.float64, torch.float32),
    ],
    ids=str,
)
def test_a_weight_of_another_type(backend, dtype, weight_dtype):
    x, _, *args = make_case(((20, 130), 1, True, "contiguous", ""), dtype, weight_dtype)
    dy = torch.randn(20, 130, dtype=dtype)
    truth = run(exactly(F.rms_norm, default_eps(dtype)), [x, *args], dy, torch.float64)
    theirs, ours = run(F.rms_norm, [x, *args], dy), run(rms_norm, [x, *args], dy, backend=backend)
    assert [t.dtype for t in ours] == [t.dtype for t in theirs] == [dtype, dtype, weight_dtype]
    assert_error_within(ours, theirs, truth, dy)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
@pytest.mark.parametrize("eps", [None, 0.0, 1e-12, 1e-5, 1, torch.tensor(0.5)], ids=str)
def test_eps(backend, dtype, eps):
    """Of values so small that each eps gives another result."""
    x, dy = torch.randn(9, 33).mul(1e-3).to(dtype), torch.randn(9, 33).to(dtype)
    for our_function, their_function in ((rms_norm, F.rms_norm), (add_rms_norm, torch_add_rms_norm)):
        inputs = [x] if our_function is rms_norm else [x, torch.zeros_like(x)]
        douts = dy if our_function is rms_norm else (dy, dy)
        value = default_eps(dtype) if eps is None else float(eps)
        truth = run(lambda *i, f=their_function, e=value: f(*i, (33,), None, e), inputs, douts, torch.float64)
        theirs = run(lambda *i, f=their_function: f(*i, (33,), None, eps), inputs, douts)
        ours = run(lambda *i, f=our_function: f(*i, (33,), None, eps), inputs, douts, backend=backend)
        assert_error_within(ours, theirs, truth, dy)


@pytest.mark.parametrize("backend", [*backend_params("cpu"), "reference"])
@pytest.mark.parametrize("dtype", LARGE, ids=str)
@pytest.mark.parametrize("with_residual", [False, True])
def test_values_whose_squares_are_past_the_type(backend, dtype, with_residual):
    """torch gives 0. A power of two costs no digit: the result is that of the values without it, and without eps."""
    for cols in (5, 64, 1500):
        x, residual, dy = (torch.randn(6, cols, dtype=dtype) for _ in range(3))
        scale = torch.full((6, 1), LARGE[dtype], dtype=dtype)
        scale[2] = 1  # a row among the others that is not large
        weight = torch.randn(cols, dtype=dtype)

        def small(x, residual, weight, cols=cols):
            total = x + residual if with_residual else x
            eps = [1e-5 if row == 2 else 0.0 for row in range(6)]
            return torch.cat([F.rms_norm(total[i : i + 1], (cols,), weight, e) for i, e in enumerate(eps)])

        def large(x, residual, weight, scale=scale, cols=cols):
            x, residual = x * scale, residual if residual is None else residual * scale
            if backend == "reference":
                return _apply(x, residual, (cols,), weight, 1e-5, "torch")[0]
            if with_residual:
                return add_rms_norm(x, residual, (cols,), weight, 1e-5)[0]
            return rms_norm(x, (cols,), weight, 1e-5)

        inputs = [x, residual if with_residual else None, weight]
        truth, theirs = run(small, inputs, dy, torch.float64), run(small, inputs, dy)
        ours = run(large, inputs, dy, backend=None if backend == "reference" else backend)
        assert_error_within(ours, theirs, truth, dy)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_and_infinity_are_where_torch_has_them(backend):
    """A row with an infinity is NaN there and 0 elsewhere."""
    for cols in (70, 20000):
        x, weight, dy = torch.randn(6, cols), torch.randn(cols), torch.randn(6, cols)
        x[1, 3], x[3, 69], x[4, 0] = float("nan"), float("inf"), -float("inf")
        dy[2, 2] = float("nan")
        inputs = [x, (cols,), weight]
        ours, theirs = run(rms_norm, inputs, dy, backend=backend), run(by_cpu(F.rms_norm), inputs, dy)
        assert theirs[0].isnan().sum() == cols + 2
        for our, their in zip(ours, theirs):
            assert torch.equal(our.isnan(), their.isnan())
        assert torch.equal(ours[0][3:5].nan_to_num(1), theirs[0][3:5].nan_to_num(1))


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("has_weight", [False, True])
def test_gradients_of_gradients(backend, has_weight):
    x, residual, shape, weight = make_case(((4, 3, 6), 2, has_weight, "contiguous", ""), torch.float64)
    leaves = [t.requires_grad_() for t in (x, residual, weight) if t is not None]

    def add(x, residual, weight=None):
        return add_rms_norm(x, residual, shape, weight)

    def plain(x, residual, weight=None):
        return rms_norm(x * residual, shape, weight)

    with use(backend):
        for function in (add, plain):
            assert torch.autograd.gradcheck(function, leaves)
            assert torch.autograd.gradgradcheck(function, leaves)


def test_the_reference_is_the_kernel_in_torch():
    x, residual, weight, dy = (torch.randn(s, dtype=torch.float64) for s in ((6, 9), (6, 9), (9,), (6, 9)))
    ours, theirs = _fwd(x, residual, weight, 1e-5, "cpu"), _fwd(x, residual, weight, 1e-5, "torch")
    torch.testing.assert_close(ours, theirs)
    args = (dy, dy, ours[1], weight, ours[2], True, True)
    torch.testing.assert_close(_bwd(*args, "cpu"), _bwd(*args, "torch"))


def test_export():
    x, module = torch.randn(4, 40), RMSNorm(40)
    with use("cpu"):
        program = torch.export.export(module, (x,))
    assert any("pyflash.rms_norm_fwd" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), F.rms_norm(x, (40,)))


WRONG = [
    (((4, 6), (5,)), RuntimeError, r"Given normalized_shape=\[5\], expected input with shape \[\*5\], but got input"),
    (((4, 6), ()), RuntimeError, "Expected normalized_shape to be at least 1-dimensional"),
    (((4, 6), (2, 4, 6)), ValueError, "Input tensor must have at least 3 dimensions, but got 2"),
    (((), (1,)), ValueError, "Input tensor must have at least 1 dimensions, but got 0"),
    (((4, 6), 6), TypeError, "normalized_shape"),
    (((4, 6), (6,), (3,)), RuntimeError, r"Expected weight to be of same shape as normalized_shape, but got weight of"),
    (((4, 6), (6,), (1, 6)), RuntimeError, r"weight of shape \[1, 6\]"),
    (((4, 6), (6,), None, "1e-5"), TypeError, "eps"),
    (((4, 6), (6,), None, 1j), TypeError, "eps"),
]


@pytest.mark.parametrize("backend", ["auto", "cpu", "torch"])
@pytest.mark.parametrize("arguments, error, message", WRONG)
def test_what_torch_refuses(backend, arguments, error, message):
    shape, normalized_shape, *rest = arguments
    weight = torch.randn(rest[0]) if rest and rest[0] else None
    x, eps = torch.randn(shape), rest[1] if len(rest) > 1 else None
    with use(backend):
        for function in (rms_norm, lambda x, *args: add_rms_norm(x, x, *args)):
            with pytest.raises(error, match=message):
                function(x, normalized_shape, weight, eps)
        with pytest.raises(error, match=message):
            F.rms_norm(x, normalized_shape, weight, eps)


def test_wrong_devices_and_kinds():
    x = torch.randn(3, 4)
    with use("cpu"):
        with pytest.raises(RuntimeError, match="weight is on meta"):
            rms_norm(x, (4,), torch.ones(4, device="meta"))
        with pytest.raises(RuntimeError, match="residual on meta"):
            add_rms_norm(x, x.to("meta"), (4,))
        with pytest.raises(TypeError, match="weight is a float"):
            rms_norm(x, (4,), 2.0)
        with pytest.raises(TypeError):
            rms_norm([1.0], (1,))
        with pytest.raises(NotImplementedError):
            rms_norm(torch.arange(4), (4,))
        with pytest.raises(NotImplementedError, match=r"weight is torch\.float64"):
            rms_norm(x, (4,), torch.ones(4, dtype=torch.float64))


@pytest.mark.filterwarnings("ignore::pyflash.ops.core.backends.FallbackWarning", "ignore:Mismatch dtype")
def test_auto_leaves_to_torch_what_no_kernel_takes():
    x = torch.randn(3, 4)
    for weight in (torch.randn(4, dtype=torch.float64), torch.arange(4)):
        assert torch.equal(rms_norm(x, (4,), weight), F.rms_norm(x, (4,), weight))
        assert torch.equal(add_rms_norm(x, x, (4,), weight)[0], F.rms_norm(x + x, (4,), weight))
    z = torch.randn(3, 4, dtype=torch.complex64)
    assert torch.equal(rms_norm(z, (4,)), F.rms_norm(z, (4,)))


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_results_lie_in_memory_as_torchs(backend):
    for x in (torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
              torch.randn(2, 3, 2, 4, 5).to(memory_format=torch.channels_last_3d), torch.randn(4, 3, 5).transpose(0, 1)):  # fmt: skip
        with use(backend):
            y = rms_norm(x, (5,))
        assert y.stride() == F.rms_norm(x, (5,)).stride()
        torch.testing.assert_close(y, F.rms_norm(x, (5,)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "arguments, options",
    [
        ((33,), {}),
        (((3, 11),), {"eps": 1e-3}),
        (([33],), {"elementwise_affine": False}),
        ((33,), {"dtype": torch.float64}),
    ],
)
def test_module(backend, arguments, options):
    ours, theirs = RMSNorm(*arguments, **options), torch.nn.RMSNorm(*arguments, **options)
    assert repr(ours) == repr(theirs) and ours.eps == theirs.eps
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    x = torch.randn(4, *theirs.normalized_shape, dtype=options.get("dtype"))
    with use(backend):
        torch.testing.assert_close(ours(x), theirs(x))
        torch.testing.assert_close(ours(x=x), theirs(x=x))
