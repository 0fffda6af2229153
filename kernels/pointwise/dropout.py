"""Dropout: y = x * keep / (1 - p), the mask recomputed from the seed wherever it is needed.

The backward is the same kernel on dy.
"""

import triton
import triton.language as tl

from pyflash.kernels import launch, philox, primitives, tuning
from pyflash.kernels.dropout import keep_scale, threshold


@launch.cached
@triton.jit
def _dropout(x_ptr, seed_ptr, y_ptr, size, drop_below, scale: "fp64", BLOCKS: tl.constexpr):  # noqa: F821
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    words = philox.elementwise_words(tl.load(seed_ptr), block)
    for w in tl.static_range(4):
        offs = block[:, None] * 64 + w * 16 + tl.arange(0, 16)[None, :]
        mask = offs < size
        x = tl.load(x_ptr + offs, mask=mask)
        x = x.to(primitives.acc_dtype(x.dtype))
        y = x * tl.where(words[w] >= drop_below, tl.full([1, 1], scale, x.dtype), 0.0)  # as in torch, NaN * 0 is NaN
        tl.store(y_ptr + offs, primitives.cast(y, y_ptr.dtype.element_ty), mask=mask)


def dropout(x, seed, p, y):
    """Fill y, laid out in memory as x; both dense.

    Args:
        x: any shape, dense in some order of its dimensions; elements are numbered in memory order.
        seed: int64, one element, on x's device.
        p: probability of dropping, in [0, 1].
    """
    if x.numel() == 0:
        return
    block = tuning.dropout_block(x.dtype)
    grid = (launch.cdiv(x.numel(), block),)
    _dropout[grid](x, seed, y, x.numel(), threshold(p), keep_scale(p), BLOCKS=block // 64)
