"""One step of an optimiser for many parameters at once: what a rule is told, and who computes it."""

from __future__ import annotations

from typing import Any, NamedTuple

from pyflash.ops.core.backends import Operation
from pyflash.ops.core.dtypes import FLOATS
from pyflash.ops.core.registry import implementation
from pyflash.ops.optim.columns import Lists

STATES = 3  # a rule has at most


class Options(NamedTuple):
    """What a group says, in the order of `UpdateOptions` in csrc/common/optim.h, which explains it."""

    rule: str
    gradient_factor: float = 1.0
    sign: float = 1.0
    weight_decay: float = 0.0
    shrink: float = 1.0
    step_size: float = 0.0
    momentum: float = 0.0
    fresh: float = 1.0
    is_nesterov: bool = False
    mean_decay: float = 0.0
    square_decay: float = 0.0
    root_scale: float = 1.0
    eps: float = 0.0
    ema_decay: float = 0.0
    gradients: str = "kept"  # "written", "zeroed"


RULES = {  # rule -> the states that it may have, as torch.optim names them, in the order in which kernels take them
    "sgd": ("momentum_buffer",),
    "adam": ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    "rmsprop": ("square_avg", "grad_avg", "momentum_buffer"),
}

_NOT_SERVED = "sparse gradients, complex parameters, capturable, differentiable; step counts on a GPU"
OPERATIONS = {
    rule: Operation(
        rule, {"cpu": FLOATS, "triton": FLOATS}, second_derivative="none, nor a first one",
        notes=dict.fromkeys(("cpu", "triton"), _NOT_SERVED),
    )
    for rule in RULES
}  # fmt: skip

_KERNELS = {"cpu": "pyflash.ops.optim._cpu:step", "triton": "pyflash.kernels.optim.step:step"}


def update(lists: Lists, states: tuple[str, ...], has_ema: bool, options: Options, factor: Any, backend: str) -> None:
    """One step of the parameters of lists, whose columns are: parameters, gradients, `states`, their averaged copies.

    Args:
        factor: a number, or a float64 tensor of one element where the gradients are: what they are multiplied by, beside
            options.gradient_factor.
        backend: as `choose` says it.
    """
    params, grads, *others = lists.columns
    there = dict(zip(states, others))
    columns = [params, grads, *(there.get(name, []) for name in RULES[options.rule])]
    columns += [[]] * (2 + STATES - len(columns)) + [others[-1] if has_ema else []]
    step = implementation(options.rule, _KERNELS, backend, lists.device.type)
    step(lists, columns, options, factor)
