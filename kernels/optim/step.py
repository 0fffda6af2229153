"""One step of all parameters of a group in one launch: a program reads a chunk of a parameter, its gradient, states and
averaged copy, and writes them. The rules are those of csrc/cpu/optim/rules.h, in the order of torch's operations."""

import torch
import triton
import triton.language as tl

from pyflash.kernels import launch
from pyflash.kernels.optim import tables
from pyflash.kernels.optim.tables import places, pointer
from pyflash.kernels.primitives import acc_dtype, cast, maximum, scalar


@triton.jit
def _lerp(a, b, weight):
    """From a to b, by torch.lerp's two forms: either end is met exactly."""
    return tl.where(weight < 0.5, a + (b - a) * weight, b - (b - a) * (1 - weight))


@triton.jit
def _rule(
    p, g, first, second, third, step_size, momentum, fresh, mean_weight, square_decay, square_weight, root_scale, eps,
    RULE: tl.constexpr, IS_NESTEROV: tl.constexpr,
    HAS_FIRST: tl.constexpr, HAS_SECOND: tl.constexpr, HAS_THIRD: tl.constexpr,
):  # fmt: skip
    """The parameter and the states after the step."""
    if RULE == "sgd":
        if HAS_FIRST:
            first = first * momentum + g * fresh
            if IS_NESTEROV:
                g += first * momentum
            else:
                g = first
        p -= g * step_size
    elif RULE == "adam":
        first = _lerp(first, g, mean_weight)
        second = second * square_decay + g * g * square_weight
        largest = second
        if HAS_THIRD:
            third = maximum(third, second)
            largest = third
        p -= first * step_size / (tl.sqrt(largest) / root_scale + eps)
    else:
        tl.static_assert(RULE == "rmsprop", "no such rule")
        first = first * square_decay + g * g * square_weight
        square = first
        if HAS_SECOND:
            second = _lerp(second, g, square_weight)
            square = first - second * second
        root = tl.sqrt(square) + eps
        if HAS_THIRD:
            third = third * momentum + g / root
            p -= third * step_size
        else:
            p -= g * step_size / root
    return p, first, second, third


