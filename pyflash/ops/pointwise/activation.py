"""Element-wise activations: one operator pair serves every row of the table (pyflash/activations.py)."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F

from pyflash.activations import ACTIVATIONS
from pyflash.auto import pointwise as auto
from pyflash.ops.core.autograd import Function, apply, vjp
from pyflash.ops.core.backends import IN_KERNELS, Operation
from pyflash.ops.core.checks import NOT_PLAIN, PLAIN_TYPES, is_dense, is_plain
from pyflash.ops.core.choice import Refused, choose
from pyflash.ops.core.dtypes import BY_ALL
from pyflash.ops.core.registry import Op
from pyflash.ops.pointwise.argument import Resolved, activated
from pyflash.ops.pointwise.channels import laid_out_as

OPERATION = {
    name: Operation(
        name,
        dtypes=BY_ALL,
        rules=auto.activation_rules(name),
        sizes="(elements, are gradients needed)",
        second_derivative=IN_KERNELS,
    )
    for name in ACTIVATIONS
}

# The table's expressions in torch operations: differentiable to any order.
_TORCH = {
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log1p": torch.log1p,
    "abs": torch.abs,
    "tanh_rest": lambda x: x - torch.tanh(x),
    "tanh": torch.tanh,
    "erf": torch.erf,
    "sigmoid": torch.sigmoid,
    "gelu_sigmoid": lambda x: torch.sigmoid(1.5957691216057308 * x * (1 + 0.044715 * x * x)),
    "normal_cdf": lambda x: 0.5 * torch.special.erfc(-0.7071067811865476 * x),  # torch's ndtr cancels in the left tail
    "normal_pdf": lambda x: torch.exp(-0.5 * x * x) * 0.3989422804014327,
    "where": torch.where,
}
NO_VALUES = (0.0, 0.0)
_ROUNDED = {(row.name, direction) for row in ACTIVATIONS.values() for direction in row.rounds}
_DIGITS = {torch.bfloat16: 8, torch.float16: 11}
_BACKWARD = {name: compile(row.backward, f"<{name}.backward>", "eval") for name, row in ACTIVATIONS.items()}
_DOUBLE_BACKWARD = {
    name: compile(row.double_backward, f"<{name}.double_backward>", "eval")
    for name, row in ACTIVATIONS.items()
    if row.double_backward
}
CURVED = frozenset(_DOUBLE_BACKWARD)  # rows whose derivative changes with x, but for steps


def _evaluated(code, activation, values, saved, **gradients):
    row = ACTIVATIONS[activation]
    names = {row.saves: saved, **gradients}  # beside Python's own, with which torch imports what it first needs here
    names |= {name: value for (name, _), value in zip(row.parameters, values)}
    return eval(code[activation], {**_TORCH, **names})


def _reference_bwd(dy, saved, activation, *values):
    return (_evaluated(_BACKWARD, activation, values, saved, dy=dy),)


def _expect_curved(activation):
    if activation not in CURVED:
        raise ValueError(
            f"pyflash.activation_bwd_bwd: the derivative of {activation!r} is flat: the gradient by dy is activation_bwd of"
            " ddx, that by x is 0"
        )


def _reference_bwd_bwd(ddx, dy, saved, activation, first, second, need_ddy):
    _expect_curved(activation)
    values = first, second
    ddy = _evaluated(_BACKWARD, activation, values, saved, dy=ddx) if need_ddy else ddx.new_empty(0)
    return ddy, _evaluated(_DOUBLE_BACKWARD, activation, values, saved, ddx=ddx, dy=dy)


def _bwd_bwd_outputs(ddx, dy, saved, activation, first, second, need_ddy):
    _expect_curved(activation)
    return torch.empty_like(saved) if need_ddy else saved.new_empty(0), torch.empty_like(saved)


def gradient_of(dy, x, of):
    """dy times the derivative at x, in torch operations; of: a row's name and values, or NO_ACTIVATION."""
    activation, *values = of
    if not activation:
        return dy
    row = ACTIVATIONS[activation]
    return _reference_bwd(dy, row.of(x, values) if row.saves == "y" else x, activation, *values)[0]


