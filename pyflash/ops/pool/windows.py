"""Where the windows of a pooling lie, memory layouts, and what every pooling asks before it computes.

A `Windows` is five lists, of a number for each spatial dimension, as the operators take them; an adaptive pooling's have
kernels of 0, and only the output's size says where they lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pyflash.auto import pool as auto
from pyflash.ops.core.backends import IN_KERNELS, Operation
from pyflash.ops.core.checks import NOT_PLAIN, is_plain, spread
from pyflash.ops.core.choice import Refused, choose
from pyflash.ops.core.dtypes import FLOATS, cast_by_autocast

Size = int | Sequence[int]

SIZES = "(elements of the input, are gradients needed, is it channels_last)"
_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


class Windows(NamedTuple):
    size: tuple[int, ...]  # of the output
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def is_adaptive(self) -> bool:
        return self.kernel[0] == 0


def output_size(size, kernel, stride, padding, dilation, ceil_mode) -> int:
    """How many windows a dimension has; with ceil_mode also a last one that sticks out, unless all of it does."""
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    count = (room + (stride - 1 if ceil_mode else 0)) // stride + 1
    return count - 1 if ceil_mode and (count - 1) * stride >= size + padding else count


def fixed_windows(shape, n: int, kernel, stride, padding, dilation, ceil_mode) -> Windows | None:
    """The windows of these arguments on an input of this shape; None where torch refuses them, or may."""
    kernel = spread(kernel, n)
    stride = kernel if stride is None or (type(stride) in (list, tuple) and not stride) else spread(stride, n)
    padding, dilation = spread(padding, n), spread(dilation, n)
    if kernel is None or stride is None or padding is None or dilation is None or type(ceil_mode) is not bool:
        return None
    if len(shape) not in (n + 1, n + 2) or 0 in shape[-n - 1 :]:
        return None
    size = []
    for i, k, s, p, d in zip(shape[-n:], kernel, stride, padding, dilation):
        if k < 1 or s < 1 or d < 1 or not 0 <= p <= k // 2 or (p and d > i):  # the last: windows without an element
            return None
        size.append(output_size(i, k, s, p, d, ceil_mode))
        if size[-1] < 1:
            return None
    return Windows(tuple(size), kernel, stride, padding, dilation)


def adaptive_windows(shape, n: int, size) -> Windows | None:
    """The windows of so many outputs, None for as many as inputs; of one length where they can be."""
    if len(shape) not in (n + 1, n + 2) or 0 in shape[-n - 1 :]:
        return None
    if isinstance(size, (tuple, list)):
        if len(size) != n or (n == 1 and size[0] is None):
            return None
        size = [i if s is None else s for i, s in zip(shape[-n:], size)]
    size = spread(size, n)
    if size is None or min(size) < 1:
        return None
    if all([i % s == 0 for i, s in zip(shape[-n:], size)]):
        kernel = tuple([i // s for i, s in zip(shape[-n:], size)])
        return Windows(size, kernel, kernel, (0,) * n, (1,) * n)
    return Windows(size, (0,) * n, (1,) * n, (0,) * n, (1,) * n)


def is_ceil_mode(shape, windows: Windows) -> bool:
    """Does torch need ceil_mode=True for so many outputs?"""
    floor = [output_size(*axis, False) for axis in zip(shape[-len(windows.size) :], *windows[1:])]
    return tuple(floor) != tuple(windows.size)


# ---- memory


def is_channels_last(x: Tensor, n: int) -> bool:
    """Of a tensor that `laid_out` gave."""
    return n > 1 and x.dim() == n + 2 and not x.is_contiguous()


def memory_format(channels_last: bool, n: int):
    return _FORMATS[n + 2] if channels_last else torch.contiguous_format


def laid_out(x: Tensor, n: int) -> Tensor:
    """The tensor itself where it is dense in one of the two layouts, else a copy in that which its strides are nearer to."""
    if x.is_contiguous():
        return x
    if n > 1 and x.dim() == n + 2:
        if x.is_contiguous(memory_format=_FORMATS[n + 2]):
            return x
        return x.contiguous(memory_format=torch._prims_common.suggest_memory_format(x))
    return x.contiguous()


def new_empty(like: Tensor, shape, channels_last: bool, dtype=None) -> Tensor:
    n = len(shape) - 2
    return torch.empty(
        shape, dtype=dtype or like.dtype, device=like.device, memory_format=memory_format(channels_last, n)
    )


# ---- what every pooling asks


def size_of(training, input, *_):
    if not is_plain(input):
        return None
    return input.numel(), training, input.dim() > 3 and not input.is_contiguous()


def _key_of(input, *_):
    return input.shape, input.dtype, input.is_cpu, input.is_contiguous()


class Pooling:
    """A pooling of n dimensions, by its name in torch.nn.functional."""

    def __init__(self, name: str, n: int, second_derivative: str = IN_KERNELS):
        self.name, self.n = name, n
        self.operation = Operation(
            name,
            dtypes={"cpu": FLOATS, "triton": FLOATS},
            rules=auto.rules(name),
            sizes=SIZES,
            second_derivative=second_derivative,
        )
        self.refused = Refused(self.operation, size_of, _key_of)

    def is_torchs(self, x) -> bool:
        """Before anything else: does `auto` leave this call to torch, or is x nothing that a kernel could take?"""
        return self.refused.holds(x) or not isinstance(x, Tensor)

    def choose(self, x: Tensor, windows: Sequence | None, *options, tensors=()):
        """(the backend, x as autocast wants it), or (None, the result of torch's function with these options).

        Arguments that make no windows are torch's to refuse; what it takes nevertheless is counted as any other.
        """
        if windows is None and is_plain(x):
            result = getattr(F, self.name)(x, *options)
            choose(self.operation, x, tensors, refused="arguments that only torch's function takes")
            return None, result
        if self.n == 3 and x.is_cpu:  # torch's autocast computes these in float32, on the CPU only
            (x,) = cast_by_autocast((x,), torch.float32)
        training = torch.is_grad_enabled() and x.requires_grad
        refused = "" if windows is not None and is_plain(x) else NOT_PLAIN
        backend = choose(self.operation, x, tensors, size=size_of(training, x), refused=refused)
        return (None, getattr(F, self.name)(x, *options)) if backend is None else (backend, x)
