"""Losses of elements: how many are worth a call."""

from pyflash.auto import MEASURED, SMALL, gpu, tables
from pyflash.auto.minima import minima

AS_FAST = "torch's mean alone is as fast"

# Zen 5, one thread, torch's time over ours, inference and training. Of a discriminator's two tensors together: softplus 1.03
# and 1.03 at 2^12 elements, 1.5 and 1.3 at 2^14, 2.3 and 1.8 at 2^16; least squares 1.4 and 1.5 at 2^14. Of a generator's one:
# 1.2 to 1.4 and 1.1, and 0.85 to 1.0 and 1.1 at 2^14; 1.4 and 1.7 at 2^16.
MIN_ELEMENTS = {
    "gan_discriminator_loss": {"inference": 1 << 14, "training": 1 << 14},
    "gan_generator_loss": {"inference": 1 << 15, "training": 1 << 14},
}
# Wasserstein's, and the generator's of hinge, have nothing to fuse in the forward; its gradient is written once instead of
# expanded and copied. Training 0.95 to 1.06 at 2^16 elements, 1.3 to 1.6 at 2^20.
MIN_TRAINED_MEAN = 1 << 18


def rules(name: str):
    """Rules for sizes (elements of all arguments, are gradients needed, is it the mean of the values: if not said, no)."""

    @tables.remembered
    def decide(where, size, dtype) -> str:
        elements, training, is_mean = (*size, False)[:3]
        mode = "training" if training else "inference"
        if not where.is_gpu and is_mean:
            return AS_FAST if not training else SMALL if elements < MIN_TRAINED_MEAN else ""
        ours = tables.ours(where, name, "", dtype, mode, (elements,))
        if ours is not None:
            return "" if ours else MEASURED
        if where.is_gpu:
            return gpu.decide(name, elements, training, dtype)
        return SMALL if elements < MIN_ELEMENTS[name][mode] else ""

    return decide


# Of an input and a target. Zen 4, one thread: see the rows.
MIN_PAIRS = {
    "inference": 1 << 15,
    "training": 1 << 15,
}


def elementwise_rules(name: str):
    """Rules for sizes (elements, are gradients needed)."""
    return minima(name, **MIN_PAIRS)
