"""Where the taps of a convolution lie: the same for a forward and, seen from its inputs, for its adjoint.

Both compute y [batch, groups * N, *out] from a [batch, groups * K, *in]: a result is a sum over taps and over the K channels
of its group. Along an axis the adjoint has `stride` phases. The results of one are every stride-th from the phase on, and
those share their taps: every (stride / gcd(stride, dilation))-th from a first one on, at places that are one apart for results
one apart. So a phase is a dense convolution with a part of the kernel, and no zero is inserted anywhere.

An axis is a tuple (size_in, size_out, taps, stride, padding, dilation, tap_step); one that is not there has size 1.
"""

import math

import triton
import triton.language as tl

from pyflash.kernels.strided import Strided

_NOT_THERE = (1, 1, 1, 1, 0, 1, 1)


class Shape:
    """The launch arguments of y = a * weight, or of its adjoint in a.

    Attributes:
        axes: depth, height, width; taps: in all.
        phases: of all axes together; results: at most so many, of all samples, has each.
        groups, K, N: channels are groups * K of a, groups * N of y.
        constants(order): what the kernels are compiled for, with the axes in that order.
    """

    def __init__(self, a, weight, y, stride, padding, dilation, groups, is_adjoint):
        steps = [s // math.gcd(s, d) for s, d in zip(stride, dilation, strict=True)]
        given = zip(a.shape[2:], y.shape[2:], weight.shape[2:], stride, padding, dilation, steps, strict=True)
        given = [tuple(map(int, axis)) for axis in given]
        self.axes = (*[_NOT_THERE] * (3 - len(given)), *given)
        self.is_adjoint, self.groups, self.batch = is_adjoint, groups, a.shape[0]
        outputs, inputs = weight.shape[0] // groups, weight.shape[1]
        self.K, self.N = (outputs, inputs) if is_adjoint else (inputs, outputs)
        self.taps = math.prod(axis[2] for axis in self.axes)
        self.phases = math.prod(stride) if is_adjoint else 1
        self.results = self.batch * math.prod(-(-axis[1] // axis[3]) if is_adjoint else axis[1] for axis in self.axes)

    def constants(self, order=(0, 1, 2)):
        depth, height, width = (_leaves(self.axes[i], self.is_adjoint) for i in order)
        is_large = self.results >= (1 << 31) - 4096
        return dict(LEAVES_D=depth, LEAVES_H=height, LEAVES_W=width, IS_ADJOINT=self.is_adjoint, IS_LARGE=is_large)

    def weight_of(self, weight):
        """Strided with the strides of (N, K, taps of each axis, groups)."""
        output, input, *taps = five(weight.stride())
        ends = (input, output) if self.is_adjoint else (output, input)
        return Strided(weight, (*ends, *taps, output * (weight.shape[0] // self.groups)))


def _leaves(axis, is_adjoint):
    """Does any tap of any result lie outside of the input?"""
    size_in, size_out, taps, stride, padding, dilation, _ = axis
    reach = (taps - 1) * dilation
    if is_adjoint:
        return padding < reach or size_out - 1 + padding >= size_in * stride
    return padding > 0 or (size_out - 1) * stride - padding + reach >= size_in


def five(strides):
    """Strides of [batch, channels, D, H, W]; an axis that is not there is never moved along."""
    return (*strides[:2], *[0] * (5 - len(strides)), *strides[2:])


def strided(tensor, order=(0, 1, 2)):
    """Strided [batch, channels, D, H, W], with the axes in that order, or None for None."""
    if tensor is None:
        return None
    strides = five(tensor.stride())
    return Strided(tensor, (*strides[:2], *(strides[2 + i] for i in order)))


def channels_adjacent(weight):
    """The weight with its second dimension adjacent in memory: where it is not, one small copy."""
    return weight if weight.stride(1) == 1 else weight.movedim(1, -1).contiguous().movedim(-1, 1)


def in_a_row(axes, tensors):
    """The axes, and Strided or None, with one axis in place of three: where every result has one tap, at its own place, and
    each tensor lies in memory so. Then a kernel sees that neighbours are neighbours also across the ends of rows."""
    depth, height, width = (axis[0] for axis in axes)
    rows = height * width
    for axis in axes:
        if axis[0] != axis[1] or axis[2:5] != (1, 1, 0):
            return axes, tensors
    for *_, d, h, w in (t.strides for t in tensors if t is not None):
        if (height > 1 and h != width * w) or (depth > 1 and d != rows * w):
            return axes, tensors
    places = depth * rows
    tensors = [t and Strided(t.ptr, (*t.strides[:2], 0, 0, t.strides[4])) for t in tensors]
    return (_NOT_THERE, _NOT_THERE, (places, places, *_NOT_THERE[2:])), tensors


def is_row(axes):
    """One axis at most, and every result has one tap, at its own place."""
    return axes[:2] == (_NOT_THERE, _NOT_THERE) and axes[2][0] == axes[2][1] and axes[2][2:5] == (1, 1, 0)


def are_adjacent(axes, tensor):
    """Are neighbours in a tile neighbours in memory, channels or, in a row, places, so that a compiler sees it? It knows of a
    number whether it is one, and whether it is a multiple of 16."""
    sample, channels, depth, height, width = tensor.strides
    if channels == 1:
        return not any(stride % 16 for stride in (sample, depth, height, width))
    return width == 1 and is_row(axes) and not any(number % 16 for number in (sample, channels, axes[2][0]))


@triton.jit
def phases_at(phase, depth, height, width):
    """The phase of each axis, from their common number."""
    row = phase // width[3]
    return row // height[3], row % height[3], phase % width[3]


@triton.jit
def walk(axis, phase, IS_ADJOINT: tl.constexpr):
    """How the results of a phase walk along an axis, all scalars: (results; scale, first: result i has its first tap at place
    i * scale + first; step: from there to the next tap; taps; first_tap, tap_step: which of the kernel they are; stride)."""
    _, size_out, taps, stride, padding, dilation, tap_step = axis
    if IS_ADJOINT:
        first_tap = phase * 0 + taps
        for t in range(tap_step):
            is_first = (first_tap == taps) & ((phase + padding - t * dilation) % stride == 0)
            first_tap = tl.where(is_first, t, first_tap)
        results = (size_out - phase + stride - 1) // stride
        first = (phase + padding - first_tap * dilation) // stride
        count = tl.maximum((taps - first_tap + tap_step - 1) // tap_step, 0)
        found = results, 1, first, -(tap_step * dilation // stride), count, first_tap, tap_step, stride
    else:
        found = size_out, stride, -padding, dilation, taps, 0, 1, 1
    return found


@triton.jit
def place_of(row, results_d, results_h, results_w):
    """(sample, d, h, w) of numbers of results."""
    slab = row // results_w
    plane = slab // results_h
    return plane // results_d, plane % results_d, slab % results_h, row % results_w


@triton.jit
def address(strides, sample, d, h, w):
    """The offset of a place, 64-bit: whole tensors pass 2^31 elements."""
    offset = sample.to(tl.int64) * strides[0] + d.to(tl.int64) * strides[2]
    return offset + h.to(tl.int64) * strides[3] + w.to(tl.int64) * strides[4]


@triton.jit
def is_inside(place, axis, LEAVES: tl.constexpr):
    """Of places along an axis; None where they cannot leave it."""
    if LEAVES:
        found = (place >= 0) & (place < axis[0])
    else:
        found = None
    return found


@triton.jit
def where_both(one, other):
    """one & other, None being true."""
    if one is None:
        found = other
    elif other is None:
        found = one
    else:
        found = one & other
    return found


@triton.jit
def across(x, IS_VECTOR: tl.constexpr):
    """x [n] as [1, n]; a scalar or None as it is."""
    if x is None or not IS_VECTOR:
        found = x
    else:
        found = x[None, :]
    return found


@triton.jit
def down(x, IS_VECTOR: tl.constexpr):
    """x [n] as [n, 1]; a scalar or None as it is."""
    if x is None or not IS_VECTOR:
        found = x
    else:
        found = x[:, None]
    return found


@triton.jit
def load(ptrs, mask):
    """A tile, zero where the mask says no; None is a mask of all."""
    if mask is None:
        tile = tl.load(ptrs)
    else:
        tile = tl.load(ptrs, mask=mask, other=0.0)
    return tile
