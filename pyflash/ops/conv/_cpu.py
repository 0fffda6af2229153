"""Convolution on the CPU core. bindings/conv.h reads the tuples field by field, in this order."""

from __future__ import annotations

from functools import lru_cache
from math import prod

import torch

from pyflash import _cpu
from pyflash.auto import conv as auto
from pyflash.ops.conv._cpu_kept import run_with_kept
from pyflash.ops.conv._fields import NO_ACTIVATION, NO_STYLE, axes, strides
from pyflash.ops.core._cpu_order import copy_in_order, in_memory_of_call, in_order, is_dense
from pyflash.ops.core.native import DTYPES
from pyflash.ops.core.workspace import take_workspace
from pyflash.ops.pointwise._cpu_activation import ACTIVATION_IDS

DIRECT, WINOGRAD_2X2, WINOGRAD_4X4 = range(3)  # common/conv.h


# Between two layers of a model the processor has forgotten how to find this out. Zen 4, one thread, a depthwise layer of MobileNetV2:
# what is around its kernel takes 43 us there, 59 where it is found out in each call.
@lru_cache(maxsize=4096)
def _problem(name, isa, x, weight, y, groups, stride, padding, dilation, has_style, algorithm, dtype, threads):
    """(the problem as bindings/conv.h reads it, bytes of the packed weight, bytes of the workspace), of tensors that are pairs
    of a shape and its strides."""
    (x, x_strides), (weight, weight_strides), (y, y_strides) = x, weight, y
    out_channels, in_channels, *kernel = weight
    problem = (
        strides(x_strides), strides(weight_strides), strides(y_strides), x[0], groups, in_channels,
        out_channels // groups, *axes(x[2:], y[2:], kernel, stride, padding, dilation), has_style, algorithm, DTYPES[dtype],
    )  # fmt: skip
    return problem, *getattr(_cpu, f"{name}_sizes")(problem, threads)


