"""LayerNorm, alone and with the residual sum."""

from pyflash.auto import MEASURED, NO_TABLE, SMALL, gpu, processor, tables

# Where no table speaks: below it Python's share of a call outweighs the kernel's. The sum is a pass over memory to be saved.
MIN_ELEMENTS = {"layer_norm": 524288, "add_layer_norm": 262144}


def decide(name: str, where: processor.Place, size, dtype) -> str:
    """size: (rows, columns, are gradients needed)."""
    rows, columns, training = size
    ours = tables.ours(where, name, "", dtype, "training" if training else "inference", (rows, columns))
    if ours is not None:
        return "" if ours else MEASURED
    if where.is_gpu:
        if where.kernels == "cuda" and columns > gpu.LONGEST_ROW:
            return gpu.AS_FAST
        return gpu.decide(where.kernels, name, rows * columns, training, dtype)
    if rows * columns < MIN_ELEMENTS[name]:
        return SMALL
    return NO_TABLE if name == "layer_norm" and where.family not in processor.MEASURED_BY_HAND else ""


@tables.remembered
def rules(where, size, dtype) -> str:
    return decide("layer_norm", where, size, dtype)


@tables.remembered
def rules_add(where, size, dtype) -> str:
    return decide("add_layer_norm", where, size, dtype)
