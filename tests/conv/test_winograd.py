"""3x3 convolutions by F(2x2, 3x3) and F(4x4, 3x3), their weights' gradients, and transposed ones of 4x4, stride 2, by F(2x2, 2x2): edges of patches, panels and blocks in both layouts, and how exact it is."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from helpers import run, use

import pyflash.functional as PF
from pyflash.auto import conv as auto
from tests.conv.convs import FORMATS, ON_CPU, assert_sums_within, laid_out, lengths_of

CASES = [  # x, rows of the weight, padding, groups
    ((1, 1, 3, 3), 1, 0, 1),
    ((2, 3, 5, 7), 5, 1, 1),
    ((1, 40, 6, 35), 70, (2, 0), 1),
    ((3, 34, 9, 4), 66, 1, 2),
    ((2, 150, 4, 4), 9, (0, 2), 1),
]


NONE = {True: 0, False: 0}


@pytest.fixture
def everywhere(monkeypatch):
    """F(2x2, 3x3) and F(2x2, 2x2) wherever they can be."""
    monkeypatch.setattr(auto, "WINOGRAD_CHANNELS", 1)
    monkeypatch.setattr(auto, "LEAST_2X2_PLACES", NONE)
    monkeypatch.setattr(auto, "LEAST_PHASE_PLACES", NONE)
    monkeypatch.setattr(auto, "LEAST_GRAD_PLACES", 0)


@pytest.fixture
def lowered(everywhere, monkeypatch):
    """F(4x4, 3x3) wherever it can be."""
    monkeypatch.setattr(auto, "LEAST_4X4_PLACES", NONE)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


def problem(x_shape, rows, padding, groups, layout):
    """(x, weight, bias, residual), dy, and their function by ours and by torch"""
    weight_shape = (rows * groups, x_shape[1] // groups, 3, 3)
    tensors = laid_out(x_shape, layout), laid_out(weight_shape, layout), laid_out(weight_shape[:1])
    options = {"padding": padding, "groups": groups}
    y = F.conv2d(*tensors, **options)

    def theirs(x, weight, bias, residual):
        return F.relu(F.conv2d(x, weight, bias, **options) + residual)

    def ours(x, weight, bias, residual):
        return PF.conv_bias_act(x, weight, bias, **options, activation="relu", residual=residual)

    return (*tensors, laid_out(y.shape)), torch.randn_like(y), ours, theirs


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize(("x_shape", "rows", "padding", "groups"), CASES)
def test_matches_float64(x_shape, rows, padding, groups, layout, backend, everywhere):
    tensors, dy, ours, theirs = problem(x_shape, rows, padding, groups, layout)
    truth = run(theirs, [t.double() for t in tensors], dy.double())
    lengths = (*lengths_of(x_shape, tensors[1].shape, dy.shape), 1)
    assert_sums_within(run(ours, tensors, dy, backend=backend), run(theirs, tensors, dy), truth, lengths=lengths)


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_error_is_within_twice_torchs(layout, backend, everywhere):
    """The error of the whole, at channels of real models: 1.7 times that of torch's most exact kernel was seen."""
    for channels in (32, 128, 300):
        x, weight = torch.randn(1, channels, 12, 12), torch.randn(64, channels, 3, 3)
        truth = F.conv2d(x.double(), weight.double(), padding=1)
        torchs = (F.conv2d(x, weight, padding=1) - truth).norm()
        if layout == "channels_last":
            x = x.contiguous(memory_format=FORMATS[4])
        (y, *_) = run(lambda x, w: PF.conv2d(x, w, padding=1), (x, weight), None, backend=backend)
        assert (y - truth).norm() <= 2 * torchs


# The largest factor by which the transforms of F(4x4, 3x3) may enlarge a rounding error: absolute sums of the rows of
# A^T and B^T and G, each twice, for the points of csrc/cpu/conv/winograd_transforms.h.
def growth_of_4x4():
    a, b = 11 / 16, 3 / 2
    points = torch.tensor([0, a, -a, b, -b], dtype=torch.float64)
    powers = points[:, None] ** torch.arange(4)  # [5, 4]
    scale = torch.stack([torch.prod(p - points[points != p]) for p in points])
    rows = torch.tensor([a * a * b * b + a * a + b * b + 1, *[(1 + a) * (1 + b * b)] * 2, *[(1 + b) * (1 + a * a)] * 2])
    filters = powers[:, :3].abs().sum(1) / scale.abs()
    return float((powers.abs().sum(0).max() + 1) ** 2 * (rows.max() * filters.max()) ** 2)


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize(("x_shape", "rows", "padding", "groups"), CASES)
def test_of_lowered_precision(x_shape, rows, padding, groups, layout, backend, lowered):
    tensors, dy, ours, theirs = problem(x_shape, rows, padding, groups, layout)
    truth = run(theirs, [t.double() for t in tensors], dy.double())
    for found, exact in zip(run(ours, tensors, dy, backend=backend), truth):
        assert (found - exact).abs().max() <= growth_of_4x4() * torch.finfo(torch.float32).eps * exact.abs().max()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("backend", ON_CPU)
