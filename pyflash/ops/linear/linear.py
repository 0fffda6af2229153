"""Linear layers with a fused activation: y = activation(x weight^T + bias).

The derivative is closed: its two products are `_MatMul`, whose derivatives are `_MatMul` again.
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch.nn.functional import linear as torch_linear

from pyflash.activations import ACTIVATIONS
from pyflash.auto import linear as auto
from pyflash.ops.core.autograd import Function, apply, shaped, wanted, way
from pyflash.ops.core.backends import IN_KERNELS, Operation, counts
from pyflash.ops.core.checks import NOT_PLAIN, expect, is_plain, scalar_type, size_mismatch
from pyflash.ops.core.choice import Refused, are_usual, choose
from pyflash.ops.core.dtypes import ALL_BUT_FLOAT64, FLOATS, cast_by_autocast
from pyflash.ops.core.packed_weights import packed_weights
from pyflash.ops.core.registry import Op
from pyflash.ops.pointwise.activation import CURVED, activation_bwd
from pyflash.ops.pointwise.argument import NO_ACTIVATION, ActivationArgument, activated, resolve

OPERATIONS = {
    name: Operation(
        name,
        dtypes={"cpu": FLOATS, "triton": ALL_BUT_FLOAT64},
        rules=rules,
        sizes="(M, N, K, are gradients needed)",
        second_derivative=IN_KERNELS,
    )
    for name, rules in (("linear", auto.rules), ("linear_act", auto.rules_act))
}


def _fwd_outputs(x, weight, bias, activation, first, second, save_preact):
    rows, cols = x.shape[0], weight.shape[0]  # sizes as numbers: a tuple of them costs new_empty 0.5 us, a Size 1.1
    return x.new_empty(rows, cols), x.new_empty(rows, cols) if save_preact else x.new_empty(0)


def _reference_fwd(x, weight, bias, activation, first, second, save_preact):
    z = x @ weight.t() if bias is None else torch.addmm(bias, x, weight.t())
    y = ACTIVATIONS[activation].of(z, (first, second)) if activation else z
    return y, z if save_preact else z.new_empty(0)


def _fwd_flops(x, weight, *_, **__):
    return 2 * x.shape[0] * weight.numel()


_fwd = Op(
    "linear_fwd(Tensor x, Tensor weight, Tensor? bias, str activation, float first, float second, bool save_preact,"
    " str backend)"
    " -> (Tensor y, Tensor preact)",
    outputs=_fwd_outputs,
    reference=_reference_fwd,
    differentiable=True,
    flops=_fwd_flops,
    triton="pyflash.kernels.linear:linear_fwd",
    cpu="pyflash.ops.linear._cpu:linear_fwd",
)
_matmul = Op(
    "matmul(Tensor a, Tensor b, str backend) -> Tensor",
    outputs=lambda a, b: (a.new_empty(a.shape[0], b.shape[1]),),
    reference=lambda a, b: (a @ b,),
    differentiable=True,
    flops=lambda a, b, *_, **__: 2 * a.numel() * b.shape[1],
    triton="pyflash.kernels.linear:matmul",
    cpu="pyflash.ops.linear._cpu:matmul",
)


def _bwd_outputs(dy, x, weight, saved, activation, first, second, need_dx, need_dweight, need_dbias):
    return (
        x.new_empty(x.shape if need_dx else (0,)),
        x.new_empty(weight.shape if need_dweight else (0,)),
        x.new_empty(weight.shape[:1] if need_dbias else (0,)),
    )


def _reference_bwd(dy, x, weight, saved, activation, first, second, need_dx, need_dweight, need_dbias):
    dz = activation_bwd(dy, saved, activation, first, second, "torch") if activation else dy
    nothing = dy.new_empty(0)
    return (
        dz @ weight if need_dx else nothing,
        dz.t() @ x if need_dweight else nothing,
        dz.sum(0) if need_dbias else nothing,
    )


def _bwd_flops(dy, x, weight, saved, activation, first, second, need_dx, need_dweight, *_, **__):
    return (need_dx + need_dweight) * _fwd_flops(x, weight)


_bwd = Op(  # unneeded gradients are empty
    "linear_bwd(Tensor dy, Tensor x, Tensor weight, Tensor? saved, str activation, float first, float second,"
    " bool need_dx, bool need_dweight, bool need_dbias, str backend) -> (Tensor dx, Tensor dweight, Tensor dbias)",
    outputs=_bwd_outputs,
    reference=_reference_bwd,
    flops=_bwd_flops,
    triton="pyflash.kernels.linear:linear_bwd",
    cpu="pyflash.ops.linear._cpu:linear_bwd",
)


class _MatMul(Function):
    @staticmethod
    def forward(a, b, backend):
        return _matmul(a, b, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        a, b, ctx.backend = inputs
        ctx.save_for_backward(a, b)

    @staticmethod
    def backward(ctx, dc):
        a, b = ctx.saved_tensors
        need_da, need_db = wanted(ctx, 2)
        da = matmul(dc, b.t(), ctx.backend) if need_da else None
        db = matmul(a.t(), dc, ctx.backend) if need_db else None
        return da, db, None


def matmul(a, b, backend):
    """a [M, K] times b [K, N], any strides, by one backend; differentiable to any order."""
    return apply(_MatMul, a, b, backend) if torch.is_grad_enabled() else _matmul(a, b, backend)


def _is_by_columns(weight) -> bool:
    """Does it lie in memory as its transpose, as GPT-2's in transformers? autograd adds a gradient up in its parameter's order, and
    copies one that lies otherwise. Zen 4, one thread, 256 rows, 768 to 3072 with GELU: a step of 59 ms, 68 with the copy."""
    return not weight.is_contiguous() and weight.t().is_contiguous()


class _Linear(Function):
    @staticmethod
    def forward(x, weight, bias, activation, first, second, save_preact, backend):
        return _fwd(x, weight, bias, activation, first, second, save_preact, backend)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        x, weight, bias, activation, first, second, save_preact, ctx.backend = inputs
        y, preact = outputs
        ctx.mark_non_differentiable(preact)
        ctx.set_materialize_grads(False)  # zeros for preact would be as large as the result
        ctx.activation = (activation, first, second)
        saved = None if not activation else preact if save_preact else y
        ctx.save_for_backward(x, weight, bias, saved)

    @staticmethod
    def backward(ctx, dy, _):
        if dy is None:
            return (None,) * 8
        x, weight, bias, saved = ctx.saved_tensors
        need_dx, need_dweight, need_dbias = wanted(ctx, 3)
        if not torch.is_grad_enabled() and (bias is None or bias.dim() == 1):
            activation, by_columns = ctx.activation, need_dweight and _is_by_columns(weight)
            if by_columns and activation[0]:
                dy, saved, activation = activation_bwd(dy, saved, *activation, ctx.backend), None, NO_ACTIVATION
            dx, dweight, dbias = _bwd(
                dy, x, weight, saved, *activation, need_dx, need_dweight and not by_columns, need_dbias, ctx.backend
            )
            if by_columns:
                dweight = _matmul(x.t(), dy, ctx.backend).t()
            grads = (dx if need_dx else None, dweight if need_dweight else None, dbias if need_dbias else None)
            return *grads, None, None, None, None, None
        name, *_ = ctx.activation
        if name:
            if ACTIVATIONS[name].saves == "x" and name in CURVED:
                # The saved pre-activation knows nothing of what it was computed from.
                saved = apply(_Linear, x, weight, bias, *NO_ACTIVATION, False, ctx.backend)[0]
            dy = activation_bwd(dy, saved, *ctx.activation, ctx.backend)
        dx = matmul(dy, weight, ctx.backend) if need_dx else None
        dweight = matmul(dy.t(), x, ctx.backend) if need_dweight else None
        dbias = None
        if need_dbias:
            dbias = dy.sum(0) if bias.dim() == 1 else dy
        return dx, dweight, dbias, None, None, None, None, None


def linear_fwd(x, weight, bias, activation, backend):
    """activation(x weight^T + bias) by one backend; differentiable.

    Args:
        x: [M, K], any strides.
        weight: [N, K], any strides.
        bias: [N] or [M, N], or None.
        activation: a row of the table and the values of its parameters, or NO_ACTIVATION.
    """
    if bias is not None and not bias.is_contiguous() and bias.stride(-1) != 1:
        bias = bias.contiguous()
    grads = torch.is_grad_enabled() and (
        x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    )
    if grads:
        save_preact = bool(activation[0]) and ACTIVATIONS[activation[0]].saves == "x"
        call, args = way(_Linear, (x, weight, bias, *activation, save_preact, backend))
        return call(*args)[0]
    return _fwd(x, weight, bias, *activation, False, backend)[0]


def _check(operation, input, weight, bias):
    """Raises what torch raises; returns the shape of the result."""

    def check(condition, message):
        expect(condition, operation, message, RuntimeError)

    check(
        input.dim() > 0 and weight.dim() > 0,
        lambda: (
            f"both arguments to linear need to be at least 1D, but they are {input.dim()}D and {weight.dim()}D: input has"
            f" shape {tuple(input.shape)}, weight {tuple(weight.shape)}"
        ),
    )
    check(
        weight.dim() <= 2,
        lambda: (
            f"t() expects a tensor with <= 2 dimensions, but self is {weight.dim()}D: weight has shape"
            f" {tuple(weight.shape)}, expected [out_features, in_features]"
        ),
    )
    check(
        input.shape[-1] == weight.shape[-1],
        lambda: (
            f"{_product_mismatch(input, weight)}: weight has shape {tuple(weight.shape)}, expected"
            f" {input.shape[-1]} columns"
            f" to match the last dimension of input {tuple(input.shape)}"
        ),
    )
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        check(
            tensor.dtype == input.dtype,
            lambda name=name, tensor=tensor: (
                f"{'mat1' if name == 'weight' else 'self'} and mat2 must have the same dtype, but got"
                f" {' and '.join(map(scalar_type, (input.dtype, tensor.dtype)[:: 1 if name == 'weight' else -1]))}:"
                f" {name} is {tensor.dtype} and input {input.dtype}; convert one, or use torch.autocast"
            ),
        )
        check(
            tensor.device == input.device,
            lambda name=name, tensor=tensor: (
                f"{name} is on {tensor.device} and input on {input.device}, expected one device"
            ),
        )
    shape = input.shape[:-1] + weight.shape[:-1]
    if bias is not None:
        check(
            weight.dim() == 2 or input.dim() == 1 or input.dim() > 2,
            lambda: f"weight has shape {tuple(weight.shape)}, expected a matrix when input is one and bias is given",
        )
        check(
            bias.dim() <= len(shape) and all(b in (1, s) for b, s in zip(reversed(bias.shape), reversed(shape))),
            lambda: (
                f"{size_mismatch(shape, bias.shape)}: bias has shape {tuple(bias.shape)}, expected one that expands to"
                f" {tuple(shape)}"
            ),
        )
    return shape


def _product_mismatch(input, weight):
    """torch's words."""
    rows, inputs = math.prod(input.shape[:-1]), input.shape[-1]
    if weight.dim() == 1:
        return f"size mismatch, got input ({rows}), mat ({rows}x{inputs}), vec ({weight.shape[0]})"
    return f"mat1 and mat2 shapes cannot be multiplied ({rows}x{inputs} and {weight.shape[1]}x{weight.shape[0]})"


