"""RMS normalisation, alone and after a residual sum. Zhang & Sennrich 2019, arXiv:1910.07467."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from pyflash.auto.minima import minima
from pyflash.ops.core.autograd import Function, apply, shaped, vjp
from pyflash.ops.core.backends import Operation
from pyflash.ops.core.checks import NOT_PLAIN, expect_tensors
from pyflash.ops.core.choice import Refused, choose
from pyflash.ops.core.dtypes import BY_ALL, FLOATS, acc_dtype
from pyflash.ops.core.registry import Op
from pyflash.ops.norm.rows import SIZES, cast_for_autocast, is_served, paired, size, size_of, unit_stride

# torch's RMSNorm on a CPU is six operations, on every processor. Zen 5, one and two threads, torch's time over ours at these
# minima: inference 1.14 to 1.8, training 1.16 to 1.4, with the sum 1.09 to 1.9 and 1.18 to 1.4; more above them. Below,
# Python's share of a call outweighs the kernel's.
OPERATION, OPERATION_ADD = (
    Operation(
        name,
        dtypes=BY_ALL,
        rules=minima(name, inference=65536, training=16384),
        sizes=SIZES,
    )
    for name in ("rms_norm", "add_rms_norm")
)


def _normalise(x, eps):
    """Rows of x with mean square 1, in the accumulation type; 1 / root of the mean square."""
    wide = x.to(acc_dtype(x.dtype))
    with torch.no_grad():  # of a row whose squares are larger than the type holds, in a unit in which they are not
        square = wide.square().mean(1)
        unit = torch.ones_like(square).masked_fill(
            square.isinf(), 2.0**-96 if square.dtype == torch.float32 else 2.0**-700
        )
    rstd = torch.rsqrt((wide * unit[:, None]).square().mean(1) + eps * unit.square()) * unit
    return wide * rstd[:, None], rstd


def _reference_fwd(x, residual, weight, eps):
    summed = x.new_empty(0) if residual is None else x + residual
    y, rstd = _normalise(x if residual is None else summed, eps)
    return (y if weight is None else y * weight).to(x.dtype), summed, rstd


def _gradients(dy, dsummed, xhat, weight, rstd):
    """dx and dweight, in the accumulation type; the mean makes dx orthogonal to the normalised row."""
    dy = dy.to(xhat.dtype)
    dxhat = dy if weight is None else dy * weight
    dx = (dxhat - xhat * (dxhat * xhat).mean(1, True)) * rstd[:, None]
    return dx if dsummed is None else dx + dsummed, (dy * xhat).sum(0)


def _reference_bwd(dy, dsummed, x, weight, rstd, need_dx, need_dweight):
    dx, dweight = _gradients(dy, dsummed, x.to(rstd.dtype) * rstd[:, None], weight, rstd)
    return dx.to(x.dtype) if need_dx else x.new_empty(0), dweight if need_dweight else rstd.new_empty(0)


def _outputs_fwd(x, residual, weight, eps):
    rows, cols = x.shape
    y = x.new_empty(rows, cols)
    summed = x.new_empty(0) if residual is None else torch.empty_like(y)
    return y, summed, x.new_empty(rows, dtype=acc_dtype(x.dtype))


def _outputs_bwd(dy, dsummed, x, weight, rstd, need_dx, need_dweight):
    rows, cols = x.shape
    return x.new_empty(rows, cols) if need_dx else x.new_empty(0), rstd.new_empty(cols if need_dweight else 0)


# Matrices with adjacent columns (any row stride), weight [cols]; `summed` is empty without a residual.
_fwd = Op(
    "rms_norm_fwd(Tensor x, Tensor? residual, Tensor? weight, float eps, str backend)"
    " -> (Tensor y, Tensor summed, Tensor rstd)",
    outputs=_outputs_fwd,
    reference=_reference_fwd,
    differentiable=True,
    triton="pyflash.kernels.norm.rms_norm:rms_norm_fwd",
    cuda="pyflash.ops.norm._cuda:rms_norm_fwd",
    cpu="pyflash.ops.norm._cpu:rms_norm_fwd",
)
# x is what was normalised; dweight comes in the type of rstd; what is not needed is empty.
_bwd = Op(
    "rms_norm_bwd(Tensor dy, Tensor? dsummed, Tensor x, Tensor? weight, Tensor rstd, bool need_dx, bool need_dweight,"
    " str backend) -> (Tensor dx, Tensor dweight)",
    outputs=_outputs_bwd,
    reference=_reference_bwd,
    triton="pyflash.kernels.norm.rms_norm:rms_norm_bwd",
    cuda="pyflash.ops.norm._cuda:rms_norm_bwd",
    cpu="pyflash.ops.norm._cpu:rms_norm_bwd",
)


class _RMSNorm(Function):
    @staticmethod
    def forward(x, residual, weight, eps, backend):
        return _fwd(x, residual, weight, eps, backend)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        x, residual, weight, ctx.eps, ctx.backend = inputs
        _, summed, rstd = outputs
        ctx.has_residual = residual is not None
        ctx.save_for_backward(summed if ctx.has_residual else x, weight, rstd)
        ctx.mark_non_differentiable(rstd, *(() if ctx.has_residual else (summed,)))
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, dy, dsummed, _rstd):
        x, weight, rstd = ctx.saved_tensors
        if not ctx.has_residual:
            dsummed = None
        if dy is None:
            return dsummed, dsummed if ctx.has_residual else None, None, None, None
        needs_x, needs_residual, needs_weight = ctx.needs_input_grad[:3]
        dx, dweight = apply(
            _RMSNormBwd,
            unit_stride(dy), unit_stride(dsummed), x, weight, rstd, ctx.eps, needs_x or needs_residual, needs_weight,
            ctx.backend,
        )  # fmt: skip
        return (
            dx if needs_x else None,
            dx if needs_residual else None,
            dweight.to(weight.dtype) if needs_weight else None,
            None,
            None,
        )


class _RMSNormBwd(Function):
    @staticmethod
    def forward(dy, dsummed, x, weight, rstd, eps, need_dx, need_dweight, backend):
        return _bwd(dy, dsummed, x, weight, rstd, need_dx, need_dweight, backend)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        dy, dsummed, x, weight, _, ctx.eps, *ctx.needs, _ = inputs
        ctx.save_for_backward(dy, dsummed, x, weight)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *grads):
        def function(dy, dsummed, x, weight):  # rstd is a function of x: computed again
            xhat, rstd = _normalise(x, ctx.eps)
            return _gradients(dy, dsummed, xhat, weight, rstd)

        grads = [g if need else None for g, need in zip(grads, ctx.needs)]
        return *vjp(function, ctx.saved_tensors, grads), *(None,) * 5


def _expect_shapes(operation, input, normalized_shape, weight, eps) -> None:
    """Raises what torch does, with its words."""
    if not isinstance(normalized_shape, (tuple, list)):
        raise TypeError(f"pyflash.{operation}: normalized_shape is {normalized_shape!r}, expected a tuple of ints")
    if eps is not None and not isinstance(eps, (float, int)) and not hasattr(eps, "__float__"):
        raise TypeError(f"pyflash.{operation}: eps is {eps!r}, expected a float, or None for that of the type")
    wanted = tuple(normalized_shape)
    error: type[Exception] = RuntimeError
    problem = ""
    if not wanted:
        problem = (
            "Expected normalized_shape to be at least 1-dimensional, i.e., containing at least one element, but got"
            " normalized_shape = []"
        )
    elif weight is not None and weight.shape != wanted:
        problem = (
            f"Expected weight to be of same shape as normalized_shape, but got weight of shape {[*weight.shape]} and"
            f" normalized_shape = {[*wanted]}"
        )
    elif input.dim() < len(wanted):
        error = ValueError
        problem = f"Input tensor must have at least {len(wanted)} dimensions, but got {input.dim()}"
    elif input.shape[-len(wanted) :] != wanted:
        sizes = ", ".join(map(str, wanted))
        problem = (
            f"Given normalized_shape=[{sizes}], expected input with shape [*{sizes}], but got input of"
            f" size{[*input.shape]}"
        )
    elif weight is not None and weight.device != input.device:
        problem = f"weight is on {weight.device}, input on {input.device}; move one of them"
    if problem:
        raise error(f"pyflash.{operation}: {problem}")


def _refusal(served, dtype, weight) -> str:
    """Why no kernel takes these types. torch's takes every weight, and the result has the input's type."""
    if not served:
        return NOT_PLAIN
    if weight is None or weight.dtype == dtype:
        return ""
    if weight.dtype in FLOATS and (weight.dtype != torch.float64 or dtype == torch.float64):
        return ""
    return f"weight is {weight.dtype}, and of {dtype} the kernels compute in {acc_dtype(dtype)}"


def _apply(x, residual, normalized_shape, weight, eps, backend):
    """y and the sum, in x's shape."""
    given, is_matrix = x, x.dim() == 2 and len(normalized_shape) == 1
    if not is_matrix:
        cols = math.prod(normalized_shape)
        rows = math.prod(x.shape[: x.dim() - len(normalized_shape)])
        x = x.reshape(rows, cols)
        residual = None if residual is None else residual.reshape(rows, cols)
        weight = None if weight is None else weight.reshape(cols)
    y, summed, _ = apply(
        _RMSNorm,
        unit_stride(x),
        None if residual is None else unit_stride(residual),
        None if weight is None else weight.contiguous(),
        torch.finfo(acc_dtype(x.dtype)).eps if eps is None else float(eps),
        backend,
    )
    if is_matrix:
        return y, summed
    y = shaped(y, given.shape)
    for dims, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if given.dim() == dims and not given.is_contiguous() and given.is_contiguous(memory_format=layout):
            y = y.contiguous(memory_format=layout)  # as torch's
    return y, None if residual is None else shaped(summed, given.shape)


