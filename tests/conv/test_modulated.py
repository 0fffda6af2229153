"""A convolution with a style of each sample, and all that follows, in one operator: against torch's operations one by one."""

import pytest
import torch
from helpers import on_its_device, use

from pyflash.auto import conv as auto
from pyflash.ops.conv.modulated import modulated_conv_fwd
from pyflash.ops.pointwise.argument import NO_ACTIVATION, resolve
from tests.conv.convs import BACKENDS, OF_FLOAT64, assert_sums_within, laid_out

NO, LEAKY, TANH = NO_ACTIVATION, resolve("test", ("leaky_relu", {"negative_slope": 0.2})), resolve("test", "tanh")
CASES = [  # x, outputs of a group, kernel, stride, padding, groups; scale, bias, samples of noise; activation, gain, clamp
    ((1, 1, 3, 3), 1, 3, 1, 1, 1, True, True, 1, LEAKY, 1.4, 2.0),
    ((3, 5, 4, 5), 6, 3, 1, 1, 1, True, True, 3, LEAKY, 1.4, -1.0),  # samples that share a panel
    ((3, 1, 5, 4), 4, 3, 1, 1, 1, True, False, 1, TANH, 1.0, -1.0),  # one channel: depthwise, were there no style
    ((3, 5, 4, 4), 1, 1, 1, 0, 1, False, True, 0, NO, 1.0, 0.5),  # samples that follow one another in the result
    ((2, 150, 3, 5), 33, 1, 1, 0, 1, True, False, 2, NO, 2.0, -1.0),  # longer than a chunk of the sum
    ((2, 20, 7, 6), 40, 3, 2, (1, 0), 1, True, True, 2, LEAKY, 1.4, 3.0),
    ((2, 6, 5, 4), 3, 3, 1, (-1, 2), 2, True, True, 2, TANH, 1.0, -1.0),
    ((2, 34, 9, 5), 66, 3, 1, 1, 1, True, True, 2, LEAKY, 1.4, 40.0),
    ((3, 40, 6, 7), 35, 3, 1, (2, 0), 1, False, False, 0, NO, 1.0, -1.0),
]
LAYOUTS = "contiguous", "channels_last", "sliced"


