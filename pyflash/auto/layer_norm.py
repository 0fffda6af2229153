"""LayerNorm, alone and with the residual sum: below the threshold Python's share of a call outweighs the kernel's."""

from pyflash.auto import SMALL

MIN_ELEMENTS = {"cpu": 524288, "triton": 0}  # provisional; benchmarks: layer_norm, rows "tiny" and "small"
MIN_ELEMENTS_ADD = {"cpu": 262144, "triton": 0}  # provisional; the sum is a pass over memory more to be saved


def _rules(minimum, backend: str, elements: int) -> str:
    return SMALL if elements < minimum[backend] else ""


def rules(backend: str, elements: int, dtype) -> str:
    return _rules(MIN_ELEMENTS, backend, elements)


def rules_add(backend: str, elements: int, dtype) -> str:
    return _rules(MIN_ELEMENTS_ADD, backend, elements)
