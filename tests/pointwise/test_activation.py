"""Every row of the activation table on every backend, against torch's own function."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from activations import CALLS, OTHER_VALUES, borders
from helpers import (
    FLOAT_DTYPES,
    assert_error_within,
    backend_params,
    by_cpu,
    has_gpus_arithmetic,
    on_its_device,
    run,
    use,
)

import pyflash
import pyflash.functional as PF
from pyflash import nn
from pyflash.activations import ACTIVATIONS
from pyflash.auto import pointwise as auto
from pyflash.auto import tables
from pyflash.auto.processor import Place
from pyflash.ops.core import backends
from pyflash.ops.pointwise.activation import activation_fwd

CASES = [  # shape, layout, why it is here
    ((1,), "contiguous", "smallest"),
    ((3, 37), "contiguous", "odd width: tail of a vector"),
    ((2, 3, 4, 5), "channels_last", "dense, not contiguous"),
    ((40, 48), "transposed", "dense, transposed"),
    ((40, 48), "strided", "holes between rows"),
    ((0, 64), "contiguous", "empty"),
    ((), "contiguous", "no dimensions"),
]


def make(shape, layout):
    x = torch.randn(shape) * 3
    if layout == "channels_last":
        return x.to(memory_format=torch.channels_last)
    if layout == "transposed":
        return x.t().contiguous().t()
    if layout == "strided":
        return torch.randn(shape[0], 2 * shape[1])[:, : shape[1]]
    return x


def test_every_parameter_is_given_another_value():
    for row in ACTIVATIONS.values():
        given = {name for values in OTHER_VALUES.get(row.name, ()) for name in values}
        assert given == {name for name, _ in row.parameters}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("backend", backend_params("cpu", "triton", "cuda", "torch"))
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_matches_float64(name, backend, dtype):
    for shape, layout, _why in CASES:
        x = make(shape, layout).to(dtype)
        dy = torch.randn(shape, dtype=dtype)
        ours, reference = CALLS[name].ours, CALLS[name].reference
        truth = run(reference, [x], dy, torch.float64)
        assert_error_within(run(ours, [x], dy, backend=backend), run(reference, [x], dy), truth, dy)


def _tanhshrink(x):
    s, series = x * x, torch.zeros_like(x)
    for c in reversed((1 / 3, -2 / 15, 17 / 315, -62 / 2835, 1382 / 155925, -21844 / 6081075)):
        series = c + s * series
    return torch.where(x.abs() < 0.1, x * s * series, x - x.tanh())


# torch's own GELU cancels in the left tail even in float64, its Tanhshrink around 0.
WITHOUT_CANCELLATION = {
    "tanhshrink": _tanhshrink,
    "gelu": lambda x: 0.5 * x * torch.special.erfc(-x / 2**0.5),
    "gelu_tanh": lambda x: x * torch.sigmoid(1.5957691216057308 * (x + 0.044715 * x**3)),
}


def ulp_error(ours: torch.Tensor, truth: torch.Tensor) -> float:
    """Largest error of float32 values, in units of the last place of the float64 truth."""
    exponent = torch.frexp(truth)[1].clamp(min=-125)
    return ((ours.double() - truth).abs() / torch.exp2(exponent.double() - 24)).max().item()


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("backend", backend_params("cpu", "triton", "cuda"))
def test_max_ulp_over_the_whole_range(name, backend):
    """Every 4001st float: all exponents, both signs."""
    bits = np.arange(0, 2**32, 4001, dtype=np.uint32)
    x = on_its_device(torch.from_numpy(bits.view(np.float32)))
    x = x[x.isfinite()]
    with use(backend):
        y = CALLS[name].ours(x)
    truth = WITHOUT_CANCELLATION.get(name, CALLS[name].in_type(torch.float32).reference)(x.double())
    # near the subnormals a factor is one already, and a product has no more digits than it
    normal = truth.abs().to(torch.float32).isfinite() & ((truth.abs() >= 2.0**-118) | (truth == 0))
    limit = CALLS[name].row.max_ulp + (CALLS[name].row.gpu_ulp if has_gpus_arithmetic(backend) else 0)
    assert ulp_error(y[normal], truth[normal]) <= limit


@pytest.mark.skipif(np.finfo(np.longdouble).eps > 1e-18, reason="no longer type than float64 here")
@pytest.mark.parametrize("backend", backend_params("cpu"))
def test_exp_of_float64_over_the_whole_range(backend):
    """By the sigmoid's left tail, which is exp's: to the subnormals, in units of the last place of the truth."""
    x = np.concatenate([np.linspace(-746, 40, 200_003), -np.exp2(np.linspace(-60, 9, 4001)), [-np.inf, np.inf, np.nan]])
    with use(backend):
        y = activation_fwd(torch.from_numpy(x), "sigmoid", 0.0, 0.0, "cpu").numpy()
    e = np.exp(-np.abs(x.astype(np.longdouble)))
    truth = np.where(x < 0, e, 1) / (1 + e)
    assert np.isnan(y[-1]) and y[-2] == 1 and y[-3] == 0
    error = np.abs(y.astype(np.longdouble) - truth)[:-3] / np.spacing(truth[:-3].astype(np.float64))
    assert error.max() <= 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("backend", backend_params("triton", "cuda"))
def test_every_half_value_is_rounded_once(name, backend, dtype):
    """The coarse forms of kernels/primitives.py are within 2^-15, which a half type's rounding hides but for that much."""
    digits = 8 if dtype == torch.bfloat16 else 11
    x = on_its_device(torch.arange(-(2**15), 2**15, device="cpu").to(torch.int16).view(dtype))
    x = x[x.isfinite()]
    with use(backend):
        y = CALLS[name].ours(x)
    call = CALLS[name].in_type(dtype if "forward" in CALLS[name].row.rounds else torch.float32)
    truth = WITHOUT_CANCELLATION.get(name, call.reference)(x.double())
    # float32's own subnormals, which bfloat16 shares, are another matter, and 2^-118 as in the test above
    least = 2.0**-118 if dtype == torch.bfloat16 else 0.0
    kept = (truth.abs() <= torch.finfo(dtype).max) & (truth.abs() >= least) & (x.double().abs() >= least)
    exponent = torch.frexp(truth)[1].double().clamp(min=-125 if dtype == torch.bfloat16 else -13)
    error = ((y.double() - truth).abs() / torch.exp2(exponent - digits))[kept]
    assert error.max() <= 0.5 + 2.0 ** (digits - 15)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("backend", backend_params("cpu", "triton", "cuda"))
