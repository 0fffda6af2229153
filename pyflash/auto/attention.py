"""Attention: what `auto` leaves to torch. Size is scores times (head_dim + value_dim): half the multiplications."""

import torch

MIN_SIZE = {"cpu": 1 << 22, "triton": 0}  # benchmarks: attention, rows "tiny" and "small"
SMALL = "small input: torch's own call is cheaper"


def rules(backend: str, size: int, dtype) -> str:
    if size < MIN_SIZE[backend]:
        return SMALL
    if dtype == torch.float64:
        return "float64: torch's matrix products are faster"
    return ""
