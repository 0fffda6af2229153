"""x * style: images of which each sample has a number for each channel."""

import torch
import triton
import triton.language as tl

from pyflash.kernels import launch
from pyflash.kernels.conv import axes
from pyflash.kernels.primitives import cast
from pyflash.kernels.strided import Strided

BLOCK = 1024


@launch.cached
@triton.jit
def _scaled(
    x, style, y_ptr, channels, height, width, size, IS_LAST: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """y [batch, channels, height, width], contiguous, or where IS_LAST channels last; x: Strided, of any strides."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < size
    if IS_LAST:
        channel, place = offs % channels, offs // channels
        sample, h, w = place // width // height, place // width % height, place % width
    else:
        plane = offs // width // height
        sample, channel, h, w = plane // channels, plane % channels, offs // width % height, offs % width
    at = axes.address(x.strides, sample, h * 0, h, w) + channel * x.strides[1]
    scale = tl.load(style.ptr + sample * style.strides[0] + channel * style.strides[1], mask=mask, other=0.0)
    product = cast(tl.load(x.ptr + at, mask=mask, other=0.0), tl.float32) * cast(scale, tl.float32)
    tl.store(y_ptr + offs, cast(product, y_ptr.dtype.element_ty), mask=mask)


def scaled(x, style):
    """x [N, C, H, W] times style [N, C], both of any strides: channels last where x is."""
    is_last = x.stride(1) == 1 and x.shape[1] > 1
    y = torch.empty_like(x, memory_format=torch.channels_last if is_last else torch.contiguous_format)
    if y.numel():
        _scaled[(launch.cdiv(y.numel(), BLOCK),)](
            axes.strided(x), Strided(style, style.stride()), y, *x.shape[1:], y.numel(), IS_LAST=is_last, BLOCK=BLOCK
        )
    return y