def test_special_values(name, backend):
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-40, -1e-40, 3e38, -3e38])
    with use(backend):
        y = CALLS[name].ours(x)
    # in float64: torch's float32 GELU of infinity is NaN where its float64 one is infinite
    torch.testing.assert_close(y, CALLS[name].in_type(torch.float32).reference(x.double()).float(), equal_nan=True)


@pytest.mark.parametrize("name", CALLS)
def test_gradients_of_gradients(name):
    x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    with use("cpu"):
        assert torch.autograd.gradcheck(CALLS[name].ours, (x,))
        assert torch.autograd.gradgradcheck(CALLS[name].ours, (x,))


def test_backward_after_the_context_has_ended():
    x = torch.randn(100, requires_grad=True)
    with use("cpu"):
        y = PF.gelu(x)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert_error_within(
        (dx,), *(run(torch.nn.functional.gelu, [x], torch.ones(100), d)[1:] for d in (torch.float32, torch.float64))
    )


def test_inplace_relu_writes_the_input():
    x = torch.randn(50)
    expected = x.relu()
    with use("cpu"):
        y = PF.relu(x, inplace=True)
    assert y is x and torch.equal(x, expected)


def test_integers_follow_torch():
    x = torch.arange(-3, 3)
    assert torch.equal(PF.relu(x), x.relu())
    with pytest.raises(RuntimeError):
        PF.gelu(x)


def test_an_unknown_approximation_is_refused():
    with pytest.raises(RuntimeError, match="either none or tanh, got 'fast'"):
        PF.gelu(torch.randn(3), approximate="fast")


def test_paranoid_mode_sees_an_overrun():
    from pyflash.ops.core.registry import OPS, Op

    op = Op(
        "test_overrun(Tensor x, str backend) -> Tensor",
        outputs=lambda x: (torch.empty_like(x),),
        reference=lambda x: (x,),
        cpu=f"{__name__}:_overrun",
    )
    del OPS["test_overrun"]  # another test looks at all there are
    with pytest.raises(AssertionError, match="wrote behind its output 0"):
        op(torch.zeros(4), "cpu")


