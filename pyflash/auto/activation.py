"""Element-wise activations: on a CPU both are limited by memory, and torch's own is as fast or faster for most rows."""

import torch

from pyflash.auto import SMALL

# Measured in benchmarks/results, rows "activation", ours over torch's speed, forward at 64x3072 and 4096x3072.
# 2026-11-22-cpu-granite-rapids: gelu_tanh 2.7x and 1.0x; silu 0.9x and 1.0x; sigmoid 0.9x and 1.0x; relu 0.7x and 1.0x;
# gelu 0.6x both; tanh 0.6x and 0.7x. 2026-11-25-cpu-zen4: gelu_tanh 3.3x, tanh 4.7x at 64x3072; the others as before.
# Outputs of 32 MB and more are ours: their pages take longer than the arithmetic, and we ask for large ones
# (ops/_registry.py): 4096x3072 on Zen 4, relu 3.7x, gelu 1.6x. In float64 ours is slower in every row; in bfloat16 on
# Zen 4 gelu_tanh is 2.6x and tanh 2.2x.
OURS_ON_CPU = ("gelu_tanh",)
OURS_WHERE_NOT_INTEL = ("tanh",)  # torch's comes from Intel's library, which is slow on other processors
MIN_ELEMENTS = {"cpu": 65536, "triton": 0}  # below it Python's share of a call outweighs the kernel's
LARGE_BYTES = 32 << 20


def rules(name: str, is_intel: bool, backend: str, elements: int, dtype) -> str:
    if elements < MIN_ELEMENTS[backend]:
        return SMALL
    if backend == "cpu":
        ours = OURS_ON_CPU if is_intel else OURS_ON_CPU + OURS_WHERE_NOT_INTEL
        is_large = elements * dtype.itemsize >= LARGE_BYTES
        if not (name in ours or is_large) or dtype == torch.float64:
            return "torch's own kernel is as fast on a CPU"
    return ""
