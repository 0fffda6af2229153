"""Convolution and transposed convolution against torch's own in float64."""

import re
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import DEVICE, FLOAT_DTYPES, assert_error_within, by_cpu, run, use
from property_tests import given, settings, st
from torch.fx.experimental.proxy_tensor import make_fx

import pyflash
import pyflash.functional as PF
import pyflash.nn as nn
from pyflash.ops.core import backends
from tests.conv.convs import (
    BACKENDS,
    FORMATS,
    ON_CPU,
    ON_CUDA,
    RUNNING,
    assert_sums_within,
    is_served,
    laid_out,
    lengths_of,
    order_of,
)

CONV = [  # shapes of input and weight, options, layout of both, why it is here
    ((2, 3, 9, 10), (5, 3, 3, 3), {"padding": 1}, "contiguous", "the usual one"),
    ((1, 16, 8, 7), (24, 16, 3, 3), {"padding": 1}, "channels_last", "channels fill vectors"),
    ((1, 17, 8, 9), (35, 17, 3, 3), {"padding": 1}, "contiguous", "channels do not"),
    ((2, 3, 19, 18), (8, 3, 7, 7), {"stride": 2, "padding": 3}, "contiguous", "ResNet's stem"),
    ((2, 3, 13, 12), (8, 3, 4, 4), {"stride": 4}, "channels_last", "patches, a row in none of them"),
    ((2, 20, 6, 5), (9, 20, 1, 1), {}, "contiguous", "a matrix product"),
    ((2, 20, 6, 5), (9, 20, 1, 1), {}, "channels_last", "a matrix product"),
    ((2, 20, 6, 5), (9, 20, 1, 1), {"stride": 2}, "channels_last", "pointwise, some rows in none"),
    ((2, 6, 9, 11), (6, 1, 3, 3), {"padding": 1, "groups": 6}, "contiguous", "depthwise"),
    ((1, 37, 9, 8), (37, 1, 7, 7), {"padding": 3, "groups": 37}, "channels_last", "depthwise, vectors and a rest"),
    ((2, 6, 9, 11), (12, 1, 3, 3), {"stride": 2, "padding": 1, "groups": 6}, "contiguous", "depthwise, two of each"),
    ((1, 3, 16, 37), (3, 1, 7, 7), {"padding": 3, "groups": 3}, "contiguous", "depthwise, rows at once and a rest"),
    ((1, 21, 19, 17), (21, 1, 5, 5), {"stride": 2, "padding": 2, "groups": 21}, "channels_last", "depthwise, strided"),
    ((2, 3, 9, 70), (6, 1, 3, 3), {"padding": 1, "groups": 3}, "contiguous", "depthwise, vectors inside a row"),
    (
        (1, 3, 15, 75),
        (3, 1, 3, 3),
        {"stride": 2, "padding": 1, "groups": 3},
        "contiguous",
        "likewise, every other place",
    ),
    ((2, 3, 30, 37), (3, 1, 5, 5), {"stride": 2, "groups": 3}, "contiguous", "depthwise, phases of two and three taps"),
    ((1, 4, 8, 6), (4, 1, 3, 3), {"stride": 2, "padding": 2, "groups": 4}, "contiguous", "depthwise, a border of two"),
    ((2, 3, 9, 8), (3, 1, 1, 1), {"stride": 2, "groups": 3}, "contiguous", "depthwise, phases of no taps"),
    (
        (2, 37, 9, 11),
        (37, 1, 3, 3),
        {"padding": 1, "groups": 37},
        "channels_last",
        "depthwise, tiles and a rest of each",
    ),
    ((2, 16, 10, 17), (16, 1, 3, 3), {"stride": 2, "padding": 1, "groups": 16}, "channels_last", "likewise, strided"),
    ((1, 20, 2, 3), (20, 1, 3, 3), {"padding": 2, "groups": 20}, "channels_last", "depthwise, more border than image"),
    ((1, 260, 3, 5), (260, 1, 2, 3), {"dilation": 2, "padding": 2, "groups": 260}, "channels_last", "many channels"),
    ((1, 1025, 2, 5), (1025, 1, 1, 3), {"padding": (0, 1), "groups": 1025}, "channels_last", "a block of one channel"),
    ((2, 78, 5, 9), (78, 1, 3, 3), {"padding": 1, "groups": 78}, "channels_last", "depthwise, a rest of a task"),
    ((2, 7, 6, 12), (7, 1, 5, 5), {"padding": 2, "groups": 7}, "channels_last", "depthwise, less than a vector"),
    ((1, 2, 7000), (2, 1, 31), {"padding": 15, "groups": 2}, "contiguous", "depthwise of a long row"),
    ((2, 3, 41, 37), (3, 1, 3, 3), {"padding": 1, "groups": 3}, "contiguous", "depthwise, two parts of places"),
    ((2, 8, 41, 37), (8, 1, 3, 3), {"padding": 1, "groups": 8}, "channels_last", "likewise, channels in fours"),
    ((3, 8, 9, 7), (8, 1, 5, 5), {"padding": 2, "groups": 8}, "channels_last", "depthwise, channels in fours"),
    ((1, 8, 12, 13), (8, 1, 5, 5), {"stride": 2, "padding": 2, "groups": 8}, "channels_last", "likewise, strided"),
    ((1, 12, 8, 9), (12, 1, 7, 7), {"padding": 3, "groups": 12}, "channels_last", "depthwise, ConvNeXt's"),
    ((1, 4, 17, 14), (4, 1, 7, 7), {"stride": 2, "padding": 3, "groups": 4}, "channels_last", "likewise, strided"),
    ((1, 18, 5, 21), (18, 1, 7, 7), {"padding": 3, "groups": 18}, "channels_last", "of channels, a tile inside a row"),
    ((2, 35, 4, 22), (35, 1, 5, 5), {"padding": 2, "groups": 35}, "channels_last", "likewise, 5x5"),
    ((1, 17, 2, 3), (17, 1, 7, 7), {"padding": 5, "groups": 17}, "channels_last", "likewise, more border than image"),
    (
        (5, 3, 17, 21),
        (3, 1, 7, 7),
        {"stride": 2, "padding": 3, "groups": 3},
        "contiguous",
        "likewise, many small planes",
    ),
    ((2, 21, 7, 7), (21, 1, 7, 7), {"padding": 3, "groups": 21}, "contiguous", "channels of small planes"),
    ((1, 17, 9, 5), (17, 1, 3, 3), {"stride": 2, "groups": 17}, "contiguous", "likewise, strided"),
    (
        (2, 19, 5, 8),
        (19, 1, 5, 5),
        {"padding": (2, 3), "groups": 19},
        "contiguous",
        "likewise, more results than places",
    ),
    ((1, 16, 9, 14), (16, 1, 7, 7), {"padding": 3, "groups": 16}, "contiguous", "likewise, wide ones"),
    ((2, 8, 7, 6), (12, 2, 3, 3), {"padding": 1, "groups": 4}, "contiguous", "groups"),
    ((2, 8, 7, 6), (4, 4, 3, 3), {"padding": (0, 2), "groups": 2}, "channels_last", "groups, two of unlike paddings"),
    ((2, 4, 9, 8), (3, 4, 3, 5), {"padding": "same"}, "contiguous", "same"),
    (
        (2, 4, 9, 8),
        (3, 4, 2, 4),
        {"padding": "same", "dilation": (1, 3)},
        "contiguous",
        "same, more behind than before",
    ),
    ((2, 4, 9, 8), (3, 4, 2, 4), {"padding": "valid", "stride": (3, 1)}, "transposed", "valid"),
    ((2, 4, 11, 12), (3, 4, 3, 3), {"dilation": 2, "padding": [2, 1], "stride": (1, 2)}, "sliced", "dilated"),
    ((2, 4, 5, 6), (3, 4, 3, 3), {"padding": 3}, "expanded", "windows that are padding alone"),
    ((2, 4, 3, 3), (3, 4, 3, 3), {}, "contiguous", "one place"),
    ((4, 6, 5), (3, 4, 3, 3), {"padding": 1}, "contiguous", "no batch"),
    ((2, 5, 30), (7, 5, 3), {"dilation": 4, "padding": 4}, "contiguous", "WaveNet's dilations"),
    ((2, 5, 31), (7, 5, 2), {"dilation": (8,)}, "transposed", "WaveNet's, causal"),
    ((2, 3, 41), (8, 3, 3), {"stride": 2, "padding": 1}, "contiguous", "whisper's"),
    ((5, 9), (10, 1, 3), {"groups": 5}, "contiguous", "depthwise of a row, no batch"),
    ((1, 3, 5, 6, 7), (4, 3, 3, 2, 3), {"padding": 1}, "contiguous", "three dimensions"),
    ((2, 4, 4, 5, 6), (6, 2, 2, 2, 2), {"stride": (2, 1, 2), "groups": 2}, "channels_last", "three, in groups"),
    ((0, 3, 8, 8), (4, 3, 3, 3), {}, "contiguous", "empty batch"),
    ((3, 5, 5, 5), (7, 5, 3, 3), {"padding": 1}, "contiguous", "columns of many short rows"),
    ((1, 5, 3, 75), (3, 5, 3, 3), {"stride": 2, "padding": 1}, "contiguous", "every other place of a long row"),
    ((2, 3, 19, 21), (17, 3, 7, 7), {"stride": 2, "padding": 3}, "channels_last", "the stem, a vector and a rest"),
    ((1, 3, 5, 130), (21, 3, 3, 3), {"padding": 1}, "contiguous", "few channels, a line in blocks"),
    ((2, 1, 8, 8), (6, 1, 5, 5), {"padding": 2}, "channels_last", "LeNet's first, of digits"),
    (
        (1, 3, 12, 11),
        (8, 3, 2, 2),
        {"stride": (5, 4), "padding": 1},
        "contiguous",
        "few channels, lines between windows",
    ),
    ((1, 3, 5, 6), (8, 3, 3, 3), {"padding": 4, "stride": (1, 3)}, "sliced", "few channels, padding alone"),
    ((2, 6, 9, 8), (16, 3, 3, 4), {"padding": 1, "groups": 2}, "transposed", "few channels of each group"),
    ((2, 2, 310), (70, 2, 10), {"stride": 5}, "contiguous", "wav2vec's first, two panels"),
    ((1, 2, 5, 6, 7), (9, 2, 3, 2, 3), {"padding": 1, "stride": (2, 1, 1)}, "channels_last", "three, few channels"),
]
TRANSPOSED = [
    ((2, 8, 4, 4), (8, 3, 4, 4), {"stride": 2, "padding": 1}, "contiguous", "DCGAN's"),
    ((2, 8, 4, 5), (8, 19, 4, 4), {"stride": 2, "padding": 1}, "channels_last", "DCGAN's"),
    ((2, 6, 1, 1), (6, 5, 4, 4), {}, "contiguous", "DCGAN's first"),
    ((2, 6, 5, 4), (6, 2, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1}, "contiguous", "twice the size"),
    ((2, 6, 5, 4), (6, 5, 2, 2), {"stride": 2}, "channels_last", "U-Net's: windows that do not overlap"),
    ((2, 6, 5, 4), (6, 2, 3, 2), {"stride": 3, "output_padding": (2, 0), "dilation": (1, 4), "groups": 2}, "sliced",
     "all of it"),
    ((2, 4, 5, 5), (4, 4, 3, 3), {"dilation": 2, "padding": 1, "output_padding": 1}, "contiguous", "dilated"),
    ((2, 6, 5, 4), (6, 1, 3, 3), {"stride": 2, "groups": 6}, "transposed", "depthwise"),
    ((2, 20, 5, 7), (20, 3, 4, 4), {"stride": 2, "padding": 1}, "channels_last", "to an image's colours"),
    ((2, 20, 5, 7), (20, 1, 4, 4), {"stride": 2, "padding": 1}, "channels_last", "to one channel"),
    ((1, 5, 3, 4, 5), (5, 2, 3, 2, 3), {"stride": 2}, "channels_last", "three, to two channels"),
    ((2, 6, 3, 4), (6, 2, 2, 1), {"stride": (3, 2)}, "contiguous", "places that no window reaches"),
    ((6, 5, 4), (6, 2, 3, 3), {"padding": 2}, "contiguous", "no batch"),
    ((2, 4, 6), (4, 3, 5), {"stride": 3, "padding": 2, "output_padding": 1}, "contiguous", "one dimension"),
    ((2, 3, 37), (3, 17, 4), {"stride": 2, "padding": 1}, "contiguous", "both phases of a row, which another follows"),
    ((3, 9, 5, 19), (9, 10, 3, 3), {"stride": 2, "padding": 1}, "contiguous", "rows of an odd length, several panels"),
    ((2, 19, 7, 9), (19, 18, 1, 1), {"stride": 2}, "contiguous", "places that no window reaches, a weight transposed"),
    ((1, 2, 5, 6), (2, 3, 17, 17), {"stride": 2}, "contiguous", "more taps than are packed at a time"),
    ((2, 3, 3, 4, 3), (3, 2, 2, 2, 2), {"stride": 2, "padding": (0, 1, 0)}, "channels_last", "three dimensions"),
    ((0, 6, 5, 4), (6, 2, 3, 3), {"stride": 2}, "contiguous", "empty batch"),
]  # fmt: skip
NAMES = {"conv{}d": CONV, "conv_transpose{}d": TRANSPOSED}


