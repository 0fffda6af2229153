"""Convolution between resamplings, and with weights modulated by a style: StyleGAN2's.

Karras et al. 2020, "Analyzing and improving the image quality of StyleGAN", arXiv:1912.04958, section 2.2. All is composed
of operators whose derivatives are operators, so every order is there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyflash.ops.conv.functions import conv2d, conv_transpose2d
from pyflash.ops.core.checks import expect, expect_tensors
from pyflash.ops.gan.filters import paddings
from pyflash.ops.gan.upfirdn2d import upfirdn2d
from pyflash.ops.linear.linear import linear

EPS = 1e-8


def conv2d_resample(
    x: Tensor,
    w: Tensor,
    f: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
) -> Tensor:
    """Upsampling, a convolution, downsampling, with `f` as the filter of both: StyleGAN2's, in as few steps as there can be.

    Args:
        x: [N, C_in, H, W].
        w: [C_out, C_in / groups, kH, kW].
        f: of `setup_filter`; None for one of a single 1.
        up, down: whole numbers.
        padding: of the upsampled picture, a number, (x, y) or (left, right, top, bottom); what the filters reach beyond is
            added, so that 0 and kernel // 2 mean what they do without resampling.
        flip_weight: a correlation, as torch's conv2d; False for a convolution.
        flip_filter: likewise of f, where False is a convolution.
    Returns:
        [N, C_out, H', W'], H' = (H up + top + bottom - kH) // down + 1.
    Raises:
        ValueError: a padding of another form; torch's and `upfirdn2d`'s.
    """
    expect_tensors("conv2d_resample", ("f",), x=x, w=w, f=f)
    left, right, top, bottom = paddings("conv2d_resample", padding)
    f = f if up > 1 or down > 1 else None
    f_height, f_width = (1, 1) if f is None else (f.shape[0], f.shape[-1])
    if up > 1:
        left, right = left + (f_width + up - 1) // 2, right + (f_width - up) // 2
        top, bottom = top + (f_height + up - 1) // 2, bottom + (f_height - up) // 2
    if down > 1:
        left, right = left + (f_width - down + 1) // 2, right + (f_width - down) // 2
        top, bottom = top + (f_height - down + 1) // 2, bottom + (f_height - down) // 2
    sides, (height, width) = (left, right, top, bottom), w.shape[2:]
    flipped = w if flip_weight else w.flip(2, 3)

    if height == width == 1 and up == 1 and down > 1:
        return conv2d(upfirdn2d(x, f, down=down, padding=sides, flip_filter=flip_filter), flipped, groups=groups)
    if height == width == 1 and down == 1:
        return upfirdn2d(
            conv2d(x, flipped, groups=groups), f, up=up, padding=sides, gain=up**2, flip_filter=flip_filter
        )
    if up == 1 and down == 1 and left == right >= 0 and top == bottom >= 0:
        return conv2d(x, flipped, padding=(top, left), groups=groups)
    if up == 1:
        x = upfirdn2d(x, f, padding=sides, flip_filter=flip_filter)
        return conv2d(x, flipped, stride=down, groups=groups)
    # A transposed convolution is zeros between the elements and then a convolution; what it must leave out at the edges
    # is taken away there where both sides have it, else by the filter.
    left, right, top, bottom = left - (width - 1), right - (width - up), top - (height - 1), bottom - (height - up)
    across, along = max(min(-left, -right), 0), max(min(-top, -bottom), 0)
    by_group = w.flip(2, 3) if flip_weight else w
    by_group = by_group.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)  # [C_in, C_out / groups, kH, kW]
    x = conv_transpose2d(x, by_group, stride=up, padding=(along, across), groups=groups)
    sides = (left + across, right + across, top + along, bottom + along)
    x = upfirdn2d(x, f, padding=sides, gain=up**2, flip_filter=flip_filter)
    return upfirdn2d(x, f, down=down, flip_filter=flip_filter) if down > 1 else x


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    resample_filter: Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
    fused_modconv: bool | None = None,
) -> Tensor:
    """A convolution whose weights each sample scales by its style, and, demodulated, to results of deviation 1: equations 1
    to 3. Scaling the input by the style and the output by the demodulation is the same, with one weight for the whole batch.

    Args:
        x: [N, C_in, H, W].
        weight: [C_out, C_in, kH, kW].
        styles: [N, C_in].
        noise: added last, of a shape that expands to the result's; or None.
        up, down, padding, resample_filter, flip_weight: `conv2d_resample`'s.
        demodulate: divide each output channel by sqrt(sum (weight styles)^2 + 1e-8).
        fused_modconv: StyleGAN2's choice between two ways to compute it; ignored.
    Returns:
        As `conv2d_resample`.
    Raises:
        ValueError: styles of another shape.
    """
    name = "modulated_conv2d"
    expect_tensors(name, ("noise",), x=x, weight=weight, styles=styles, noise=noise)
    expect(
        x.dim() == weight.dim() == 4 and tuple(styles.shape) == (x.shape[0], weight.shape[1]),
        name,
        lambda: (
            f"x has shape {tuple(x.shape)}, weight {tuple(weight.shape)} and styles {tuple(styles.shape)}, expected"
            " [N, C_in, H, W], [C_out, C_in, kH, kW] and [N, C_in]"
        ),
    )
    scale = None
    if demodulate:
        # Neither the weight's size nor the style's matters then; half types would overflow at sizes far from 1.
        if x.dtype is torch.float16:
            weight = weight * (weight[0].numel() ** -0.5 / weight.abs().amax((1, 2, 3), keepdim=True))
            styles = styles / styles.abs().amax(1, keepdim=True)
        scale = (linear(styles.square(), weight.square().sum((2, 3))) + EPS).rsqrt().to(x.dtype)
    x = x * styles.to(x.dtype)[:, :, None, None]
    y = conv2d_resample(x, weight.to(x.dtype), resample_filter, up, down, padding, flip_weight=flip_weight)
    if scale is None:
        return y if noise is None else y + noise.to(y.dtype)
    scale = scale[:, :, None, None]
    return y * scale if noise is None else torch.addcmul(noise.to(y.dtype), y, scale)
