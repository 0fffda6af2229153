"""Group normalisation, with a residual and an activation behind it. Wu & He 2018, arXiv:1803.08494."""

from __future__ import annotations

import numbers

import torch
import torch.nn.functional as F

from pyflash.auto.minima import minima
from pyflash.ops.core.backends import IN_KERNELS, Operation
from pyflash.ops.core.checks import NOT_PLAIN, expect_tensors, is_plain
from pyflash.ops.core.choice import Refused, choose
from pyflash.ops.core.dtypes import FLOATS
from pyflash.ops.norm.channels import SIZES, channel_norm, mixed_types, residual_refusal, size, size_of
from pyflash.ops.norm.rows import cast_for_autocast
from pyflash.ops.pointwise.argument import NO_ACTIVATION, ActivationArgument, activated, resolve

OPERATION, OPERATION_ACT = (
    Operation(
        name,
        dtypes={"cpu": FLOATS, "triton": FLOATS},
        rules=minima(name, inference=65536, training=65536),
        sizes=SIZES,
        second_derivative=IN_KERNELS,
    )
    for name in ("group_norm", "group_norm_act")
)


def _expect_fit(operation, input, num_groups, weight, bias, eps) -> None:
    """Raises what torch does, with its words."""
    channels, problem = input.shape[1], ""
    error: type[Exception] = RuntimeError
    if not isinstance(num_groups, numbers.Integral):
        error, problem = TypeError, f"num_groups is {num_groups!r}, expected an int"
    elif not isinstance(eps, numbers.Real):
        error, problem = TypeError, f"eps is {eps!r}, expected a float"
    elif num_groups <= 0:
        problem = f"Expected num groups to be greater than 0, got {num_groups}"
    elif channels % num_groups:
        problem = (
            "Expected number of channels in input to be divisible by num_groups, but got input of shape"
            f" {[*input.shape]} and num_groups={num_groups}"
        )
    elif input.numel() == num_groups:
        error = ValueError
        sizes = [input.shape[0] * channels // num_groups, num_groups, *input.shape[2:]]
        problem = f"Expected more than 1 value per channel when training, got input size {sizes}"
    for name, t in (("weight", weight), ("bias", bias)):
        if problem or t is None:
            continue
        if t.shape != (channels,):
            problem = (
                f"Expected {name} to be a vector of size equal to the number of channels in input, but got {name} of shape"
                f" {[*t.shape]} and input of shape {[*input.shape]}"
            )
        elif t.device != input.device:
            problem = f"{name} is on {t.device}, input on {input.device}; move one of them"
    if problem:
        raise error(f"pyflash.{operation}: {problem}")


def _torchs(input, residual, activation, *args):
    y = F.group_norm(input, *args)
    return activated(y if residual is None else y + residual, activation)


def _group_norm(operation, input, residual, activation, num_groups, weight, bias, eps):
    """Both functions, of a call that `auto` did not leave to torch; activation resolved."""
    name, args = operation.name, (num_groups, weight, bias, eps)
    if not isinstance(input, torch.Tensor):
        return _torchs(input, residual, activation, *args)  # its error, or torch.fx's record of the call
    expect_tensors(name, ("weight", "bias", "residual"), weight=weight, bias=bias, residual=residual)
    input, residual, weight, bias = cast_for_autocast(input, residual, weight, bias)
    args = num_groups, weight, bias, eps
    served = all([t is None or is_plain(t) for t in (input, residual, weight, bias)])
    if input.dim() < 2 or not input.numel() or not (served or torch.is_floating_point(input)):
        return _torchs(input, residual, activation, *args)  # no element to normalise, or torch's error
    reason = "" if served else NOT_PLAIN
    if served:
        _expect_fit(name, input, num_groups, weight, bias, eps)
        if residual is not None and residual.shape != input.shape:
            residual = residual.expand_as(input)
        reason = mixed_types(input, weight=weight, bias=bias) or residual_refusal(input, residual)
    backend = choose(operation, input, (residual, weight, bias), size(input, residual, weight, bias), reason)
    if backend is None:
        return _torchs(input, residual, activation, *args)
    return channel_norm(
        input, residual, weight, bias, None, None, int(num_groups), True, 0.0, eps, activation, backend
    )[0]  # fmt: skip


_REFUSALS = RuntimeError, TypeError, ValueError, ZeroDivisionError  # torch's, of arguments that do not fit
_refused, _refused_act = Refused(OPERATION, size_of), Refused(OPERATION_ACT, size_of)


def group_norm(
    input: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias of each group of a sample's channels, as torch's group_norm.

    Args:
        input: [batch, channels, ...], float32, float64, bfloat16 or float16; read as it lies where it is contiguous or
            channels_last (2d, 3d), which the result is then, too; else copied.
        num_groups: divides the number of channels.
        weight, bias: [channels], the input's type, or float32 beside a half type.
    Raises:
        RuntimeError: sizes or devices disagree.  ValueError: one value per group.
    Numerics: as `batch_norm`.
    """
    if _refused.holds(input, weight, bias):
        try:
            return F.group_norm(input, num_groups, weight, bias, eps)
        except _REFUSALS:
            pass  # the same refusal in our words, or torch's own again
    return _group_norm(OPERATION, input, None, NO_ACTIVATION, num_groups, weight, bias, eps)


def group_norm_act(
    input: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: ActivationArgument = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """activation(group_norm(input, ...) + residual), in one pass over memory behind that of the statistics.

    Args:
        activation: a name of the activation table, a pair (name, {parameter: value}), a torch.nn module, or None.
        residual: of the input's type, and a shape that expands to the input's; or None.
    """
    ending = resolve("group_norm_act", activation)
    if _refused_act.holds(input, weight, bias, residual):
        try:
            return _torchs(input, residual, ending, num_groups, weight, bias, eps)
        except _REFUSALS:
            pass
    return _group_norm(OPERATION_ACT, input, residual, ending, num_groups, weight, bias, eps)
