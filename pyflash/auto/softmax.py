"""Softmax and its kin, over rows of adjacent elements and over columns: what torch does with each is a kernel of its own."""

from functools import partial

from pyflash.auto import MEASURED, SMALL, gpu, tables

ROWS, COLUMNS = "rows", "columns"  # kinds of the table
# The operation that each is measured as: softmin differs from softmax in a sign.
MEASURED_AS = {"softmax": "softmax", "softmin": "softmax", "log_softmax": "log_softmax"}
# Where no table speaks. Zen 5, one thread, torch's time over ours: forward 1.0 at 65536 elements, 1.1 to 1.4 at 402056, 3.1 at
# 16.8 M; backward 0.6, 1.0, 3.1. Below, Python's share of a call outweighs the kernel's.
MIN_ELEMENTS = {"inference": 131072, "training": 524288}

# On an H200 rows of 4096 are faster than torch's, of 32768 and 262144 not; columns of 128 and 1024 are, of 21 not. By Triton and by
# CUDA C++, which was not timed at 128.
LONGEST_ROW, SHORTEST_COLUMN = 4096, 128


def decide(name: str, where, size, dtype) -> str:
    """size: (softmaxes, elements of each, elements in memory from one of these to the next, are gradients needed)."""
    count, length, step, training = size
    mode = "training" if training else "inference"
    kind = ROWS if step == 1 else COLUMNS
    ours = tables.ours(where, MEASURED_AS[name], kind, dtype, mode, (count, length))
    if ours is not None:
        return "" if ours else MEASURED
    if where.is_gpu:
        if (length > LONGEST_ROW) if kind == ROWS else (length < SHORTEST_COLUMN):
            return gpu.AS_FAST
        return gpu.decide(where.kernels, f"{MEASURED_AS[name]} {kind}", count * length, training, dtype)
    return SMALL if count * length < MIN_ELEMENTS[mode] else ""


def softmax_rules(name: str):
    return tables.remembered(partial(decide, name))
