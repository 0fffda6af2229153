"""Arguments of the family's operators, without the backend, for tests/frame/test_operators.py."""

import torch

# size of y, of x, of the kernel; stride, padding, dilation, groups
PLANE = [5, 4], [7, 9], [3, 2], [2, 2], [2, 0], [1, 2], 2  # uneven: a row of zeros more before than after
LINE = [11], [8], [4], [1], [3], [1], 1
VOLUME = [2, 3, 3], [4, 3, 5], [2, 1, 3], [2, 1, 1], [0, 0, 0], [1, 1, 1], 1


def tensors(size, inputs, kernel, groups, **layout):
    """(x, weight, dy)"""
    batch, channels, outputs = 2, 3 * groups, 2 * groups
    shapes = (batch, channels, *inputs), (outputs, 3, *kernel), (batch, outputs, *size)
    return [torch.randn(shape).contiguous(**layout) for shape in shapes]


def conv_fwd():
    for size, inputs, kernel, *options in (PLANE, LINE, VOLUME):
        x, weight, dy = tensors(size, inputs, kernel, options[-1])
        yield x, weight, None, None, None, size, *options, "", 0.0, 0.0, False, False
        bias = torch.randn(weight.shape[0])
        yield x, weight, 1 - bias, bias, dy, size, *options, "leaky_relu", 0.2, 0.0, True, False
    size, inputs, kernel, *options = PLANE
    x, weight, _ = tensors(size, inputs, kernel, options[-1], memory_format=torch.channels_last)
    yield x, weight, None, None, None, size, *options, "gelu", 0.0, 0.0, True, False


def conv_input_grad():
    for size, inputs, kernel, *options in (PLANE, LINE, VOLUME):
        x, weight, dy = tensors(size, inputs, kernel, options[-1])
        yield dy, weight, None, inputs, *options, False
        yield dy, weight, torch.randn(x.shape[1]), inputs, *options, False
    size, inputs, kernel, *options = PLANE
    _, weight, dy = tensors(size, inputs, kernel, options[-1], memory_format=torch.channels_last)
    yield dy, weight, None, inputs, *options, False


def conv_weight_grad():
    for size, inputs, kernel, *options in (PLANE, LINE, VOLUME):
        x, _, dy = tensors(size, inputs, kernel, options[-1])
        yield dy, x, kernel, *options
    size, inputs, kernel, *options = PLANE
    x, _, dy = tensors(size, inputs, kernel, options[-1], memory_format=torch.channels_last)
    yield dy, x, kernel, *options


def modulated_conv_fwd():
    for layout in (torch.contiguous_format, torch.channels_last):
        x, weight, dy = tensors([5, 4], [5, 4], [3, 3], 1, memory_format=layout)
        geometry = [5, 4], [1, 1], [1, 1], [1, 1], 1
        style, scale, bias = torch.randn(2, 3), torch.randn(2, 2), torch.randn(2)
        yield x, weight, style, scale, bias, dy[:, :1], *geometry, "leaky_relu", 0.2, 0.0, 1.4, 2.0, False
        yield x, weight, style, None, None, None, *geometry, "", 0.0, 0.0, 1.0, -1.0, False


OPERATORS = {
    "conv_fwd": conv_fwd,
    "conv_input_grad": conv_input_grad,
    "conv_weight_grad": conv_weight_grad,
    "modulated_conv_fwd": modulated_conv_fwd,
}
