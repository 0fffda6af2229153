"""Average pooling and its gradient: a program takes a block of outputs, or of inputs, and asks all of their windows."""

import triton
import triton.language as tl

from pyflash.kernels import launch, primitives
from pyflash.kernels.pool import windows


@triton.jit
def _divided(sum, count, divisor):
    return sum / (tl.where(divisor == 0, count, divisor)).to(sum.dtype)


@launch.cached
@triton.jit
def _avg_pool_fwd(
    x_ptr, y_ptr, divisor, depth, height, width, inner, count, D: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    WIDE: tl.constexpr, BLOCK: tl.constexpr, COUNTS_PADDING: tl.constexpr,
):  # fmt: skip
    offs = windows.elements(WIDE, BLOCK)
    mask = offs < count
    outer, od, oh, ow, channel = windows.place_of(offs, depth[1], height[1], width[1], inner)
    first_d, taps_d, _ = windows.window(od, depth)
    first_h, taps_h, _ = windows.window(oh, height)
    first_w, taps_w, _ = windows.window(ow, width)
    plane_ptr = x_ptr + outer * depth[0] * height[0] * width[0] * inner + channel
    acc: tl.constexpr = primitives.acc_dtype(x_ptr.dtype.element_ty)
    total = tl.zeros([BLOCK], acc)
    for kd in range(D):
        d = first_d + kd
        in_d = mask & (kd < taps_d) & (d >= 0) & (d < depth[0])
        for kh in range(H):
            h = first_h + kh
            in_h = in_d & (kh < taps_h) & (h >= 0) & (h < height[0])
            of_row = tl.zeros([BLOCK], acc)
            for kw in range(W):
                w = first_w + kw
                inside = in_h & (kw < taps_w) & (w >= 0) & (w < width[0])
                here = (d * height[0] + h) * width[0] + w
                of_row += primitives.cast(tl.load(plane_ptr + here * inner, mask=inside, other=0.0), acc)
            total += of_row
    elements = windows.counted(od, depth, COUNTS_PADDING) * windows.counted(oh, height, COUNTS_PADDING)
    elements *= windows.counted(ow, width, COUNTS_PADDING)
    tl.store(y_ptr + offs, primitives.cast(_divided(total, elements, divisor), y_ptr.dtype.element_ty), mask=mask)


@launch.cached
@triton.jit
def _avg_pool_bwd(
    dy_ptr, dx_ptr, divisor, depth, height, width, inner, count, D: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    WIDE: tl.constexpr, BLOCK: tl.constexpr, COUNTS_PADDING: tl.constexpr,
):  # fmt: skip
    offs = windows.elements(WIDE, BLOCK)
    mask = offs < count
    outer, d, h, w, channel = windows.place_of(offs, depth[0], height[0], width[0], inner)
    first_d, behind_d = windows.windows_of(d, depth)
    first_h, behind_h = windows.windows_of(h, height)
    first_w, behind_w = windows.windows_of(w, width)
    acc: tl.constexpr = primitives.acc_dtype(dy_ptr.dtype.element_ty)
    sum = tl.zeros([BLOCK], acc)
    for kd in range(D):
        for kh in range(H):
            od, oh = first_d + kd, first_h + kh
            inside = mask & (od < behind_d) & (oh < behind_h)
            row = ((outer * depth[1] + od) * height[1] + oh) * width[1]
            above = windows.counted(od, depth, COUNTS_PADDING) * windows.counted(oh, height, COUNTS_PADDING)
            for kw in range(W):
                ow = first_w + kw
                there = inside & (ow < behind_w)
                dy = primitives.cast(tl.load(dy_ptr + (row + ow) * inner + channel, mask=there, other=0.0), acc)
                elements = tl.where(there, above * windows.counted(ow, width, COUNTS_PADDING), 1)
                sum += _divided(dy, elements, divisor)
    tl.store(dx_ptr + offs, primitives.cast(sum, dx_ptr.dtype.element_ty), mask=mask)


def avg_pool_fwd(x, size, kernel, stride, padding, count_include_pad, divisor, y):
    """Fill y [.., *size], laid out in memory as x; divisor 0: that of each window."""
    channels_last, dilation = windows.is_channels_last(x, len(size)), (1,) * len(size)
    shape = windows.Shape(x.shape, channels_last, size, kernel, stride, padding, dilation)
    shape.run(_avg_pool_fwd, shape.outputs, shape.taps, x, y, divisor, COUNTS_PADDING=count_include_pad)


def avg_pool_bwd(dy, input_size, channels_last, size, kernel, stride, padding, count_include_pad, divisor, dx):
    """Fill dx [input_size], channels_last or not: each element's share of the windows that it lies in."""
    shape = windows.Shape(input_size, channels_last, size, kernel, stride, padding, (1,) * len(size))
    dy = launch.in_order(dy, channels_last)
    shape.run(_avg_pool_bwd, shape.inputs, shape.windows, dy, dx, divisor, COUNTS_PADDING=count_include_pad)
