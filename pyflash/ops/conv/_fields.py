"""Fields of a Conv (csrc/common/conv.h), as both native modules are handed them."""

from __future__ import annotations

NO_ACTIVATION = (-1, 0.0, 0.0)
NO_STYLE = (0, 0, 0, 1.0, -1.0)  # style, noise, noise_step, gain, clamp


def strides(stride):
    """Of outer, channel, depth, height, width; 0 for dimensions that are not there."""
    outer, channel, *spatial = stride
    return (outer, channel, *(0,) * (3 - len(spatial)), *spatial)


def axes(x, y, kernel, stride, padding, dilation):
    """The fields of three dimensions, of which those that are not there have size 1."""
    there = zip(x, y, kernel, stride, dilation, padding)
    found = [(tuple(map(int, axis)), int(before)) for *axis, before in there]
    found = [((1, 1, 1, 1, 1), 0)] * (3 - len(found)) + found
    return tuple(field for axis in found for field in axis)
