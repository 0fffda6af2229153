"""Vectors over their norm: how many elements are worth a call, and how many vectors make work for threads."""

from pyflash.auto import MEASURED, SMALL, gpu, tables

# Zen 5, one thread, torch's time over ours of rows, inference and training: 0.7 and 1.5 at 2^15 elements, 1.0 and 2.5 at 2^17,
# 1.3 and 4.9 at 2^19; of columns 9.5 and 4.2 at 2^16.
MIN_ELEMENTS = {"inference": 1 << 17, "training": 1 << 15}
# torch's five operations over ours, latent vectors and images: 0.7 and 1.4 at 2^15, 0.9 to 1.1 and 2.4 at 2^17, 1.6 and 4.8
# at 2^20; channels last 0.5 and 1.3 at 2^15, 1.6 and 14 at 2^20.
MIN_PIXEL_NORM = {"inference": 1 << 18, "training": 1 << 15}
MIN_VECTORS = 32  # a vector is one thread's


def _rules(name: str, least: dict[str, int]):
    """Of sizes (vectors, elements of each, are gradients needed)."""

    @tables.remembered
    def decide(where, size, dtype) -> str:
        vectors, n, training = size
        mode = "training" if training else "inference"
        if vectors < MIN_VECTORS and not where.is_gpu:
            return f"fewer than {MIN_VECTORS} vectors"
        ours = tables.ours(where, name, "", dtype, mode, (vectors, n))
        if ours is not None:
            return "" if ours else MEASURED
        if where.is_gpu:
            return gpu.decide(where.kernels, name, vectors * n, training, dtype)
        return SMALL if vectors * n < least[mode] else ""

    return decide


rules, pixel_norm_rules = _rules("normalize", MIN_ELEMENTS), _rules("pixel_norm", MIN_PIXEL_NORM)
