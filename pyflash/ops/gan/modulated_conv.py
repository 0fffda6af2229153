"""Convolution between resamplings, and with weights modulated by a style: StyleGAN2's.

Karras et al. 2020, "Analyzing and improving the image quality of StyleGAN", arXiv:1912.04958, section 2.2. Where gradients
are wanted all is composed of operators whose derivatives are operators, so every order is there; where they are not, one
operator of convolution's is style, convolution, demodulation, noise, bias and activation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyflash.auto import conv as auto
from pyflash.ops.conv.conv import keeps
from pyflash.ops.conv.functions import ALGORITHMS, conv2d, conv_transpose2d
from pyflash.ops.conv.modulated import along_places, modulated_conv_fwd
from pyflash.ops.core.backends import IN_KERNELS, Operation
from pyflash.ops.core.checks import NOT_PLAIN, device_type, expect, expect_tensors, is_plain
from pyflash.ops.core.choice import choose
from pyflash.ops.core.dtypes import ALL_BUT_FLOAT64, FLOATS
from pyflash.ops.core.layouts import is_channels_last
from pyflash.ops.gan.filters import paddings, taps
from pyflash.ops.gan.upfirdn2d import upfirdn2d
from pyflash.ops.linear.linear import linear
from pyflash.ops.pointwise.bias_act import bias_act, of_act

EPS = 1e-8
NO_SIDES = 0, 0, 0, 0

OPERATION = Operation(
    "modulated_conv2d",
    dtypes={"cpu": FLOATS, "triton": ALL_BUT_FLOAT64},
    rules=auto.rules("modulated_conv2d"),
    sizes=auto.SIZES,
    second_derivative=IN_KERNELS,
    notes=ALGORITHMS,
)


def _filtered(x, f, kernel, down, sides, flip_filter=False):
    """What a convolution reads where nothing is upsampled: (x, its stride, what it pads)."""
    if down == 1:
        return x, 1, sides
    if kernel == (1, 1):
        return upfirdn2d(x, f, down=down, padding=sides, flip_filter=flip_filter), 1, NO_SIDES
    return upfirdn2d(x, f, padding=sides, flip_filter=flip_filter), down, NO_SIDES


def _sides(operation, padding, f, up, down) -> tuple[int, int, int, int]:
    """The padding (left, right, top, bottom) with what the filter reaches beyond it."""
    left, right, top, bottom = paddings(operation, padding)
    f_height, f_width = (1, 1) if f is None else taps(f)
    if up > 1:
        left, right = left + (f_width + up - 1) // 2, right + (f_width - up) // 2
        top, bottom = top + (f_height + up - 1) // 2, bottom + (f_height - up) // 2
    if down > 1:
        left, right = left + (f_width - down + 1) // 2, right + (f_width - down) // 2
        top, bottom = top + (f_height - down + 1) // 2, bottom + (f_height - down) // 2
    return left, right, top, bottom


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
    f = f if up > 1 or down > 1 else None
    sides, (height, width) = _sides("conv2d_resample", padding, f, up, down), w.shape[2:]
    flipped = w if flip_weight else w.flip(2, 3)

    if up == 1:
        x, stride, sides = _filtered(x, f, (height, width), down, sides, flip_filter)
        left, right, top, bottom = sides
        if left == right >= 0 and top == bottom >= 0:
            return conv2d(x, flipped, stride=stride, padding=(top, left), groups=groups)
        return conv2d(upfirdn2d(x, None, padding=sides), flipped, stride=stride, groups=groups)
    if height == width == 1 and down == 1:
        return upfirdn2d(
            conv2d(x, flipped, groups=groups), f, up=up, padding=sides, gain=up**2, flip_filter=flip_filter
        )
    # A transposed convolution is zeros between the elements and then a convolution; what it must leave out at the edges
    # is taken away there where both sides have it, else by the filter.
    left, right, top, bottom = sides
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
    *,
    b: Tensor | None = None,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """A convolution whose weights each sample scales by its style, and, demodulated, to results of deviation 1: equations 1
    to 3. Scaling the input by the style and the output by the demodulation is the same, with one weight for the whole batch.

    Args:
        x: [N, C_in, H, W].
        weight: [C_out, C_in, kH, kW].
        styles: [N, C_in].
        noise: added to the result, of a shape that expands to its; or None.
        up, down, padding, resample_filter, flip_weight: `conv2d_resample`'s.
        demodulate: divide each output channel by sqrt(sum (weight styles)^2 + 1e-8).
        fused_modconv: StyleGAN2's choice between two ways to compute it; ignored.
        b, act, alpha, gain, clamp: `bias_act`'s, which follows; without gradients in the same pass.
    Returns:
        As `conv2d_resample`.
    Raises:
        ValueError: x, weight and styles do not fit one another; `bias_act`'s.
    """
    name = "modulated_conv2d"
    expect_tensors(name, ("noise", "b"), x=x, weight=weight, styles=styles, noise=noise, b=b)
    expect(
        x.dim() == weight.dim() == 4 and tuple(x.shape[:2]) == tuple(styles.shape) == (x.shape[0], weight.shape[1]),
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
    styles, weight = styles.to(x.dtype), weight.to(x.dtype)
    noise = None if noise is None else noise.to(x.dtype)
    then = act, alpha, gain, clamp
    if up == 1:
        w = weight if flip_weight else weight.flip(2, 3)
        y = _in_one(x, w, styles, scale, noise, b, of_act(name, *then), resample_filter, down, padding)
        if y is not None:
            return y
    y = conv2d_resample(x * along_places(styles), weight, resample_filter, up, down, padding, flip_weight=flip_weight)
    if noise is not None:
        noise = noise.to(y.dtype)
    if scale is not None:
        y = y * along_places(scale) if noise is None else torch.addcmul(noise, y, along_places(scale))
    elif noise is not None:
        y = y + noise
    return bias_act(y, b, 1, *then)


def _in_one(x, weight, styles, scale, noise, b, of, f, down, padding) -> Tensor | None:
    """All of it by one operator; None where gradients are wanted, or torch's operations are to compute it."""
    tensors = [t for t in (x, weight, styles, scale, noise, b) if t is not None]
    if torch.is_grad_enabled() and any([t.requires_grad for t in tensors]):
        return None
    if not x.numel() or not weight.numel() or torch.is_autocast_enabled(device_type(x)):
        return None
    if any([t.device != x.device for t in tensors]):
        return None  # torch's to refuse
    outputs, inputs, *kernel = weight.shape
    f = f if down > 1 else None
    left, right, top, bottom = sides = _sides("modulated_conv2d", padding, f, 1, down)
    reach = [k + n - 1 for k, n in zip(kernel, (1, 1) if f is None else taps(f))]
    size = tuple(
        (places + pads - n) // down + 1 for places, pads, n in zip(x.shape[2:], (top + bottom, left + right), reach)
    )
    noise, is_noise_plain = _of_places(noise, x.shape[0], size)
    if min(size) < 1 or not is_noise_plain or (b is not None and b.shape != (outputs,)):
        return None
    stride = 1 if kernel == [1, 1] else down
    of_auto = auto.Size(
        positions=x.shape[0] * size[0] * size[1],
        inputs=inputs,
        outputs=outputs,
        groups=1,
        kernel=kernel[0] * kernel[1],
        is_strided=stride > 1,
        is_3x3=auto.is_3x3(kernel, (stride, stride), (1, 1)),
        channels_last=is_channels_last(x) or is_channels_last(weight),
        training=False,
        keeps_weight=keeps(weight),
    )
    backend = choose(OPERATION, x, tensors, of_auto, refused="" if all(map(is_plain, tensors)) else NOT_PLAIN)
    if backend is None:
        return None
    x, stride, (left, _, top, _) = _filtered(x, f, tuple(kernel), down, sides)
    b = None if b is None else b.to(x.dtype)
    steps, before, (activation, gain, clamp) = (stride, stride), (top, left), of
    return modulated_conv_fwd(
        x, weight, styles, scale, b, noise, size, steps, before, (1, 1), 1, activation, gain, clamp, backend
    )


def _of_places(noise, batch, size) -> tuple[Tensor | None, bool]:
    """Noise as [N or 1, 1, *size]; or, False, it is not the same for all channels or not one number a place."""
    if noise is None:
        return None, True
    shape = (*[1] * (4 - noise.dim()), *noise.shape)
    fits = shape[0] in (1, batch) and shape[1:] == (1, *size)
    return (noise.reshape(shape), True) if fits else (noise, False)