_fwd = Op(
    "activation_fwd(Tensor x, str activation, float first, float second, str backend) -> Tensor",
    outputs=lambda x, activation, first, second: (torch.empty_like(x),),
    reference=lambda x, activation, first, second: (ACTIVATIONS[activation].of(x, (first, second)),),
    differentiable=True,
    triton="pyflash.kernels.pointwise.activation:activation_fwd",
    cuda="pyflash.ops.pointwise._cuda:activation_fwd",
    cpu="pyflash.ops.pointwise._cpu_activation:activation_fwd",
)
_bwd = Op(
    "activation_bwd(Tensor dy, Tensor saved, str activation, float first, float second, str backend) -> Tensor",
    outputs=lambda dy, saved, activation, first, second: (torch.empty_like(saved),),
    reference=_reference_bwd,
    triton="pyflash.kernels.pointwise.activation:activation_bwd",
    cuda="pyflash.ops.pointwise._cuda:activation_bwd",
    cpu="pyflash.ops.pointwise._cpu_activation:activation_bwd",
)
# All of one type and memory order. ddy, ddx times the derivative, is empty where nobody needs it; dsaved is ddx dy times the
# derivative of `activation_bwd` by what was saved.
_bwd_bwd = Op(
    "activation_bwd_bwd(Tensor ddx, Tensor dy, Tensor saved, str activation, float first, float second, bool need_ddy,"
    " str backend) -> (Tensor ddy, Tensor dsaved)",
    outputs=_bwd_bwd_outputs,
    reference=_reference_bwd_bwd,
    differentiable=True,
    triton="pyflash.kernels.pointwise.activation:activation_bwd_bwd",
    cuda="pyflash.ops.pointwise._cuda:activation_bwd_bwd",
    cpu="pyflash.ops.pointwise._cpu_activation:activation_bwd_bwd",
)


