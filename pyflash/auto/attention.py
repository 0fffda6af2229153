"""Attention: what `auto` leaves to torch. Size is scores times (head_dim + value_dim): half the multiplications."""

import torch

MIN_SIZE = {"cpu": 1 << 22, "triton": 0}  # benchmarks: attention, rows "tiny" and "small"
HAS_AMX = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
SMALL = "small input: torch's own call is cheaper"


def rules(backend: str, size: int, dtype) -> str:
    if size < MIN_SIZE[backend]:
        return SMALL
    if backend == "cpu" and dtype == torch.float64:
        return "float64: torch's matrix products are faster"
    # Measured 302 GFLOP/s a core, where our float32 reaches 110: the dot product at most doubles that.
    if backend == "cpu" and dtype == torch.bfloat16 and HAS_AMX:
        return "bfloat16: torch uses this processor's matrix unit"
    return ""
