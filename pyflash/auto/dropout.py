"""Dropout: torch draws its mask serially on a CPU, so ours wins as soon as Python's share of a call is paid.

Whose dropout it is must not depend on gradients: a reentrant checkpoint computes without them, then with.
"""

from pyflash.auto import GPU_ELEMENTS, MEASURED, SMALL, tables

MIN_ELEMENTS = 2048  # where no table speaks


@tables.remembered
def rules(where, elements: int, dtype) -> str:
    ours = tables.ours(where, "dropout", "", dtype, "any", (elements,))
    if ours is not None:
        return "" if ours else MEASURED
    # On an H200, 64 M elements: forward and backward 1.1 in bfloat16, forward 1.19 in float32.
    return SMALL if elements < (GPU_ELEMENTS if where.is_gpu else MIN_ELEMENTS) else ""