_refused, _refused_add = Refused(OPERATION, size_of), Refused(OPERATION_ADD, size_of)


def rms_norm(
    input: torch.Tensor, normalized_shape: Sequence[int], weight: torch.Tensor | None = None, eps: float | None = None
) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimensions, as torch.nn.functional.rms_norm.

    Args:
        input: [..., *normalized_shape], float32, float64, bfloat16 or float16; copied only if the normalised elements
            of a row are not adjacent, or the rows have no common stride.
        normalized_shape: sizes of the last dimensions.
        weight: [*normalized_shape], of any of these types, but float64 only beside float64. The result has the input's.
        eps: None: that of the type that is computed in, float32, or float64 for float64.
    Raises:
        RuntimeError, ValueError, TypeError: as torch's, where shapes or devices disagree.
    Numerics: computed in float32 (float64 for float64) and rounded once; deterministic, whatever the number of threads.
    """
    if _refused.holds(input, weight):
        try:
            return F.rms_norm(input, normalized_shape, weight, eps)
        except (RuntimeError, TypeError, ValueError):
            pass  # the same refusal in our words, or torch's own again
    if not isinstance(input, torch.Tensor):
        return F.rms_norm(input, normalized_shape, weight, eps)  # its error, or torch.fx's record of the call
    expect_tensors("rms_norm", ("weight",), weight=weight)
    input, weight = cast_for_autocast(input, weight)
    served = is_served(input, weight)
    if served:
        _expect_shapes("rms_norm", input, normalized_shape, weight, eps)
    elif not torch.is_floating_point(input):
        return F.rms_norm(input, normalized_shape, weight, eps)  # torch's error, or its complex numbers
    refused = _refusal(served, input.dtype, weight)
    backend = choose(OPERATION, input, (weight,), size=size(input, weight), refused=refused)
    if backend is None:
        return F.rms_norm(input, normalized_shape, weight, eps)
    return _apply(input, None, normalized_shape, weight, eps, backend)[0]


def add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    eps: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """rms_norm(x + residual) and the sum itself, in one pass over memory; both are differentiable.

    Args:
        x, residual: broadcast and promoted as in `x + residual`, then as the input of `rms_norm`.
    Returns:
        (rms_norm(x + residual), x + residual)
    """
    expect_tensors("add_rms_norm", ("weight",), x=x, residual=residual, weight=weight)
    if _refused_add.holds(x, residual, weight):
        try:
            summed = x + residual
            return F.rms_norm(summed, normalized_shape, weight, eps), summed
        except (RuntimeError, TypeError, ValueError):
            pass  # as in `rms_norm`
    x, residual, weight = cast_for_autocast(x, residual, weight)
    served = is_served(x, residual, weight)
    if served:
        x, residual = paired("add_rms_norm", x, residual)
        _expect_shapes("add_rms_norm", x, normalized_shape, weight, eps)
    refused = _refusal(served, x.dtype, weight)
    backend = choose(OPERATION_ADD, x, (residual, weight), size(x, residual, weight), refused)
    if backend is None:
        summed = x + residual
        return F.rms_norm(summed, normalized_shape, weight, eps), summed
    return _apply(x, residual, normalized_shape, weight, eps, backend)