@launch.cached
@triton.jit
def _optim_step(
    table_ptr, sizes_ptr, row_ptr, at_ptr, factor_ptr, rows,
    gradient_factor: "fp64", sign: "fp64", weight_decay: "fp64", shrink: "fp64", step_size: "fp64",  # noqa: F821
    momentum: "fp64", fresh: "fp64", mean_weight: "fp64", square_decay: "fp64", square_weight: "fp64",  # noqa: F821
    root_scale: "fp64", eps: "fp64", ema_weight: "fp64",  # noqa: F821
    RULE: tl.constexpr, IS_NESTEROV: tl.constexpr, HAS_DECAY: tl.constexpr,
    HAS_FIRST: tl.constexpr, HAS_SECOND: tl.constexpr, HAS_THIRD: tl.constexpr, HAS_EMA: tl.constexpr,
    GRADIENTS: tl.constexpr, DTYPE: tl.constexpr, IS_ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    ACC: tl.constexpr = acc_dtype(DTYPE)
    row, start, n = places(sizes_ptr, row_ptr, at_ptr, BLOCK, IS_ALIGNED)
    i = start + tl.arange(0, BLOCK)
    mask = i < n
    p_ptr = pointer(table_ptr, row, DTYPE, IS_ALIGNED)
    g_ptr = pointer(table_ptr, row + rows, DTYPE, IS_ALIGNED)
    p = cast(tl.load(p_ptr + i, mask=mask, other=0.0), ACC)
    g = cast(tl.load(g_ptr + i, mask=mask, other=0.0), ACC)
    if factor_ptr is not None:
        gradient_factor *= tl.load(factor_ptr)
    g *= scalar(gradient_factor, ACC)
    if GRADIENTS == "written":
        tl.store(g_ptr + i, cast(g, DTYPE), mask=mask)
    elif GRADIENTS == "zeroed":
        tl.store(g_ptr + i, tl.zeros([BLOCK], DTYPE), mask=mask)
    g *= scalar(sign, ACC)
    if HAS_DECAY:  # 0 times an infinite parameter would be NaN
        g += p * scalar(weight_decay, ACC)
    first, second, third = g, g, g  # those that are not there are not read
    if HAS_FIRST:
        first_ptr = pointer(table_ptr, row + 2 * rows, DTYPE, IS_ALIGNED)
        first = cast(tl.load(first_ptr + i, mask=mask, other=0.0), ACC)
    if HAS_SECOND:
        second_ptr = pointer(table_ptr, row + 3 * rows, DTYPE, IS_ALIGNED)
        second = cast(tl.load(second_ptr + i, mask=mask, other=0.0), ACC)
    if HAS_THIRD:
        third_ptr = pointer(table_ptr, row + 4 * rows, DTYPE, IS_ALIGNED)
        third = cast(tl.load(third_ptr + i, mask=mask, other=0.0), ACC)
    p, first, second, third = _rule(
        p * scalar(shrink, ACC), g, first, second, third, scalar(step_size, ACC), scalar(momentum, ACC), scalar(fresh, ACC),
        scalar(mean_weight, ACC), scalar(square_decay, ACC), scalar(square_weight, ACC), scalar(root_scale, ACC),
        scalar(eps, ACC), RULE, IS_NESTEROV, HAS_FIRST, HAS_SECOND, HAS_THIRD,
    )  # fmt: skip
    tl.store(p_ptr + i, cast(p, DTYPE), mask=mask)
    if HAS_FIRST:
        tl.store(first_ptr + i, cast(first, DTYPE), mask=mask)
    if HAS_SECOND:
        tl.store(second_ptr + i, cast(second, DTYPE), mask=mask)
    if HAS_THIRD:
        tl.store(third_ptr + i, cast(third, DTYPE), mask=mask)
    if HAS_EMA:
        ema_ptr = pointer(table_ptr, row + 5 * rows, DTYPE, IS_ALIGNED)
        ema = _lerp(cast(tl.load(ema_ptr + i, mask=mask, other=0.0), ACC), p, scalar(ema_weight, ACC))
        tl.store(ema_ptr + i, cast(ema, DTYPE), mask=mask)


def step(lists, columns, options, factor):
    """One step of the parameters of `lists`, in place.

    columns: addresses of parameters, gradients, three states and averaged copies; a column that is not there is empty.
    factor: a number, or a float64 tensor of one element on the device.
    """
    given = isinstance(factor, torch.Tensor)
    _, _, first, second, third, emas = columns
    there = [column or [0] * len(lists.sizes) for column in columns]
    table, is_aligned = tables.table(lists, there)
    sizes, row, at, count = tables.chunks(lists.device, tuple(lists.sizes), tables.BLOCK)
    if not count:
        return
    o = options
    _optim_step[(count,)](
        table, sizes, row, at, factor if given else None, len(lists.sizes),
        float(o.gradient_factor if given else o.gradient_factor * factor), o.sign, o.weight_decay, o.shrink, o.step_size,
        o.momentum, o.fresh, 1 - o.mean_decay, o.square_decay, 1 - o.square_decay, o.root_scale, o.eps, 1 - o.ema_decay,
        RULE=o.rule, IS_NESTEROV=o.is_nesterov, HAS_DECAY=o.weight_decay != 0, HAS_FIRST=bool(first),
        HAS_SECOND=bool(second), HAS_THIRD=bool(third), HAS_EMA=bool(emas), GRADIENTS=o.gradients,
        DTYPE=tables.TYPES[lists.dtype], IS_ALIGNED=is_aligned, BLOCK=tables.BLOCK,
    )  # fmt: skip