def cases_for(cases, backend, dtype):
    """The interpreter takes a while for each, and so do other orders of a GPU's threads: there every dtype has a share."""
    cases = [case for case in cases if is_served(backend, case[1])]
    return cases[FLOAT_DTYPES.index(dtype) :: len(FLOAT_DTYPES)] if backend in ("triton", *ON_CUDA[1:]) else cases


def of_rank(module_or_functional, name, weight_shape):
    return getattr(module_or_functional, name.format(len(weight_shape) - 2))


def with_bias(x_shape, weight_shape, options, layout, dtype, is_transposed):
    outputs = weight_shape[1] * options.get("groups", 1) if is_transposed else weight_shape[0]
    return (
        laid_out(x_shape, layout, dtype),
        laid_out(weight_shape, layout, dtype),
        laid_out((outputs,), "sliced", dtype),
    )


def call(function, options, *tensors):
    return function(*tensors, **options)


def check(ours, theirs, tensors, dtype, backend):
    """Result and gradients as near to float64 as torch's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using padding='same'")
        torchs_y = theirs(*tensors)
        dy = laid_out(torchs_y.shape, "contiguous", dtype)
        truth, torchs = run(theirs, tensors, dy, torch.float64), run(theirs, tensors, dy)
    found = run(ours, tensors, dy, backend=backend)
    x, weight, *_ = tensors
    x_shape = x.shape if x.dim() == weight.dim() else (1, *x.shape)
    y_shape = dy.shape if x.dim() == weight.dim() else (1, *dy.shape)
    lengths = lengths_of(x_shape, weight.shape, y_shape)
    if len(tensors) > 3:
        lengths = (*lengths, 1)
    assert_sums_within(found, torchs, truth, x, weight, dy, lengths=lengths)
    return found, torchs


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", [*BACKENDS, *ON_CUDA])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_matches_float64(backend, dtype, name):
    if backend == "triton" and dtype == torch.float64:
        pytest.skip("no products of float64")
    for x_shape, weight_shape, options, layout, why in cases_for(NAMES[name], backend, dtype):
        tensors = with_bias(x_shape, weight_shape, options, layout, dtype, "transpose" in name)
        ours, theirs = of_rank(PF, name, weight_shape), of_rank(F, name, weight_shape)
        try:
            found, torchs = check(partial(call, ours, options), partial(call, theirs, options), tensors, dtype, backend)
        except AssertionError as error:
            raise AssertionError(f"{why}: {error}") from None
        # Of three dimensions torch's own formats differ from type to type, and on CUDA from shape to shape.
        if len(x_shape) == 4 and x_shape[0] and DEVICE == "cpu":
            assert list(map(order_of, found)) == list(map(order_of, torchs)), why


@pytest.mark.parametrize("backend", [*BACKENDS, *ON_CUDA])
@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
def test_taps_that_lie_otherwise_than_pixels(backend, layout):
    """A depthwise weight is read as it lies, whatever the order of the images."""
    for x_shape, side in (((2, 19, 5, 6), 3), ((1, 34, 6, 8), 5)):
        x, weight = laid_out(x_shape, "channels_last"), laid_out((x_shape[1], 1, side, side), layout)
        options = {"padding": side // 2, "groups": x_shape[1]}
        check(
            partial(call, PF.conv2d, options),
            partial(call, F.conv2d, options),
            (x, weight, torch.randn(x_shape[1])),
            torch.float32,
            backend,
        )


@pytest.mark.parametrize("backend", [*BACKENDS, *ON_CUDA])
@pytest.mark.parametrize("activation", [None, "relu", "gelu", ("leaky_relu", {"negative_slope": 0.2}), torch.nn.Tanh()])
def test_conv_bias_act(backend, activation):
    """bias and residual are added before the activation; any rank, any part of it absent."""
    names = {"relu": F.relu, "gelu": F.gelu}
    of = names.get(activation) if isinstance(activation, str) else activation
    if isinstance(activation, tuple):
        of = lambda y: F.leaky_relu(y, 0.2)  # noqa: E731
    cases = [CONV[i] for i in (0, 8, 20, 13, 19, 24, 9, 36) if is_served(backend, CONV[i][1])]
    for x_shape, weight_shape, options, layout, _ in cases[:2] if backend == "triton" else cases:
        tensors = with_bias(x_shape, weight_shape, options, layout, torch.float32, False)
        conv = of_rank(F, "conv{}d", weight_shape)
        residual = torch.randn_like(conv(*tensors, **options))

        def theirs(x, weight, bias, residual, conv=conv, options=options):
            y = conv(x, weight, bias, **options) + residual
            return y if of is None else of(y)

        def ours(x, weight, bias, residual, options=options):
            return PF.conv_bias_act(x, weight, bias, **options, activation=activation, residual=residual)

        check(ours, theirs, (*tensors, residual), torch.float32, backend)
        if backend == "triton":
            continue
        column = residual.select(-1, 0).unsqueeze(-1)  # expands
        check(ours, theirs, (*tensors, column), torch.float32, backend)
        check(
            lambda x, weight, bias, options=options: PF.conv_bias_act(
                x, weight, bias, **options, activation=activation
            ),
            lambda *t, conv=conv, options=options: (of or (lambda y: y))(conv(*t, **options)),
            tensors,
            torch.float32,
            backend,
        )


@pytest.mark.parametrize("backend", [*BACKENDS, *ON_CUDA[:1]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_bounds_keep_all_that_is_within(backend, dtype):
    """An activation that is two bounds changes no other bit of the convolution's result, and no NaN, whatever sums it."""
    bounds = ("relu", F.relu), ("relu6", F.relu6), (("hardtanh", {"min_val": -0.25, "max_val": 0.5}), lambda y: F.hardtanh(y, -0.25, 0.5))  # fmt: skip
    if backend == "triton" and dtype == torch.float64:
        pytest.skip("Triton has no float64 here")
    cases = [case for case in CONV if is_served(backend, case[1])]
    for x_shape, weight_shape, options, layout, why in cases[:2] if backend == "triton" else cases:
        x, weight, bias = with_bias(x_shape, weight_shape, options, layout, dtype, False)
        bias[:1], bias[1:2] = 8, torch.nan
        with use(backend):
            z = of_rank(PF, "conv{}d", weight_shape)(x, weight, bias, **options)
            for activation, of in bounds:
                found = PF.conv_bias_act(x, weight, bias, **options, activation=activation)
                torch.testing.assert_close(found, of(z), rtol=0, atol=0, equal_nan=True, msg=f"{why}, {activation}")


