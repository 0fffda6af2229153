"""The three operators against their definition, also where torch has no such convolution."""

from itertools import permutations, product

import pytest
import torch
from helpers import FLOAT_DTYPES, on_its_device, use
from torch.utils.flop_counter import FlopCounterMode

from pyflash.ops.conv.conv import conv_fwd, conv_input_grad, conv_weight_grad
from pyflash.ops.core.layouts import is_channels_last
from pyflash.ops.pointwise.argument import NO_ACTIVATION, resolve
from tests.conv.convs import (
    BACKENDS,
    FORMATS,
    OF_FLOAT64,
    ON_CUDA,
    assert_sums_within,
    by_definition,
    laid_out,
    lengths_of,
)

CASES = [  # sizes of x, kernel, y; stride, padding, dilation, groups, layout, why it is here
    ((5, 6), (3, 2), (4, 3), (2, 1), (1, 0), (1, 2), 2, "contiguous", "groups, everything uneven"),
    ((6, 5), (3, 3), (6, 5), (1, 1), (1, 1), (1, 1), 1, "channels_last", "the usual one"),
    ((5, 6), (2, 4), (5, 6), (1, 1), (0, 1), (1, 1), 1, "sliced", "padding the same, of even kernels"),
    ((5, 4), (3, 3), (3, 2), (2, 2), (1, 1), (1, 1), 3, "transposed", "places behind the last window"),
    ((5,), (3,), (7,), (1,), (4,), (1,), 2, "contiguous", "more padding before than the kernel"),
    ((5,), (3,), (2,), (1,), (-1,), (1,), 1, "contiguous", "less than none"),
    ((3,), (2,), (9,), (2,), (-5,), (1,), 1, "contiguous", "no window meets the input"),
    ((9,), (2,), (5,), (1,), (0,), (4,), 1, "expanded", "dilated"),
    ((4, 5), (1, 1), (4, 5), (1, 1), (0, 0), (1, 1), 1, "channels_last", "a matrix product"),
    ((3, 4, 3), (2, 2, 1), (2, 3, 3), (1, 1, 1), (0, 0, 0), (1, 1, 1), 1, "channels_last", "three dimensions"),
    ((4, 3, 5), (3, 1, 2), (2, 3, 3), (2, 1, 2), (1, 0, 0), (1, 1, 1), 2, "contiguous", "three, all different"),
]
DEPTHWISE = [  # likewise, with the outputs of a group
    ((9, 11), (3, 3), (9, 11), (1, 1), (1, 1), (1, 1), 5, 1, "contiguous", "the usual one"),
    ((9, 11), (3, 3), (8, 13), (1, 1), (2, -1), (1, 1), 8, 1, "channels_last", "windows beside the input"),
    ((9, 11), (5, 5), (6, 9), (2, 2), (3, 6), (1, 1), 3, 1, "contiguous", "strided, more padding than the kernel"),
    ((9, 11), (5, 5), (4, 7), (2, 2), (-2, 5), (1, 1), 8, 1, "channels_last", "strided, less than none"),
    ((5, 40), (7, 7), (9, 38), (1, 1), (5, 2), (1, 1), 2, 2, "contiguous", "two of each, two tiles"),
    ((9, 11), (3, 3), (5, 6), (2, 2), (1, 1), (1, 1), 4, 2, "channels_last", "two of each, strided"),
    ((8, 12), (3, 3), (4, 5), (2, 3), (1, 1), (1, 1), 8, 1, "channels_last", "other strides"),
    ((12, 9), (3, 2), (5, 6), (4, 6), (3, 7), (6, 4), 3, 1, "contiguous", "strides and dilations with a divisor"),
    ((12, 9), (3, 4), (5, 6), (6, 4), (3, 7), (4, 6), 6, 1, "channels_last", "strides and dilations with a divisor"),
    ((4, 4), (3, 3), (4, 4), (1, 1), (-7, 1), (1, 1), 4, 1, "contiguous", "no window meets the input"),
    ((6, 37), (3, 3), (6, 37), (1, 1), (1, 1), (1, 1), 3, 1, "sliced", "columns that are not adjacent"),
    ((6, 7), (5, 5), (6, 7), (1, 1), (2, 2), (1, 1), 4, 1, "transposed", "rows that are adjacent"),
]
EMPTY = [  # sizes of x, kernel, y
    ((0, 4), (2, 2), (3, 3)),
    ((4, 4), (2, 2), (0, 3)),
    ((4, 4), (0, 2), (3, 3)),
]
DTYPES = {"triton": torch.float32}  # of what has no products of float64


