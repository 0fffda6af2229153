"""y = activation(gate) value, its backward, and the backward of that; the activations are the rows of the table."""

import triton
import triton.language as tl

from pyflash.kernels import launch, primitives, tuning
from pyflash.kernels.gated import all_halves, halves, rows_of
from pyflash.kernels.pointwise import activations


@triton.jit
def _load(ptr, offs, mask):
    x = tl.load(ptr + offs, mask=mask, other=0.0)
    return primitives.cast(x, primitives.acc_dtype(x.dtype))


@launch.cached
@triton.jit
def _gated_fwd(
    gate_ptr, value_ptr, y_ptr, size, cols, gate_row_stride, value_row_stride, first: "fp64", second: "fp64",  # noqa: F821
    ACTIVATION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < size
    row, col = offs // cols, offs % cols
    gate = _load(gate_ptr, row * gate_row_stride + col, mask)
    value = _load(value_ptr, row * value_row_stride + col, mask)
    coarse: tl.constexpr = y_ptr.dtype.element_ty.primitive_bitwidth == 16
    y = activations.fwd(gate, first, second, ACTIVATION, coarse) * value
    tl.store(y_ptr + offs, primitives.cast(y, y_ptr.dtype.element_ty), mask=mask)


@launch.cached
@triton.jit
def _gated_bwd(
    dy_ptr, gate_ptr, value_ptr, dgate_ptr, dvalue_ptr, size, cols, gate_row_stride, value_row_stride, dgate_row_stride,
    dvalue_row_stride, first: "fp64", second: "fp64",  # noqa: F821
    ACTIVATION: tl.constexpr, FROM_OUTPUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < size
    row, col = offs // cols, offs % cols
    gate = _load(gate_ptr, row * gate_row_stride + col, mask)
    value = _load(value_ptr, row * value_row_stride + col, mask)
    dy = _load(dy_ptr, offs, mask)
    coarse: tl.constexpr = dgate_ptr.dtype.element_ty.primitive_bitwidth == 16
    activated = activations.fwd(gate, first, second, ACTIVATION, coarse)
    saved = activated if FROM_OUTPUT else gate
    dgate = activations.bwd(dy * value, saved, first, second, ACTIVATION, coarse)
    dtype: tl.constexpr = dgate_ptr.dtype.element_ty
    tl.store(dgate_ptr + row * dgate_row_stride + col, primitives.cast(dgate, dtype), mask=mask)
    tl.store(dvalue_ptr + row * dvalue_row_stride + col, primitives.cast(dy * activated, dtype), mask=mask)


@launch.cached
@triton.jit
def _gated_bwd_bwd(
    ddgate_ptr, ddvalue_ptr, dy_ptr, gate_ptr, value_ptr, ddy_ptr, dgate_ptr, dvalue_ptr, size, cols, ddgate_row_stride,
    ddvalue_row_stride, gate_row_stride, value_row_stride, dgate_row_stride, dvalue_row_stride, first: "fp64",  # noqa: F821
    second: "fp64", ACTIVATION: tl.constexpr, FROM_OUTPUT: tl.constexpr, IS_CURVED: tl.constexpr, BLOCK: tl.constexpr,  # noqa: F821
):  # fmt: skip
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < size
    row, col = offs // cols, offs % cols
    gate = _load(gate_ptr, row * gate_row_stride + col, mask)
    value = _load(value_ptr, row * value_row_stride + col, mask)
    dy = _load(dy_ptr, offs, mask)
    dtype: tl.constexpr = dgate_ptr.dtype.element_ty
    coarse: tl.constexpr = dtype.primitive_bitwidth == 16
    activated = activations.fwd(gate, first, second, ACTIVATION, coarse)
    saved = activated if FROM_OUTPUT else gate
    ddy = tl.zeros_like(dy)
    dgate = tl.zeros_like(dy)
    dvalue = tl.zeros_like(dy)
    if ddgate_ptr is not None:
        ddgate = _load(ddgate_ptr, row * ddgate_row_stride + col, mask)
        sloped = activations.bwd(ddgate, saved, first, second, ACTIVATION, coarse)
        ddy = sloped * value
        dvalue = sloped * dy
        if IS_CURVED:
            dgate = activations.bwd_bwd(ddgate, dy * value, saved, first, second, ACTIVATION, coarse)
            if FROM_OUTPUT:
                dgate = activations.bwd(dgate, saved, first, second, ACTIVATION, coarse)
    if ddvalue_ptr is not None:
        ddvalue = _load(ddvalue_ptr, row * ddvalue_row_stride + col, mask)
        ddy += ddvalue * activated
        dgate += activations.bwd(ddvalue * dy, saved, first, second, ACTIVATION, coarse)
    tl.store(ddy_ptr + offs, primitives.cast(ddy, dtype), mask=mask)
    tl.store(dgate_ptr + row * dgate_row_stride + col, primitives.cast(dgate, dtype), mask=mask)
    tl.store(dvalue_ptr + row * dvalue_row_stride + col, primitives.cast(dvalue, dtype), mask=mask)


def gated_fwd(gate, value, swapped, activation, first, second, y):
    """Fill y, dense; gate and value dense in one order, or matrices with adjacent columns; or both in `gate` (halves)."""
    if y.numel():
        gate, value = halves(gate, value, swapped)
        _, cols, strides = rows_of(gate, value)
        grid = (launch.cdiv(y.numel(), tuning.POINTWISE_BLOCK),)
        _gated_fwd[grid](
            gate, value, y, y.numel(), cols, *strides, first, second,
            ACTIVATION=activation, BLOCK=tuning.POINTWISE_BLOCK,
        )  # fmt: skip


def gated_bwd(dy, gate, value, swapped, activation, first, second, dgate, dvalue):
    """Fill dgate and dvalue, or where value is None dgate alone, which holds both as gate does."""
    if dy.numel():
        dgate, dvalue = halves(dgate, None if value is None else dvalue, swapped)
        gate, value = halves(gate, value, swapped)
        _, cols, strides = rows_of(gate, value, dgate, dvalue)
        grid = (launch.cdiv(dy.numel(), tuning.POINTWISE_BLOCK),)
        _gated_bwd[grid](
            dy, gate, value, dgate, dvalue, dy.numel(), cols, *strides, first, second,
            ACTIVATION=activation, FROM_OUTPUT=activation in activations.FROM_OUTPUT, BLOCK=tuning.POINTWISE_BLOCK,
        )  # fmt: skip


def gated_bwd_bwd(dy, gate, value, ddgate, ddvalue, swapped, activation, first, second, ddy, dgate, dvalue):
    """Fill ddy, dgate and dvalue, or where value is None ddy and dgate, which holds both as ddgate and gate do."""
    if dy.numel():
        ddgate, ddvalue, gate, value, dgate, dvalue = all_halves(ddgate, ddvalue, gate, value, dgate, dvalue, swapped)
        _, cols, strides = rows_of(ddgate, ddvalue, gate, value, dgate, dvalue)
        grid = (launch.cdiv(dy.numel(), tuning.POINTWISE_BLOCK),)
        _gated_bwd_bwd[grid](
            ddgate, ddvalue, dy, gate, value, ddy, dgate, dvalue, dy.numel(), cols, *strides, first, second,
            ACTIVATION=activation, FROM_OUTPUT=activation in activations.FROM_OUTPUT,
            IS_CURVED=activation in activations.CURVED, BLOCK=tuning.POINTWISE_BLOCK,
        )  # fmt: skip
