"""What the Triton kernels do that small cases of few channels do not reach: many tiles, every way to walk, both layouts."""

import pytest
import torch
from helpers import use

from pyflash.ops.core import backends

if backends.MISSING["triton"]:
    pytest.skip(backends.MISSING["triton"], allow_module_level=True)

from pyflash.kernels import conv as kernels
from pyflash.kernels import tuning
from pyflash.kernels.conv import axes, direct, product, weight_grad
from pyflash.ops.conv.conv import conv_fwd, conv_input_grad, conv_weight_grad
from pyflash.ops.pointwise.argument import resolve
from tests.conv.convs import FORMATS, assert_sums_within, lengths_of

pytestmark = [pytest.mark.triton, pytest.mark.on_device]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    if tuning.INTERPRETED.value:
        monkeypatch.setitem(tuning.TRIAL, "conv", tuning._product(32, 16, 16, 4, 1))
        monkeypatch.setitem(tuning.TRIAL, "conv_weight_grad", tuning._product(16, 16, 32, 4, 1))
        monkeypatch.setattr(tuning, "conv_block", lambda *_: dict(BLOCK_C=4, BLOCK_S=16, num_warps=4))


CASES = [  # batch, channels of a group in and out, groups, sizes of x, kernel; stride, padding, dilation; channels_last; why
    (1, 18, 20, 1, (4, 5), (3, 3), (1, 1), (1, 1), (1, 1), True, "steps of channels, the last not full"),
    (1, 32, 17, 2, (3, 4), (2, 2), (1, 1), (0, 1), (1, 1), False, "groups, and channels that are apart"),
    (1, 16, 16, 1, (6, 7), (3, 3), (2, 3), (1, 1), (2, 1), True, "phases, some of them without a tap"),
    (1, 16, 16, 1, (6, 6), (3, 3), (2, 2), (2, 2), (2, 2), True, "a dilation that shares a factor with the stride"),
    (1, 64, 16, 1, (3, 3), (3, 3), (1, 1), (1, 1), (1, 1), True, "long sums, of parts"),
    (1, 3, 16, 1, (8, 8), (5, 5), (2, 2), (2, 2), (1, 1), True, "a stem: taps and channels are one sum"),
    (1, 16, 16, 1, (2, 3, 4), (2, 1, 3), (1, 2, 2), (1, 0, 1), (1, 1, 1), True, "three dimensions"),
    (2, 16, 16, 1, (11,), (3,), (2,), (1,), (1,), False, "one"),
    (1, 48, 16, 1, (6, 6), (1, 1), (1, 1), (0, 0), (1, 1), True, "pointwise"),
    (2, 20, 17, 1, (4, 8), (1, 1), (1, 1), (0, 0), (1, 1), False, "pointwise, places in a row"),
    (1, 16, 16, 1, (5, 5), (1, 1), (2, 2), (0, 0), (1, 1), True, "phases without any tap"),
    (1, 1, 1, 20, (7, 6), (3, 3), (1, 1), (1, 1), (1, 1), True, "depthwise, runs along the width"),
    (2, 1, 1, 5, (7, 9), (5, 3), (1, 1), (3, 0), (1, 2), False, "depthwise, runs down"),
    (1, 1, 2, 3, (9, 8), (3, 3), (2, 2), (1, 1), (1, 1), True, "depthwise, runs with a stride, and two results a channel"),
    (1, 4, 3, 2, (4, 4), (2, 3), (1, 2), (1, 1), (1, 1), False, "small groups"),
    (1, 1, 1, 4, (40,), (9,), (1,), (16,), (4,), False, "too many columns for a run"),
    (1, 1, 1, 3, (3, 4, 5), (2, 3, 3), (1, 1, 2), (0, 1, 1), (1, 1, 1), True, "depthwise in three dimensions"),
]  # fmt: skip


def case(batch, inputs, outputs, groups, size, kernel, stride, padding, dilation, is_last, dtype=torch.float32):
    """(x, weight, dy, the operators' further arguments)"""
    places = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    ]
    shapes = (batch, groups * inputs, *size), (groups * outputs, inputs, *kernel), (batch, groups * outputs, *places)
    tensors = [torch.randn(shape).to(dtype) for shape in shapes]
    if is_last:
        tensors = [t.to(memory_format=FORMATS[t.dim()]) for t in tensors]
    return *tensors, (stride, padding, dilation, groups)


