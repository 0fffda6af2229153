"""Convolution in one, two and three dimensions: forward, and the gradients of input and weight, each the adjoint of another.

Tensors are [N, C, *spatial] of any strides; fastest with adjacent channels (channels_last). `padding` is what lies before
the input, what lies after follows from the sizes. float32, bfloat16 or float16; sums in float32.
"""

from pyflash.kernels.conv import direct, product, weight_grad
from pyflash.kernels.conv.axes import Shape
from pyflash.kernels.conv.scaled import scaled

_LEAST_CHANNELS = 16  # of a group, for which a matrix product is worth it


def conv_fwd(
    x, weight, scale, bias, residual, size, stride, padding, dilation, groups, activation, first, second, save_preact,
    keeps_weight, y, preact,
):  # fmt: skip
    """Fill y = activation(scale conv(x, weight) + bias + residual) and, if save_preact, preact: the same before the activation.

    Args:
        x: [N, groups * Ci, *in]; weight: [groups * Co, Ci, *kernel]; scale, bias: [groups * Co] or None.
        residual: [N, groups * Co, *size] or None; y, preact: the same.
        activation: a name of the activation table, or "" for none; first, second: the values of its parameters.
    """
    shape = Shape(x, weight, y, stride, padding, dilation, groups, False)
    _launch(shape, x, weight, scale, bias, residual, (activation, first, second), y, preact if save_preact else None)


def modulated_conv_fwd(
    x, weight, style, scale, bias, noise, size, stride, padding, dilation, groups, activation, first, second, gain, clamp,
    keeps_weight, y,
):  # fmt: skip
    """Fill y = clamp(gain activation(scale conv(style x, weight) + bias + noise)), style and scale those of each sample.

    Args:
        style: [N, groups * Ci]; scale: [N, groups * Co] or None; noise: [N or 1, 1, *size] or None.
        clamp: of the magnitude; negative for none. The others are conv_fwd's.
    """
    if y.numel():
        shape = Shape(x, weight, y, stride, padding, dilation, groups, False)
        scale, bias = (None if t is None else t.contiguous() for t in (scale, bias))
        noise = None if noise is None else noise.expand(y.shape)
        of, bounds = (activation, first, second), (gain, clamp, "gain" if clamp < 0 else "clamp")
        # Scaled in the product, its tiles would pass through registers, and the products of a warp group wait for each other.
        product.conv(shape, scaled(x, style), weight, scale, bias, noise, of, y, None, y.shape[1], *bounds)


def conv_input_grad(dy, weight, bias, size, stride, padding, dilation, groups, keeps_weight, dx):
    """Fill dx [N, groups * Ci, *size] with the adjoint of conv_fwd in x, plus bias [groups * Ci]: the gradient of x, and a
    transposed convolution. dy: [N, groups * Co, *out]; weight: [groups * Co, Ci, *kernel]."""
    shape = Shape(dy, weight, dx, stride, padding, dilation, groups, True)
    _launch(shape, dy, weight, None, bias, None, ("", 0.0, 0.0), dx, None)


def conv_weight_grad(dy, x, size, stride, padding, dilation, groups, dweight):
    """Fill dweight [groups * Co, Ci, *size] with the adjoint of conv_fwd in weight: dy [N, groups * Co, *out] times x
    [N, groups * Ci, *in], summed over samples and places of dy."""
    shape = Shape(x, dweight, dy, stride, padding, dilation, groups, False)
    if not dweight.numel():
        return
    if not shape.results:
        dweight.zero_()
    elif _is_thin(shape):
        weight_grad.direct(shape, dy, x, dweight)
    else:
        weight_grad.product(shape, dy, x, dweight)


def _is_thin(shape):
    """Groups of so few channels that a matrix product would be padding for the most part."""
    return shape.groups > 1 and min(shape.K, shape.N) < _LEAST_CHANNELS


def _launch(shape, a, weight, scale, bias, residual, activation, y, preact):
    if y.numel():
        scale, bias = (None if t is None else t.contiguous() for t in (scale, bias))
        way = direct if _is_thin(shape) else product
        way.conv(shape, a, weight, scale, bias, residual, activation, y, preact)