def test_lowered_precision_is_another_algorithm(backend, layout, lowered):
    """Its error, of the whole, is larger than that of F(2x2, 3x3), and five times torch's at most: docs/differences.md."""
    x, weight = torch.randn(1, 128, 32, 32), torch.randn(64, 128, 3, 3)
    truth = F.conv2d(x.double(), weight.double(), padding=1)
    torchs = (F.conv2d(x, weight, padding=1) - truth).norm()
    x = x.contiguous(memory_format=FORMATS[4]) if layout == "channels_last" else x
    with torch.no_grad():
        errors = {}
        for precision in ("medium", "high", "highest"):
            torch.set_float32_matmul_precision(precision)
            (y, *_) = run(lambda x, w: PF.conv2d(x, w, padding=1), (x, weight), None, backend=backend)
            errors[precision] = (y - truth).norm()
    assert errors["medium"] == errors["high"] > errors["highest"]
    assert errors["high"] <= 5 * torchs


@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("backend", ON_CPU)
def test_what_is_not_finite_stays_in_its_window(backend, layout, precision, lowered):
    torch.set_float32_matmul_precision(precision)
    x, weight, bias = torch.randn(2, 33, 9, 11), torch.randn(35, 33, 3, 3), torch.randn(35)
    x = x.contiguous(memory_format=FORMATS[4]) if layout == "channels_last" else x
    largest = torch.finfo(torch.float32).max

    def ours(x, weight):
        return run(lambda x, w, b: PF.conv_bias_act(x, w, b, padding=1, activation="relu"), (x, weight, bias), None, backend=backend)[0]  # fmt: skip

    for value in (float("inf"), float("-inf"), float("nan"), largest):
        for of_weight in (False, True):
            spoilt, w = x.clone(), weight.clone()
            (w[3, 2, 1] if of_weight else spoilt[1, 4, 5])[1] = value  # the middle of a window is never padding
            expected = F.relu(F.conv2d(spoilt, w, bias, padding=1))
            assert not expected.isfinite().all() or value == largest
            torch.testing.assert_close(ours(spoilt, w), expected, equal_nan=True, atol=1e-4, rtol=1e-5)


def weight_grad(x, dy, backend=None, threads=1):
    """Of a 3x3 kernel and padding 1, by ours, or without a backend by torch."""
    weight = torch.zeros(dy.shape[1], x.shape[1], 3, 3, dtype=x.dtype, requires_grad=True)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with use(backend) if backend else nullcontext():
            (PF if backend else F).conv2d(x, weight, padding=1).backward(dy)
    finally:
        torch.set_num_threads(before)
    return weight.grad


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_weights_gradient_is_another_algorithm_as_exact(layout, backend, monkeypatch):
    """More rows and channels than a block and a panel have, and as many parts of the patches as they are cut into."""
    for batch, size, channels, outputs in ((1, 12, 32, 33), (3, 13, 70, 130), (2, 30, 64, 64)):
        x, dy = torch.randn(batch, channels, size, size + 1), torch.randn(batch, outputs, size, size + 1)
        x = x.contiguous(memory_format=FORMATS[4])  # torch's most exact kernel's
        truth = weight_grad(x.double(), dy.double())
        torchs = (weight_grad(x, dy) - truth).norm()
        x = x if layout == "channels_last" else x.contiguous()
        results = []
        for least in (0, 1 << 40):
            monkeypatch.setattr(auto, "LEAST_GRAD_PLACES", least)
            results.append(weight_grad(x, dy, backend))
        assert not torch.equal(*results)
        assert (results[0] - truth).norm() <= 2 * torchs
        monkeypatch.setattr(auto, "LEAST_GRAD_PLACES", 0)
        assert torch.equal(results[0], weight_grad(x, dy, backend, threads=3))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("backend", ON_CPU)
