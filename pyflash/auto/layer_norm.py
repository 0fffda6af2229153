"""LayerNorm, alone and with the residual sum."""

from pyflash.auto import MEASURED, NO_TABLE, SMALL, tables

# Where no table speaks: below it Python's share of a call outweighs the kernel's. The sum is a pass over memory to be saved.
MIN_ELEMENTS = {"layer_norm": 524288, "add_layer_norm": 262144}


def decide(name: str, where: tables.Place, size, dtype) -> str:
    """size: (rows, columns, are gradients needed)."""
    rows, columns, training = size
    ours = tables.ours(where, name, "", dtype, "training" if training else "inference", (rows, columns))
    if ours is not None:
        return "" if ours else MEASURED
    if where.is_gpu:  # on an H200, times torch's speed: 32768x1024 0.60, backward 0.51; 8192x4096 0.30, 0.37
        return "torch's own kernel is faster on a GPU"
    if rows * columns < MIN_ELEMENTS[name]:
        return SMALL
    return NO_TABLE if name == "layer_norm" and where.family not in tables.MEASURED_BY_HAND else ""


@tables.remembered
def rules(where, size, dtype) -> str:
    return decide("layer_norm", where, size, dtype)


@tables.remembered
def rules_add(where, size, dtype) -> str:
    return decide("add_layer_norm", where, size, dtype)