def problem(x_shape, rows, kernel, stride, padding, groups, has_scale, has_bias, noises, *of, layout, dtype):
    """(tensors, what follows them)"""
    batch, channels, *sizes = x_shape
    stride, padding = ((n, n) if isinstance(n, int) else n for n in (stride, padding))
    size = tuple((n + 2 * p - kernel) // s + 1 for n, p, s in zip(sizes, padding, stride))
    outputs = rows * groups
    tensors = (
        laid_out(x_shape, layout, dtype),
        laid_out((outputs, channels // groups, kernel, kernel), layout, dtype),
        laid_out((batch, channels), dtype=dtype),
        laid_out((batch, outputs), dtype=dtype) if has_scale else None,
        laid_out((outputs,), dtype=dtype) if has_bias else None,
        laid_out((noises, 1, *size), layout, dtype) if noises else None,
    )
    return tensors, (size, stride, padding, (1, 1), groups, *of)


def exactly(tensors):
    return [None if t is None else t.double() for t in tensors]


@pytest.fixture(params=["as_it_comes", "winograd_2x2", "winograd_4x4"])
def algorithm(request, monkeypatch):
    before = torch.get_float32_matmul_precision()
    if request.param != "as_it_comes":
        monkeypatch.setattr(auto, "WINOGRAD_CHANNELS", 1)
        monkeypatch.setattr(auto, "LEAST_2X2_PLACES", {True: 0, False: 0})
    if request.param == "winograd_4x4":
        monkeypatch.setattr(auto, "LEAST_4X4_PLACES", {True: 0, False: 0})
        torch.set_float32_matmul_precision("high")
    yield request.param
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_by_one(backend, layout, algorithm):
    name = backend.partition(":")[0]
    if algorithm != "as_it_comes" and name != "cpu":
        pytest.skip("the algorithm is the CPU's")
    for case in CASES[:: 2 if name == "triton" else 1]:
        tensors, options = problem(*case, layout=layout, dtype=torch.float32)
        truth = modulated_conv_fwd(*exactly(tensors), *options, "torch")
        torchs = modulated_conv_fwd(*tensors, *options, "torch")
        with use(backend):
            found = modulated_conv_fwd(*map(on_its_device, tensors), *options, name).cpu()
        assert found.stride() == torchs.stride()
        length = tensors[1][0].numel() * (
            8 if algorithm == "winograd_4x4" else 1
        )  # its rounding is that of longer sums
        scales = [t for t in (*tensors[1:2], *tensors[3:]) if t is not None]
        assert_sums_within([found], [torchs], [truth], *scales, lengths=[length])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_types(backend, dtype):
    name = backend.partition(":")[0]
    if name == "triton" and dtype == torch.float64:
        pytest.skip("no products of float64")
    for case in CASES[1:8:3]:
        for layout in LAYOUTS[:2]:
            tensors, options = problem(*case, layout=layout, dtype=dtype)
            truth = modulated_conv_fwd(*exactly(tensors), *options, "torch")
            torchs = modulated_conv_fwd(*tensors, *options, "torch")
            with use(backend):
                found = modulated_conv_fwd(*map(on_its_device, tensors), *options, name).cpu()
            scales = [t for t in (*tensors[1:2], *tensors[3:]) if t is not None]
            assert_sums_within([found], [torchs], [truth], *scales, lengths=[tensors[1][0].numel()])


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_finite(backend):
    """NaN passes a clamp, infinity does not; and neither reaches another sample."""
    case = ((3, 34, 7, 6), 33, 3, 1, 1, 1, True, True, 3, LEAKY, 1.4, 3.0)
    name = backend.partition(":")[0]
    for layout in LAYOUTS[:2]:
        tensors, options = problem(*case, layout=layout, dtype=torch.float32)
        tensors[0][1, 2, 3, 3] = torch.nan
        tensors[0][2, 5, 0, 0] = torch.inf
        truth = modulated_conv_fwd(*exactly(tensors), *options, "torch")
        torchs = modulated_conv_fwd(*tensors, *options, "torch")
        with use(backend):
            found = modulated_conv_fwd(*map(on_its_device, tensors), *options, name).cpu()
        assert_sums_within([found], [torchs], [truth], *tensors[1:2], *tensors[3:], lengths=[34 * 9])
        assert truth[1].isnan().any() and not truth[1].isnan().all() and not truth[0].isnan().any()
        assert truth[2].isfinite().all() and tensors[0][2].isinf().any()


@pytest.mark.parametrize("backend", OF_FLOAT64)
def test_an_empty_batch(backend):
    name = backend.partition(":")[0]
    tensors, options = problem(*CASES[1], layout="contiguous", dtype=torch.float32)
    tensors = [t[:0] if t is not None and i not in (1, 4) else t for i, t in enumerate(tensors)]
    with use(backend):
        assert modulated_conv_fwd(*tensors, *options, name).shape == (0, 6, 4, 5)


def test_the_number_of_threads_changes_nothing():
    pytest.importorskip("pyflash._cpu")
    before = torch.get_num_threads()
    found = []
    torch.manual_seed(0)
    tensors, options = problem((2, 34, 33, 31), *CASES[7][1:], layout="contiguous", dtype=torch.float32)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(modulated_conv_fwd(*tensors, *options, "cpu"))
    torch.set_num_threads(before)
    assert torch.equal(*found) and found[0].isfinite().all()


def test_derivatives():
    tensors, options = problem(*CASES[1], layout="contiguous", dtype=torch.float64)
    leaves = [t.requires_grad_() for t in tensors]

    def operator(*tensors):
        return torch.ops.pyflash.modulated_conv_fwd(*tensors, *options[:5], *options[5], *options[6:], False, "torch")

    assert torch.autograd.gradcheck(operator, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(operator, leaves, fast_mode=True)