def test_a_weights_gradient_keeps_what_is_not_finite_in_its_taps(backend, layout, everywhere):
    x, dy = torch.randn(2, 33, 9, 11), torch.randn(2, 35, 9, 11)
    x, dy = (t.contiguous(memory_format=FORMATS[4]) if layout == "channels_last" else t for t in (x, dy))
    for value in (float("inf"), float("-inf"), float("nan"), torch.finfo(torch.float32).max):
        # A corner of the input, which four taps read; of what multiplies the padding torch's kernels do not agree.
        for spoilt, at in ((x, (1, 3, 0, 0)), (dy, (1, 3, 4, 5))):
            before = spoilt[at].clone()
            spoilt[at] = value
            expected = weight_grad(x, dy)
            assert value == torch.finfo(torch.float32).max or 0 < (~expected.isfinite()).sum() < expected.numel() / 16
            torch.testing.assert_close(weight_grad(x, dy, backend), expected, equal_nan=True, atol=1e-3, rtol=1e-5)
            spoilt[at] = before


TRANSPOSED_CASES = [  # x, outputs of a group, options
    ((1, 1, 1, 1), 1, {}),
    ((2, 3, 5, 7), 5, {"padding": 1}),
    ((1, 40, 6, 35), 70, {"padding": (2, 0), "output_padding": 1}),
    ((3, 34, 4, 9), 66, {"padding": 1, "groups": 2}),
    ((2, 150, 3, 2), 9, {"padding": 3, "output_padding": (0, 1)}),
]


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize(("x_shape", "outputs", "options"), TRANSPOSED_CASES)
def test_phases_match_float64(x_shape, outputs, options, layout, backend, everywhere):
    groups = options.get("groups", 1)
    tensors = laid_out(x_shape, layout), laid_out((x_shape[1], outputs, 4, 4), layout), laid_out((outputs * groups,))

    def of(f):
        return lambda *tensors: f(*tensors, stride=2, **options)

    dy = torch.randn_like(of(F.conv_transpose2d)(*tensors))
    truth = run(of(F.conv_transpose2d), [t.double() for t in tensors], dy.double())
    ours = run(of(PF.conv_transpose2d), tensors, dy, backend=backend)
    lengths = 4 * x_shape[1] // groups, 16 * outputs, dy[:, 0].numel(), dy[:, 0].numel()
    assert_sums_within(ours, run(of(F.conv_transpose2d), tensors, dy), truth, lengths=lengths)


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_phases_are_another_algorithm_as_exact(layout, backend, monkeypatch):
    for channels in (32, 128, 300):
        x, weight = torch.randn(2, channels, 12, 12), torch.randn(channels, 64, 4, 4)
        truth = F.conv_transpose2d(x.double(), weight.double(), stride=2, padding=1)
        torchs = (F.conv_transpose2d(x, weight, stride=2, padding=1) - truth).norm()
        x = x.contiguous(memory_format=FORMATS[4]) if layout == "channels_last" else x
        results = []
        for least in (0, 1 << 40):
            monkeypatch.setattr(auto, "LEAST_PHASE_PLACES", dict.fromkeys((True, False), least))
            (y, *_) = run(
                lambda x, w: PF.conv_transpose2d(x, w, stride=2, padding=1), (x, weight), None, backend=backend
            )
            results.append(y)
        assert not torch.equal(*results)
        assert (results[0] - truth).norm() <= 2 * torchs


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("backend", ON_CPU)
def test_phases_keep_what_is_not_finite_in_its_windows(backend, layout, everywhere):
    x, weight = torch.randn(2, 33, 9, 11), torch.randn(33, 35, 4, 4)
    x = x.contiguous(memory_format=FORMATS[4]) if layout == "channels_last" else x
    for value in (float("inf"), float("-inf"), float("nan"), torch.finfo(torch.float32).max):
        spoilt = x.clone()
        spoilt[1, 4, 5, 1] = value
        expected = F.conv_transpose2d(spoilt, weight, stride=2, padding=1)
        (y, *_) = run(
            lambda x, w: PF.conv_transpose2d(x, w, stride=2, padding=1), (spoilt, weight), None, backend=backend
        )
        torch.testing.assert_close(y, expected, equal_nan=True, atol=1e-4, rtol=1e-5)
