"""Depthwise convolution by the CUDA C++ kernels. bindings/conv.h reads the tuples field by field, in this order."""

from __future__ import annotations

import torch

from pyflash.ops.conv._fields import NO_ACTIVATION, NO_STYLE, axes, strides
from pyflash.ops.conv.geometry import why_not_depthwise
from pyflash.ops.core._cuda import DTYPES, address, launch, native
from pyflash.ops.pointwise._cuda import ROWS

_IS_PACKED, _HAS_STYLE, _DIRECT, _NOTHING = False, False, 0, 0


def _problem(name, x, weight, y, groups, stride, padding, dilation):
    if why := why_not_depthwise(weight.shape):
        raise NotImplementedError(f'pyflash::{name}: {why}; use_backend("torch") serves it')
    outputs, inputs, *kernel = weight.shape
    return (
        strides(x.stride()), strides(weight.stride()), strides(y.stride()), x.shape[0], groups, inputs, outputs // groups,
        *axes(x.shape[2:], y.shape[2:], kernel, stride, padding, dilation), _HAS_STYLE, _DIRECT, DTYPES[x.dtype],
    )  # fmt: skip


def _run(name, x, weight, y, geometry, *, scale=None, bias=None, residual=None, preact=None, workspace=None,
         activation=NO_ACTIVATION):  # fmt: skip
    stride, padding, dilation, groups = geometry
    problem = _problem(name, x, weight, y, groups, stride, padding, dilation)
    scale, bias = (None if t is None else t.contiguous() for t in (scale, bias))
    tensors = (
        *map(address, (x, weight, y, scale, bias, residual, preact)), _NOTHING, _IS_PACKED, address(workspace), *activation,
        *NO_STYLE,
    )  # fmt: skip
    launch(getattr(native, name), (tensors, problem), x)


def _by_taps(weight, written):
    """The weight with adjacent channels, as the kernels read it where those of what is written are: one small copy."""
    if written.stride(1) != 1 or weight.stride(0) == 1:
        return weight
    return weight.movedim(0, -1).contiguous().movedim(-1, 0)


def conv_fwd(
    x, weight, scale, bias, residual, size, stride, padding, dilation, groups, activation, first, second, save_preact,
    keeps_weight, y, preact,
):  # fmt: skip
    if residual is not None and residual.stride() != y.stride():
        residual = torch.empty_like(y).copy_(residual)
    _run(
        "conv_fwd", x, _by_taps(weight, y), y, (stride, padding, dilation, groups), scale=scale, bias=bias, residual=residual,
        preact=preact if save_preact else None,
        activation=(ROWS[activation], first, second) if activation else NO_ACTIVATION,
    )  # fmt: skip


def conv_input_grad(dy, weight, bias, size, stride, padding, dilation, groups, keeps_weight, dx):
    _run("conv_input_grad", dx, _by_taps(weight, dx), dy, (stride, padding, dilation, groups), bias=bias)


def conv_weight_grad(dy, x, size, stride, padding, dilation, groups, dweight):
    problem = _problem("conv_weight_grad", x, dweight, dy, groups, stride, padding, dilation)
    size = native.conv_weight_grad_workspace(problem)
    workspace = torch.empty(size, dtype=torch.uint8, device=x.device)
    _run("conv_weight_grad", x, dweight, dy, (stride, padding, dilation, groups), workspace=workspace)
