"""Batch normalisation, with a residual and an activation behind it. Ioffe & Szegedy 2015, arXiv:1502.03167."""

from __future__ import annotations

import numbers

import torch
import torch.nn.functional as F

from pyflash.auto.batch_norm import rules
from pyflash.ops.core.backends import IN_KERNELS, Operation, counts
from pyflash.ops.core.checks import NOT_PLAIN, expect_tensors, is_plain
from pyflash.ops.core.choice import Refused, are_usual, choose
from pyflash.ops.core.dtypes import FLOATS
from pyflash.ops.norm.channels import channel_norm, mixed_types, move_to, residual_refusal, size, size_of
from pyflash.ops.pointwise.activation import activated_in_turn
from pyflash.ops.pointwise.argument import NO_ACTIVATION, ActivationArgument, resolve

SIZES = "(elements of a channel, channels, are gradients needed, is it evaluation)"
OPERATION, OPERATION_ACT = (
    Operation(
        name,
        dtypes={"cpu": FLOATS, "triton": FLOATS},
        rules=rules(name),
        sizes=SIZES,
        second_derivative=IN_KERNELS,
    )
    for name in ("batch_norm", "batch_norm_act")
)


def _expect_fit(operation, input, training, eps, **parameters) -> None:
    """Raises what torch does, with its words."""
    channels, problem = input.shape[1], ""
    error: type[Exception] = RuntimeError
    if training and input.numel() == channels:
        error = ValueError
        problem = f"Expected more than 1 value per channel when training, got input size {input.shape}"
    elif not isinstance(eps, numbers.Real):
        error, problem = TypeError, f"eps is {eps!r}, expected a float"
    elif training and eps <= 0:
        error, problem = ValueError, f"batch_norm eps must be positive during training, but got {eps}"
    elif eps < 0:
        error, problem = ValueError, f"batch_norm eps must be non-negative, but got {eps}"
    elif not training and parameters["running_mean"] is None:
        problem = "running_mean must be defined in evaluation mode"
    elif not training and parameters["running_var"] is None:
        problem = "running_var must be defined in evaluation mode"
    for name, t in parameters.items():
        if problem or t is None:
            continue
        if t.numel() != channels:
            problem = f"{name} should contain {channels} elements not {t.numel()}"
        elif t.device != input.device:
            problem = f"{name} is on {t.device}, input on {input.device}; move one of them"
    if problem:
        raise error(f"pyflash.{operation}: {problem}")


def _torchs(input, residual, activation, *args):
    y = F.batch_norm(input, *args)
    return activated_in_turn(y, residual, activation)


def _batch_norm(
    operation, input, residual, activation, running_mean, running_var, weight, bias, training, momentum, eps
):
    """Both functions, of a call that `auto` did not leave to torch; activation resolved."""
    name, args = operation.name, (running_mean, running_var, weight, bias, training, momentum, eps)
    if not isinstance(input, torch.Tensor):
        return _torchs(input, residual, activation, *args)  # its error, or torch.fx's record of the call
    parameters = dict(running_mean=running_mean, running_var=running_var, weight=weight, bias=bias)
    expect_tensors(name, (*parameters, "residual"), **parameters, residual=residual)
    served = all([t is None or is_plain(t) for t in (input, residual, *parameters.values())])
    if input.dim() < 2 or not input.numel() or not (served or torch.is_floating_point(input)):
        return _torchs(input, residual, activation, *args)  # no element to normalise, or torch's error
    reason = "" if served else NOT_PLAIN
    if served:
        _expect_fit(name, input, training, eps, **parameters)
        if residual is not None and residual.shape != input.shape:
            residual = residual.expand_as(input)
        reason = mixed_types(input, **parameters)
        if (running_mean is None) != (running_var is None):
            reason = "of running_mean and running_var one is None"
        elif any([t is not None and t.dim() != 1 for t in parameters.values()]):
            reason = "a parameter has more than one dimension"
        reason = reason or residual_refusal(input, residual)
    given = size(input, residual, weight, bias)
    size_now = None if given is None else (*given, not training)
    backend = choose(operation, input, (residual, *parameters.values()), size_now, reason)
    if backend is None:
        return _torchs(input, residual, activation, *args)
    return _ours(input, residual, activation, *args, backend)


