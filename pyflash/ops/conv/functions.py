"""Convolution as torch.nn.functional has it, and with what is fused behind it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

import torch.nn.functional as F
from torch import Tensor, is_grad_enabled

from pyflash.auto import conv as auto
from pyflash.ops.conv.conv import conv_fwd, conv_input_grad, keeps
from pyflash.ops.conv.geometry import Geometry, of_conv, of_transposed, why_not_depthwise
from pyflash.ops.core.autograd import shaped
from pyflash.ops.core.backends import IN_KERNELS, Operation, _state, counts
from pyflash.ops.core.checks import NOT_PLAIN, expect, expect_tensors, is_plain
from pyflash.ops.core.choice import Refused, are_usual, choose, tracing_derivatives
from pyflash.ops.core.dtypes import ALL_BUT_FLOAT64, FLOATS, cast_by_autocast
from pyflash.ops.core.layouts import is_channels_last
from pyflash.ops.pointwise.activation import activated_in_turn
from pyflash.ops.pointwise.argument import NO_ACTIVATION, ActivationArgument, resolve

Size = int | Sequence[int]

# How a backend computes which shapes, where auto gives it the call at all.
ALGORITHMS = {
    "cpu": f"float32 3x3 of stride 1 by Winograd's F(2x2, 3x3) from {auto.WINOGRAD_CHANNELS} channels and"
    f" {auto.LEAST_2X2_PLACES[True]} (channels first {auto.LEAST_2X2_PLACES[False]}) places on, F(4x4, 3x3)"
    f" where torch.set_float32_matmul_precision was lowered, its weight's gradient by the transposed F(2x2, 3x3) from"
    f" {auto.LEAST_GRAD_PLACES} places on; depthwise by kernels of its own, all else directly; a strided"
    " input gradient, and a transposed convolution, by phases, of a float32 4x4 kernel of stride 2 by F(2x2, 2x2) from"
    f" {auto.LEAST_PHASE_PLACES[False]} (a kept weight {auto.LEAST_PHASE_PLACES[True]}) places of a phase on",
    "triton": "implicit GEMM; depthwise and groups below 16 channels directly; a strided input gradient by phases",
    "cuda": "depthwise in one and two dimensions alone, directly; a strided input gradient by phases",
}

ONLY_TORCHS = "arguments that only torch's function takes"


def _key_of(x, weight, bias, residual, options):
    return x.shape, weight.shape, x.dtype, x.is_cpu, type(weight), options


def _finer_of(x, weight, *_):
    """What `is_channels_last` and `keeps` read, which take longer to answer."""
    return x.stride(), weight.stride(), is_grad_enabled()


class _Convolution:
    """A function of this file, by its name, and how its arguments are read. Of any rank where n is None: the weight's.
    has_norm: the operation of another with a batch norm in its scale and bias, whose time is compared with torch's of both."""

    def __init__(self, name: str, n: int | None, geometry, operation: Operation | None = None):
        self.n, self.geometry = n, geometry
        self.is_transposed, self.has_norm = geometry is of_transposed, operation is not None
        self.operation = operation or Operation(
            name,
            dtypes={"cpu": FLOATS, "triton": ALL_BUT_FLOAT64, "cuda": FLOATS},
            rules=auto.rules(name),
            sizes=auto.SIZES,
            second_derivative=IN_KERNELS,
            notes=ALGORITHMS,
        )
        self.refused = Refused(
            self.operation, self._size_of, _key_of, finer_of=_finer_of, is_coarse=auto.is_beyond_points
        )

    def _size_of(self, training, x, weight, bias, residual, options):
        if not (is_plain(x) and is_plain(weight)) or any([not isinstance(t, Tensor | None) for t in (bias, residual)]):
            return None
        geometry = self._geometry_of(x, weight, bias, residual, options)
        return None if geometry is None else self._size(training, x, weight, geometry)

    def _geometry_of(self, x, weight, bias, residual, options, scale=None) -> Geometry | None:
        """None where torch refuses these arguments, or may."""
        n = weight.dim() - 2
        if n != self.n and not (self.n is None and 1 <= n <= 3):
            return None
        for t in (weight, scale, bias, residual):
            if t is not None and (t.dtype != x.dtype or t.device != x.device):
                return None
        geometry = self.geometry(x.shape, weight.shape, *options)
        if geometry is not None:
            outputs = weight.shape[1] * geometry.groups if self.is_transposed else weight.shape[0]
            for t in (scale, bias):
                if t is not None and (t.dim() != 1 or t.shape[0] != outputs):
                    return None
        return geometry

    def _size(self, training, x, weight, geometry) -> auto.Size:
        outputs, inputs, *kernel = weight.shape
        batch = x.shape[0] if x.dim() == weight.dim() else 1
        return auto.Size(
            positions=batch * prod(x.shape[-len(kernel) :] if self.is_transposed else geometry.size),
            inputs=inputs,
            outputs=outputs // geometry.groups,
            groups=geometry.groups,
            kernel=prod(kernel),
            is_strided=max(geometry.stride) > 1,
            is_3x3=auto.is_3x3(kernel, geometry.stride, geometry.dilation),
            channels_last=is_channels_last(x) or is_channels_last(weight),
            training=training,
            is_1d=len(kernel) == 1,
            keeps_weight=keeps(weight),
            has_2x2_phases=auto.has_2x2_phases(kernel, geometry.stride, geometry.dilation),
            has_norm=self.has_norm,
            is_3d=len(kernel) == 3,
            is_of_patches=auto.is_of_patches(kernel, geometry.stride, geometry.dilation),
        )

    def __call__(self, torchs, x, weight, bias, residual, activation, options, scale=None, is_ours=False):
        """The result for these tensors, which `auto` did not leave to torch (`refused`); torchs() is torch's, which also says
        what is wrong with them. scale: as bias. is_ours: `auto` was asked, and gave the call to our kernels."""
        if is_ours and are_usual(x, weight, scale, bias, residual):
            geometry = self._geometry_of(x, weight, bias, residual, options, scale)
            if geometry is not None:
                counts[self.operation.name, "cpu", ""] += 1
                return self._ours(x, weight, scale, bias, residual, geometry, activation, "auto")
        given = [t for t in (x, weight, scale, bias, residual) if t is not None]
        if not all([isinstance(t, Tensor) for t in given]) or x is None or weight is None:
            return torchs()  # its error, or torch.fx's record of the call
        training = is_grad_enabled() and any([t.requires_grad for t in given])
        geometry, refused = None, NOT_PLAIN
        if all([is_plain(t) for t in given]):
            x, weight, scale, bias, residual = cast_by_autocast((x, weight, scale, bias, residual))
            geometry, refused = self._geometry_of(x, weight, bias, residual, options, scale), ONLY_TORCHS
        if geometry is None:
            result = torchs()
            choose(self.operation, x, given, refused=refused)
            return result
        size = self._size(training, x, weight, geometry) if _state.wish == "auto" else None  # else nobody reads it
        backend = choose(self.operation, x, given, size, lacking={"cuda": why_not_depthwise(weight.shape)})
        if backend is None and training and _state.twice and _state.wish == "auto" and not tracing_derivatives(given):
            backend = "torch"  # its kernels, and our second derivative, which makes no zeros
        if backend is None:
            return torchs()
        return self._ours(x, weight, scale, bias, residual, geometry, activation, backend)

    def _ours(self, x, weight, scale, bias, residual, geometry, activation, backend):
        is_batch = x.dim() == weight.dim()
        x = x if is_batch else x.unsqueeze(0)
        if self.is_transposed:
            y = conv_input_grad(x, weight, bias, *geometry, backend)
        else:
            shape = weight.shape[0], *geometry.size
            residual = _expanded(residual, (x.shape[0], *shape) if is_batch else shape)
            residual = residual if residual is None or is_batch else residual.unsqueeze(0)
            y = conv_fwd(x, weight, scale, bias, residual, *geometry, activation, backend)
        return y if is_batch else shaped(y, y.shape[1:])


