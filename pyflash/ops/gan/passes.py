"""The three forms of filtered_lrelu's operator, as passes over a picture. With U the upsampling, D the downsampling and phi
the activation they are

    VALUE       D phi(U(x + b))
    GRADIENT    U' (phi'(U(x + b)) * D' v)      v of the result's size, U' and D' the transposed passes
    DERIVATIVE  D (phi'(U(x + b)) * U v)        v of x's size

each of which is linear in v, the last two each other's transpose; phi' is constant but for steps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pyflash.ops.gan.filters import Pass, in_torch, transposed

VALUE, GRADIENT, DERIVATIVE = range(3)
ONE = (1, 1)


def of(x, fu, fd, v, middle, size, up, down, pad, flip, gain, slope, clamp, form):
    """((filter, pass) to the middle, that of v or None, that to the result, (gain, slope, clamp))."""
    above = fu, Pass(tuple(middle), (up, up), ONE, tuple(pad), flip, float(up**2))
    result = v.shape[2:] if form == GRADIENT else size
    below = fd, Pass(tuple(result), ONE, (down, down), (0, 0), flip, 1.0)
    numbers = gain, slope, clamp
    if form == VALUE:
        return above, None, below, numbers
    if form == DERIVATIVE:
        return above, above, below, numbers
    return above, (fd, transposed(below[1], fd, middle)), (fu, transposed(above[1], fu, size)), numbers


def leaky_relu(u, gain, slope, clamp):
    y = F.leaky_relu(u, slope) * gain
    return y if clamp < 0 else y.clamp(-clamp, clamp)


def slope_of(u, gain, slope, clamp):
    """phi'(u)."""
    factor = torch.where(u > 0, gain, gain * slope).to(u.dtype)
    return factor if clamp < 0 else torch.where((u * factor).abs() <= clamp, factor, 0.0)


def reference(x, fu, fd, b, v, *form):
    """The operator, in torch operations."""
    above, of_v, below, numbers = of(x, fu, fd, v, *form)
    u = in_torch(x if b is None else x + b[:, None, None], *above)
    middle = leaky_relu(u, *numbers) if of_v is None else slope_of(u, *numbers) * in_torch(v, *of_v)
    return in_torch(middle, *below)


def is_done(x, y) -> bool:
    """Of empty tensors there is nothing to launch: sums of nothing are 0, and so is phi of them."""
    if x.numel() and y.numel():
        return False
    y.zero_()
    return True


def places(x, channels_last: bool) -> tuple[int, int]:
    """(outer, inner): x is [outer, height, width, inner] in memory."""
    batch, channels = x.shape[:2]
    return (batch, channels) if channels_last else (batch * channels, 1)