def dtype_of(backend):
    return DTYPES.get(backend, torch.float64)


def case(inputs, kernel, size, groups, layout, dtype, batch=2, channels=3, outputs=2):
    """(x, weight, dy)"""
    shapes = (
        (batch, groups * channels, *inputs),
        (groups * outputs, channels, *kernel),
        (batch, groups * outputs, *size),
    )
    return [laid_out(shape, layout, dtype) for shape in shapes]


def gradients(x, weight, dy, size, *options):
    """(y, dx, dweight) by definition, in float64."""
    x, weight = (t.detach().double().requires_grad_() for t in (x, weight))
    y = by_definition(x, weight, size, *options)
    if not y.requires_grad:
        return y, torch.zeros_like(x), torch.zeros_like(weight)
    return y.detach(), *torch.autograd.grad(y, (x, weight), dy.double())


def of_operators(x, weight, dy, size, options, backend):
    with torch.no_grad():
        y = conv_fwd(x, weight, None, None, None, size, *options, NO_ACTIVATION, backend)
        dx = conv_input_grad(dy, weight, None, x.shape[2:], *options, backend)
        return y, dx, conv_weight_grad(dy, x, weight.shape[2:], *options, backend)


def assert_as_defined(backend, x, weight, dy, size, options, why):
    """The three operators, and the memory order of their results."""
    truth = gradients(x, weight, dy, size, *options)
    with use(backend):
        found = of_operators(x, weight, dy, size, options, backend.partition(":")[0])
    torchs = of_operators(x, weight, dy, size, options, "torch")
    lengths = lengths_of(x.shape, weight.shape, dy.shape)[:3]
    assert_sums_within(found, torchs, truth, x, weight, dy, lengths=lengths)
    assert [t.stride() for t in found] == [t.stride() for t in torchs], why


@pytest.mark.parametrize("backend", BACKENDS)
def test_definition(backend):
    for inputs, kernel, size, *options, groups, layout, why in CASES[:: 2 if backend == "triton" else 1]:
        x, weight, dy = case(inputs, kernel, size, groups, layout, dtype_of(backend))
        assert_as_defined(backend, x, weight, dy, size, (*options, groups), why)


@pytest.mark.parametrize("backend", [*BACKENDS, *ON_CUDA])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)
def test_definition_of_depthwise(backend, dtype):
    name = backend.partition(":")[0]
    if name == "triton" and dtype == torch.float64:
        pytest.skip("no products of float64")
    for inputs, kernel, size, *options, groups, outputs, layout, why in DEPTHWISE[:: 3 if name == "triton" else 1]:
        x, weight, dy = case(inputs, kernel, size, groups, layout, dtype, channels=1, outputs=outputs)
        assert_as_defined(backend, x, weight, dy, size, (*options, groups), why)


