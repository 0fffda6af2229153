"""Local response normalisation, which torch composes of eight operations."""

from pyflash.auto import MEASURED, SMALL, tables

WINDOW = 16  # channels: of longer windows every one is summed anew, and no table speaks of them
MIN_ELEMENTS = {"inference": 8192, "training": 16384}


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
        return "not measured on a GPU"
    return SMALL if elements < MIN_ELEMENTS[mode] else ""
