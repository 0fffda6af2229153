"""Cross entropy of a linear layer's results: worth it where these are many, for the memory above all."""

from math import prod

import torch

from pyflash.auto import MEASURED, SMALL, gpu, tables

# Where no table speaks: rows x classes x features of float32 and float64. Zen 4, one thread of a busy machine, time over that of
# torch's two calls, forward and training: 1.8 and 1.9 at 64x512x64, 0.6 and 0.8 at 256x1000x64, 0.7 and 0.8 at 512x8192x256, 0.6 and
# 0.7 at 1024x25128x512.
LEAST_PRODUCT = 1 << 24
# Scores of half types, whose gradients take a fourth product: forward and training 1.0 and 1.4 of bfloat16 at 512x8192x256, 0.7 and
# 1.04 at 2048x25128x512. From here on, 64 MB of scores, torch's three tensors as large as these are what counts.
LEAST_SCORES = 1 << 25


@tables.remembered
def linear_cross_entropy_rules(where, size, dtype) -> str:
    """size: (rows, classes, features, are gradients needed)."""
    *sizes, training = size
    mode = "training" if training else "inference"
    ours = tables.ours(where, "linear_cross_entropy", "", dtype, mode, tuple(sizes))
    if ours is not None:
        return "" if ours else MEASURED
    rows, classes, _ = sizes
    if where.is_gpu:
        return gpu.decide(where.kernels, "linear_cross_entropy", rows * classes, training, dtype)
    if dtype in (torch.float32, torch.float64):
        return SMALL if prod(sizes) < LEAST_PRODUCT else ""
    return SMALL if rows * classes < LEAST_SCORES else ""
