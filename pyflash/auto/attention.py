"""Attention: what `auto` leaves to torch.

On a CPU a call that records gradients is ours whatever its size: torch's fused kernel has no second derivative there.
Forward and backward on two Zen 4 cores, causal, ours and torch's us: B2 H4 N8 D8 122, 67; N32 D16 135, 140; B1 H8 N64 D32
215, 289. On a GPU it has none either, and is twice as fast: there such calls are torch's, and `use_backend("triton")`
gives second derivatives.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from pyflash.auto import MEASURED, SMALL, processor, tables
from pyflash.auto.gpu import GPU_ELEMENTS

MIN_SIZE = 1 << 22  # of scores times (head_dim + value_dim): half the multiplications. Set on Zen 4
FUSED = ("plain", "causal", "mask")  # the kinds that torch has a kernel for on a CPU; on a GPU dropout, too
HALVES = (torch.bfloat16, torch.float16)


class Size(NamedTuple):
    """kind: of FUSED; "dropout"; "weights", where they are the result; or "extended": what torch only has in many
    operations (softcap, windows, ALiBi, the softmax's logarithm, a mask beside is_causal, a mask that needs a gradient).
    """

    kind: str
    heads: int  # of all batches
    queries: int
    keys: int
    dim: int  # head_dim + value_dim
    training: bool


def decide(where: processor.Place, size: Size, dtype) -> str:
    kind, *sizes, training = size
    if kind == "extended" or (kind == "dropout" and not where.is_gpu):
        return ""  # torch's is several times slower at every size: 2 to 65 times on two Emerald Rapids cores
    # Whose dropout it is must not depend on gradients: a reentrant checkpoint computes without them, then with.
    mode = "any" if kind == "dropout" else "training" if training else "inference"
    ours = tables.ours(where, "attention", kind, dtype, mode, sizes)
    if where.is_gpu:  # on an H200, times torch's speed: forward 0.64 to 0.72, backward 0.5 to 0.6, dropout 0.6 and 0.2
        if kind == "weights" and ours is None and dtype in HALVES:  # 2.7 forward, 1.4 backward
            return SMALL if math.prod(sizes[:3]) < GPU_ELEMENTS else ""
        return "" if ours else "torch's own is faster on a GPU"
    if kind in FUSED and dtype == torch.bfloat16 and where.family == "amx":
        if not ours or training:  # measured 302 GFLOP/s a core, where our float32 reaches 110
            return "bfloat16: torch uses this processor's matrix unit"
    if training and kind in FUSED:
        return ""
    if ours is not None:
        return "" if ours else MEASURED
    heads, queries, keys, dim = sizes
    if heads * queries * keys * dim < MIN_SIZE:
        return SMALL
    if dtype == torch.float64:
        return "float64: torch's matrix products are faster"
    if kind in ("plain", "causal") and where.family not in processor.MEASURED_BY_HAND:
        return "torch has a fused kernel, and no table of this processor says that ours is faster"
    return ""


rules = tables.remembered(decide)


# Several heads and encoder layers as a whole. Provisional: benchmarks transformer, the rows "tiny".
MIN_FLOPS = {"cpu": 1 << 22}  # below it Python's share of our composition outweighs what the kernels gain


def prefers_torch(device: str, elements: int, embed_dim: int, keys: int) -> bool:
    """elements: of the query. Four projections and two products with the keys."""
    return 2 * elements * (4 * embed_dim + 2 * keys) < MIN_FLOPS.get(device, 0)
