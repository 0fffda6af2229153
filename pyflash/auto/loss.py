"""Losses of elements: how many are worth a call."""

from pyflash.auto import MEASURED, NO_TABLE, SMALL, gpu, tables
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
            return SMALL if elements < MIN_TRAINED_MEAN else "" if training else AS_FAST
        ours = tables.ours(where, name, "", dtype, mode, (elements,))
        if ours is not None:
            return "" if ours else MEASURED
        if where.is_gpu:
            return gpu.decide(where.kernels, name, elements, training, dtype)
        return SMALL if elements < MIN_ELEMENTS[name][mode] else ""

    return decide


# Of an input and a target. Zen 4, one thread of a busy machine, torch's time over ours, forward and training. mse_loss, l1_loss and
# smooth_l1_loss 0.8, 1.0 and 0.8 and 0.7, 0.9 and 0.7 at 2^16 elements; 2.8, 3.6 and 1.9 and 1.5, 2.0 and 1.1 at 2^20. With logits
# 1.4 and 0.9 at 2^14, 2.3 and 1.4 at 2^16, 4.3 and 2.0 at 2^20; kl_div 2.4 and 1.2 at 2^14. Of probabilities 1.9 and 1.0 at 2^12,
# 5.1 and 2.5 at 2^14: torch's logarithms are scalar. margin_ranking_loss 0.5 and 0.9 at 2^12, 0.5 and 1.2 at 2^14, 1.3 and 3.2
# at 2^16, 2.5 and 10 at 2^18; hinge_embedding_loss 1.5 and 1.7 at 2^12, 21 and 14 at 2^16: torch's are seven operations and more. Of rows:
# cosine_embedding_loss 0.7 and 1.4 at 2^14, 1.0 and 1.6 at 2^16, 4.0 and 6.1 at 2^21; triplet_margin_loss 0.6 and 1.6, 1.2 and 1.6, 26 and 4.3.
CHEAP = {"inference": 1 << 18, "training": 1 << 20}
OF_ROWS = {"inference": 1 << 17, "training": 1 << 13}
MIN_PAIRS = {
    **dict.fromkeys(("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"), CHEAP),
    "binary_cross_entropy": {"inference": 1 << 12, "training": 1 << 14},
    "margin_ranking_loss": {"inference": 1 << 16, "training": 1 << 14},
    "hinge_embedding_loss": {"inference": 1 << 12, "training": 1 << 12},
    **dict.fromkeys(("cosine_embedding_loss", "triplet_margin_loss"), OF_ROWS),
}
WITH_EXPS = {"inference": 1 << 14, "training": 1 << 16}


def elementwise_rules(name: str):
    """Rules for sizes (elements, are gradients needed)."""
    return minima(name, **MIN_PAIRS.get(name, WITH_EXPS))


@tables.remembered
def nll_rules(where, size, dtype) -> str:
    """size: (elements, are gradients needed). Zen 4, one thread of a busy machine, torch's time over ours, forward and training:
    0.1 and 0.4 at 256x1000, 0.3 and 0.7 at 4096x1000, 0.8 and 0.6 of 4x21x128x128: one number of a place is read, and what a call
    costs decides."""
    elements, training = size
    ours = tables.ours(where, "nll_loss", "", dtype, "training" if training else "inference", (elements,))
    if ours is not None:
        return "" if ours else MEASURED
    return gpu.decide(where.kernels, "nll_loss", elements, training, dtype) if where.is_gpu else NO_TABLE
