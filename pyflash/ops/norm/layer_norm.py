"""Layer normalisation, alone and after a residual sum. Ba et al. 2016, arXiv:1607.06450."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch.nn.functional import layer_norm as torch_layer_norm

from pyflash.auto import norm as auto
from pyflash.ops.core.autograd import Function, apply, shaped, vjp
from pyflash.ops.core.backends import Operation
from pyflash.ops.core.checks import NOT_PLAIN, expect_tensors
from pyflash.ops.core.choice import Refused, choose
from pyflash.ops.core.dtypes import BY_ALL, HALVES, acc_dtype
from pyflash.ops.core.registry import Op
from pyflash.ops.norm.rows import SIZES, cast_for_autocast, is_served, paired, size, size_of, unit_stride

OPERATION = Operation("layer_norm", dtypes=BY_ALL, rules=auto.rules, sizes=SIZES)
OPERATION_ADD = Operation("add_layer_norm", dtypes=BY_ALL, rules=auto.rules_add, sizes=SIZES)


def _normalise(x, eps):
    """Rows of x with mean 0 and variance 1, in the accumulation type; mean; 1 / standard deviation."""
    wide = x.to(acc_dtype(x.dtype))
    mean = wide.mean(1)
    centred = wide - mean[:, None]
    with torch.no_grad():  # of a row whose squares are larger than the type holds, in a unit in which they are not
        is_large = centred.square().mean(1).isinf()
        unit = torch.ones_like(mean).masked_fill(is_large, 2.0**-96 if mean.dtype == torch.float32 else 2.0**-700)
    rstd = torch.rsqrt((centred * unit[:, None]).square().mean(1) + eps * unit.square()) * unit
    return centred * rstd[:, None], mean, rstd


def _reference_fwd(x, residual, weight, bias, eps):
    summed = x.new_empty(0) if residual is None else x + residual
    y, mean, rstd = _normalise(x if residual is None else summed, eps)
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    return y.to(x.dtype), summed, mean, rstd


def _gradients(dy, dsummed, xhat, weight, rstd):
    """dx, dweight, dbias, in the accumulation type; the two means make dx orthogonal to 1 and to the normalised row."""
    dy = dy.to(xhat.dtype)
    dxhat = dy if weight is None else dy * weight
    dx = (dxhat - dxhat.mean(1, True) - xhat * (dxhat * xhat).mean(1, True)) * rstd[:, None]
    return dx if dsummed is None else dx + dsummed, (dy * xhat).sum(0), dy.sum(0)


def _reference_bwd(dy, dsummed, x, weight, mean, rstd, need_dx, need_dweight, need_dbias):
    xhat = (x.to(mean.dtype) - mean[:, None]) * rstd[:, None]
    dx, dweight, dbias = _gradients(dy, dsummed, xhat, weight, rstd)
    none = mean.new_empty(0)
    return (
        dx.to(x.dtype) if need_dx else x.new_empty(0),
        dweight if need_dweight else none,
        dbias.clone() if need_dbias else none.clone(),
    )


def _outputs_fwd(x, residual, weight, bias, eps):
    rows, cols = x.shape
    acc = acc_dtype(x.dtype)
    mean = x.new_empty(rows) if acc == x.dtype else x.new_empty(rows, dtype=acc)
    y = x.new_empty(rows, cols)
    return y, x.new_empty(0) if residual is None else torch.empty_like(y), mean, torch.empty_like(mean)


def _outputs_bwd(dy, dsummed, x, weight, mean, rstd, need_dx, need_dweight, need_dbias):
    rows, cols = x.shape
    return (
        x.new_empty(rows, cols) if need_dx else x.new_empty(0),
        mean.new_empty(cols if need_dweight else 0),
        mean.new_empty(cols if need_dbias else 0),
    )


# Matrices with adjacent columns (any row stride), weight and bias [cols]; `summed` is empty without a residual.
_fwd = Op(
    "layer_norm_fwd(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, float eps, str backend)"
    " -> (Tensor y, Tensor summed, Tensor mean, Tensor rstd)",
    outputs=_outputs_fwd,
    reference=_reference_fwd,
    differentiable=True,
    triton="pyflash.kernels.norm.layer_norm:layer_norm_fwd",
    cuda="pyflash.ops.norm._cuda:layer_norm_fwd",
    cpu="pyflash.ops.norm._cpu:layer_norm_fwd",
)
# x is what was normalised; dweight and dbias come in the type of the statistics; what is not needed is empty.
_bwd = Op(
    "layer_norm_bwd(Tensor dy, Tensor? dsummed, Tensor x, Tensor? weight, Tensor mean, Tensor rstd,"
    " bool need_dx, bool need_dweight, bool need_dbias, str backend) -> (Tensor dx, Tensor dweight, Tensor dbias)",
    outputs=_outputs_bwd,
    reference=_reference_bwd,
    triton="pyflash.kernels.norm.layer_norm:layer_norm_bwd",
    cuda="pyflash.ops.norm._cuda:layer_norm_bwd",
    cpu="pyflash.ops.norm._cpu:layer_norm_bwd",
)


class _LayerNorm(Function):
    @staticmethod
    def forward(x, residual, weight, bias, eps, backend):
        return _fwd(x, residual, weight, bias, eps, backend)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        x, residual, weight, bias, ctx.eps, ctx.backend = inputs
        _, summed, mean, rstd = outputs
        ctx.has_residual = residual is not None
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.save_for_backward(x if residual is None else summed, weight, mean, rstd)
        ctx.mark_non_differentiable(mean, rstd, *(() if ctx.has_residual else (summed,)))
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, dy, dsummed, _mean, _rstd):
        x, weight, mean, rstd = ctx.saved_tensors
        if not ctx.has_residual:
            dsummed = None
        if dy is None:
            return dsummed, dsummed if ctx.has_residual else None, None, None, None, None
        needs_x, needs_residual, needs_weight, needs_bias = ctx.needs_input_grad[:4]
        dx, dweight, dbias = apply(
            _LayerNormBwd,
            unit_stride(dy), unit_stride(dsummed), x, weight, mean, rstd, ctx.eps,
            needs_x or needs_residual, needs_weight, needs_bias, ctx.backend,
        )  # fmt: skip
        return (
            dx if needs_x else None,
            dx if needs_residual else None,
            dweight.to(weight.dtype) if needs_weight else None,
            dbias.to(ctx.bias_dtype) if needs_bias else None,
            None,
            None,
        )


class _LayerNormBwd(Function):
    @staticmethod
    def forward(dy, dsummed, x, weight, mean, rstd, eps, need_dx, need_dweight, need_dbias, backend):
        return _bwd(dy, dsummed, x, weight, mean, rstd, need_dx, need_dweight, need_dbias, backend)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        dy, dsummed, x, weight, _, _, ctx.eps, *ctx.needs, _ = inputs
        ctx.save_for_backward(dy, dsummed, x, weight)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *grads):
        def function(dy, dsummed, x, weight):  # mean and rstd are functions of x: computed again
            xhat, _, rstd = _normalise(x, ctx.eps)
            return _gradients(dy, dsummed, xhat, weight, rstd)

        grads = [g if need else None for g, need in zip(grads, ctx.needs)]
        return *vjp(function, ctx.saved_tensors, grads), *(None,) * 7


def _problem(shape, device, dtype, normalized_shape, weight, bias) -> str:
    """What torch would refuse, too; empty when all is well."""
    if not isinstance(normalized_shape, (tuple, list)):
        raise TypeError(f"pyflash.layer_norm: normalized_shape is {normalized_shape!r}, expected a tuple of ints")
    wanted = tuple(normalized_shape)
    if not wanted:
        return (
            "Expected normalized_shape to be at least 1-dimensional, i.e., containing at least one element, but got"
            " normalized_shape = []"
        )
    if shape[-len(wanted) :] != wanted:
        sizes = ", ".join(map(str, wanted))
        return (
            f"Given normalized_shape=[{sizes}], expected input with shape [*, {sizes}], but got input of size{[*shape]}"
        )
    for label, param in (("weight", weight), ("bias", bias)):
        if param is None:
            continue
        if param.shape != wanted:
            return (
                f"Expected {label} to be of same shape as normalized_shape, but got {label} of shape {[*param.shape]} and"
                f" normalized_shape = {[*wanted]}"
            )
        if param.device != device:
            return f"{label} is on {param.device}, input on {device}; move one of them"
        if param.dtype != dtype and not (dtype in HALVES and param.dtype == torch.float32):
            return (
                f"mixed dtype: {label} is {param.dtype}, input {dtype}; convert one (float32 parameters go with a half"
                " input)"
            )
    if weight is not None and bias is not None and weight.dtype != bias.dtype:
        return f"mixed dtype: weight is {weight.dtype} and bias {bias.dtype}, expected one type"
    return ""


def _apply(x, residual, normalized_shape, weight, bias, eps, backend):
    """y and the sum, in x's shape."""
    given, is_matrix = x, x.dim() == 2 and len(normalized_shape) == 1
    if not is_matrix:
        cols = math.prod(normalized_shape)
        rows = math.prod(x.shape[: x.dim() - len(normalized_shape)])
        x = x.reshape(rows, cols)
        residual = None if residual is None else residual.reshape(rows, cols)
        if len(normalized_shape) > 1:
            weight = None if weight is None else weight.reshape(cols)
            bias = None if bias is None else bias.reshape(cols)
    y, summed, _, _ = apply(
        _LayerNorm,
        unit_stride(x),
        None if residual is None else unit_stride(residual),
        None if weight is None else weight.contiguous(),
        None if bias is None else bias.contiguous(),
        float(eps),
        backend,
    )
    if is_matrix:
        return y, summed
    return shaped(y, given.shape), None if residual is None else shaped(summed, given.shape)


