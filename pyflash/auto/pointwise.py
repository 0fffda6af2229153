"""Activations: on a CPU both are limited by memory, and torch's own is as fast or faster for most rows. Dropout: torch draws
its mask serially on a CPU, so ours wins as soon as Python's share of a call is paid.
"""

from __future__ import annotations

import re
from functools import partial

import torch

from pyflash.activations import ACTIVATIONS
from pyflash.auto import MEASURED, SMALL, gpu, processor, tables

# Where no table speaks. Measured in benchmarks/results, rows "activation", ours over torch's speed, forward at 64x3072
# and 4096x3072. 2026-11-22-cpu-granite-rapids: gelu_tanh 2.7x and 1.0x; silu 0.9x and 1.0x; sigmoid 0.9x and 1.0x; relu
# 0.7x and 1.0x; gelu 0.6x both; tanh 0.6x and 0.7x. 2026-11-25-cpu-zen4: gelu_tanh 3.3x, tanh 4.7x at 64x3072; the others
# as before. Outputs of 32 MB and more are ours: their pages take longer than the arithmetic, and we ask for large ones
# (ops/core/registry.py): 4096x3072 on Zen 4, relu 3.7x, gelu 1.6x. In float64 ours is slower in every row; in bfloat16 on
# Zen 4 gelu_tanh is 2.6x and tanh 2.2x.
OURS_ON_CPU = ("gelu_tanh",)
OURS_ON_ZEN = ("tanh",)  # torch's comes from Intel's library, which is slow on other processors
MIN_ACTIVATED = 65536  # below it Python's share of a call outweighs the kernel's
LARGE_BYTES = 32 << 20

CHEAP = {"where", "abs"}


def _measured_as(row) -> str:
    formulas = f"{row.forward} {row.backward}"
    return row.name if set(re.findall(r"(\w+)\(", formulas)) - CHEAP or "/" in formulas else "relu"


# The row of the activation table whose measured points speak for each. Comparisons, sums and products alone are done
# before the memory is, on torch's side as on ours: such a row takes as long as relu. Others speak for themselves.
MEASURED_AS = {name: _measured_as(row) for name, row in ACTIVATIONS.items()}


def decide_activation(name: str, where: processor.Place, size, dtype) -> str:
    """size: (elements, are gradients needed)."""
    elements, training = size
    kind = MEASURED_AS[name]
    ours = tables.ours(where, "activation", kind, dtype, "training" if training else "inference", (elements,))
    if ours is not None:
        return "" if ours else MEASURED
    if where.is_gpu:
        return gpu.decide(where.kernels, name, elements, training, dtype)
    if elements < MIN_ACTIVATED:
        return SMALL
    best = OURS_ON_CPU + OURS_ON_ZEN if where.family in processor.MEASURED_BY_HAND else OURS_ON_CPU
    is_large = elements * dtype.itemsize >= LARGE_BYTES
    return "" if (name in best or is_large) and dtype != torch.float64 else "torch's own kernel is as fast on a CPU"


def activation_rules(name: str):
    return tables.remembered(partial(decide_activation, name))


MIN_DROPPED = 2048  # elements, where no table speaks


@tables.remembered
def dropout_rules(where, elements: int, dtype) -> str:
    """Whose dropout it is must not depend on gradients: a reentrant checkpoint computes without them, then with."""
    ours = tables.ours(where, "dropout", "", dtype, "any", (elements,))
    if ours is not None:
        return "" if ours else MEASURED
    if where.is_gpu:
        return gpu.decide(where.kernels, "dropout", elements, False, dtype)
    return SMALL if elements < MIN_DROPPED else ""


@tables.remembered
def rrelu_rules(where, elements: int, dtype) -> str:
    """Training's: torch draws its slopes serially on a CPU, as its dropout's mask. As there, whatever the gradients."""
    ours = tables.ours(where, "rrelu", "", dtype, "any", (elements,))
    if ours is not None:
        return "" if ours else MEASURED
    if where.is_gpu:
        return gpu.decide(where.kernels, "rrelu", elements, True, dtype)
    return SMALL if elements < MIN_DROPPED else ""


# Of whole channels torch draws few numbers and makes two passes or more, where ours is one: on two busy Zen 5 cores, 6 M
# elements, times torch's speed: dropout2d 1.0 to 1.25, feature_alpha_dropout 1.4 to 2.
CHANNEL_DROPOUTS = ("dropout1d", "dropout2d", "dropout3d", "feature_alpha_dropout")
MIN_DROPPED_CHANNELS = 65536  # elements


@tables.remembered
def channel_dropout_rules(where, elements: int, dtype) -> str:
    """As dropout_rules, of whole channels."""
    ours = tables.ours(where, "dropout2d", "", dtype, "any", (elements,))
    if ours is not None:
        return "" if ours else MEASURED
    if where.is_gpu:
        return gpu.decide(where.kernels, "dropout2d", elements, True, dtype)
    return SMALL if elements < MIN_DROPPED_CHANNELS else ""