@pytest.mark.parametrize("backend", [*BACKENDS, *ON_CUDA])
def test_sums_of_nothing_are_zero_and_the_bias(backend):
    name, options = backend.partition(":")[0], ((1, 1), (1, 1), (1, 1))
    inputs = 1 if name == "cuda" else 2  # channels of a group
    sizes = [((4, 3), (2, 2), (3, 3), n) for n in ((0, inputs, 2), (2, 0, 2), (2, inputs, 0)) if name != "cuda" or n[1]]
    sizes += [(*empty, (2, inputs, 2)) for empty in EMPTY]
    for inputs, kernel, size, (batch, channels, outputs) in sizes:
        for groups in (1, 2):
            x, weight, dy = case(
                inputs, kernel, size, groups, "contiguous", dtype_of(backend), batch, channels, outputs
            )
            _, dx, dweight = gradients(x, weight, dy, size, *options, groups)
            bias, bias_in = torch.randn(weight.shape[0]).to(x), torch.randn(x.shape[1]).to(x)
            y = by_definition(x, weight, size, *options, groups) + bias.view(-1, 1, 1)
            with use(backend):
                torch.testing.assert_close(
                    conv_fwd(x, weight, None, bias, None, size, *options, groups, NO_ACTIVATION, name), y
                )
                found = conv_input_grad(dy, weight, bias_in, inputs, *options, groups, name)
                torch.testing.assert_close(found, dx.to(x) + bias_in.view(-1, 1, 1))
                found = conv_weight_grad(dy, x, kernel, *options, groups, name)
                torch.testing.assert_close(found, dweight.to(x))


def differentiable_calls(x, weight, dy, size, options, name):
    """(function, its tensors) of every operator, and of the activations that are derived from what went in and what came out."""
    given = [t.contiguous() if 0 in t.stride() else t for t in (x, weight, dy)]
    given += [torch.randn_like(dy), *torch.randn(2, weight.shape[0]).to(x), torch.randn(x.shape[1]).to(x)]
    x, weight, dy, residual, bias, scale, bias_in = (t.requires_grad_() for t in given)
    yield lambda x, weight: conv_fwd(x, weight, None, None, None, size, *options, NO_ACTIVATION, name), (x, weight)
    yield lambda *t: conv_input_grad(*t, x.shape[2:], *options, name), (dy, weight, bias_in)
    yield lambda *t: conv_weight_grad(*t, weight.shape[2:], *options, name), (dy, x)
    gelu, tanh = resolve("test", "gelu"), resolve("test", "tanh")
    yield lambda *t: conv_fwd(*t, size, *options, gelu, name), (x, weight, scale, bias, residual)
    yield lambda *t: conv_fwd(*t, size, *options, tanh, name), (x, weight, scale, bias, residual)
    no_scale = lambda function: lambda x, weight, *t: conv_fwd(x, weight, None, *t, size, *options, function, name)  # noqa: E731
    yield no_scale(gelu), (x, weight, bias, residual)
    yield no_scale(tanh), (x, weight, bias, residual)


@pytest.mark.parametrize("backend", OF_FLOAT64)
def test_gradients_of_gradients(backend):
    for inputs, kernel, size, *options, groups, layout, why in CASES:
        tensors = case(inputs, kernel, size, groups, layout, torch.float64)
        with use(backend):
            for function, given in differentiable_calls(*tensors, size, (*options, groups), backend.partition(":")[0]):
                assert torch.autograd.gradcheck(function, given, fast_mode=True), why
                assert torch.autograd.gradgradcheck(function, given, fast_mode=True), why


def test_a_gradient_keeps_the_memory_format_that_torch_gives_it():
    """Whatever that of the gradient that arrives."""
    x, weight, dy = case((6, 5), (3, 3), (6, 5), 1, "contiguous", torch.float32)
    options = (6, 5), (1, 1), (1, 1), (1, 1), 1

    def strides(function, layouts):
        given = [
            t.contiguous(memory_format=FORMATS[4] if "channels_last" in l else torch.contiguous_format).requires_grad_()
            for t, l in zip((x, weight), layouts)
        ]
        y = function(*given)
        arriving = dy, dy.contiguous(memory_format=FORMATS[4]), torch.ones(()).expand(dy.shape)
        return [g.stride() for d in arriving for g in (y, *torch.autograd.grad(y, given, d, retain_graph=True))]

    for layouts in (("", ""), ("channels_last", ""), ("", "channels_last"), ("channels_last", "channels_last")):
        ours = strides(lambda x, w: conv_fwd(x, w, None, None, None, *options, NO_ACTIVATION, "torch"), layouts)
        assert ours == strides(lambda x, w: torch.conv2d(x, w, padding=1), layouts)


