"""Element-wise activations: on a CPU both are limited by memory, and torch's own is as fast or faster for most rows."""

# Measured in benchmarks/results/2026-11-22-cpu-granite-rapids.json, rows "activation": ours over torch's speed, forward
# at 64x3072 and 4096x3072: gelu_tanh 2.7x and 1.0x; silu 0.9x and 1.0x; sigmoid 0.9x and 1.0x; relu 0.7x and 1.0x;
# gelu 0.6x both; tanh 0.6x and 0.7x.
OURS_ON_CPU = ("gelu_tanh",)
MIN_ELEMENTS = {"cpu": 65536, "triton": 0}  # below it Python's share of a call outweighs the kernel's
SMALL = "small input: torch's own call is cheaper"


def rules(name: str, backend: str, elements: int, dtype) -> str:
    if elements < MIN_ELEMENTS[backend]:
        return SMALL
    if backend == "cpu" and name not in OURS_ON_CPU:
        return "torch's own kernel is as fast on a CPU"
    return ""