class _Activation(Function):
    @staticmethod
    def forward(x, activation, first, second, backend):
        return _fwd(x, activation, first, second, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, *ctx.rest = inputs
        ctx.save_for_backward(x if ACTIVATIONS[inputs[1]].saves == "x" else output)

    @staticmethod
    def backward(ctx, dy):
        return activation_bwd(dy, ctx.saved_tensors[0], *ctx.rest), None, None, None, None


class _ActivationBwd(Function):
    @staticmethod
    def forward(dy, saved, activation, first, second, backend):
        return _bwd(dy, saved, activation, first, second, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        dy, saved, *ctx.rest = inputs
        ctx.save_for_backward(dy, saved)

    @staticmethod
    def backward(ctx, ddx):
        dy, saved = ctx.saved_tensors
        needs_dy, needs_saved = ctx.needs_input_grad[:2]
        ddy = dsaved = None
        if needs_saved and ctx.rest[0] in CURVED:
            ddy, dsaved = activation_bwd_bwd(ddx, dy, saved, *ctx.rest, need_ddy=needs_dy)
        elif needs_dy:
            ddy = activation_bwd(ddx, saved, *ctx.rest)
        return ddy, dsaved, None, None, None, None


class _ActivationBwdBwd(Function):
    @staticmethod
    def forward(ddx, dy, saved, activation, first, second, need_ddy, backend):
        return _bwd_bwd(ddx, dy, saved, activation, first, second, need_ddy, backend)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        *tensors, activation, first, second, need_ddy, _ = inputs
        ctx.rest = activation, first, second, need_ddy
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *grads):
        """The third derivative, in torch operations."""
        found = vjp(lambda *tensors: _reference_bwd_bwd(*tensors, *ctx.rest), ctx.saved_tensors, grads)
        return *found, None, None, None, None, None


def _rounded(value, dtype):
    """A number as a 16-bit type has it, which decides on which side of it an equal element lies."""
    if dtype not in _DIGITS or type(value) is not float or not math.isfinite(value):
        return value
    fraction, exponent = math.frexp(value)
    digits = 2.0 ** _DIGITS[dtype]
    return math.ldexp(round(fraction * digits) / digits, exponent)


def activation_fwd(x, activation, first, second, backend):
    """The activation of a tensor by one backend; differentiable. Memory is read as it lies when it has no holes.

    Args:
        first, second: the values of the row's parameters, 0 for what it has not.
    """
    if (activation, "forward") in _ROUNDED:
        first, second = _rounded(first, x.dtype), _rounded(second, x.dtype)
    return apply(_Activation, x if is_dense(x) else x.clone(), activation, first, second, backend)


def activation_bwd(dy, saved, activation, first, second, backend):
    """dy times the derivative; `saved` is x or y, whichever the row saves. Differentiable."""
    if dy.stride() != saved.stride():
        dy = torch.empty_like(saved, dtype=dy.dtype).copy_(dy)
    if (activation, "backward") in _ROUNDED:
        first, second = _rounded(first, saved.dtype), _rounded(second, saved.dtype)
    return apply(_ActivationBwd, dy, saved, activation, first, second, backend)


def activation_bwd_bwd(ddx, dy, saved, activation, first, second, backend, *, need_ddy):
    """(ddx times the derivative, or None where it is not needed; ddx dy times the derivative of `activation_bwd` by `saved`),
    what arrives at `dy` and at `saved` from ddx, which arrives at the result of `activation_bwd`. Of a row that is CURVED;
    differentiable."""
    ddx, dy = laid_out_as(ddx, saved.stride()), laid_out_as(dy, saved.stride())
    ddy, dsaved = apply(_ActivationBwdBwd, ddx, dy, saved, activation, first, second, need_ddy, backend)
    return ddy if need_ddy else None, dsaved


def gradients_at(ddx, dy, z, of, backend, *, need_ddy):
    """As `activation_bwd_bwd`, of any row by its input z: what arrives at dy and at z from ddx, which arrives at dy times the
    derivative at z; the second is None where the row is flat. Differentiable."""
    activation, *_ = of
    if not activation:
        return ddx if need_ddy else None, None
    saved = z if ACTIVATIONS[activation].saves == "x" else activation_fwd(z, *of, backend)
    if activation not in CURVED:
        return activation_bwd(ddx, saved, *of, backend) if need_ddy else None, None
    ddy, dz = activation_bwd_bwd(ddx, dy, saved, *of, backend, need_ddy=need_ddy)
    return ddy, dz if saved is z else activation_bwd(dz, saved, *of, backend)


def derivative(dy, z, activation, *values):
    """dy times the activation's derivative at z, in torch operations: differentiable to any order."""
    row = ACTIVATIONS[activation]
    return _reference_bwd(dy, z if row.saves == "x" else row.of(z, values), activation, *values)[0]


def derivatives_at(ddx, dy, z, of):
    """As `gradients_at`, in torch operations: differentiable to any order."""
    activation, *values = of
    if not activation:
        return ddx, None
    row = ACTIVATIONS[activation]
    saved = z if row.saves == "x" else row.of(z, values)
    ddy = _reference_bwd(ddx, saved, activation, *values)[0]
    if activation not in CURVED:
        return ddy, None
    of_saved = _evaluated(_DOUBLE_BACKWARD, activation, values, saved, ddx=ddx, dy=dy)
    return ddy, of_saved if row.saves == "x" else _reference_bwd(of_saved, saved, activation, *values)[0]


def _size_of(training, input):
    return (input.numel(), training) if is_plain(input) else None


def _key_of(input):
    return input.numel(), input.dtype, input.is_cpu


REFUSED = {name: Refused(operation, _size_of, _key_of) for name, operation in OPERATION.items()}


def _needs_gradient(input) -> bool:
    return torch.is_grad_enabled() and input.requires_grad


def activate(name: str, input, torch_function, parameters=(), inplace: bool = False):
    """A row of the table on whatever a user passed; torch_function is torch's own of one tensor.

    Args:
        input: any shape, float32, float64, bfloat16 or float16; other types go to torch.
        parameters: of the row, in its order; with what is no number, or not allowed, torch is called, whose error it is.
        inplace: write the result into `input`.
    """
    operation, row = OPERATION[name], ACTIVATIONS[name]
    if not isinstance(input, torch.Tensor):
        return torch_function(input)
    values = NO_VALUES
    if parameters:
        if not all([isinstance(value, (int, float)) for value in parameters]):
            return torch_function(input)
        values = row.values(parameters)
        is_allowed = row.allowed is None or row.allowed(*parameters)
        if inplace and is_allowed and row.allowed_inplace is not None and _needs_gradient(input):
            is_allowed = row.allowed_inplace(*parameters)
        if not is_allowed:
            return torch_function(input)
    refused = "" if is_plain(input) else NOT_PLAIN
    if refused and not torch.is_floating_point(input):
        return torch_function(input)  # integers and complex numbers: torch's rules of promotion, or its error
    needs_grad = _needs_gradient(input)
    size = None if refused else (input.numel(), needs_grad)
    backend = choose(operation, input, size=size, refused=refused, is_flat=needs_grad and name not in CURVED)
    if backend is None:
        return torch_function(input)
    if not inplace:
        return activation_fwd(input, name, *values, backend)
    needs_x = _needs_gradient(input) and row.saves == "x"
    return input.copy_(activation_fwd(input.clone() if needs_x else input, name, *values, backend))


def activated_in_turn(z, residual, of: Resolved):
    """activation(z + residual) of what torch's function has just made and nobody else holds, by the activation's own rules;
    torch's sum and activation work in place, where no gradient needs `z` as it is."""
    is_traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    may_write = type(z) is torch.Tensor and not is_traced
    if residual is not None:
        fits = may_write and type(residual) in PLAIN_TYPES and (z.shape, z.dtype) == (residual.shape, residual.dtype)
        z = z.add_(residual) if fits else z + residual
    name, *given = of
    if not name or not isinstance(z, torch.Tensor):
        return activated(z, of)
    row = ACTIVATIONS[name]
    values = given[: len(row.parameters)]
    in_place = row.inplace and may_write and (row.may_be_in_place(values) or not _needs_gradient(z))
    function = partial(getattr(F, row.function), inplace=True) if in_place else row.reference
    if not values and REFUSED[name].holds(z):
        return function(z)
    return activate(name, z, lambda x: function(x, *values), values)
