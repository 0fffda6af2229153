"""The rule of an operation that needs no more than two numbers: from how many elements on it is ours on a CPU."""

from math import prod

from pyflash.auto import MEASURED, SMALL, gpu, tables


def minima(name: str, *, inference: int, training: int):
    """Rules for `Operation(rules=...)` of sizes (..., are gradients needed): the table's answer; where it is silent, ours
    from this many elements on, and on a GPU what was measured there.

    Args:
        name: the operation's in the tables.
        inference, training: elements, the product of the sizes.
    """
    least = {"inference": inference, "training": training}

    @tables.remembered
    def rules(where, size, dtype) -> str:
        *sizes, is_training = size
        mode = "training" if is_training else "inference"
        ours = tables.ours(where, name, "", dtype, mode, tuple(sizes))
        if ours is not None:
            return "" if ours else MEASURED
        if where.is_gpu:
            return gpu.decide(where.kernels, name, prod(sizes), is_training, dtype)
        return SMALL if prod(sizes) < least[mode] else ""

    return rules