@pytest.mark.parametrize("backend", [*BACKENDS, *ON_CUDA])
def test_nan_and_infinity_are_where_torch_has_them(backend):
    cases = [CONV[i] for i in (0, 1, 6, 8, 9, 20) if is_served(backend, CONV[i][1])]
    for x_shape, weight_shape, options, layout, why in cases:
        x, weight, bias = with_bias(x_shape, weight_shape, options, layout, torch.float32, False)
        x[0, 0, -1], x[0, 1, 0] = torch.nan, torch.inf
        with use(backend):
            found = of_rank(PF, "conv{}d", weight_shape)(x, weight, bias, **options)
        expected = by_cpu(partial(of_rank(F, "conv{}d", weight_shape), **options))(x, weight, bias)
        torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-4, atol=1e-4, msg=why)


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_formats_are_torchs(backend):
    for x_layout in ("contiguous", "channels_last"):
        for weight_layout in ("contiguous", "channels_last"):
            for kernel in (3,) if backend == "triton" else (1, 3):
                x = laid_out((2, 4, 5, 6), x_layout, torch.float32)
                weight = laid_out((4, 4, kernel, kernel), weight_layout, torch.float32)
                for name in ("conv2d", "conv_transpose2d"):
                    dy = torch.randn(getattr(F, name)(x, weight).shape)
                    arriving = dy.contiguous(memory_format=FORMATS[4]), dy, torch.ones(()).expand(dy.shape)
                    for gradient in arriving[:1] if backend == "triton" else arriving:
                        found, torchs = (
                            run(function, (x, weight), gradient, backend=b)
                            for function, b in ((getattr(PF, name), backend), (getattr(F, name), None))
                        )
                        assert list(map(order_of, found)) == list(map(order_of, torchs))


