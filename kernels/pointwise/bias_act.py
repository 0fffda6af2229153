"""y = residual + dropout(clamp(gain activation(x + bias))), any part of it absent, and its backward. Elements are numbered in
memory, as dropout numbers them."""

import triton
import triton.language as tl

from pyflash.kernels import launch, philox, primitives, tuning
from pyflash.kernels.dropout import keep_scale, threshold
from pyflash.kernels.pointwise import activations
from pyflash.kernels.pointwise.channels import sum_by_channel


@triton.jit
def _load(ptr, offs, mask):
    x = tl.load(ptr + offs, mask=mask, other=0.0)
    return primitives.cast(x, primitives.acc_dtype(x.dtype))


@triton.jit
def _biased(x_ptr, bias_ptr, offs, mask, channels, inner):
    x = _load(x_ptr, offs, mask)
    if bias_ptr is not None:
        x += primitives.cast(tl.load(bias_ptr + offs // inner % channels, mask=mask, other=0.0), x.dtype)
    return x


@launch.cached
@triton.jit
def _bias_act_fwd(
    x_ptr, bias_ptr, residual_ptr, seed_ptr, y_ptr, size, channels, inner, first: "fp64", second: "fp64",  # noqa: F821
    gain: "fp64", clamp: "fp64", drop_below, scale: "fp64",  # noqa: F821
    ACTIVATION: tl.constexpr, CLAMPS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    coarse: tl.constexpr = y_ptr.dtype.element_ty.primitive_bitwidth == 16
    if seed_ptr is not None:
        words = philox.elementwise_words(tl.load(seed_ptr), block)
    for w in tl.static_range(4):
        offs = block[:, None] * 64 + w * 16 + tl.arange(0, 16)[None, :]
        mask = offs < size
        z = _biased(x_ptr, bias_ptr, offs, mask, channels, inner)
        y = activations.fwd(z, first, second, ACTIVATION, coarse) * primitives.scalar(gain, z.dtype)
        if CLAMPS:
            most = primitives.scalar(clamp, z.dtype)
            y = tl.where(y > most, most, y)
            y = tl.where(y < -most, -most, y)
        if seed_ptr is not None:
            y *= tl.where(words[w] >= drop_below, tl.full([1, 1], scale, z.dtype), 0.0)
        if residual_ptr is not None:
            y += _load(residual_ptr, offs, mask)
        tl.store(y_ptr + offs, primitives.cast(y, y_ptr.dtype.element_ty), mask=mask)


@launch.cached
@triton.jit
def _bias_act_bwd(
    dy_ptr, x_ptr, bias_ptr, seed_ptr, dx_ptr, size, channels, inner, first: "fp64", second: "fp64",  # noqa: F821
    gain: "fp64", clamp: "fp64", drop_below, scale: "fp64",  # noqa: F821
    ACTIVATION: tl.constexpr, FROM_OUTPUT: tl.constexpr, CLAMPS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    coarse: tl.constexpr = dx_ptr.dtype.element_ty.primitive_bitwidth == 16
    if seed_ptr is not None:
        words = philox.elementwise_words(tl.load(seed_ptr), block)
    for w in tl.static_range(4):
        offs = block[:, None] * 64 + w * 16 + tl.arange(0, 16)[None, :]
        mask = offs < size
        d = _load(dy_ptr, offs, mask)
        if seed_ptr is not None:
            d *= tl.where(words[w] >= drop_below, tl.full([1, 1], scale, d.dtype), 0.0)
        d *= primitives.scalar(gain, d.dtype)
        if x_ptr is not None:
            z = _biased(x_ptr, bias_ptr, offs, mask, channels, inner)
            saved = z
            if FROM_OUTPUT or CLAMPS:
                y = activations.fwd(z, first, second, ACTIVATION, coarse)
                saved = y if FROM_OUTPUT else z
            d = activations.bwd(d, saved, first, second, ACTIVATION, coarse)
            if CLAMPS:  # at the bounds the gradient passes, as torch.clamp's
                u = tl.abs(y * primitives.scalar(gain, z.dtype))
                d = tl.where(u <= primitives.scalar(clamp, z.dtype), d, 0.0)
        tl.store(dx_ptr + offs, primitives.cast(d, dx_ptr.dtype.element_ty), mask=mask)


def _channels_of(x, dim):
    """(channels, inner), the elements of a channel that lie together."""
    if x.dim() == 0 or x.shape[dim] == 1:
        return 1, max(x.numel(), 1)
    return x.shape[dim], max(x.stride(dim), 1)


def bias_act_fwd(x, bias, residual, seed, dim, activation, first, second, gain, clamp, dropout_p, y):
    """Fill y; x, residual and y dense, of one memory order; bias [channels], of dimension dim.

    Args:
        seed: int64, one element; or None: nothing is dropped.
        clamp: negative for none.
    """
    if x.numel() == 0:
        return
    block = tuning.dropout_block(x.dtype)
    grid = (launch.cdiv(x.numel(), block),)
    _bias_act_fwd[grid](
        x, bias, residual, seed, y, x.numel(), *_channels_of(x, dim), first, second, gain, clamp,
        threshold(dropout_p), keep_scale(dropout_p), ACTIVATION=activation, CLAMPS=clamp >= 0, BLOCKS=block // 64,
    )  # fmt: skip


def bias_act_bwd(
    dy, x, bias, seed, dim, activation, first, second, gain, clamp, dropout_p, need_dbias, dx, dbias
):  # fmt: skip
    """Fill dx and, where it is needed, dbias [channels], float32 (float64 for float64).

    Args:
        x: None where there is neither an activation nor a clamp.
    """
    channels, inner = _channels_of(dy, dim)
    if dy.numel():
        block = tuning.dropout_block(dy.dtype)
        grid = (launch.cdiv(dy.numel(), block),)
        _bias_act_bwd[grid](
            dy, x, bias, seed, dx, dy.numel(), channels, inner, first, second, gain, clamp,
            threshold(dropout_p), keep_scale(dropout_p), ACTIVATION=activation,
            FROM_OUTPUT=activation in activations.FROM_OUTPUT, CLAMPS=clamp >= 0, BLOCKS=block // 64,
        )  # fmt: skip
    if need_dbias:
        sum_by_channel(dx, channels, inner, dbias)
