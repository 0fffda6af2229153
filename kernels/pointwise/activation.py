"""Activations over a dense buffer; the functions are the rows of pyflash/activations.py, rendered to activations.py."""

import triton
import triton.language as tl

from pyflash.kernels import launch, primitives, tuning
from pyflash.kernels.pointwise import activations


@launch.cached
@triton.jit
def _activation_fwd(
    x_ptr, y_ptr, size, first: "fp64", second: "fp64", ACTIVATION: tl.constexpr, BLOCK: tl.constexpr  # noqa: F821
):  # fmt: skip
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < size
    x = tl.load(x_ptr + offs, mask=mask, other=0.0)
    coarse: tl.constexpr = y_ptr.dtype.element_ty.primitive_bitwidth == 16
    y = activations.fwd(primitives.cast(x, primitives.acc_dtype(x.dtype)), first, second, ACTIVATION, coarse)
    tl.store(y_ptr + offs, primitives.cast(y, y_ptr.dtype.element_ty), mask=mask)


@launch.cached
@triton.jit
def _activation_bwd(
    dy_ptr, saved_ptr, dx_ptr, size, first: "fp64", second: "fp64", ACTIVATION: tl.constexpr,  # noqa: F821
    BLOCK: tl.constexpr,
):  # fmt: skip
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < size
    dy = tl.load(dy_ptr + offs, mask=mask, other=0.0)
    saved = tl.load(saved_ptr + offs, mask=mask, other=0.0)
    acc: tl.constexpr = primitives.acc_dtype(dy.dtype)
    coarse: tl.constexpr = dx_ptr.dtype.element_ty.primitive_bitwidth == 16
    dx = activations.bwd(primitives.cast(dy, acc), primitives.cast(saved, acc), first, second, ACTIVATION, coarse)
    tl.store(dx_ptr + offs, primitives.cast(dx, dx_ptr.dtype.element_ty), mask=mask)


@launch.cached
@triton.jit
def _activation_bwd_bwd(
    ddx_ptr, dy_ptr, saved_ptr, ddy_ptr, dsaved_ptr, size, first: "fp64", second: "fp64",  # noqa: F821
    ACTIVATION: tl.constexpr, NEED_DDY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < size
    dtype: tl.constexpr = dsaved_ptr.dtype.element_ty
    acc: tl.constexpr = primitives.acc_dtype(dtype)
    coarse: tl.constexpr = dtype.primitive_bitwidth == 16
    ddx = primitives.cast(tl.load(ddx_ptr + offs, mask=mask, other=0.0), acc)
    dy = primitives.cast(tl.load(dy_ptr + offs, mask=mask, other=0.0), acc)
    saved = primitives.cast(tl.load(saved_ptr + offs, mask=mask, other=0.0), acc)
    if NEED_DDY:
        ddy = activations.bwd(ddx, saved, first, second, ACTIVATION, coarse)
        tl.store(ddy_ptr + offs, primitives.cast(ddy, dtype), mask=mask)
    dsaved = activations.bwd_bwd(ddx, dy, saved, first, second, ACTIVATION, coarse)
    tl.store(dsaved_ptr + offs, primitives.cast(dsaved, dtype), mask=mask)


def activation_fwd(x, activation, first, second, y):
    """y = activation(x), a name of the table and the values of its parameters; x and y dense, of one memory order."""
    if x.numel():
        grid = (launch.cdiv(x.numel(), tuning.POINTWISE_BLOCK),)
        _activation_fwd[grid](x, y, x.numel(), first, second, ACTIVATION=activation, BLOCK=tuning.POINTWISE_BLOCK)


def activation_bwd(dy, saved, activation, first, second, dx):
    """dx = dy * activation'; saved is the forward's x or y, as the activation's row says; all dense, of one order."""
    if dy.numel():
        grid = (launch.cdiv(dy.numel(), tuning.POINTWISE_BLOCK),)
        _activation_bwd[grid](
            dy, saved, dx, dy.numel(), first, second, ACTIVATION=activation, BLOCK=tuning.POINTWISE_BLOCK
        )


def activation_bwd_bwd(ddx, dy, saved, activation, first, second, need_ddy, ddy, dsaved):
    """ddy = ddx * activation', where it is needed, and dsaved = ddx * dy * activation''; all dense, of one order."""
    if ddx.numel():
        grid = (launch.cdiv(ddx.numel(), tuning.POINTWISE_BLOCK),)
        _activation_bwd_bwd[grid](
            ddx, dy, saved, ddy if need_ddy else dsaved, dsaved, ddx.numel(), first, second,
            ACTIVATION=activation, NEED_DDY=need_ddy, BLOCK=tuning.POINTWISE_BLOCK,
        )  # fmt: skip
