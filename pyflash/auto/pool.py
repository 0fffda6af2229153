"""Pooling: how many elements of the input are worth a call, in each of the two memory layouts."""

from typing import NamedTuple

from pyflash.auto import MEASURED, SMALL, gpu, tables


class Least(NamedTuple):
    """Elements from which a pooling is ours where no table speaks. torch's channels_last kernels are vectors too."""

    inference: int
    training: int
    channels_last_inference: int
    channels_last_training: int


# Zen 5, one thread, torch's time over ours at 2^16 and 2^18 elements of NCHW and of channels_last, inference; training:
# max 10, 20 and 1.3, 2.7; 2.7, 5.8 and 0.7, 1.1. avg 4.3, 8.4 and 0.9, 1.6; 2.3, 4.9 and 0.6, 0.7.
# adaptive max 1.0, 1.1 and 1.2, 2.3; 0.4, 0.6 and 0.5, 0.7. A global mean 0.4, 0.6 and 0.5, 1.0; 0.9, 1.7 and 0.7, 0.8: of
# 3.2 million elements 0.7 in inference, where torch's is a reduction, and 2 in training. Unpooling 1.9, 2.3 and 0.9, 1.0;
# 1.3, 1.6 and 1.2, 1.6.
LEAST = {
    "max_pool": Least(1 << 15, 1 << 16, 1 << 16, 1 << 18),
    "avg_pool": Least(1 << 14, 1 << 15, 1 << 18, 1 << 20),
    "max_unpool": Least(1 << 14, 1 << 16, 1 << 20, 1 << 16),
    "adaptive_max_pool": Least(1 << 18, 1 << 20, 1 << 17, 1 << 20),
    "adaptive_avg_pool": Least(1 << 23, 1 << 23, 1 << 20, 1 << 20),
}
# Whose windows tell more than elements do, so that no table speaks of them: 13x13 to 6x6 takes 1.4 times torch's time in
# training, a global mean of 3.2 million elements 0.8 times (and 1.5 times in inference).
BY_WINDOWS = "adaptive_avg_pool"
# The operation that each is measured as, where it is another: what moves elements knows no dimensions.
MEASURED_AS = dict.fromkeys(("max_unpool1d", "max_unpool2d", "max_unpool3d"), "max_unpool2d")


def rules(name: str):
    """Rules of a pooling by its name, with its dimensions, for sizes (elements, are gradients needed, is it channels_last: if not said, no)."""
    least = LEAST[name[:-2]]

    @tables.remembered
    def decide(where, size, dtype) -> str:
        elements, training, channels_last = (*size, False)[:3]
        if not (channels_last or name.startswith(BY_WINDOWS)):  # what the tables are of
            ours = tables.ours(
                where, MEASURED_AS.get(name, name), "", dtype, "training" if training else "inference", (elements,)
            )
            if ours is not None:
                return "" if ours else MEASURED
        if where.is_gpu:
            return gpu.decide(
                where.kernels, f"{name} channels_last" if channels_last else name, elements, training, dtype
            )
        return SMALL if elements < least[2 * channels_last + training] else ""

    return decide