def _expanded(residual, shape):
    if residual is None or residual.shape == shape:
        return residual
    pairs = zip(reversed(residual.shape), reversed(shape))
    expect(
        residual.dim() <= len(shape) and all([r in (1, s) for r, s in pairs]),
        "conv_bias_act",
        lambda: f"residual has shape {tuple(residual.shape)}, expected one that expands to the result's {tuple(shape)}",
        RuntimeError,
    )
    return residual.expand(shape)


_CONV = {n: _Convolution(f"conv{n}d", n, of_conv) for n in (1, 2, 3)}
_TRANSPOSED = {n: _Convolution(f"conv_transpose{n}d", n, of_transposed) for n in (1, 2, 3)}
_TORCHS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}  # by the weight's dimensions
_BIAS_ACT = _Convolution("conv_bias_act", None, of_conv)
_NORM_ACT = _Convolution("conv_bias_act", None, of_conv, operation=_BIAS_ACT.operation)


def _conv(convolution, torchs, input, weight, bias, options):
    is_torchs = convolution.refused.holds(input, weight, bias, None, options)
    if is_torchs:
        return torchs(input, weight, bias, *options)
    call = partial(torchs, input, weight, bias, *options)
    return convolution(call, input, weight, bias, None, NO_ACTIVATION, options, is_ours=is_torchs is False)


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: str | Size = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """As `conv2d`, of input [N, C_in, L] and weight [C_out, C_in / groups, k]."""
    return _conv(_CONV[1], F.conv1d, input, weight, bias, (stride, padding, dilation, groups))


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: str | Size = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """Sums of the input's windows, weighted, as torch.nn.functional.conv2d:
    y[n, o, i, j] = bias[o] + sum over c, a, b of weight[o, c, a, b] x[n, c, i s + a d - p, j s + b d - p].

    Args:
        input: [N, C_in, H, W] or [C_in, H, W], float32, float64, bfloat16 or float16; any strides.
        weight: [C_out, C_in / groups, kH, kW], of the input's type; any strides.
        bias: [C_out], of the input's type, or None.
        stride, padding, dilation: a number, or one for each of H and W. padding may be "valid", or "same" with a stride of 1.
        groups: output channels of a group see the input channels of that group alone; C_in of them are depthwise.
    Returns:
        [N, C_out, H_out, W_out], channels last where the input or the weight is.
    Raises:
        RuntimeError, TypeError: torch's.
    Numerics: sums in float32 (float64 for float64), rounded once; the same for any number of threads.
    """
    return _conv(_CONV[2], F.conv2d, input, weight, bias, (stride, padding, dilation, groups))


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: str | Size = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """As `conv2d`, of input [N, C_in, D, H, W] and weight [C_out, C_in / groups, kD, kH, kW]."""
    return _conv(_CONV[3], F.conv3d, input, weight, bias, (stride, padding, dilation, groups))


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Tensor:
    """As `conv_transpose2d`, of input [N, C_in, L] and weight [C_in, C_out / groups, k]."""
    options = stride, padding, output_padding, groups, dilation
    return _conv(_TRANSPOSED[1], F.conv_transpose1d, input, weight, bias, options)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Tensor:
    """Transposed convolution, the gradient of `conv2d` in its input, as torch.nn.functional.conv_transpose2d.

    Args:
        input: [N, C_in, H, W] or [C_in, H, W], float32, float64, bfloat16 or float16; any strides.
        weight: [C_in, C_out / groups, kH, kW], of the input's type; any strides.
        bias: [C_out], of the input's type, or None.
        stride, padding, dilation: those of the convolution; a number, or one for each of H and W.
        output_padding: rows and columns that the result has more at its end: several sizes have the same convolution.
            Less than the stride or the dilation.
        groups: as in `conv2d`.
    Returns:
        [N, C_out, (H - 1) stride - 2 padding + dilation (kH - 1) + output_padding + 1, ...], channels last where the input
        or the weight is.
    Raises:
        RuntimeError, TypeError: torch's.
    Numerics: as `conv2d`.
    """
    options = stride, padding, output_padding, groups, dilation
    return _conv(_TRANSPOSED[2], F.conv_transpose2d, input, weight, bias, options)


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Tensor:
    """As `conv_transpose2d`, of input [N, C_in, D, H, W] and weight [C_in, C_out / groups, kD, kH, kW]."""
    options = stride, padding, output_padding, groups, dilation
    return _conv(_TRANSPOSED[3], F.conv_transpose3d, input, weight, bias, options)


