"""What `auto` prefers for images: torch's loops over channels that come last are good, those over the others are not."""

from pyflash.auto import MEASURED, SMALL, gpu, tables

# Zen 5, one thread, 16x16 places to 32x32, torch's time over ours: contiguous 0.9 at 16 thousand elements, 2.9 (bilinear) and
# 4.3 (nearest) at 64 thousand; channels last 0.5 to 1.3 up to 4 million, and 3 where the result has large pages.
# Nearest places of channels last are copies, which torch makes as fast.
LEAST = {"": 1 << 15, "channels_last": 1 << 23, "nearest channels_last": 1 << 23}


@tables.remembered
def interpolate_rules(where, size, dtype) -> str:
    """size: (elements of the larger of input and output, which of LEAST, are gradients needed)."""
    elements, kind, is_training = size
    mode = "training" if is_training else "inference"
    ours = tables.ours(where, "interpolate", kind, dtype, mode, (elements,))
    if ours is not None:
        return "" if ours else MEASURED
    if where.is_gpu:
        return gpu.NOT_MEASURED
    return SMALL if elements < LEAST[kind] else ""
