"""Dropout: y = x * keep / (1 - p), the mask recomputed from the seed wherever it is needed; and its other forms, which add
to kept and to dropped elements, or draw for whole channels.

The backward is the same kernel on dy.
"""

import torch
import triton
import triton.language as tl

from pyflash.kernels import launch, philox, primitives, tuning
from pyflash.kernels.dropout import affine, by_channel, keep_scale, threshold


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


@launch.cached
@triton.jit
def _dropout_form(
    x_ptr, seed_ptr, y_ptr, size, drop_below, scale: "fp64", of_kept: "fp64", of_dropped: "fp64",  # noqa: F821
    HAS_SHIFT: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """y = x (kept ? scale : 0) + (kept ? of_kept : of_dropped); of ones without x."""
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    words = philox.elementwise_words(tl.load(seed_ptr), block)
    acc: tl.constexpr = primitives.acc_dtype(y_ptr.dtype.element_ty)
    for w in tl.static_range(4):
        offs = block[:, None] * 64 + w * 16 + tl.arange(0, 16)[None, :]
        mask = offs < size
        kept = words[w] >= drop_below
        y = tl.where(kept, primitives.scalar(scale, acc), 0.0)
        if x_ptr is not None:
            y *= primitives.cast(tl.load(x_ptr + offs, mask=mask, other=0.0), acc)
        if HAS_SHIFT:
            y += tl.where(kept, primitives.scalar(of_kept, acc), primitives.scalar(of_dropped, acc))
        tl.store(y_ptr + offs, primitives.cast(y, y_ptr.dtype.element_ty), mask=mask)


@launch.cached
@triton.jit
def _scale_channels(
    x_ptr, factors_ptr, y_ptr, size, channels, inner, of_kept: "fp64", of_dropped: "fp64",  # noqa: F821
    CHANNELS_LAST: tl.constexpr, HAS_SHIFT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y = x factor + (factor != 0 ? of_kept : of_dropped), factors [batch, channels]; x [batch, channels, inner] or [batch,
    inner, channels]."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < size
    if CHANNELS_LAST:
        channel = offs // (channels * inner) * channels + offs % channels
    else:
        channel = offs // inner
    factor = tl.load(factors_ptr + channel, mask=mask, other=0.0)
    acc: tl.constexpr = factors_ptr.dtype.element_ty
    y = primitives.cast(tl.load(x_ptr + offs, mask=mask, other=0.0), acc) * factor
    if HAS_SHIFT:
        y += tl.where(factor != 0, primitives.scalar(of_kept, acc), primitives.scalar(of_dropped, acc))
    tl.store(y_ptr + offs, primitives.cast(y, y_ptr.dtype.element_ty), mask=mask)


def dropout_form(x, seed, p, is_alpha, by_feature, has_shift, y):
    """Fill y, laid out in memory as x; both dense.

    Args:
        x: any shape; by_feature: [batch, channels, ...], contiguous or channels last.
        seed, p: as dropout's.
        is_alpha: alpha dropout; has_shift: False leaves out what does not depend on x, for the derivative.
        by_feature: a word for each channel.
    """
    if x.numel() == 0:
        return
    scale, *shifts = affine(p, is_alpha, has_shift)
    target, source, size = y, x, x.numel()
    if by_feature:
        batch, channels, inner, is_channels_last = by_channel(x)
        acc = torch.float64 if x.dtype == torch.float64 else torch.float32
        target, source, size = torch.empty(batch * channels, dtype=acc, device=x.device), None, batch * channels
    block = tuning.dropout_block(target.dtype)
    _dropout_form[(launch.cdiv(size, block),)](
        source, seed, target, size, threshold(p), scale, *shifts, HAS_SHIFT=any(shifts) and not by_feature,
        BLOCKS=block // 64,
    )  # fmt: skip
    if by_feature:
        block = tuning.POINTWISE_BLOCK
        _scale_channels[(launch.cdiv(x.numel(), block),)](
            x,
            target,
            y,
            x.numel(),
            channels,
            inner,
            *shifts,
            CHANNELS_LAST=is_channels_last,
            HAS_SHIFT=any(shifts),
            BLOCK=block,
        )
