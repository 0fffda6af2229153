"""Linear: y = activation(x weight^T + bias) as one tiled product with a fused epilogue; the backward's two products too.

Source: the tiling is the textbook one; programs are numbered so that a band of row tiles shares its columns in L2.
"""

import torch
import triton
import triton.language as tl

from pyflash.kernels import launch, tuning
from pyflash.kernels.pointwise import activations
from pyflash.kernels.pointwise.activation import activation_bwd
from pyflash.kernels.primitives import cast, dot
from pyflash.kernels.strided import strided


@triton.jit
def _finish(acc, bias_ptr, c, preact, offs_m, offs_n, M, N, bias_row_stride, first, second, ACTIVATION: tl.constexpr,
            BIAS_IS_MATRIX: tl.constexpr):  # fmt: skip
    """What follows the product acc [len(offs_m), len(offs_n)] of a tile: bias, activation, stores. bias: [N], or [M, N] where
    it is a matrix; c, preact: Strided [M, N]."""
    rows = offs_m.to(tl.int64)[:, None]
    mask = (offs_m[:, None] < M) & (offs_n[None, :] < N)
    if bias_ptr is not None:
        if BIAS_IS_MATRIX:
            acc += tl.load(bias_ptr + rows * bias_row_stride + offs_n[None, :], mask=mask, other=0.0).to(tl.float32)
        else:
            acc += tl.load(bias_ptr + offs_n, mask=offs_n < N, other=0.0).to(tl.float32)[None, :]
    if preact is not None:
        ptrs = preact.ptr + rows * preact.strides[0] + offs_n[None, :] * preact.strides[1]
        tl.store(ptrs, cast(acc, preact.ptr.dtype.element_ty), mask=mask)
    acc = activations.fwd(acc, first, second, ACTIVATION, c.ptr.dtype.element_ty.primitive_bitwidth == 16)
    ptrs = c.ptr + rows * c.strides[0] + offs_n[None, :] * c.strides[1]
    tl.store(ptrs, cast(acc, c.ptr.dtype.element_ty), mask=mask)