def _overrun(x, y):
    y.as_strided((5,), (1,)).zero_()


def test_dense_memory_is_not_copied():
    x = torch.randn(4, 3, 5, 6).to(memory_format=torch.channels_last)
    assert activation_fwd(x, "relu", 0.0, 0.0, "cpu").stride() == x.stride()


AUTO = [  # where no table speaks: name, is the processor Intel's, elements, dtype, does `auto` take ours
    ("gelu_tanh", True, 1 << 20, torch.float32, True),
    ("gelu_tanh", False, 1 << 20, torch.bfloat16, True),
    ("gelu_tanh", False, 1 << 20, torch.float64, False),
    ("gelu_tanh", False, 1 << 10, torch.float32, False),
    ("tanh", True, 1 << 20, torch.float32, False),
    ("tanh", False, 1 << 20, torch.float32, True),
    ("relu", False, 1 << 20, torch.float32, False),
    ("relu", True, 1 << 23, torch.float32, True),
    ("relu", True, 1 << 23, torch.bfloat16, False),
    ("relu", True, 1 << 23, torch.float64, False),
]


@pytest.mark.parametrize(("name", "is_intel", "elements", "dtype", "ours"), AUTO)
def test_auto_takes_the_faster(name, is_intel, elements, dtype, ours, monkeypatch):
    monkeypatch.setattr(tables, "ours", lambda *_: None)
    where = Place("other" if is_intel else "zen4", "avx512", "several")
    assert (auto.decide_activation(name, where, (elements, False), dtype) == "") is ours


@pytest.mark.parametrize("name", ["gelu", "tanh", "dropout"])
def test_memory_with_holes_keeps_its_order(name):
    """A slice of images whose channels are last comes back with channels last."""
    images = torch.randn(2, 3, 4, 10).to(memory_format=torch.channels_last)[..., ::2]
    for x in (images, torch.randn(4, 10)[:, ::2].t()):
        x = x.detach().requires_grad_()
        with use("cpu"):
            y = getattr(PF, name)(x)
        assert y.stride() == torch.relu(x).stride()
        assert torch.autograd.grad(y.sum(), x)[0].stride() == y.stride()


@pytest.mark.parametrize("name", ["relu", "silu"])
@pytest.mark.parametrize("backend", ["cpu", "auto"])
def test_in_place_has_torchs_gradient(name, backend):
    """silu's derivative wants the input that was overwritten."""
    ours, theirs = (torch.linspace(-3, 3, 50).requires_grad_() for _ in range(2))
    dy = torch.randn(50)
    with use(backend):
        x = ours * 1
        y = getattr(PF, name)(x, inplace=True)
        assert y is x
        y.backward(dy)
    getattr(torch.nn.functional, name)(theirs * 1, inplace=True).backward(dy)
    torch.testing.assert_close(ours.grad, theirs.grad)
    with use(backend), pytest.raises(RuntimeError):
        getattr(PF, name)(ours, inplace=True)  # a leaf that requires its gradient


WITH_PARAMETERS = [row.name for row in ACTIVATIONS.values() if row.parameters and row.module]


@pytest.mark.parametrize("name", WITH_PARAMETERS)
@pytest.mark.parametrize("is_compiled", [False, True], ids=["eager", "compiled"])
def test_a_module_computes_with_what_its_attributes_are_now(name, is_compiled):
    row, (first, *others) = ACTIVATIONS[name], OTHER_VALUES[name]
    ours, theirs = (getattr(of, row.module)(**first) for of in (nn, torch.nn))
    function = torch.compile(ours, fullgraph=True, backend="aot_eager") if is_compiled else ours
    x = torch.linspace(-9, 9, 50)
    for values in (first, *others):
        for module in (ours, theirs):
            vars(module).update(values)
        with use("cpu"):
            y = function(x)
        torch.testing.assert_close(y, theirs(x))
        assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("name", WITH_PARAMETERS)
