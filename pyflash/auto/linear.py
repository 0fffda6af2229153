"""Linear, with or without an activation."""

from __future__ import annotations

import torch

from pyflash.auto import MEASURED, NO_TABLE, SMALL, processor, tables

# Where no table speaks, on Zen: set by hand on Zen 4 (benchmarks/results/2026-11-25-cpu-zen4.json, rows "linear").
MIN_FLOPS = 1 << 22  # below it Python's share of a call outweighs the kernel's
MIN_ROWS = {False: 8, True: 128}  # one row reads 0.44x of torch's speed; training packs the weight in every call
HALVES = (torch.bfloat16, torch.float16)  # oneDNN multiplies them in hardware


def decide(name: str, where: processor.Place, size, dtype) -> str:
    """size: (rows, columns, inner, are gradients needed)."""
    rows, columns, inner, training = size
    mode = "training" if training else "inference"
    ours = tables.ours(where, name, "", dtype, mode, (rows, inner, columns))
    if ours is not None:
        return "" if ours else MEASURED
    if where.family not in processor.MEASURED_BY_HAND or where.isa not in processor.AVX512:
        return NO_TABLE
    if dtype in HALVES:
        return "torch's oneDNN multiplies half types in hardware"
    if 2 * rows * columns * inner < MIN_FLOPS:
        return SMALL
    return "few rows: torch's own product is faster" if rows < MIN_ROWS[training] else ""


@tables.remembered
def rules(where, size, dtype) -> str:
    return decide("linear", where, size, dtype)


@tables.remembered
def rules_act(where, size, dtype) -> str:
    return decide("linear_act", where, size, dtype)
