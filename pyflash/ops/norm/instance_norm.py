"""Instance normalisation: every channel of every sample by itself. Ulyanov et al. 2016, arXiv:1607.08022."""

from __future__ import annotations

import numbers

import torch
import torch.nn.functional as F

from pyflash.auto.minima import minima
from pyflash.ops.core.backends import IN_KERNELS, Operation
from pyflash.ops.core.checks import NOT_PLAIN, expect_tensors, is_plain
from pyflash.ops.core.choice import Refused, choose
from pyflash.ops.core.dtypes import FLOATS
from pyflash.ops.norm.channels import SIZES, channel_norm, mixed_types, move_to, size, size_of
from pyflash.ops.pointwise.argument import NO_ACTIVATION

OPERATION = Operation(
    "instance_norm",
    dtypes={"cpu": FLOATS, "triton": FLOATS},
    rules=minima("instance_norm", inference=65536, training=65536),
    sizes=SIZES,
    second_derivative=IN_KERNELS,
)


def _expect_fit(input, use_input_stats, eps, **parameters) -> None:
    """Raises what torch does, with its words."""
    channels, problem = input.shape[1], ""
    error: type[Exception] = RuntimeError
    if use_input_stats and input.shape[2:].numel() == 1:
        error = ValueError
        problem = f"Expected more than 1 spatial element when training, got input size {input.shape}"
    elif not isinstance(eps, numbers.Real):
        error, problem = TypeError, f"eps is {eps!r}, expected a float"
    elif not use_input_stats and (parameters["running_mean"] is None or parameters["running_var"] is None):
        problem = "Expected running_mean and running_var to be defined when use_input_stats is false"
    for name, t in parameters.items():
        if problem or t is None:
            continue
        if t.numel() != channels:
            problem = f"{name} should contain {channels} elements not {t.numel()}"
        elif t.device != input.device:
            problem = f"{name} is on {t.device}, input on {input.device}; move one of them"
    if problem:
        raise error(f"pyflash.instance_norm: {problem}")


_refused = Refused(OPERATION, size_of)


def instance_norm(
    input: torch.Tensor,
    running_mean: torch.Tensor | None = None,
    running_var: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias of each channel of each sample, as torch's instance_norm.

    Args:
        input: [batch, channels, ...], float32, float64, bfloat16 or float16; read as it lies where it is contiguous or
            channels_last (2d, 3d), which the result is then, too; else copied.
        running_mean, running_var: [channels]. With use_input_stats they move by `momentum` towards the samples' average,
            and may be None; else they are what is normalised with. A call that raises leaves them as they are.
        weight, bias: [channels]. These four have the input's type, or are float32 beside a half type.
    Raises:
        ValueError: one position.  RuntimeError: sizes or devices disagree.
    Numerics: as `batch_norm`.
    """
    args = running_mean, running_var, weight, bias, use_input_stats, momentum, eps
    if _refused.holds(input, weight, bias):
        try:
            return F.instance_norm(input, *args)
        except (RuntimeError, TypeError, ValueError):
            pass  # the same refusal in our words, or torch's own again
    if not isinstance(input, torch.Tensor):
        return F.instance_norm(input, *args)  # its error, or torch.fx's record of the call
    parameters = dict(running_mean=running_mean, running_var=running_var, weight=weight, bias=bias)
    expect_tensors("instance_norm", tuple(parameters), **parameters)
    served = all([t is None or is_plain(t) for t in (input, *parameters.values())])
    if input.dim() < 2 or not input.numel() or not (served or torch.is_floating_point(input)):
        return F.instance_norm(input, *args)  # no element to normalise, or torch's error
    reason = "" if served else NOT_PLAIN
    if served:
        _expect_fit(input, use_input_stats, eps, **parameters)
        reason = mixed_types(input, **parameters)
        if (running_mean is None) != (running_var is None):
            reason = "of running_mean and running_var one is None"
        elif any([t is not None and t.dim() != 1 for t in parameters.values()]):
            reason = "a parameter has more than one dimension"
    backend = choose(OPERATION, input, tuple(parameters.values()), size(input, weight, bias), reason)
    if backend is None:
        return F.instance_norm(input, *args)
    # With what was tracked it is a batch norm: each channel has one mean, whatever the sample.
    groups = input.shape[1] if use_input_stats else 0
    y, new_mean, new_var = channel_norm(
        input, None, weight, bias, running_mean, running_var, groups, bool(use_input_stats), momentum, eps,
        NO_ACTIVATION, backend,
    )  # fmt: skip
    if use_input_stats and running_mean is not None:
        move_to(running_mean, new_mean)
        move_to(running_var, new_var)
    return y
