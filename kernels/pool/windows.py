"""Where windows lie, in a kernel: the same as csrc/cpu/pool/window.h says, for vectors of outputs and of inputs.

An axis is a tuple (in, out, kernel, stride, padding, dilation); an adaptive one has kernel 0.
"""

import math

import triton
import triton.language as tl

from pyflash.kernels import launch
from pyflash.kernels.primitives import INTERPRETED

_NOT_THERE = (1, 1, 1, 1, 0, 1)
POOL_BLOCK = 16384 if INTERPRETED.value else 512


def is_channels_last(x, n):
    """Of a tensor in one of the two layouts."""
    return n > 1 and x.dim() == n + 2 and not x.is_contiguous()


class Shape:
    """The launch arguments of an input [.., *spatial] of this shape under windows (size, kernel, stride, padding, dilation).

    Attributes:
        axes: depth, height, width.
        outer, inner: what lies before and after them in memory: all planes and 1, or batch and channels (channels_last).
        taps: elements of the longest window of each axis; windows: the most windows that an element lies in.
    """

    def __init__(self, shape, channels_last, *windows):
        n = len(windows[0])
        given = [tuple(map(int, axis)) for axis in zip(shape[-n:], *windows)]
        self.axes = (*[_NOT_THERE] * (3 - n), *given)
        self.inner = shape[-n - 1] if channels_last else 1
        self.outer = math.prod(shape[:-n]) // max(self.inner, 1)
        self.taps = [axis[2] or axis[0] // axis[1] + 2 for axis in self.axes]
        self.windows = [
            (axis[2] - 1) * axis[5] // axis[3] + 1 if axis[2] else axis[1] // axis[0] + 2 for axis in self.axes
        ]
        planes = self.outer * self.inner
        self.inputs, self.outputs = (planes * math.prod(axis[side] for axis in self.axes) for side in (0, 1))

    def run(self, kernel, programs_for, bounds, *args, **settings):
        """Launches `kernel` over so many elements."""
        if programs_for:
            grid = (launch.cdiv(programs_for, POOL_BLOCK),)
            is_wide = max(self.inputs, self.outputs) >= 1 << 31
            kernel[grid](
                *args, *self.axes, self.inner, programs_for, D=bounds[0], H=bounds[1], W=bounds[2],
                WIDE=is_wide, BLOCK=POOL_BLOCK, **settings,
            )  # fmt: skip


@triton.jit
def elements(WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """The elements of this program, in the order of memory."""
    start = tl.program_id(0).to(tl.int64) * BLOCK if WIDE else tl.program_id(0) * BLOCK
    return start + tl.arange(0, BLOCK)


@triton.jit
def place_of(offs, depth, height, width, inner):
    """(outer, d, h, w, channel) of elements of [outer, depth, height, width, inner]."""
    rest = offs // inner
    row = rest // width
    slab = row // height
    return slab // depth, slab % depth, row % height, rest % width, offs % inner


@triton.jit
def window(o, axis):
    """(first element, which may be padding; elements; step) of windows."""
    size, outputs, kernel, stride, padding, dilation = axis
    if kernel == 0:
        first = o * size // outputs
        taps = ((o + 1) * size + outputs - 1) // outputs - first
    else:
        first = o * stride - padding
        taps = tl.full(o.shape, kernel, o.dtype)
    return first, taps, dilation


@triton.jit
def first_inside(first, step):
    """The first element of a window that is no padding."""
    return tl.where(first < 0, first + (-first + step - 1) // step * step, first)


@triton.jit
def counted(o, axis, COUNTS_PADDING: tl.constexpr):
    """How many elements a mean over windows is of."""
    size, _, kernel, stride, padding, _ = axis
    if kernel == 0:
        _, count, _ = window(o, axis)
    else:
        start = o * stride - padding
        if COUNTS_PADDING:
            count = tl.minimum(start + kernel, size + padding) - start
        else:
            count = tl.minimum(start + kernel, size) - tl.maximum(start, 0)
    return count


@triton.jit
def windows_of(i, axis):
    """(first, behind the last) of the windows that elements lie in; with a dilation some between them may not have them."""
    size, outputs, kernel, stride, padding, dilation = axis
    if kernel == 0:
        first = i * outputs // size
        behind = ((i + 1) * outputs - 1) // size + 1
    else:
        last = i + padding
        reach = last - (kernel - 1) * dilation
        first = tl.where(reach <= 0, 0, (reach + stride - 1) // stride)
        behind = tl.minimum(last // stride + 1, outputs)
    return first, behind
