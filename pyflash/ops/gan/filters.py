"""Filters, and how one goes over a picture: what upfirdn2d and filtered_lrelu read of their arguments.

Inside the family pairs are (height, width), as sizes are; StyleGAN's arguments name the width first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from pyflash.ops.core.checks import INTS, expect, expect_tensors

MOST_TAPS, MOST_STEP = 128, 64  # each way, of what kernels take
MOST_PLACES = 1 << 24  # of a row, that a filter reads
IMPLEMENTATIONS = (None, "cuda", "ref")


class Pass(NamedTuple):
    """One filter over a picture. Its transpose, which is the gradient, is another pass."""

    size: tuple  # of the result
    up: tuple
    down: tuple
    pad: tuple  # before the first row and column; what is behind follows from the sizes
    flip: bool  # False is a convolution, True a correlation
    gain: float


def taps(f: torch.Tensor) -> tuple[int, int]:
    return (f.shape[0], f.shape[-1])


def transposed(of: Pass, f: torch.Tensor, size) -> Pass:
    """From a gradient of the result to that of a picture of `size`."""
    pad = tuple(n - before - 1 for n, before in zip(taps(f), of.pad))
    return Pass(tuple(size), of.down, of.up, pad, not of.flip, of.gain)


def in_torch(x: torch.Tensor, f: torch.Tensor, of: Pass) -> torch.Tensor:
    """The pass, in torch operations: zeros are put in, and all places convolved."""
    batch, channels, *sizes = x.shape
    up, down = of.up, of.down
    if up != (1, 1):
        x = x.reshape(batch, channels, sizes[0], 1, sizes[1], 1)
        x = F.pad(x, (0, up[1] - 1, 0, 0, 0, up[0] - 1)).reshape(batch, channels, sizes[0] * up[0], sizes[1] * up[1])
    after = [
        (out - 1) * step + n - size - before
        for out, step, n, size, before in zip(of.size, down, taps(f), x.shape[2:], of.pad)
    ]
    pads = [of.pad[1], after[1], of.pad[0], after[0]]
    if any(pads):
        x = F.pad(x, [max(n, 0) for n in pads])
        x = x[:, :, max(-pads[2], 0) : x.shape[2] - max(-pads[3], 0), max(-pads[0], 0) : x.shape[3] - max(-pads[1], 0)]
    f = f if of.flip else f.flip([*range(f.dim())])
    weight = f.to(x.dtype)[None, None].expand(channels, *[1] * (3 - f.dim()), *f.shape)
    if not x.numel():
        return x.sum() + x.new_zeros(batch, channels, *of.size)
    with torch.autocast(x.device.type, enabled=False):
        if f.dim() == 2:
            return F.conv2d(x, weight * of.gain, stride=down, groups=channels)
        x = F.conv2d(x, weight * of.gain, stride=(1, down[1]), groups=channels)
        return F.conv2d(x, weight.mT, stride=(down[0], 1), groups=channels)


def fields(f: torch.Tensor, of: Pass, size) -> tuple:
    """A GanFilter for a picture of `size`, field by field behind the address of f, which is contiguous."""
    return *taps(f), f.dim() == 1, of.flip, of.gain, *of.up, *of.down, *of.pad, *size, *of.size


def no_filter(x: torch.Tensor) -> torch.Tensor:
    return torch.ones(1, dtype=torch.float32, device=x.device)


def unserved(x, f, of: Pass, size=None) -> str:
    """Why no kernel of ours takes this pass over a picture of `size`; empty where one does."""
    if max(*of.up, *of.down) > MOST_STEP:
        return f"up or down is more than {MOST_STEP}"
    if max(taps(f)) > MOST_TAPS:
        return f"a filter has more than {MOST_TAPS} taps"
    if torch.is_grad_enabled() and f.requires_grad:
        return "the gradient of a filter is asked for"
    if max(*of.size, *(size or x.shape[2:]), *map(abs, of.pad)) > MOST_PLACES // MOST_STEP:
        return "a row is too long"
    return ""


# ---- arguments ------------------------------------------------------------------------------------------------------


def expect_picture(operation: str, x) -> None:
    expect_tensors(operation, x=x)
    expect(x.dim() == 4, operation, lambda: f"x has shape {tuple(x.shape)}, expected [batch, channels, height, width]")
    expect(
        x.is_floating_point() or x.is_complex(),
        operation,
        lambda: f"x is of {x.dtype}, expected a floating-point type; x.float() makes one",
        TypeError,
    )


def expect_filter(operation: str, name: str, f, x) -> None:
    expect_tensors(operation, **{name: f})
    expect(
        f.dim() in (1, 2) and f.numel() > 0,
        operation,
        lambda: (
            f"{name} has shape {tuple(f.shape)}, expected [taps] of a separable filter or [height, width], none of"
            " them 0; setup_filter makes one"
        ),
    )
    expect(
        f.dtype == torch.float32,
        operation,
        lambda: f"{name} is of {f.dtype}, expected torch.float32; setup_filter makes one",
        TypeError,
    )
    expect(f.device == x.device, operation, lambda: f"{name} is on {f.device}, expected {x.device}, where x is")


def _numbers(operation, name, value, lengths, wanted):
    """`value` as a tuple of one of these lengths."""
    if type(value) in INTS:
        return (value,)
    if isinstance(value, (tuple, list)) and len(value) in lengths and all(type(n) in INTS for n in value):
        return tuple(value)
    raise (ValueError if isinstance(value, (tuple, list)) else TypeError)(
        f"pyflash.{operation}: {name} is {value!r}, expected {wanted}"
    )


def steps(operation: str, name: str, value) -> tuple[int, int]:
    """(height, width) of `up` or `down`."""
    found = _numbers(operation, name, value, (2,), "a whole number or a pair of them, (across, down)")
    expect(min(found) >= 1, operation, lambda: f"{name} is {value!r}, expected 1 or more")
    return found[-1], found[0]


def paddings(operation: str, value) -> tuple[int, int, int, int]:
    """(left, right, top, bottom)."""
    found = _numbers(
        operation, "padding", value, (2, 4), "a whole number, a pair (across, down) or (left, right, top, bottom)"
    )
    if len(found) == 4:
        return found
    return found[0], found[0], found[-1], found[-1]


def expect_implementation(operation: str, impl) -> None:
    expect(
        impl in IMPLEMENTATIONS,
        operation,
        lambda: f"impl is {impl!r}, expected None or 'cuda', by which the backend in use serves it, or 'ref'",
    )


def expect_places(operation: str, size, x, what) -> None:
    expect(
        min(size) >= 1,
        operation,
        lambda: (
            f"nothing is left of x {tuple(x.shape)}: the result would have {size[0]} rows and {size[1]} columns;"
            f" {what()}"
        ),
    )


def setup_filter(
    f: torch.Tensor | Sequence | float | None,
    device: torch.device | str = "cpu",
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1,
    separable: bool | None = None,
) -> torch.Tensor:
    """A filter for `upfirdn2d` and what is made of it.

    Args:
        f: numbers [taps] of a separable filter or [height, width], a tensor, an array or lists; a number; None is 1.
        normalize: the taps add up to 1.
        flip_filter: turn it round.
        gain: of the whole filter.
        separable: leave [taps] as they are; else their product with themselves is taken. None: from 8 taps on.
    Returns:
        float32 [taps] or [height, width].
    Raises:
        ValueError: f is empty or has more than two dimensions, or separable with two.
    Source: Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN".
    """
    f = torch.as_tensor(1 if f is None else f, dtype=torch.float32)
    expect(
        f.dim() <= 2 and f.numel() > 0,
        "setup_filter",
        lambda: f"f has shape {tuple(f.shape)}, expected a number, [taps] or [height, width], none of them 0",
    )
    f = f.reshape(1) if f.dim() == 0 else f
    if separable is None:
        separable = f.dim() == 1 and f.numel() >= 8
    expect(
        f.dim() == 1 or not separable,
        "setup_filter",
        lambda: f"separable is True and f has shape {tuple(f.shape)}, expected [taps]",
    )
    if f.dim() == 1 and not separable:
        f = torch.outer(f, f)
    if normalize:
        f = f / f.sum()
    if flip_filter:
        f = f.flip([*range(f.dim())])
    return (f * gain ** (f.dim() / 2)).to(device)