def _algorithm(name, weight, written, groups, stride, dilation, keeps_weight) -> int:
    """Tap by tap; or by F(2x2, 3x3), in float32 alone, where its rounding is within twice torch's; or by F(4x4, 3x3); or, phase
    by phase, by F(2x2, 2x2)."""
    out_channels, in_channels, *kernel = weight.shape
    if weight.dtype != torch.float32:
        return DIRECT
    has_phases = name == "conv_input_grad" and auto.has_2x2_phases(kernel, stride, dilation)
    if not (has_phases or auto.is_3x3(kernel, stride, dilation)):
        return DIRECT
    if min(out_channels // groups, in_channels) < auto.WINOGRAD_CHANNELS:
        return DIRECT
    is_lowered = torch.get_float32_matmul_precision() != "highest"
    places, is_adjacent = written.shape[0] * prod(written.shape[2:]), written.stride(1) == 1
    if name == "conv_weight_grad":
        return WINOGRAD_2X2 if places >= auto.LEAST_GRAD_PLACES else DIRECT
    if has_phases:
        return WINOGRAD_2X2 if places >= 4 * auto.LEAST_PHASE_PLACES[keeps_weight] else DIRECT
    if is_lowered and places >= auto.LEAST_4X4_PLACES[is_adjacent]:
        return WINOGRAD_4X4
    return WINOGRAD_2X2 if places >= auto.LEAST_2X2_PLACES[is_adjacent] else DIRECT


def _order(algorithm, weight, groups) -> bool | None:
    """In which order, channels last or not, an input's gradient, or a transposed convolution, is computed whatever its own is;
    None: in its own. Phases by F(2x2, 2x2) are of pixels: their lines are short, and lie in every other place. Zen 4, one thread,
    16 images, 128 channels of 16x16 to 64: 8.0 ms where they are pixels, 9.4 with a copy of both, 11.3 as planes."""
    if algorithm != DIRECT and weight.shape[-1] == 4:
        return True
    return False if groups == 1 and weight.shape[1] <= auto.FEW_WRITTEN else None


def _run(
    name, x, weight, y, scale, bias, residual, preact, activation, stride, padding, dilation, groups, keeps_weight=False,
    style=NO_STYLE,
):  # fmt: skip
    written = x if name == "conv_input_grad" else y
    algorithm = _algorithm(name, weight, written, groups, stride, dilation, keeps_weight)
    threads = torch.get_num_threads()
    placed = [(t.shape, t.stride()) for t in (x, weight, y)]
    problem, packed_bytes, workspace_bytes = _problem(
        name, _cpu.isa(), *placed, groups, tuple(stride), tuple(padding), tuple(dilation), style is not NO_STYLE, algorithm,
        x.dtype, threads,
    )  # fmt: skip
    workspace = take_workspace(workspace_bytes)

    def run(packed, is_packed):
        tensors = (
            *map(_address, (x, weight, y, scale, bias, residual, preact, packed)), is_packed, workspace.data_ptr(), *activation, *style
        )  # fmt: skip
        getattr(_cpu, name)(tensors, problem, threads)

    if (
        keeps_weight and packed_bytes
    ):  # whose form depends on the phases of what is written, and on whether its channels are adjacent
        phases = tuple([min(s, size) for s, size in zip(stride, written.shape[2:])])
        form = (name, groups, *stride, *padding, *dilation, phases, written.stride(1) == 1, problem[-2:])
        if run_with_kept(form, weight, packed_bytes, y.shape[0] * prod(y.shape[2:]), run):
            return
    run(take_workspace(packed_bytes, "conv_packed") if packed_bytes else None, False)


def _address(tensor):
    return 0 if tensor is None else tensor.data_ptr()


def conv_fwd(
    x, weight, scale, bias, residual, size, stride, padding, dilation, groups, activation, first, second, save_preact,
    keeps_weight, y, preact,
):  # fmt: skip
    if residual is not None and residual.stride() != y.stride():
        residual = torch.empty_strided(y.shape, y.stride(), dtype=y.dtype).copy_(residual)
    act = (ACTIVATION_IDS[activation], first, second) if activation else NO_ACTIVATION
    scale, bias = (None if t is None else t.contiguous() for t in (scale, bias))
    preact = preact if save_preact else None
    _run("conv_fwd", x, weight, y, scale, bias, residual, preact, act, stride, padding, dilation, groups, keeps_weight)


def modulated_conv_fwd(
    x, weight, style, scale, bias, noise, size, stride, padding, dilation, groups, activation, first, second, gain, clamp,
    keeps_weight, y,
):  # fmt: skip
    act = (ACTIVATION_IDS[activation], first, second) if activation else NO_ACTIVATION
    style, scale, bias, noise = (None if t is None else t.contiguous() for t in (style, scale, bias, noise))
    noise_step = 0 if noise is None or noise.shape[0] == 1 else prod(size)
    of_sample = _address(style), _address(noise), noise_step, gain, clamp
    _run(
        "conv_fwd", x, weight, y, scale, bias, None, None, act, stride, padding, dilation, groups, keeps_weight, of_sample
    )  # fmt: skip


def conv_input_grad(dy, weight, bias, size, stride, padding, dilation, groups, keeps_weight, dx):
    bias = None if bias is None else bias.contiguous()

    def run(dx, dy):
        _run(
            "conv_input_grad", dx, weight, dy, None, bias, None, None, NO_ACTIVATION, stride, padding, dilation, groups, keeps_weight
        )  # fmt: skip

    order = _order(_algorithm("conv_input_grad", weight, dx, groups, stride, dilation, keeps_weight), weight, groups)
    if order is None:
        return run(dx, dy)
    in_order_dx = dx if is_dense(dx, order) else in_memory_of_call(dx.shape, dx.dtype, order, "conv_order")
    run(in_order_dx, in_order(dy, order))
    if in_order_dx is not dx:
        copy_in_order(in_order_dx, dx, not order)


def conv_weight_grad(dy, x, size, stride, padding, dilation, groups, dweight):
    if _algorithm("conv_weight_grad", dweight, dy, groups, stride, dilation, False) == DIRECT:
        dy = _dense(dy, x)
    else:
        x, dy = in_order(x, True, "conv_order"), in_order(dy, True)
    _run(
        "conv_weight_grad", x, dweight, dy, None, None, None, None, NO_ACTIVATION, stride, padding, dilation, groups
    )  # fmt: skip


def _dense(dy, x):
    """dy with its places one after the other: channels first or last, as in x where it is neither."""
    places = dy[0, 0] if dy.numel() else dy
    step = dy.stride(-1)
    if not dy.numel() or all(
        s == step * places[(0,) * (i + 1)].numel() or places.shape[i] == 1 for i, s in enumerate(places.stride())
    ):
        return dy
    if dy.dim() > 3 and x.stride(1) == 1:
        return dy.contiguous(memory_format=torch.channels_last if dy.dim() == 4 else torch.channels_last_3d)
    return dy.contiguous()
