"""Dropout: torch draws its mask serially on a CPU, so ours wins as soon as Python's share of a call is paid.

Whose dropout it is must not depend on gradients: a reentrant checkpoint computes without them, then with.
"""

from pyflash.auto import MEASURED, SMALL, tables

MIN_ELEMENTS = 2048  # where no table speaks


@tables.remembered
def rules(where, elements: int, dtype) -> str:
    ours = tables.ours(where, "dropout", "", dtype, "any", (elements,))
    if ours is not None:
        return "" if ours else MEASURED
    if where.is_gpu:  # on an H200, 32 M elements: 0.79 in bfloat16, 1.13 in float32; a call takes the host 50 us more
        return "torch's own kernel is as fast on a GPU"
    return SMALL if elements < MIN_ELEMENTS else ""
