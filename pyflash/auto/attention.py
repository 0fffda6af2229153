"""Attention: what `auto` leaves to torch. Size is scores times (head_dim + value_dim): half the multiplications; and
whether gradients are needed, or dropout. Then it is ours whatever the size: torch's fused kernel has no second derivative
on a CPU.
Forward and backward on two Zen 4 cores, causal, ours and torch's us: B2 H4 N8 D8 122, 67; N32 D16 135, 140; B1 H8 N64 D32
215, 289.
"""

import torch

from pyflash.auto import SMALL

MIN_SIZE = {"cpu": 1 << 22, "triton": 0}  # benchmarks: attention, rows "tiny" and "small"
HAS_AMX = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()


def rules(backend: str, size: tuple[int, bool], dtype) -> str:
    amount, training = size
    if amount < MIN_SIZE[backend] and not training:
        return SMALL
    if backend == "cpu" and dtype == torch.float64 and not training:
        return "float64: torch's matrix products are faster"
    # Measured 302 GFLOP/s a core, where our float32 reaches 110: the dot product at most doubles that.
    if backend == "cpu" and dtype == torch.bfloat16 and HAS_AMX:
        return "bfloat16: torch uses this processor's matrix unit"
    return ""
