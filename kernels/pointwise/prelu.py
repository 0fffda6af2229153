"""PReLU: y = x where it is positive, else weight x, with a weight for all or one a channel; its backward in one pass."""

import triton
import triton.language as tl

from pyflash.kernels import launch, tuning
from pyflash.kernels.pointwise.channels import offsets, shares, sum_parts
from pyflash.kernels.primitives import acc_of, cast


@launch.cached
@triton.jit
def _prelu_fwd(x_ptr, weight_ptr, y_ptr, size, channels, inner, ACC: tl.constexpr, BLOCK: tl.constexpr):
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < size
    x = cast(tl.load(x_ptr + offs, mask=mask, other=0.0), ACC)
    weight = cast(tl.load(weight_ptr + offs // inner % channels, mask=mask, other=0.0), ACC)
    tl.store(y_ptr + offs, cast(tl.where(x > 0, x, weight * x), y_ptr.dtype.element_ty), mask=mask)


@launch.cached
@triton.jit(do_not_specialize=["count"])
def _prelu_bwd(
    dy_ptr, x_ptr, weight_ptr, dx_ptr, partial_ptr, channels, inner, count,
    ACC: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """dx, and this program's share of dweight [parts, channels]; `count` elements a channel."""
    part = tl.program_id(1).to(tl.int64)
    parts = tl.num_programs(1)
    offs_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = offs_c < channels
    weight = cast(tl.load(weight_ptr + offs_c, mask=mask_c, other=0.0), ACC)
    sums = tl.zeros([BLOCK_C, BLOCK_R], ACC)
    for first in range(part * BLOCK_R, count, parts * BLOCK_R):
        offs, offs_r = offsets(first, offs_c, channels, inner, BLOCK_R)
        mask = mask_c[:, None] & (offs_r < count)
        dy = cast(tl.load(dy_ptr + offs, mask=mask, other=0.0), ACC)  # [BLOCK_C, BLOCK_R]
        x = cast(tl.load(x_ptr + offs, mask=mask, other=0.0), ACC)
        dx = tl.where(x > 0, dy, weight[:, None] * dy)
        tl.store(dx_ptr + offs, cast(dx, dx_ptr.dtype.element_ty), mask=mask)
        sums += tl.where(x > 0, 0.0, x * dy)
    tl.store(partial_ptr + part * channels + offs_c, tl.sum(sums, 1), mask=mask_c)


def _channels_of(x, weight):
    """(channels, inner), the elements of a channel that lie together."""
    if weight.numel() == 1 or x.shape[1] == 1:
        return 1, max(x.numel(), 1)
    return x.shape[1], x.stride(1)


def prelu_fwd(x, weight, y):
    """Fill y; x and y dense, of one memory order; weight [1], or [channels] for dimension 1."""
    if x.numel():
        grid = (launch.cdiv(x.numel(), tuning.POINTWISE_BLOCK),)
        _prelu_fwd[grid](x, weight, y, x.numel(), *_channels_of(x, weight), ACC=acc_of(x), BLOCK=tuning.POINTWISE_BLOCK)


def prelu_bwd(dy, x, weight, need_dweight, dx, dweight):
    """Fill dx and, where it is needed, dweight, float32 (float64 for float64); dense tensors of one memory order."""
    if x.numel() == 0:
        dweight.zero_()
        return
    channels, inner = _channels_of(x, weight)
    sums = dweight if need_dweight else dweight.new_empty(channels)
    grid, tile, partial, count = shares(x, channels, inner, sums)
    _prelu_bwd[grid](dy, x, weight, dx, partial, channels, inner, count, ACC=acc_of(x), **tile)
    if need_dweight:
        sum_parts(partial, dweight)