def test_a_linear_takes_the_parameters_of_the_module_behind(name):
    row, x = ACTIVATIONS[name], torch.randn(3, 4)
    linear = torch.nn.Linear(4, 5)
    for values in OTHER_VALUES[name]:
        model = torch.nn.Sequential(linear, getattr(torch.nn, row.module)(**values))
        expected = model(x)
        pyflash.replace(model)
        backends.counts.clear()
        with use("cpu"):
            torch.testing.assert_close(model(x), expected)
        assert ("linear_act", "cpu", "") in backends.counts
        pyflash.restore(model)


def test_what_is_no_number_is_torchs_to_take_or_refuse():
    x = torch.randn(9)
    with use("cpu"):
        torch.testing.assert_close(
            PF.leaky_relu(x, torch.tensor(0.25)), torch.nn.functional.leaky_relu(x, torch.tensor(0.25))
        )
        with pytest.raises(TypeError):
            PF.leaky_relu(x, "a")


@pytest.mark.parametrize("name", [row.function for row in ACTIVATIONS.values() if row.inplace])
def test_torchs_functions_in_place_are_ours_under_overrides(name):
    row = ACTIVATIONS[name]
    values = list(OTHER_VALUES[name][0].values()) if row.parameters else []
    for of in (torch.nn.functional, torch, torch.Tensor):
        function = getattr(of, f"{name}_", None)
        if function is None:
            continue
        x = torch.linspace(-5, 5, 20)
        expected = row.reference(x, *values)
        backends.counts.clear()
        with use("cpu"), pyflash.overrides():
            y = function(x, *values)
        assert y is x and (name, "cpu", "") in backends.counts
        torch.testing.assert_close(x, expected)


@pytest.mark.parametrize("name", [name for name in CALLS if "where(" in CALLS[name].row.backward])
@pytest.mark.parametrize("backend", backend_params("cpu", "triton"))
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_borders_belong_where_torch_has_them(name, backend, dtype):
    """Exact values at a kink: the result, and which side's derivative."""
    x = borders(name, dtype)
    dy = torch.full_like(x, 3.0)
    torch.testing.assert_close(
        run(CALLS[name].ours, [x], dy, backend=backend), run(by_cpu(CALLS[name].reference), [x], dy)
    )


@pytest.mark.parametrize("name", ["leaky_relu", "elu", "celu"])
def test_in_place_torch_refuses_the_gradient_of_a_negative_slope(name):
    x = torch.linspace(-3, 3, 50, requires_grad=True)
    with use("cpu"):
        y = getattr(PF, name)(x * 1, -0.5, inplace=True)
        torch.testing.assert_close(y, CALLS[name].row.reference(x, -0.5))
        with pytest.raises(RuntimeError, match=r"In-place .* calculation is triggered with a negative slope"):
            y.sum().backward()


REFUSED = [
    (ValueError, "min_val cannot be greater than max_val", lambda x: PF.hardtanh(x, 2.0, 1.0)),
    (RuntimeError, "lambda must be ", lambda x: PF.softshrink(x, -1.0)),
    (RuntimeError, "alpha cannot be 0 for CELU", lambda x: PF.celu(x, 0.0)),
    (TypeError, "", lambda x: PF.elu(x, "a")),
    (TypeError, "", lambda x: PF.threshold(x, 1.0)),
]


@pytest.mark.parametrize("error, message, call", REFUSED, ids=[message for _, message, _ in REFUSED])
def test_what_torch_refuses(error, message, call):
    with use("cpu"), pytest.raises(error, match=message):
        call(torch.randn(3))


FIRST_OF_ALL = """
import torch, pyflash.functional as F
x = torch.randn(8, 8, requires_grad=True)
(dx,) = torch.autograd.grad(F.activation_of(x).sum(), x, create_graph=True)
torch.autograd.grad(dx.sum(), x)
"""


@pytest.mark.parametrize("name", ["mish", "gelu"])
@pytest.mark.slow
def test_a_second_derivative_may_be_the_first_thing_a_process_does(name):
    """torch imports modules of its own in operations like these, at their first call."""
    code = (
        "import pyflash; pyflash.use_backend('torch')"
        if backends.MISSING["cpu"]
        else "import pyflash; pyflash.use_backend('cpu')"
    )
    code += FIRST_OF_ALL.replace("activation_of", name)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