def _ours(input, residual, activation, running_mean, running_var, weight, bias, training, momentum, eps, backend):
    y, new_mean, new_var = channel_norm(
        input, residual, weight, bias, running_mean, running_var, 0, bool(training), momentum, eps, activation, backend
    )
    if training and running_mean is not None:
        move_to(running_mean, new_mean)
        move_to(running_var, new_var)
    return y


def _is_simple(input, running_mean, running_var, weight, bias, training, momentum, eps) -> bool:
    """Of usual tensors: do they fit, and is none of another type? Then nothing is left to be asked."""
    if input.dim() < 2 or type(eps) is not float or eps <= 0.0 or type(momentum) is not float:
        return False
    channels = input.shape[1]
    if input.numel() <= channels or (running_mean is None) is not (running_var is None):
        return False
    for t in (running_mean, running_var, weight, bias):
        if t is not None and (t.dtype is not input.dtype or t.dim() != 1 or t.numel() != channels):
            return False
    return running_mean is not None or bool(training)


def _size_of(training, input, weight, bias, residual, of_batch):
    size = size_of(training, input)
    return None if size is None else (*size, not of_batch)


def _key_of(input, weight, bias, residual, of_batch):
    return input.shape, input.dtype, input.is_cpu, bool(of_batch)


_refused, _refused_act = (Refused(operation, _size_of, _key_of) for operation in (OPERATION, OPERATION_ACT))


def batch_norm(
    input: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias of each channel, as torch.nn.functional.batch_norm.

    Args:
        input: [batch, channels, ...], float32, float64, bfloat16 or float16; read as it lies where it is contiguous or
            channels_last (2d, 3d), which the result is then, too; else copied.
        running_mean, running_var: [channels]. In training they move by `momentum` towards the mean and the variance
            (without bias) of the batch, and may be None; else they are what is normalised with. A call that raises leaves
            them as they are.
        weight, bias: [channels]. These four have the input's type, or are float32 beside a half type.
    Raises:
        ValueError: one value per channel in training, or eps not positive.  RuntimeError: sizes or devices disagree.
    Numerics: statistics in float32 from deviations, merged in float64 (float64 for float64), so a large mean costs no
        digits; deterministic, whatever the number of threads.
    """
    args = running_mean, running_var, weight, bias, training, momentum, eps
    is_torchs = _refused.holds(input, weight, bias, None, training)
    if is_torchs:
        try:
            return F.batch_norm(input, *args)
        except (RuntimeError, TypeError, ValueError):
            pass  # the same refusal in our words, or torch's own again
    if is_torchs is False and are_usual(input, running_mean, running_var, weight, bias) and _is_simple(input, *args):
        counts["batch_norm", "cpu", ""] += 1
        return _ours(input, None, NO_ACTIVATION, *args, "auto")
    return _batch_norm(OPERATION, input, None, NO_ACTIVATION, *args)


def batch_norm_act(
    input: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: ActivationArgument = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """activation(batch_norm(input, ...) + residual), in one pass over memory behind that of the statistics.

    Args:
        activation: a name of the activation table, a pair (name, {parameter: value}), a torch.nn module, or None.
        residual: of the input's type, and a shape that expands to the input's; or None.
    """
    ending = resolve("batch_norm_act", activation)
    args = running_mean, running_var, weight, bias, training, momentum, eps
    if _refused_act.holds(input, weight, bias, residual, training):
        try:
            return _torchs(input, residual, ending, *args)
        except (RuntimeError, TypeError, ValueError):
            pass
    return _batch_norm(OPERATION_ACT, input, residual, ending, *args)
