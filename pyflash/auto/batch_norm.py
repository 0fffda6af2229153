"""Batch normalisation: with the statistics of the batch, which are what torch is slow at, as the tables say; in evaluation,
where torch reads and writes once too, where there are many elements."""

from pyflash.auto import SMALL, gpu, tables
from pyflash.auto.minima import minima

# Elements. Zen 5, torch's time over ours in evaluation, contiguous and channels_last, two threads: alone 0.3 and 0.3 at 2^16
# elements, 0.6 and 0.7 at 2^19, 0.7 and 1.3 at 2^21, 1.0 and 1.0 at 6.4 million; with ReLU 0.8 and 0.9, 0.8 and 1.6, 1.6 and 1.5.
IN_EVALUATION = {"batch_norm": 1 << 22, "batch_norm_act": 1 << 21}


def rules(name: str):
    """Rules for sizes (elements of a channel, channels, are gradients needed, is it evaluation: if not said, no)."""
    of_batch = minima(name, inference=65536, training=65536)

    @tables.remembered
    def decide(where, size, dtype) -> str:
        elements, channels, training, evaluates = (*size, False)[:4]
        if evaluates and where.is_gpu:
            return gpu.decide(where.kernels, f"{name} evaluation", elements * channels, training, dtype)
        if evaluates and elements * channels < IN_EVALUATION[name]:
            return SMALL
        return of_batch.decide(where, (elements, channels, training), dtype)

    return decide
