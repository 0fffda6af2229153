"""LayerNorm, alone and with the residual sum: below the threshold Python's share of a call outweighs the kernel's."""

MIN_ELEMENTS = {"cpu": 65536, "triton": 0}  # provisional; benchmarks: layer_norm, rows "tiny" and "small"


def rules(backend: str, elements: int, dtype) -> str:
    if elements < MIN_ELEMENTS[backend]:
        return "small input: torch's own call is cheaper"
    return ""
