"""Convolution of inputs that each sample's style scales, and what follows it in a style-based generator, as one operator:

    y[n, o] = clamp(gain activation(scale[n, o] sum over c of (style[n, c] x[n, c]) * weight[o, c] + bias[o] + noise[n]))

The style is applied where x is gathered, all the rest as the sums leave the registers: neither the scaled input nor the sums
are ever in memory. For inference: gradients want the sums and the scaled input, which they would compute again.
"""

from __future__ import annotations

from torch import Tensor

from pyflash.activations import ACTIVATIONS
from pyflash.ops.conv.conv import _OPTIONS, _convolved, _fwd_flops, _new_empty, keeps
from pyflash.ops.core.registry import Op


def along_places(t: Tensor) -> Tensor:
    """[N, C], a value for each channel of a picture, to be multiplied by it."""
    return t[:, :, None, None]


def _reference(
    x, weight, style, scale, bias, noise, size, stride, padding, dilation, groups, activation, first, second, gain, clamp,
    keeps_weight,
):  # fmt: skip
    y = _convolved(x * along_places(style), weight, None, size, stride, padding, dilation, groups)
    y = y if scale is None else y * along_places(scale)
    y = y if bias is None else y + bias[:, None, None]
    y = y if noise is None else y + noise
    y = (ACTIVATIONS[activation].of(y, (first, second)) if activation else y) * gain
    return (y if clamp < 0 else y.clamp(-clamp, clamp),)


def _flops(x, weight, style, scale, bias, noise, size, *_, **__):
    return _fwd_flops(x, weight, None, None, None, size)


_modulated = Op(
    "modulated_conv_fwd(Tensor x, Tensor weight, Tensor style, Tensor? scale, Tensor? bias, Tensor? noise,"
    f" {_OPTIONS}, str activation, float first, float second, float gain, float clamp, bool keeps_weight, str backend)"
    " -> Tensor",
    outputs=lambda x, weight, style, scale, bias, noise, size, *_: (
        _new_empty(x, weight, (x.shape[0], weight.shape[0], *size)),
    ),
    reference=_reference,
    differentiable=True,
    flops=_flops,
    triton="pyflash.kernels.conv:modulated_conv_fwd",
    cpu="pyflash.ops.conv._cpu:modulated_conv_fwd",
)


def modulated_conv_fwd(
    x, weight, style, scale, bias, noise, size, stride, padding, dilation, groups, activation, gain, clamp, backend
):
    """The operator by one backend, of images. Its derivative is that of torch operations.

    Args:
        x: [N, G*Ci, H, W], any strides.
        weight: [G*Co, Ci, kH, kW], any strides.
        style: [N, G*Ci].
        scale: [N, G*Co], or None.
        bias: [G*Co], or None.
        noise: [N or 1, 1, *size], or None.
        size, stride, padding, dilation: as conv_fwd's.
        activation: a row of the table and the values of its parameters, or NO_ACTIVATION.
        clamp: of the magnitude; negative for none.
    """
    tensors = x, weight, style, scale, bias, noise
    return _modulated(
        *tensors, size, stride, padding, dilation, groups, *activation, gain, clamp, keeps(weight), backend
    )