def counted(function):
    with FlopCounterMode(display=False) as counter, torch.backends.mkldnn.flags(enabled=False):
        result = function()
    return result, counter.get_total_flops()


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_flops_are_what_torch_counts(name):
    """Of oneDNN's convolution torch counts nothing, so of its others."""
    groups = 3
    x, weight, _ = case((7, 6), (3, 3), (7, 6), groups, "contiguous", torch.float32, channels=2)
    weight = weight if name == "conv2d" else torch.randn(6, 2, 3, 3)
    options, size = ((2, 1), (1, 0), (1, 1), groups), [4, 4] if name == "conv2d" else [13, 8]

    def ours(x, weight):
        if name == "conv2d":
            return conv_fwd(x, weight, None, None, None, size, *options, NO_ACTIVATION, "torch")
        return conv_input_grad(x, weight, None, size, *options, "torch")

    def theirs(x, weight):
        return getattr(torch.nn.functional, name)(x, weight, None, *options[:2], groups=groups)

    found = []
    for function in (ours, theirs):
        tensors = [t.detach().requires_grad_() for t in (x, weight)]
        y, forward = counted(lambda f=function, t=tensors: f(*t))
        _, backward = counted(lambda y=y: y.square().sum().backward())
        found.append((y.shape, forward, backward))
    assert found[0] == found[1] and all(found[0][1:])


def test_a_memory_format_is_what_torch_suggests():
    found = set()
    for sizes in product((0, 1, 3), repeat=4):
        for order in permutations(range(4)):
            shape = [sizes[dim] for dim in order]
            x = torch.empty(shape).permute(*(order.index(dim) for dim in range(4)))
            for t in (x, x[..., :1], x[:, :1], x[:, :, :1].expand(sizes), x[0] if sizes[0] else x):
                suggested = torch._prims_common.suggest_memory_format(t)
                assert is_channels_last(t) == (suggested is torch.channels_last), (t.shape, t.stride())
                found.add(suggested)
    assert found == {torch.contiguous_format, torch.channels_last}
    assert is_channels_last(torch.empty(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d))
    assert not is_channels_last(torch.empty(2, 5, 3).mT)


@pytest.mark.parametrize("backend", [*BACKENDS, *ON_CUDA])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_what_is_added_and_applied(backend, layout):
    """scale, bias, then the residual, then the activation; and the pre-activation only where it is wanted."""
    name = backend.partition(":")[0]
    groups, dtype, channels = 1, dtype_of(backend), {}
    if name == "cuda":  # by kernels for squares, which are none of float64's
        groups, dtype, channels = 8, torch.float32, {"channels": 1, "outputs": 1}
    x, weight, dy = case((6, 5), (3, 3), (6, 5), groups, layout, dtype, **channels)
    scale, bias = on_its_device(torch.randn(2, weight.shape[0]).to(x.dtype))
    residual = torch.randn_like(dy).mT.contiguous().mT
    options = [6, 5], [1, 1], [1, 1], [1, 1], groups
    preact = torch.conv2d(x, weight, padding=1, groups=groups) * scale.view(-1, 1, 1) + bias.view(-1, 1, 1) + residual
    with use(backend):
        for activation in ("gelu", "tanh", ("leaky_relu", {"negative_slope": 0.2})):
            of = resolve("test", activation)
            for save in (False, True):
                y, saved = torch.ops.pyflash.conv_fwd(
                    x, weight, scale, bias, residual, *options, *of, save, False, name
                )
                expected = getattr(torch.nn.functional, of[0])(preact, *of[1:2] if of[1] else ())
                torch.testing.assert_close(y, expected)
                assert saved.numel() == (preact.numel() if save else 0)
                if save:
                    torch.testing.assert_close(saved, preact)