def _is_simple(x, weight, bias):
    """The usual call, told in few steps: matching matrices and a bias for each feature."""
    if weight.dim() != 2 or x.dim() < 2 or x.dtype != weight.dtype or x.device != weight.device:
        return False
    rows, columns = weight.shape
    if x.shape[-1] != columns:
        return False
    return bias is None or (
        bias.dim() == 1 and bias.shape[0] == rows and bias.dtype == x.dtype and bias.device == x.device
    )


def _size_of(training, input, weight, *_):
    if weight.dim() != 2 or input.dim() == 0 or input.shape[-1] != weight.shape[1] or input.device != weight.device:
        return None
    return math.prod(input.shape[:-1]), *weight.shape, training


def _key_of(input, weight, *_):
    return input.shape, weight.shape, input.dtype, input.is_cpu, weight.is_cpu


_refused = Refused(OPERATIONS["linear"], _size_of, _key_of)


def _linear(operation, input, weight, bias, activation, torch_function):
    if not (
        isinstance(input, torch.Tensor)
        and isinstance(weight, torch.Tensor)
        and (bias is None or isinstance(bias, torch.Tensor))
    ):
        return torch_function()  # its error, or torch.fx's record of the call
    given = (input, weight) if bias is None else (input, weight, bias)
    refused = "" if all(map(is_plain, given)) else NOT_PLAIN
    if refused and not all(t.is_floating_point() for t in given):
        return torch_function()  # integers and complex numbers
    x, w, b = cast_by_autocast((input, weight, bias))
    if refused:
        shape, rows, size = None, 0, None
    else:
        is_simple = _is_simple(x, w, b)
        shape = (*x.shape[:-1], w.shape[0]) if is_simple else _check(operation, x, w, b)
        rows = shape[0] if is_simple and len(shape) == 2 else math.prod(x.shape[:-1])
        training = torch.is_grad_enabled() and any([t.requires_grad for t in given])
        size = (rows, shape[-1] if w.dim() == 2 else 1, w.shape[-1], training)
    wish = choose(OPERATIONS[operation], x, given, size, refused)
    if wish is None:
        return torch_function()
    if is_simple:
        return _of_rows(x, w, b, activation, wish)
    matrix = shape
    if w.dim() == 1:
        w, matrix = w.unsqueeze(0), (*shape, 1)
        b = None if b is None else b.unsqueeze(-1)
    x = x if x.dim() == 2 else x.reshape(rows, x.shape[-1])
    y = linear_fwd(x, w, _flat_bias(b, matrix, rows), activation, wish)
    return y if y.shape == shape else shaped(y, shape)


