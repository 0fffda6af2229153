"""Local response normalisation, which torch composes of eight operations."""

from pyflash.auto import MEASURED, SMALL, gpu, tables

WINDOW = 16  # channels: of longer windows every one is summed anew, and no table speaks of them
# Zen 5, one thread, torch's time over ours, inference and training: 1.7 and 1.7 at 2^9 elements, 4.2 and 3.3 at 2^12.
MIN_ELEMENTS = {"inference": 1024, "training": 1024}


@tables.remembered
def rules(where, size, dtype) -> str:
    """size: (elements, are gradients needed, channels of a window, is beta a quarter); of the last two: if not said, those of
    a window that a table speaks of."""
    elements, training, *of_window = size
    window, is_quarter = of_window or (1, True)
    mode = "training" if training else "inference"
    if window > WINDOW:
        return f"windows of more than {WINDOW} channels"
    if not (is_quarter or where.is_gpu):
        return "beta is no quarter: a power an element"
    ours = tables.ours(where, "local_response_norm", "", dtype, mode, (elements,))
    if ours is not None:
        return "" if ours else MEASURED
    if where.is_gpu:
        return gpu.decide(where.kernels, "local_response_norm", elements, training, dtype)
    return SMALL if elements < MIN_ELEMENTS[mode] else ""