_refused, _refused_add = Refused(OPERATION, size_of), Refused(OPERATION_ADD, size_of)


def layer_norm(
    input: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> torch.Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last dimensions, as torch.nn.functional.layer_norm.

    Args:
        input: [..., *normalized_shape], float32, float64, bfloat16 or float16; copied only if the normalised elements
            of a row are not adjacent, or the rows have no common stride.
        normalized_shape: sizes of the last dimensions.
        weight, bias: [*normalized_shape], the input's type, or float32 beside a half type.
    Raises:
        RuntimeError: shapes, types or devices disagree.
    Numerics: statistics in float32 (float64 for float64) from deviations, so a large mean costs no digits;
        deterministic, whatever the number of threads.
    """
    if _refused.holds(input, weight, bias):
        try:
            return torch_layer_norm(input, normalized_shape, weight, bias, eps)
        except (RuntimeError, TypeError):
            pass  # the same refusal in our words, or torch's own again
    if not isinstance(input, torch.Tensor):
        return F.layer_norm(input, normalized_shape, weight, bias, eps)  # its error, or torch.fx's record of the call
    expect_tensors("layer_norm", ("weight", "bias"), weight=weight, bias=bias)
    input, weight, bias = cast_for_autocast(input, weight, bias)
    served = is_served(input, weight, bias)
    if served:
        problem = _problem(input.shape, input.device, input.dtype, normalized_shape, weight, bias)
        if problem:
            raise RuntimeError(f"pyflash.layer_norm: {problem}")
    elif not torch.is_floating_point(input):
        return F.layer_norm(input, normalized_shape, weight, bias, eps)  # torch's error
    refused = "" if served else NOT_PLAIN
    backend = choose(OPERATION, input, (weight, bias), size=size(input, weight, bias), refused=refused)
    if backend is None:
        return F.layer_norm(input, normalized_shape, weight, bias, eps)
    return _apply(input, None, normalized_shape, weight, bias, eps, backend)[0]


def add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    normalized_shape: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """layer_norm(x + residual) and the sum itself, in one pass over memory; both are differentiable.

    Args:
        x, residual: broadcast and promoted as in `x + residual`, then as the input of `layer_norm`.
    Returns:
        (layer_norm(x + residual), x + residual)
    """
    expect_tensors("add_layer_norm", ("weight", "bias"), x=x, residual=residual, weight=weight, bias=bias)
    if _refused_add.holds(x, residual, weight, bias):
        try:
            summed = x + residual
            return torch_layer_norm(summed, normalized_shape, weight, bias, eps), summed
        except (RuntimeError, TypeError):
            pass  # as in `layer_norm`
    x, residual, weight, bias = cast_for_autocast(x, residual, weight, bias)
    served = is_served(x, residual, weight, bias)
    if served:
        x, residual = paired("add_layer_norm", x, residual)
        problem = _problem(x.shape, x.device, x.dtype, normalized_shape, weight, bias)
        if problem:
            raise RuntimeError(f"pyflash.add_layer_norm: {problem}")
    refused = "" if served else NOT_PLAIN
    backend = choose(OPERATION_ADD, x, (residual, weight, bias), size(x, residual, weight, bias), refused)
    if backend is None:
        summed = x + residual
        return F.layer_norm(summed, normalized_shape, weight, bias, eps), summed
    return _apply(x, residual, normalized_shape, weight, bias, eps, backend)