def conv_bias_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: str | Size = 0,
    dilation: Size = 1,
    groups: int = 1,
    *,
    activation: ActivationArgument = None,
    residual: Tensor | None = None,
) -> Tensor:
    """activation(conv(input, weight) + bias + residual), all of it before the result leaves the registers.

    Args:
        input, weight, bias, stride, padding, dilation, groups: as those of `conv1d`, `conv2d` or `conv3d`, of which the
            weight's dimensions tell.
        activation: as in `linear_act`.
        residual: of the input's type, and a shape that expands to the result's; or None.
    Raises:
        ValueError: no such activation, or a weight of other than 3, 4 or 5 dimensions.
        RuntimeError, TypeError: torch's; a residual that does not fit.
    """
    of = resolve("conv_bias_act", activation)
    options: tuple[Any, ...] = stride, padding, dilation, groups
    is_torchs = _BIAS_ACT.refused.holds(input, weight, bias, residual, options)
    if is_torchs and residual is None:
        return activated_in_turn(_TORCHS[weight.dim()](input, weight, bias, *options), None, of)
    name = "conv_bias_act"
    expect_tensors(name, ("bias", "residual"), input=input, weight=weight, bias=bias, residual=residual)
    expect(
        weight.dim() in _TORCHS,
        name,
        lambda: (
            f"weight has shape {tuple(weight.shape)}, expected [C_out, C_in / groups, *kernel] with a kernel of one, two"
            " or three dimensions"
        ),
    )

    def torchs():
        y = _TORCHS[weight.dim()](input, weight, bias, *options)
        added = None if residual is None else _expanded(cast_by_autocast((residual,))[0], y.shape)
        return activated_in_turn(y, added, of)

    if is_torchs:
        return torchs()
    return _BIAS_ACT(torchs, input, weight, bias, residual, of, options, is_ours=is_torchs is False)


def is_norm_apart(input, weight, residual, *options) -> bool:
    """Does `auto` leave to torch a convolution, a batch norm in evaluation and what is behind it, together?"""
    return bool(_NORM_ACT.refused.answer(input, weight, None, residual, options))


def conv_norm_act(
    input, weight, bias, stride, padding, dilation, groups, *, scale, unfused, activation=None, residual=None
):  # fmt: skip
    """activation(scale conv(input, weight) + bias + residual), a batch norm in evaluation being the scale and a part of the
    bias; unfused() where torch convolves."""
    options = stride, padding, dilation, groups
    is_torchs = _NORM_ACT.refused.holds(input, weight, bias, residual, options)
    if is_torchs:
        return unfused()
    of = resolve("conv_bias_act", activation)
    return _NORM_ACT(
        unfused, input, weight, bias, residual, of, options, scale=scale, is_ours=is_torchs is False
    )  # fmt: skip