def of_operators(x, weight, dy, options, backend):
    with torch.no_grad():
        bias, bias_in = (torch.linspace(-1, 1, n).to(x) for n in (dy.shape[1], x.shape[1]))
        silu = resolve("test", "silu")
        return (
            conv_fwd(x, weight, 1 - bias, bias, dy, dy.shape[2:], *options, silu, backend),
            conv_input_grad(dy, weight, bias_in, x.shape[2:], *options, backend),
            conv_weight_grad(dy, x, weight.shape[2:], *options, backend),
        )


def check(x, weight, dy, options, why):
    truth = of_operators(x.double(), weight.double(), dy.double(), options, "torch")
    torchs = of_operators(x, weight, dy, options, "torch")
    with use("triton"):
        found = of_operators(x, weight, dy, options, "triton")
    lengths = lengths_of(x.shape, weight.shape, dy.shape)[:3]
    assert_sums_within(found, torchs, truth, x, weight, dy, lengths=lengths)
    assert [t.stride() for t in found] == [t.stride() for t in torchs], why


@pytest.mark.parametrize("case_", CASES, ids=lambda c: c[-1].replace(" ", "_"))
def test_every_way_to_walk(case_):
    *shape, why = case_
    check(*case(*shape), why)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types(dtype):
    for i in (7, 11):
        *shape, why = CASES[i]
        check(*case(*shape, dtype=dtype), why)


def test_numbers_of_64_bits(monkeypatch):
    """What tensors of more than 2^31 places take, on small ones."""
    constants = axes.Shape.constants
    monkeypatch.setattr(axes.Shape, "constants", lambda *args: constants(*args) | {"IS_LARGE": True})
    for i in (2, 9, 13):
        *shape, why = CASES[i]
        check(*case(*shape), why)


def test_sums_are_split_and_the_same_every_time():
    x, weight, dy, options = case(2, 1, 1, 3, (6, 6), (3, 1), (1, 1), (1, 0), (1, 1), True)
    shape = axes.Shape(x, weight, dy, *options, False)
    assert tuning.sum_splits("interpreter", 3, shape.results)[0] > 1
    found = [torch.empty_like(weight) for _ in range(2)]
    for dweight in found:
        kernels.conv_weight_grad(dy, x, (3, 1), *options, dweight)
    assert torch.equal(*found)


class Recorder:
    """In a kernel's place: notes the precision of its products."""

    def __init__(self, seen):
        self.seen = seen

    def __getitem__(self, grid):
        return lambda *args, **settings: self.seen.append(settings["PRECISION"])


def test_tf32_as_cudnns_convolutions_have_it(monkeypatch):
    """cuDNN's setting is not that of matrix products, and its default is TF32."""
    seen = []
    monkeypatch.setattr(product, "_conv", Recorder(seen))
    monkeypatch.setattr(weight_grad, "_weight_grad", Recorder(seen))
    monkeypatch.setattr(tuning, "arch", lambda device: "sm90")  # nothing is launched, with a GPU or without
    x, weight, dy, options = case(1, 16, 16, 1, (5, 5), (3, 3), (1, 1), (1, 1), (1, 1), True)
    before = torch.backends.cudnn.conv.fp32_precision
    try:
        for precision in ("ieee", "tf32"):
            torch.backends.cudnn.conv.fp32_precision = precision
            seen.clear()
            kernels.conv_fwd(x, weight, None, None, None, (5, 5), *options, "", 0.0, 0.0, False, False, dy, None)
            kernels.conv_input_grad(dy, weight, None, (5, 5), *options, False, x)
            kernels.conv_weight_grad(dy, x, (3, 3), *options, weight)
            assert seen == [precision] * 3
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


def test_a_run_reads_each_column_for_all_of_its_results():
    """Every tap of every result is met once, whatever scale and step."""
    for scale, step, taps in ((1, 1, 3), (2, 1, 3), (1, -1, 5), (1, 2, 3), (3, -2, 2), (2, 3, 4)):
        args = scale, step, taps
        first = direct._first_column(step, taps)
        for result in range(4):
            places = {}
            for column in range(direct._columns(4, *args)):
                tap = direct._tap_of(column, result, *args)
                if tap >= 0:
                    assert direct._is_used(column, 4, *args)
                    places[tap] = column + first
            assert places == {tap: result * scale + tap * step for tap in range(taps)}
