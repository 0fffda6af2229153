"""Padding: torch.nn.functional.pad, with a constant, by reflection, replication or around a circle."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from pyflash.auto.minima import minima
from pyflash.ops.core.autograd import Function, apply
from pyflash.ops.core.backends import IN_KERNELS, Operation, record
from pyflash.ops.core.checks import NOT_PLAIN, is_plain
from pyflash.ops.core.choice import Refused, choose
from pyflash.ops.core.dtypes import FLOATS, HALVES
from pyflash.ops.core.layouts import dense, empty, is_channels_last
from pyflash.ops.core.registry import Op
from pyflash.ops.resample.plans import AXES, padded_dims
from pyflash.ops.resample.tables import LARGEST, padded

# Zen 5, torch's time over ours: 0.2 to 1.2 in cache, 0.9 to 1.7 of 16 MB, 1.3 to 4 where the result has large pages.
OPERATION = Operation(
    "pad",
    dtypes={"cpu": FLOATS, "triton": FLOATS},
    rules=minima("pad", inference=1 << 23, training=1 << 23),
    sizes="(elements of the larger of input and output, are gradients needed)",
    second_derivative=IN_KERNELS,
)

MODES = ("constant", "reflect", "replicate", "circular")


def _padded_shape(shape, pads, transposed=False):
    """The sizes of the result; transposed: of what was padded."""
    sign, sizes = -1 if transposed else 1, [*shape]
    for i, (before, after) in enumerate(zip(pads[::2], pads[1::2]), 1):
        sizes[-i] = sizes[-i] + sign * (before + after)
    return sizes


def _outputs(x, pads, mode, value, transposed, channels_last):
    return (empty(x, _padded_shape(x.shape, pads, transposed), channels_last),)


def _reference(x, pads, mode, value, transposed, channels_last):
    if not transposed:
        return (F.pad(x, pads, mode, value if mode == "constant" else None),)
    for i, (before, after) in enumerate(zip(pads[::2], pads[1::2]), 1):
        table = padded(mode, x.shape[-i] - before - after, before, after, True)
        first, index = table.first.to(x.device), table.index.to(x.device)
        place = torch.repeat_interleave(torch.arange(table.size_out, device=x.device), first[1:] - first[:-1])
        sizes = [*x.shape]
        sizes[-i] = table.size_out
        x = x.new_zeros(sizes).index_add(x.dim() - i, place, x.index_select(x.dim() - i, index))
    return (x.clone() if not any(pads) else x,)


# pads as torch.nn.functional.pad takes them, from the last dimension on; transposed: the gradient of that, from the
# gradient of its result. x and the result are dense, as channels_last says.
_pad = Op(
    "pad(Tensor x, SymInt[] pads, str mode, float value, bool transposed, bool channels_last, str backend) -> Tensor",
    outputs=_outputs,
    reference=_reference,
    differentiable=True,
    triton="pyflash.ops.resample._triton:pad",
    cpu="pyflash.ops.resample._cpu:pad",
)


class _Pad(Function):
    """Linear in x, but for the constant: its derivative is the transpose, and that one's the operation with zeros."""

    @staticmethod
    def forward(x, pads, mode, value, transposed, channels_last, backend):
        return _pad(x, pads, mode, value, transposed, channels_last, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.pads, ctx.mode, _, ctx.transposed, ctx.channels_last, ctx.backend = inputs

    @staticmethod
    def backward(ctx, dy):
        dy = dense(dy, ctx.channels_last)
        dx = apply(_Pad, dy, ctx.pads, ctx.mode, 0.0, not ctx.transposed, ctx.channels_last, ctx.backend)
        return dx, *(None,) * 6


def _is_fit(shape, pads, mode, value) -> bool:
    """Does torch pad a tensor of this shape so? Of what is rare its own answer is taken instead of ours."""
    if not isinstance(pads, (tuple, list)) or not all(isinstance(n, (int, torch.SymInt)) for n in pads):
        return False
    if mode not in MODES or len(pads) % 2 or not 0 < len(pads) <= 2 * len(shape):
        return False
    sizes = _padded_shape(shape, pads)
    if mode == "constant":
        is_number = value is None or isinstance(value, (int, float))
        return is_number and all(size >= 0 for size in sizes)
    dims = len(pads) // 2
    batch = len(shape) - dims  # the dimensions before those that are padded: channels, and of a batch one more
    if batch not in (1, 2) or dims > 3 or (value is not None and value != 0):
        return False
    if not all(size > 0 for size in (*shape[batch - 1 :], *sizes[batch - 1 :])) or (
        mode == "circular" and not shape[0]
    ):
        return False
    for i, (before, after) in enumerate(zip(pads[::2], pads[1::2]), 1):
        size, left = shape[-i], shape[-i] + min(before, 0) + min(after, 0)
        if left <= 0 or max(before, after) > (
            size - 1 if mode == "reflect" else left if mode == "circular" else LARGEST
        ):
            return False
    return True


def _key_of(input, pads, mode):
    return input.shape, input.dtype, input.is_cpu, tuple(pads) if type(pads) in (tuple, list) else None, mode


def _size_of(training, input, pads, mode):
    if not is_plain(input) or not _is_fit(input.shape, pads, mode, None):
        return None
    return _work(input, pads, training)


def _work(input, pads, training):
    return max(input.numel(), torch.Size(_padded_shape(input.shape, pads)).numel()), training


_refused = Refused(OPERATION, _size_of, _key_of)


def pad(
    input: torch.Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> torch.Tensor:  # fmt: skip
    """Pads the last dimensions, as torch.nn.functional.pad.

    Args:
        input: float32, float64, bfloat16 or float16; others are torch's. The result is channels last where the input is.
        pad: (before, after) of the last dimension, of the one before it, and so on; negative numbers take away.
        mode: "constant" of any dimensions, three of them by our kernels, where dimensions between them count as one;
            "reflect", "replicate" or "circular" of the last one, two or three.
        value: of the constant, None for 0.
    Raises:
        ValueError, TypeError, NotImplementedError, RuntimeError: torch's own.
    Numerics: elements are copied. The gradient adds those that one place was copied to, in float32 (float64 for
        float64), rounded once: deterministic.
    """
    if _refused.holds(input, pad, mode):
        return F.pad(input, pad, mode, value)
    if not isinstance(input, torch.Tensor) or not _is_fit(input.shape, pad, mode, value):
        return F.pad(input, pad, mode, value)  # its error, or torch.fx's record of the call
    if not torch.is_floating_point(input):  # token numbers, masks
        record("pad", "torch", NOT_PLAIN)
        return F.pad(input, pad, mode, value)
    if input.is_cpu and torch.is_autocast_enabled("cpu") and input.dtype in HALVES:
        if mode == "replicate" or (mode == "reflect" and len(pad) < 6):  # as torch's own
            input = input.float()
    refused = "" if is_plain(input) else NOT_PLAIN
    channels_last = not refused and mode != "circular" and is_channels_last(input)  # torch's circular result is not
    if not refused and len(padded_dims(input.shape, pad, channels_last)[1]) > AXES:
        refused = f"more than {AXES} dimensions that lie apart are padded"
    elif not refused and max((*input.shape, *pad)) > LARGEST:
        refused = f"a dimension is longer than {LARGEST}"
    work = None if refused else _work(input, pad, torch.is_grad_enabled() and input.requires_grad)
    backend = choose(OPERATION, input, size=work, refused=refused)
    if backend is None:
        return F.pad(input, pad, mode, value)
    value = 0.0 if value is None else float(value)
    return apply(_Pad, dense(input, channels_last), [*pad], mode, value, False, channels_last, backend)
