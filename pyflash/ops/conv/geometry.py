"""Which convolution a call's arguments are: the numbers that the operators take."""

from __future__ import annotations

from functools import lru_cache, wraps
from typing import NamedTuple

import torch

from pyflash.ops.core.checks import INTS, spread


class Geometry(NamedTuple):
    """As the operators take them (conv.py), a number for each spatial dimension."""

    size: tuple[int, ...]  # of the result
    stride: tuple[int, ...]
    padding: tuple[int, ...]  # before the input
    dilation: tuple[int, ...]
    groups: int


def why_not_depthwise(weight_shape) -> str:
    """Why a convolution with this weight, or its transpose, is none of the depthwise ones, which alone csrc/cuda has; empty
    where it is."""
    if len(weight_shape) > 4:
        return "cuda has no convolution in three dimensions"
    return "" if weight_shape[1] == 1 else "cuda has depthwise convolution alone, one channel a group"


def hashable(options) -> tuple:
    """Arguments to look up by, lists as tuples; raises RuntimeError where one cannot be."""
    found = tuple([tuple(option) if type(option) is list else option for option in options])
    try:
        hash(found)
    except TypeError:
        raise RuntimeError(f"not hashable: {options}") from None
    return found


def _are_numbers(options) -> bool:
    """Plain ones, or names: True, 1.0 and 1 would be the same to a dictionary, and are not to torch."""
    for option in options:
        for item in option if type(option) in (tuple, list) else (option,):
            if type(item) is not int and type(item) is not str:
                return False
    return True


def _remembered(find):
    cached = lru_cache(maxsize=4096)(find)

    @wraps(find)
    def geometry(x_shape, weight_shape, *options):
        if torch.compiler.is_compiling() or not _are_numbers(options):
            return find(x_shape, weight_shape, *options)
        try:
            return cached(x_shape, weight_shape, *hashable(options))
        except TypeError:  # symbolic sizes are not to be remembered
            return find(x_shape, weight_shape, *options)

    return geometry


def _spread_all(n, groups, *options):
    """The options, spread over n dimensions, or None where one of them is no such thing."""
    found = [spread(option, n) for option in options]
    return None if type(groups) not in INTS or groups < 1 or None in found else found


def _are_usual(x_shape, weight_shape) -> bool:
    """Is the weight of as many dimensions as x, and is nothing empty but the batch?"""
    n = len(weight_shape) - 2
    return len(x_shape) in (n + 1, n + 2) and 0 not in weight_shape and 0 not in x_shape[-n - 1 :]


@_remembered
def of_conv(x_shape, weight_shape, stride, padding, dilation, groups) -> Geometry | None:
    """Of torch.nn.functional.conv1d's arguments and the like; None where torch refuses them, or may. Padding "same" has
    as many places as the input, an odd one more behind it."""
    n = len(weight_shape) - 2
    if not _are_usual(x_shape, weight_shape):
        return None
    is_same = isinstance(padding, str) and padding == "same"
    if isinstance(padding, str) and padding in ("same", "valid"):
        padding = 0
    spreads = _spread_all(n, groups, stride, padding, dilation)
    if spreads is None:
        return None
    stride, padding, dilation = spreads
    outputs, channels, *kernel = weight_shape
    if x_shape[-n - 1] != channels * groups or outputs % groups:
        return None
    if min(stride) < 1 or min(padding) < 0 or min(dilation) < 1:
        return None
    inputs = tuple(x_shape[-n:])
    if is_same:
        if max(stride) > 1:
            return None
        return Geometry(inputs, stride, tuple([d * (k - 1) // 2 for d, k in zip(dilation, kernel)]), dilation, groups)
    size = [i + 2 * p - d * (k - 1) - 1 for i, p, d, k in zip(inputs, padding, dilation, kernel)]
    if min(size) < 0:
        return None
    return Geometry(tuple([room // s + 1 for room, s in zip(size, stride)]), stride, padding, dilation, groups)


@_remembered
def of_transposed(x_shape, weight_shape, stride, padding, output_padding, groups, dilation) -> Geometry | None:
    """Of torch.nn.functional.conv_transpose1d's arguments and the like, as `of_conv`; of the convolution whose input
    gradient that is."""
    n = len(weight_shape) - 2
    if not _are_usual(x_shape, weight_shape):
        return None
    spreads = _spread_all(n, groups, stride, padding, output_padding, dilation)
    if spreads is None:
        return None
    stride, padding, extra, dilation = spreads
    if x_shape[-n - 1] != weight_shape[0] or weight_shape[0] % groups:
        return None
    if min(stride) < 1 or min(padding) < 0 or min(extra) < 0 or min(dilation) < 1:
        return None
    size = []
    for i, k, s, p, e, d in zip(x_shape[-n:], weight_shape[2:], stride, padding, extra, dilation):
        size.append((i - 1) * s - 2 * p + d * (k - 1) + e + 1)
        if size[-1] < 1 or (e >= s and e >= d):
            return None
    return Geometry(tuple(size), stride, padding, dilation, groups)
