"""Max pooling and its gradient: a program takes a block of outputs, or of inputs, and asks all of their windows.

As in torch a NaN wins, the last one of a window; else the first of the largest.
"""

import triton
import triton.language as tl

from pyflash.kernels import launch, primitives
from pyflash.kernels.pool import windows


@launch.cached
@triton.jit
def _max_pool_fwd(
    x_ptr, y_ptr, indices_ptr, depth, height, width, inner, count, D: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    WIDE: tl.constexpr, BLOCK: tl.constexpr, HAS_INDICES: tl.constexpr,
):  # fmt: skip
    offs = windows.elements(WIDE, BLOCK)
    mask = offs < count
    outer, od, oh, ow, channel = windows.place_of(offs, depth[1], height[1], width[1], inner)
    first_d, taps_d, step_d = windows.window(od, depth)
    first_h, taps_h, step_h = windows.window(oh, height)
    first_w, taps_w, step_w = windows.window(ow, width)
    plane_ptr = x_ptr + outer * depth[0] * height[0] * width[0] * inner + channel
    acc: tl.constexpr = primitives.acc_dtype(x_ptr.dtype.element_ty)
    best = tl.full([BLOCK], float("-inf"), acc)
    place = (windows.first_inside(first_d, step_d) * height[0] + windows.first_inside(first_h, step_h)) * width[0]
    place += windows.first_inside(first_w, step_w)
    for kd in range(D):
        d = first_d + kd * step_d
        in_d = mask & (kd < taps_d) & (d >= 0) & (d < depth[0])
        for kh in range(H):
            h = first_h + kh * step_h
            in_h = in_d & (kh < taps_h) & (h >= 0) & (h < height[0])
            for kw in range(W):
                w = first_w + kw * step_w
                inside = in_h & (kw < taps_w) & (w >= 0) & (w < width[0])
                here = (d * height[0] + h) * width[0] + w
                x = primitives.cast(tl.load(plane_ptr + here * inner, mask=inside, other=float("-inf")), acc)
                wins = inside & ((x > best) | (x != x))
                best = tl.where(wins, x, best)
                place = tl.where(wins, here, place)
    tl.store(y_ptr + offs, primitives.cast(best, y_ptr.dtype.element_ty), mask=mask)
    if HAS_INDICES:
        tl.store(indices_ptr + offs, place.to(indices_ptr.dtype.element_ty), mask=mask)


@launch.cached
@triton.jit
def _max_pool_bwd(
    dy_ptr, indices_ptr, dx_ptr, depth, height, width, inner, count, D: tl.constexpr, H: tl.constexpr,
    W: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    offs = windows.elements(WIDE, BLOCK)
    mask = offs < count
    outer, d, h, w, channel = windows.place_of(offs, depth[0], height[0], width[0], inner)
    first_d, behind_d = windows.windows_of(d, depth)
    first_h, behind_h = windows.windows_of(h, height)
    first_w, behind_w = windows.windows_of(w, width)
    place = (d * height[0] + h) * width[0] + w
    acc: tl.constexpr = primitives.acc_dtype(dy_ptr.dtype.element_ty)
    sum = tl.zeros([BLOCK], acc)
    for kd in range(D):
        for kh in range(H):
            inside = mask & (first_d + kd < behind_d) & (first_h + kh < behind_h)
            row = ((outer * depth[1] + first_d + kd) * height[1] + first_h + kh) * width[1] + first_w
            for kw in range(W):
                there = inside & (first_w + kw < behind_w)
                at = (row + kw) * inner + channel
                won = there & (tl.load(indices_ptr + at, mask=there, other=-1) == place)
                sum += primitives.cast(tl.load(dy_ptr + at, mask=won, other=0.0), acc)
    tl.store(dx_ptr + offs, primitives.cast(sum, dx_ptr.dtype.element_ty), mask=mask)


def max_pool_fwd(x, size, kernel, stride, padding, dilation, index_bits, y, indices):
    """Fill y [.., *size], and indices (with index_bits: the place of each in its plane); all laid out in memory as x."""
    shape = windows.Shape(x.shape, windows.is_channels_last(x, len(size)), size, kernel, stride, padding, dilation)
    shape.run(_max_pool_fwd, shape.outputs, shape.taps, x, y, indices if index_bits else y, HAS_INDICES=index_bits > 0)


def max_pool_bwd(dy, indices, input_size, channels_last, size, kernel, stride, padding, dilation, dx):
    """Fill dx [input_size], in the layout of indices, with the sum of dy over the windows that chose an element."""
    shape = windows.Shape(input_size, channels_last, size, kernel, stride, padding, dilation)
    dy = launch.in_order(dy, channels_last)
    shape.run(_max_pool_bwd, shape.inputs, shape.windows, dy, indices, dx)
