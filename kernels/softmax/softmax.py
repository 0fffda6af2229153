"""Softmax over one dimension, its logarithm and softmin, and their backward: y = exp(x - max) / sum(exp(x - max)).

A tile is [BLOCK_M, BLOCK_N] with the dimension of the softmax along N, whether its elements are adjacent in memory (rows) or
those of M are (columns). A program holds N whole in registers; of a longer one it walks in blocks, twice: the maximum and
the sum of what is counted from it, corrected as the maximum grows (Milakov & Gimelshein 2018, arXiv:1805.02867), then the
result, and finds the elements of the second walk in L2.
"""

import triton
import triton.language as tl

from pyflash.kernels import launch, tuning
from pyflash.kernels.grouped import grouped
from pyflash.kernels.primitives import acc_of, cast, exp, lowest
from pyflash.kernels.softmax.layout import LOGARITHM, NEGATES


@triton.jit
def _offsets(blocks, BLOCK_M: tl.constexpr):
    """This program's group and its places in M."""
    pid = tl.program_id(0)
    return (pid // blocks).to(tl.int64), ((pid % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)


@triton.jit
def _load(ptr, offs_m, m_stride, M, offs_n, n_stride, N, OTHER: tl.constexpr, ACC: tl.constexpr):
    """[BLOCK_M, BLOCK_N], OTHER from N on and 0 from M on."""
    mask_m, mask_n = offs_m < M, offs_n < N
    ptrs = ptr + offs_m[:, None] * m_stride + offs_n[None, :] * n_stride
    tile = cast(tl.load(ptrs, mask=mask_m[:, None] & mask_n[None, :], other=0.0), ACC)
    if OTHER != 0.0:
        tile = tl.where(mask_n[None, :], tile, OTHER)
    return tile


@triton.jit
def _store(ptr, tile, offs_m, m_stride, M, offs_n, n_stride, N):
    ptrs = ptr + offs_m[:, None] * m_stride + offs_n[None, :] * n_stride
    mask = (offs_m < M)[:, None] & (offs_n < N)[None, :]
    tl.store(ptrs, cast(tile, ptr.dtype.element_ty), mask=mask)


@launch.cached
@triton.jit(do_not_specialize=["blocks"])
def _softmax_fwd(
    x_ptr, y_ptr, x_group_stride, x_m_stride, x_n_stride, y_group_stride, y_m_stride, y_n_stride, blocks, M, N,
    SIGN: tl.constexpr, IS_LOG: tl.constexpr, ACC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """y of BLOCK_M of M, N whole; x, y: [groups, M, N] of any strides."""
    group, offs_m = _offsets(blocks, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N).to(tl.int64)
    x = _load(x_ptr + group * x_group_stride, offs_m, x_m_stride, M, offs_n, x_n_stride, N, SIGN * float("-inf"), ACC)
    x *= SIGN
    x -= tl.max(x, 1)[:, None]
    e = exp(x)
    total = tl.sum(e, 1)[:, None]
    y = x - tl.log(total) if IS_LOG else e / total
    _store(y_ptr + group * y_group_stride, y, offs_m, y_m_stride, M, offs_n, y_n_stride, N)


@launch.cached
@triton.jit(do_not_specialize=["blocks"])
def _softmax_fwd_long(
    x_ptr, y_ptr, x_group_stride, x_m_stride, x_n_stride, y_group_stride, y_m_stride, y_n_stride, blocks, M, N,
    SIGN: tl.constexpr, IS_LOG: tl.constexpr, ACC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The same, N in blocks."""
    group, offs_m = _offsets(blocks, BLOCK_M)
    block = tl.arange(0, BLOCK_N).to(tl.int64)
    x_ptr += group * x_group_stride
    top = tl.full([BLOCK_M], lowest(ACC), ACC)
    total = tl.zeros([BLOCK_M], ACC)
    for first in range(0, N, BLOCK_N):
        x = SIGN * _load(x_ptr, offs_m, x_m_stride, M, first + block, x_n_stride, N, SIGN * float("-inf"), ACC)
        own = tl.maximum(top, tl.max(x, 1))
        total = total * exp(top - own) + tl.sum(exp(x - own[:, None]), 1)
        top = own
    shift = tl.log(total) if IS_LOG else 1 / total
    for first in range(0, N, BLOCK_N):
        offs_n = first + block
        x = SIGN * _load(x_ptr, offs_m, x_m_stride, M, offs_n, x_n_stride, N, 0.0, ACC) - top[:, None]
        y = x - shift[:, None] if IS_LOG else exp(x) * shift[:, None]
        _store(y_ptr + group * y_group_stride, y, offs_m, y_m_stride, M, offs_n, y_n_stride, N)


@triton.jit
def _gradient(dy, y, total, SIGN: tl.constexpr, IS_LOG: tl.constexpr):
    return dy - exp(y) * total if IS_LOG else SIGN * y * (dy - total)


@launch.cached
@triton.jit(do_not_specialize=["blocks"])
def _softmax_bwd(
    dy_ptr, y_ptr, dx_ptr, dy_group_stride, dy_m_stride, dy_n_stride, y_group_stride, y_m_stride, y_n_stride,
    dx_group_stride, dx_m_stride, dx_n_stride, blocks, M, N, SIGN: tl.constexpr, IS_LOG: tl.constexpr,
    ACC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dx of BLOCK_M of M, N whole; dy, y, dx: [groups, M, N] of any strides."""
    group, offs_m = _offsets(blocks, BLOCK_M)
    offs_n = tl.arange(0, BLOCK_N).to(tl.int64)
    dy = _load(dy_ptr + group * dy_group_stride, offs_m, dy_m_stride, M, offs_n, dy_n_stride, N, 0.0, ACC)
    y = _load(y_ptr + group * y_group_stride, offs_m, y_m_stride, M, offs_n, y_n_stride, N, 0.0, ACC)
    total = tl.sum(dy if IS_LOG else dy * y, 1)[:, None]
    dx = _gradient(dy, y, total, SIGN, IS_LOG)
    _store(dx_ptr + group * dx_group_stride, dx, offs_m, dx_m_stride, M, offs_n, dx_n_stride, N)


@launch.cached
@triton.jit(do_not_specialize=["blocks"])
def _softmax_bwd_long(
    dy_ptr, y_ptr, dx_ptr, dy_group_stride, dy_m_stride, dy_n_stride, y_group_stride, y_m_stride, y_n_stride,
    dx_group_stride, dx_m_stride, dx_n_stride, blocks, M, N, SIGN: tl.constexpr, IS_LOG: tl.constexpr,
    ACC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The same, N in blocks."""
    group, offs_m = _offsets(blocks, BLOCK_M)
    block = tl.arange(0, BLOCK_N).to(tl.int64)
    dy_ptr += group * dy_group_stride
    y_ptr += group * y_group_stride
    total = tl.zeros([BLOCK_M], ACC)
    for first in range(0, N, BLOCK_N):
        dy = _load(dy_ptr, offs_m, dy_m_stride, M, first + block, dy_n_stride, N, 0.0, ACC)
        if not IS_LOG:
            dy *= _load(y_ptr, offs_m, y_m_stride, M, first + block, y_n_stride, N, 0.0, ACC)
        total += tl.sum(dy, 1)
    for first in range(0, N, BLOCK_N):
        offs_n = first + block
        dy = _load(dy_ptr, offs_m, dy_m_stride, M, offs_n, dy_n_stride, N, 0.0, ACC)
        y = _load(y_ptr, offs_m, y_m_stride, M, offs_n, y_n_stride, N, 0.0, ACC)
        dx = _gradient(dy, y, total[:, None], SIGN, IS_LOG)
        _store(dx_ptr + group * dx_group_stride, dx, offs_m, dx_m_stride, M, offs_n, dx_n_stride, N)


def _as_tiles(tensor, dim):
    """(groups, M, N) of a tensor, and its strides: rows are one group, columns a group for each of `outer`."""
    tensor = grouped(tensor, dim)
    outer, n, inner = tensor.shape
    if inner == 1:
        return tensor, (1, outer, n), (0, tensor.stride(0), tensor.stride(1))
    return tensor, (outer, inner, n), (tensor.stride(0), tensor.stride(2), tensor.stride(1))


def _launch(whole, in_blocks, tensors, dim, kind):
    """One of two kernels over tensors of one shape, the last of which it fills."""
    if tensors[0].numel() == 0:
        return
    tensors, sizes, strides = zip(*(_as_tiles(tensor, dim) for tensor in tensors))
    groups, M, N = sizes[0]
    arch, is_rows = tuning.arch(tensors[0].device), tensors[0].shape[2] == 1
    config = tuning.row_block(arch, N) if is_rows else tuning.column_block(arch, N)
    blocks = launch.cdiv(M, config["BLOCK_M"])
    kernel = whole if N <= config["BLOCK_N"] else in_blocks
    kernel[(groups * blocks,)](
        *tensors, *(stride for each in strides for stride in each), blocks, M, N,
        SIGN=-1.0 if kind == NEGATES else 1.0, IS_LOG=kind == LOGARITHM,
        ACC=acc_of(tensors[0]), **config,
    )  # fmt: skip


def softmax_fwd(x, dim, kind, dtype, y):
    """Fill y of x's shape, contiguous: the softmax over `dim`, of -x for "softmin", or "log_softmax".

    Args:
        x: any strides; copied where layout.grouped does.
        y: x's type, or float32 beside a half type.
    """
    _launch(_softmax_fwd, _softmax_fwd_long, (x, y), dim, kind)


def softmax_bwd(dy, y, dim, kind, dtype, dx):
    """Fill dx of y's shape, contiguous; y is the forward's result and dy its gradient.

    Args:
        dy, y: of one type; any strides.
        dx: that type, or a half type beside float32.
    """
    _launch(_softmax_bwd, _softmax_bwd_long, (dy, y, dx), dim, kind)