@triton.jit
def product_tile(
    a, b, offs_m, offs_n, M, N, K, EVEN_K: tl.constexpr, PART: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile [BLOCK_M, BLOCK_N] of a b, in float32. a: Strided [M, K]; b: [K, N].

    Rows and columns past the end read the first ones again: the loop needs no mask for them.
    """
    offs_k = tl.arange(0, BLOCK_K).to(tl.int64)
    # a_tile: [BLOCK_M, BLOCK_K]; b_tile: [BLOCK_K, BLOCK_N]
    a_ptrs = a.ptr + (offs_m % M).to(tl.int64)[:, None] * a.strides[0] + offs_k[None, :] * a.strides[1]
    b_ptrs = b.ptr + offs_k[:, None] * b.strides[0] + (offs_n % N).to(tl.int64)[None, :] * b.strides[1]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    part = acc
    for k in range(0, K, BLOCK_K):
        if EVEN_K:
            a_tile = tl.load(a_ptrs)
            b_tile = tl.load(b_ptrs)
        else:
            a_tile = tl.load(a_ptrs, mask=offs_k[None, :] < K - k, other=0.0)
            b_tile = tl.load(b_ptrs, mask=offs_k[:, None] < K - k, other=0.0)
        part = dot(a_tile, b_tile, part, PRECISION)  # [BLOCK_M, BLOCK_N]
        a_ptrs += BLOCK_K * a.strides[1]
        b_ptrs += BLOCK_K * b.strides[0]
        if PART > 0:
            is_whole = (k + BLOCK_K) % PART == 0
            acc += tl.where(is_whole, part, 0.0)
            part = tl.where(is_whole, 0.0, part)
    if PART > 0:
        acc += part
    else:
        acc = part
    return acc


@launch.cached
@triton.jit
def _matmul(
    a, b, bias_ptr, c, preact, M, N, K, bias_row_stride, first: "fp64", second: "fp64",  # noqa: F821
    ACTIVATION: tl.constexpr, BIAS_IS_MATRIX: tl.constexpr,
    EVEN_K: tl.constexpr, PART: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, BAND: tl.constexpr,
):  # fmt: skip
    """c = activation(a b + bias), preact = a b + bias, one tile [BLOCK_M, BLOCK_N] a program.

    a: Strided [M, K]; b: [K, N]; c, preact: [M, N]; bias: [N], or [M, N] where BIAS_IS_MATRIX.
    """
    pid = tl.program_id(0)
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    first = pid // (BAND * tiles_n) * BAND
    height = tl.minimum(tiles_m - first, BAND)
    tile_m = first + pid % (BAND * tiles_n) % height
    tile_n = pid % (BAND * tiles_n) // height
    offs_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = product_tile(a, b, offs_m, offs_n, M, N, K, EVEN_K, PART, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K)

    if BLOCK_N < 256:
        _finish(
            acc, bias_ptr, c, preact, offs_m, offs_n, M, N, bias_row_stride, first, second, ACTIVATION, BIAS_IS_MATRIX
        )
    else:  # one half after the other: an activation of so many elements at once spills
        left, right = tl.split(tl.permute(tl.reshape(acc, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1)))
        offs_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N // 2)
        _finish(
            left, bias_ptr, c, preact, offs_m, offs_n, M, N, bias_row_stride, first, second, ACTIVATION, BIAS_IS_MATRIX
        )
        offs_n += BLOCK_N // 2
        _finish(
            right, bias_ptr, c, preact, offs_m, offs_n, M, N, bias_row_stride, first, second, ACTIVATION, BIAS_IS_MATRIX
        )


def linear_fwd(x, weight, bias, activation, first, second, save_preact, y, preact):
    """Fill y = activation(x weight^T + bias) and, if save_preact, preact = x weight^T + bias.

    Args:
        x: [M, K]; weight: [N, K]; y, preact: [M, N]; any strides. float32, float16 or bfloat16.
        bias: [N], contiguous, or [M, N] with adjacent columns; or None.
        activation: a name of the activation table, or "" for none; first, second: the values of its parameters.
    """
    product(x, weight.t(), y, bias, (activation, first, second), preact if save_preact else None)


def matmul(a, b, c):
    """Fill c = a b; a [M, K], b [K, N], any strides. The backward of linear is dx = dz weight, dweight = dz^T x."""
    product(a, b, c)


def linear_bwd(
    dy, x, weight, saved, activation, first, second, need_dx, need_dweight, need_dbias, dx, dweight, dbias
):  # fmt: skip
    """Fill the gradients of activation(x weight^T + bias) that are needed; `saved` is what the activation's row saves."""
    dz = dy
    if activation:
        dz = torch.empty_like(saved)
        activation_bwd(dy.contiguous(), saved, activation, first, second, dz)
    if need_dx:
        product(dz, weight, dx)
    if need_dweight:
        product(dz.t(), x, dweight)
    if need_dbias:
        torch.sum(dz, 0, out=dbias)


def summed(K, dtype, block_k, precision=None):
    """How product_tile adds up K products: precision as of `product`."""
    precision = precision or tuning.input_precision()
    # The error of a sum grows with the root of its length: long exact ones are sums of parts, as on the CPU.
    part = 512 if K > 512 and dtype == torch.float32 and precision == "ieee" else 0
    return dict(EVEN_K=K % block_k == 0, PART=part, PRECISION=precision)


def product(a, b, c, bias=None, activation=("", 0.0, 0.0), preact=None, precision=None):
    """Fill c = activation(a b + bias) and, if given, preact = a b + bias.

    Args:
        a: [M, K]; b: [K, N]; c, preact: [M, N]; any strides.
        bias: [N], contiguous, or [M, N] with adjacent columns; or None.
        activation: a name of the activation table, or "", and the values of its parameters.
        precision: "ieee" or "tf32"; default as torch allows it for float32 products.
    """
    (M, K), N = a.shape, b.shape[1]
    if M * N == 0:
        return
    config = tuning.matmul(tuning.arch(a.device), a.dtype, M, N, K)
    grid = (launch.cdiv(M, config["BLOCK_M"]) * launch.cdiv(N, config["BLOCK_N"]),)
    is_matrix = bias is not None and bias.dim() == 2
    _matmul[grid](
        strided(a), strided(b), bias, strided(c), strided(preact), M, N, K, bias.stride(0) if is_matrix else 0,
        *activation[1:], ACTIVATION=activation[0], BIAS_IS_MATRIX=is_matrix,
        BAND=8, **summed(K, a.dtype, config["BLOCK_K"], precision), **config,
    )  # fmt: skip
