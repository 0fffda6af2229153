"""Linear, with or without an activation. Provisional numbers: benchmarks linear, to be set on a quiet machine."""

from functools import lru_cache

import torch

from pyflash.auto import SMALL

MIN_FLOPS = {"cpu": 1 << 22, "triton": 0}  # below it Python's share of a call outweighs the kernel's
MIN_ROWS = {False: 8, True: 128}  # one row reads 0.44x of torch's speed; training packs the weight in every call
ISAS = ("avx512", "avx512_bf16")  # elsewhere torch's matrix products are as fast
TORCH_DTYPES = (torch.bfloat16, torch.float16)  # oneDNN multiplies them in hardware


@lru_cache(maxsize=1)
def _core():  # an import that is done already still takes 0.3 us
    from pyflash import _cpu

    return _cpu


def isa() -> str:
    return _core().isa()


isa._dynamo_marked_constant = True  # torch.compiler.assume_constant_result, which would import torch._dynamo here


def rules(backend: str, size, dtype) -> str:
    """size: (rows, columns, inner, are gradients needed)."""
    rows, columns, inner, training = size
    if backend != "cpu":
        return ""
    if dtype in TORCH_DTYPES:
        return "torch's oneDNN multiplies half types in hardware"
    if 2 * rows * columns * inner < MIN_FLOPS[backend]:
        return SMALL
    if rows < MIN_ROWS[training]:
        return "few rows: torch's own product is faster"
    if isa() not in ISAS:
        return "torch's own product is as fast on this instruction set"
    return ""