def _of_rows(x, weight, bias, activation, backend):
    """Of a call that `_is_simple`."""
    if x.dim() == 2:
        return linear_fwd(x, weight, bias, activation, backend)
    *leading, columns = x.shape
    return shaped(
        linear_fwd(x.reshape(math.prod(leading), columns), weight, bias, activation, backend),
        (*leading, weight.shape[0]),
    )


def _flat_bias(bias, shape, rows):
    """[N] where one row serves all, else [M, N]."""
    if bias is None or (bias.dim() == 1 and bias.shape[0] == shape[-1]):
        return bias
    if bias.numel() == bias.shape[-1] if bias.dim() else True:
        return bias.reshape(-1).expand(shape[-1])
    return bias.expand(shape).reshape(rows, shape[-1])


def linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """input weight^T + bias, as torch.nn.functional.linear.

    Args:
        input: [..., in_features], float32, float64, bfloat16 or float16; any strides.
        weight: [out_features, in_features], or [in_features] for a result without the last dimension.
        bias: [out_features], or anything that expands to the result.
    Raises:
        RuntimeError: shapes, types or devices disagree, as in torch.
    Numerics: accumulates in float32 (float64 for float64), in chunks of 128; the same result for any number of threads.
        bfloat16 where the processor multiplies pairs of it (AVX512_BF16): in chunks of 256, subnormal operands are zero.
    """
    is_torchs = _refused.holds(input, weight, bias)
    if is_torchs:
        try:
            return torch_linear(input, weight, bias)
        except RuntimeError:
            _check("linear", *cast_by_autocast((input, weight, bias)))  # the same refusal in our words
            raise
    if is_torchs is False and are_usual(input, weight, bias) and _is_simple(input, weight, bias):
        counts["linear", "cpu", ""] += 1
        return _of_rows(input, weight, bias, NO_ACTIVATION, "auto")
    return _linear(
        "linear", input, weight, bias, NO_ACTIVATION, partial(F.linear, input, weight, bias)
    )  # a closure costs each call


def linear_act(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, activation: ActivationArgument = "gelu"
) -> torch.Tensor:
    """activation(input weight^T + bias), the activation applied before the result leaves the registers.

    Args:
        input, weight, bias: as `linear`.
        activation: a row of the activation table (pyflash/activations.py), such a row and values of its parameters as
            `("leaky_relu", {"negative_slope": 0.2})`, a module of torch.nn that computes one, or None.
    Raises:
        ValueError: no such activation.  RuntimeError: shapes, types or devices disagree.
    """
    of = resolve("linear_act", activation)
    return _linear("linear_act", input, weight, bias, of, lambda: activated(F.linear(input, weight, bias), of))


def clear_cache() -> None:
    """Forgets the packed weights of every convolution and recurrent layer: their memory is free, and there is room for others."""
    packed_weights.clear()
