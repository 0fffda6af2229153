"""RReLU in training, and its backward: d where x is positive, else d times a slope from the seed, d being x or dy."""

import triton
import triton.language as tl

from pyflash.kernels import launch, philox, primitives, tuning


@launch.cached
@triton.jit
def _rrelu(d_ptr, x_ptr, seed_ptr, y_ptr, size, lower: "fp64", width: "fp64", BLOCKS: tl.constexpr):  # noqa: F821
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    words = philox.elementwise_words(tl.load(seed_ptr), block)
    acc: tl.constexpr = primitives.acc_dtype(d_ptr.dtype.element_ty)
    for w in tl.static_range(4):
        offs = block[:, None] * 64 + w * 16 + tl.arange(0, 16)[None, :]
        mask = offs < size
        d = primitives.cast(tl.load(d_ptr + offs, mask=mask, other=0.0), acc)
        x = primitives.cast(tl.load(x_ptr + offs, mask=mask, other=0.0), acc)
        slope = primitives.scalar(lower, acc) + primitives.scalar(width, acc) * (words[w] >> 8).to(acc)
        y = tl.where(x <= 0, d * slope, d)
        tl.store(y_ptr + offs, primitives.cast(y, y_ptr.dtype.element_ty), mask=mask)


def rrelu(d, x, seed, lower, upper, y):
    """Fill y; d, x and y dense, of one memory order, numbered in it as dropout's words are."""
    if d.numel() == 0:
        return
    block = tuning.dropout_block(d.dtype)
    grid = (launch.cdiv(d.numel(), block),)
    _rrelu[grid](d, x, seed, y, d.numel(), float(lower), (upper - lower) * 2.0**-24, BLOCKS=block // 64)