@pytest.mark.parametrize("backend", ON_CPU)
def test_results_do_not_depend_on_threads(backend):
    """Sums are split by what a result is, or by numbers of the shape, never by who is there."""
    cases = [
        ((2, 32, 28, 28), (64, 32, 3, 3), {"padding": 1}),
        ((2, 64, 30, 30), (64, 1, 3, 3), {"groups": 64}),
        ((2, 3, 70, 70), (40, 3, 7, 7), {"stride": 2, "padding": 3}),
    ]
    threads = torch.get_num_threads()
    for x_shape, weight_shape, options in cases:
        tensors = laid_out(x_shape), laid_out(weight_shape)  # torch sums the gradient of a bias
        dy, results = torch.randn_like(F.conv2d(*tensors, **options)), []
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                results.append(run(lambda *t, o=options: PF.conv2d(*t, **o), tensors, dy, backend=backend))
        finally:
            torch.set_num_threads(threads)
        for other in results[1:]:
            assert all(map(torch.equal, results[0], other))


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_geometry(data):
    """Drawn shapes, forward and gradients, of both functions, through every backend but the interpreter."""

    def draw(low, high):
        return data.draw(st.integers(low, high))

    n, groups, dtype = draw(1, 2), draw(1, 3), torch.float64
    kernel, stride, dilation = ([draw(1, high) for _ in range(n)] for high in (4, 3, 2))
    padding = [draw(0, 3) for _ in range(n)]
    room = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding)]
    x_shape = (draw(0, 2), groups * draw(1, 3), *[low + draw(0, 6) for low in room])
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    weight_shape = (groups * draw(1, 3), x_shape[1] // groups, *kernel)
    name, layout = "conv{}d", data.draw(st.sampled_from(["contiguous", "channels_last", "transposed"]))
    if data.draw(st.booleans()):
        name, weight_shape = "conv_transpose{}d", (x_shape[1], draw(1, 3), *kernel)
        options["output_padding"] = [draw(0, max(s, d) - 1) for s, d in zip(stride, dilation)]
        sizes = [(i - 1) * s - 2 * p + d * (k - 1) + e + 1 for i, s, p, d, k, e in zip(
            x_shape[2:], stride, padding, dilation, kernel, options["output_padding"])]  # fmt: skip
        if min(sizes) < 1:
            return
    if n == 1 and layout == "channels_last":
        layout = "contiguous"
    tensors = with_bias(x_shape, weight_shape, options, layout, dtype, "transpose" in name)
    ours, theirs = of_rank(PF, name, weight_shape), of_rank(F, name, weight_shape)
    for backend in (*RUNNING, *[b for b in ON_CUDA[:1] if isinstance(b, str) and is_served(b, weight_shape)]):
        check(partial(call, ours, options), partial(call, theirs, options), tensors, dtype, backend)


def ones(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


X, W, T = ones(2, 4, 6, 7), ones(6, 4, 3, 3), ones(4, 6, 3, 3)
WRONG = [  # calls that torch refuses
    lambda f: f.conv2d(X, W[:0]),
    lambda f: f.conv2d(X[:, :, :0], W, padding=3),
    lambda f: f.conv2d(X, W[:, :, :0]),
    lambda f: f.conv2d(X, W, groups=0),
    lambda f: f.conv2d(X, W, groups=3),
    lambda f: f.conv2d(X, ones(6, 1, 3, 3), groups=4),
    lambda f: f.conv2d(X, W, padding=-1),
    lambda f: f.conv2d(X, W, stride=0),
    lambda f: f.conv2d(X, W, dilation=0),
    lambda f: f.conv2d(X, W, ones(5)),
    lambda f: f.conv2d(X, W, ones(6, 1)),
    lambda f: f.conv2d(X, W, ones(6, dtype=torch.float64)),
    lambda f: f.conv2d(X, W.double()),
    lambda f: f.conv2d(X, W, stride=2, padding="same"),
    lambda f: f.conv2d(X, W, padding="bogus"),
    lambda f: f.conv2d(X, ones(6, 4, 9, 9)),
    lambda f: f.conv2d(X, W[0]),
    lambda f: f.conv2d(X[0, 0], W),
    lambda f: f.conv2d(X[None], W),
    lambda f: f.conv2d(X[0], ones(6, 4, 3)),
    lambda f: f.conv1d(X, W),
    lambda f: f.conv3d(X, W),
    lambda f: f.conv2d(X, W, stride=(1, 1, 1)),
    lambda f: f.conv2d(X, W, stride=()),
    lambda f: f.conv2d(X, W, stride=1.0),
    lambda f: f.conv2d(X, W, padding=(1, 1.0)),
    lambda f: f.conv2d(X, W, padding=[[1], [1]]),
    lambda f: f.conv2d(X, W, groups=1.0),
    lambda f: f.conv2d(X, W, bias=3),
    lambda f: f.conv2d(None, W),
    lambda f: f.conv2d(X, None),
    lambda f: f.conv2d(X.to_sparse(), W),
    lambda f: f.conv_transpose2d(X, T, output_padding=1),
    lambda f: f.conv_transpose2d(X, T, output_padding=-1, stride=2),
    lambda f: f.conv_transpose2d(X, T, padding=9),
    lambda f: f.conv_transpose2d(X, T, padding="same"),
    lambda f: f.conv_transpose2d(X, ones(5, 6, 3, 3)),
    lambda f: f.conv_transpose2d(X, T, groups=3),
    lambda f: f.conv_transpose2d(X, T, ones(5)),
    lambda f: f.conv_transpose2d(X, T, stride=0),
    lambda f: f.conv_transpose2d(X[:, :0], T[:0]),
    lambda f: f.conv_transpose2d(X, T[:, :0]),
    lambda f: f.conv_transpose1d(X, T),
    lambda f: f.conv_transpose2d(X, T, None, 1, 0, 0, 1, 0),
]


def said(error):
    """Without how the arguments were passed, by name or by position."""
    return re.sub(r" \(position \d+\)", "", str(error)).partition(" - got")[0]


@pytest.mark.filterwarnings("ignore::pyflash.ops.core.backends.FallbackWarning")
@pytest.mark.parametrize("backend", ["auto", "torch", "cpu"])
@pytest.mark.parametrize("i", range(len(WRONG)))
def test_what_torch_refuses(backend, i):
    with pytest.raises(Exception) as theirs:
        WRONG[i](F)
    with use(backend), pytest.raises(theirs.type) as ours:
        WRONG[i](PF)
    assert said(ours.value) == said(theirs.value)


def test_what_conv_bias_act_refuses():
    for error, call in [
        (ValueError, lambda: PF.conv_bias_act(X, W, activation="nope")),
        (ValueError, lambda: PF.conv_bias_act(X, W[0, 0])),
        (TypeError, lambda: PF.conv_bias_act(X, None)),
        (TypeError, lambda: PF.conv_bias_act(X, W, residual=1)),
        (TypeError, lambda: PF.conv_bias_act(X, W, 1)),
        (TypeError, lambda: PF.conv2d(X, W, 1)),
        (RuntimeError, lambda: PF.conv_bias_act(X, W, residual=X)),
        (RuntimeError, lambda: PF.conv_bias_act(X[:1], W, residual=ones(2, 6, 4, 5))),
        (RuntimeError, lambda: PF.conv_bias_act(X[0], W, residual=ones(1, 6, 4, 5))),
        (RuntimeError, lambda: PF.conv_bias_act(X, W, groups=3)),
    ]:
        for backend in ("auto", *RUNNING):
            with use(backend), pytest.raises(error):
                call()


@pytest.mark.filterwarnings("ignore::pyflash.ops.core.backends.FallbackWarning")
def test_what_no_kernel_takes_is_torchs_and_counted():
    number = torch.ones((), dtype=torch.int64)
    calls = [
        lambda f: f.conv2d(X.long(), W.long()),
        lambda f: f.conv2d(X.to(torch.complex64), W.to(torch.complex64), padding="same"),
        lambda f: f.conv2d(X, W, stride=number),
        lambda f: f.conv2d(X[:, :0], W[:, :0]),  # of no channels torch makes no channels
        lambda f: f.conv_transpose2d(X.to(torch.complex64), T.to(torch.complex64)),
    ]
    for call in calls:
        before = backends.counts.copy()
        assert torch.equal(call(PF), call(F))
        assert any(backend == "torch" for _, backend, _ in backends.counts - before)
        with use("cpu"), pytest.raises(NotImplementedError):
            call(PF)
    assert PF.conv2d(X.to("meta"), W.to("meta")).shape == F.conv2d(X, W).shape
    quantized = torch.quantize_per_tensor(X, 1, 0, torch.quint8)
    with pytest.raises(Exception) as theirs:
        F.conv2d(quantized, W)
    with pytest.raises(theirs.type):
        PF.conv2d(quantized, W)


@pytest.mark.parametrize("backend", ON_CUDA)
def test_cuda_says_what_it_does_not_serve(backend):
    dense, deep, name = "depthwise convolution alone", "no convolution in three dimensions", backend.partition(":")[0]
    options = [4, 5], [1, 1], [0, 0], [1, 1], 1
    with use(backend):
        for call, why in (
            (lambda: PF.conv2d(X, W), dense),
            (lambda: PF.conv_bias_act(X, W, activation="relu"), dense),
            (lambda: PF.conv_transpose2d(X, T), dense),
            (lambda: PF.conv3d(X[:, :1, None], ones(3, 1, 1, 2, 2)), deep),
            (
                lambda: torch.ops.pyflash.conv_fwd(X, W, None, None, None, *options, "", 0.0, 0.0, False, False, name),
                dense,
            ),
            (lambda: torch.ops.pyflash.conv_weight_grad(ones(2, 6, 4, 5), X, [3, 3], *options[1:], name), dense),
        ):
            with pytest.raises(NotImplementedError, match=why):
                call()


def test_auto_says_why():
    before = backends.counts.copy()
    PF.conv2d(X, W), PF.conv_transpose2d(X, T, stride=[2, 2]), PF.conv_bias_act(X, W)
    new = backends.counts - before
    assert {name for name, backend, why in new if backend == "torch" and why == "not measured"} == {
        "conv2d", "conv_transpose2d", "conv_bias_act",
    }  # fmt: skip


@pytest.mark.parametrize("backend", ["torch", *ON_CPU[-1:]])
def test_autocast_as_torchs(backend):
    x, weight, bias = torch.randn(2, 4, 6, 7), torch.randn(4, 4, 3, 3), torch.randn(4)
    mixed = [
        (x, weight, bias), (x.bfloat16(), weight, bias), (x, weight.half(), None), (x.double(), weight.double(), None),
        (x.double(), weight, None),
    ]  # fmt: skip
    for tensors in mixed:
        for name in ("conv2d", "conv_transpose2d"):
            with torch.autocast("cpu", torch.bfloat16):
                try:
                    theirs = getattr(F, name)(*tensors)
                except RuntimeError as error:
                    theirs = error
            with use(backend), torch.autocast("cpu", torch.bfloat16):
                if isinstance(theirs, RuntimeError):
                    with pytest.raises(RuntimeError):
                        getattr(PF, name)(*tensors)
                    continue
                ours = getattr(PF, name)(*tensors)
            assert ours.dtype == theirs.dtype
            torch.testing.assert_close(ours, theirs)
    for b in ("auto", backend):
        with use(b), torch.autocast("cpu", torch.bfloat16):
            y = PF.conv_bias_act(x, weight, bias, padding=1, activation="relu", residual=x)
        assert y.dtype == torch.bfloat16


@pytest.mark.parametrize("backend", ["auto", "torch", *ON_CPU[-1:]])
def test_compile(backend):
    """One graph with our operators in it, also of sizes that change."""
    x, weight, up = torch.randn(2, 4, 9, 10), torch.randn(6, 4, 3, 2), torch.randn(6, 4, 3, 3)
    last = x.to(memory_format=torch.channels_last)
    for t in (x, last, weight, up):
        t.requires_grad_()

    def function(x, weight, up):
        y = PF.conv_bias_act(x, weight, padding="same", activation="gelu")
        y = PF.conv2d(y, weight.transpose(0, 1), stride=2, padding=[1, 1])
        return PF.conv_transpose2d(y, up.transpose(0, 1), stride=2, output_padding=1)

    def results(function, *tensors):
        y = function(*tensors)
        return y.detach(), *torch.autograd.grad(y.square().sum(), tensors)

    with use(backend):
        torch._dynamo.reset()
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        for image in (x, last):
            with use("torch"):
                truth = results(function, *(t.detach().double().requires_grad_() for t in (image, weight, up)))
            # auto may choose otherwise for all sizes that a graph serves than for one
            found, eager = (results(f, image, weight, up) for f in (compiled, function))
            assert_error_within(found, eager, truth)
            assert [a.stride() for a in found] == [b.stride() for b in eager]
        dynamic = torch.compile(lambda x: PF.conv2d(x, weight, padding=1), backend="aot_eager", dynamic=True)
        traced = make_fx(lambda *t: PF.conv2d(*t, padding=[1, 1]), tracing_mode="symbolic")(x.detach(), weight.detach())
        torch.testing.assert_close(traced(last.detach(), weight.detach()), F.conv2d(last, weight, padding=1))
        for width in (10, 13, 20):
            y = torch.randn(2, 4, 9, width)
            torch.testing.assert_close(dynamic(y), F.conv2d(y, weight, padding=1))
        torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["torch", *ON_CPU[-1:]])
def test_export(backend):
    """A program of our operators, with derivatives of their own."""
    module, x = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ConvTranspose2d(6, 2, 2)), torch.randn(2, 4, 9, 10)
    with use(backend):
        program = torch.export.export(module, (x,))
        if backend != "torch":
            targets = {str(node.target) for node in program.graph.nodes}
            assert {"pyflash.conv_fwd.default", "pyflash.conv_input_grad.default"} <= targets
        found, expected = program.module()(x), pyflash.restore(module)(x)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_functorch_and_forward_mode(name):
    """torch's own, and visibly."""
    x, weight, found = torch.randn(3, 2, 2, 5, 5), torch.randn(2, 2, 3, 3), {}
    before = backends.counts.copy()
    for which in (F, PF):
        function = getattr(which, name)
        with use("cpu"):
            found[which] = (
                torch.func.vmap(function, (0, None))(x, weight),
                torch.func.hessian(lambda w, f=function: f(x[0], w).pow(3).sum())(weight),
                *torch.func.jvp(lambda w, f=function: f(x[0], w), (weight,), (weight,)),
            )
    for ours, theirs in zip(found[PF], found[F], strict=True):
        torch.testing.assert_close(ours, theirs)
    counted = {key for key in backends.counts - before if key[0] == name}
    assert counted == {(name, "torch", "torch.func transform or forward-mode derivative")}


def test_batched_gradients():
    """is_grads_batched=True asks the operators' backwards for many at once."""
    x, weight = torch.randn(2, 2, 5, 5, requires_grad=True), torch.randn(3, 2, 3, 3, requires_grad=True)
    with use(RUNNING[-1]):
        y = PF.conv2d(x, weight)
        many = torch.randn(4, *y.shape)
        batched = torch.autograd.grad(y, (x, weight), many, is_grads_batched=True, retain_graph=True)
        for i in range(4):
            for a, b in zip(batched, torch.autograd.grad(y, (x, weight), many[i], retain_graph=True)):
                torch.testing.assert_close(a[i], b)
