"""Cross entropy, over rows of adjacent scores and over columns."""

from pyflash.auto import MEASURED, SMALL, gpu, tables
from pyflash.auto.softmax import COLUMNS, ROWS  # kinds of the table

# Where no table speaks. Zen 4, one thread, torch's time over ours, forward and training: 0.5 and 0.5 at 1280 elements, 0.7 and
# 0.7 at 64000, 1.2 and 0.9 at 524288 of 128 classes; 4.5 and 2.5 at 5.5 M of 21 classes in columns, 8.7 and 6.9 at 16 M of 32000.
MIN_ELEMENTS = {"inference": 1 << 18, "training": 1 << 20}


def decide(where, size, dtype) -> str:
    """size: (softmaxes, classes of each, elements in memory from one of these to the next, are gradients needed)."""
    count, classes, step, training = size
    mode = "training" if training else "inference"
    ours = tables.ours(where, "cross_entropy", ROWS if step == 1 else COLUMNS, dtype, mode, (count, classes))
    if ours is not None:
        return "" if ours else MEASURED
    if where.is_gpu:
        return gpu.decide(where.kernels, "cross_entropy", count * classes, training, dtype)
    return SMALL if count * classes < MIN_ELEMENTS[mode] else ""


cross_entropy_rules = tables.remembered(decide)
