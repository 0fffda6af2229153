"""Look-ups in a table, and sums over bags of them: reading rows is torch's as much as ours; their gradient is not."""

from pyflash.auto import MEASURED, SMALL, gpu, processor, tables

SIZES = "(indices, rows and columns of the weight, are gradients needed)"
BAG_SIZES = "(indices, rows and columns of the weight, are gradients needed, mode)"
BAG_MODES = ("sum", "mean", "max")
MIN_ELEMENTS = 16384  # of the table and of what is looked up: below it Python outweighs the kernel
RENORMALISED = ("max_norm",)  # in place of a size: torch takes several operations for every row
COPIES = "torch's own reads rows as fast"
# On two busy Zen 5 cores, 2048 bags of 32 rows of 64, without gradients, times torch's speed: mean and max 3.6 to 5, the
# sum, which is FBGEMM's, 1.
FAST_WITHOUT_GRADIENTS = ("mean", "max")


def decide(name: str, where: processor.Place, size, dtype) -> str:
    """size: as SIZES or BAG_SIZES says."""
    if size == RENORMALISED:
        return ""
    indices, rows, columns, training, *kind = size
    elements = (indices + rows * training) * columns
    if not where.is_gpu and elements < MIN_ELEMENTS:
        return SMALL
    mode = "training" if training else "inference"
    ours = tables.ours(where, name, "".join(kind), dtype, mode, (indices, rows, columns))
    if ours is not None:
        return "" if ours else MEASURED
    if where.is_gpu:
        return gpu.decide(where.kernels, name, elements, training, dtype)
    if not training and not set(kind) & set(FAST_WITHOUT_GRADIENTS):
        return COPIES
    return ""


@tables.remembered
def rules(where, size, dtype) -> str:
    return decide("embedding", where, size, dtype)


@tables.remembered
def bag_rules(where, size, dtype) -> str:
    return decide("embedding_bag", where, size, dtype)
