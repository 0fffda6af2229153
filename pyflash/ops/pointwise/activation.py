"""Element-wise activations: one operator pair serves every row of the table (pyflash/activations.py)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pyflash.activations import ACTIVATIONS
from pyflash.auto import pointwise as auto
from pyflash.ops.core.autograd import Function, apply, vjp
from pyflash.ops.core.backends import Operation
from pyflash.ops.core.checks import is_dense, is_plain
from pyflash.ops.core.choice import Refused, choose
from pyflash.ops.core.dtypes import FLOATS
from pyflash.ops.core.registry import Op

OPERATION = {
    name: Operation(
        name,
        dtypes={"cpu": FLOATS, "triton": FLOATS},
        rules=auto.activation_rules(name),
        sizes="(elements, are gradients needed)",
    )
    for name in ACTIVATIONS
}

# The table's expressions in torch operations: differentiable to any order.
_TORCH = {
    "exp": torch.exp,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "sigmoid": torch.sigmoid,
    "normal_cdf": torch.special.ndtr,
    "normal_pdf": lambda x: torch.exp(-0.5 * x * x) * 0.3989422804014327,
    "where": torch.where,
}
_BACKWARD = {name: compile(row.backward, f"<{name}.backward>", "eval") for name, row in ACTIVATIONS.items()}


def _reference_bwd(dy, saved, activation):
    names = {"dy": dy, ACTIVATIONS[activation].saves: saved, "__builtins__": {}}
    return (eval(_BACKWARD[activation], {**_TORCH, **names}),)


_fwd = Op(
    "activation_fwd(Tensor x, str activation, str backend) -> Tensor",
    outputs=lambda x, activation: (torch.empty_like(x),),
    reference=lambda x, activation: (ACTIVATIONS[activation].reference(x),),
    differentiable=True,
    triton="pyflash.kernels.pointwise.activation:activation_fwd",
    cpu="pyflash.ops.pointwise._cpu_activation:activation_fwd",
)
_bwd = Op(
    "activation_bwd(Tensor dy, Tensor saved, str activation, str backend) -> Tensor",
    outputs=lambda dy, saved, activation: (torch.empty_like(saved),),
    reference=_reference_bwd,
    triton="pyflash.kernels.pointwise.activation:activation_bwd",
    cpu="pyflash.ops.pointwise._cpu_activation:activation_bwd",
)


class _Activation(Function):
    @staticmethod
    def forward(x, activation, backend):
        return _fwd(x, activation, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.activation, ctx.backend = inputs
        ctx.save_for_backward(x if ACTIVATIONS[ctx.activation].saves == "x" else output)

    @staticmethod
    def backward(ctx, dy):
        return activation_bwd(dy, ctx.saved_tensors[0], ctx.activation, ctx.backend), None, None


class _ActivationBwd(Function):
    @staticmethod
    def forward(dy, saved, activation, backend):
        return _bwd(dy, saved, activation, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        dy, saved, ctx.activation, _ = inputs
        ctx.save_for_backward(dy, saved)

    @staticmethod
    def backward(ctx, ddx):
        return *vjp(lambda dy, saved: _reference_bwd(dy, saved, ctx.activation), ctx.saved_tensors, (ddx,)), None, None


def activation_fwd(x, activation, backend):
    """The activation of a tensor by one backend; differentiable. Memory is read as it lies when it has no holes."""
    return apply(_Activation, x if is_dense(x) else x.clone(), activation, backend)


def activation_bwd(dy, saved, activation, backend):
    """dy times the derivative; `saved` is x or y, whichever the row saves. Differentiable."""
    if dy.stride() != saved.stride():
        dy = torch.empty_like(saved, dtype=dy.dtype).copy_(dy)
    return apply(_ActivationBwd, dy, saved, activation, backend)


def _size_of(training, input):
    return (input.numel(), training) if is_plain(input) else None


def _key_of(input):
    return input.numel(), input.dtype, input.is_cpu


_REFUSED = {name: Refused(operation, _size_of, _key_of) for name, operation in OPERATION.items()}
_RELU, _GELU, _GELU_TANH, _SILU, _TANH, _SIGMOID = map(
    _REFUSED.get, ("relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid")
)


def _apply(name: str, input, torch_function, inplace: bool = False):
    operation = OPERATION[name]
    if not isinstance(input, torch.Tensor):
        return torch_function(input)
    refused = "" if is_plain(input) else "only strided floating-point tensors are served"
    if refused and not torch.is_floating_point(input):
        return torch_function(input)  # integers and complex numbers: torch's rules of promotion, or its error
    size = None if refused else (input.numel(), torch.is_grad_enabled() and input.requires_grad)
    backend = choose(operation, input, size=size, refused=refused)
    if backend is None:
        return torch_function(input)
    if not inplace:
        return activation_fwd(input, name, backend)
    needs_x = torch.is_grad_enabled() and input.requires_grad and ACTIVATIONS[name].saves == "x"
    return input.copy_(activation_fwd(input.clone() if needs_x else input, name, backend))


def relu(input: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    """max(x, 0), element by element, as torch.nn.functional.relu; NaN stays NaN.

    Args:
        input: any shape, float32, float64, bfloat16 or float16; other types go to torch.
        inplace: write the result into `input`.
    """
    if _RELU.holds(input):
        return F.relu(input, inplace)
    return _apply("relu", input, lambda x: F.relu(x, inplace), inplace)


def gelu(input: torch.Tensor, *, approximate: str = "none") -> torch.Tensor:
    """x Phi(x), or its tanh approximation, as torch.nn.functional.gelu. Hendrycks & Gimpel 2016, arXiv:1606.08415.

    Args:
        input: any shape, float32, float64, bfloat16 or float16.
        approximate: "none" or "tanh".
    Numerics: within a few ulp in the left tail too, where 1 + erf(x) cancels.
    """
    if approximate == "none":
        if _GELU.holds(input):
            return F.gelu(input)
        return _apply("gelu", input, F.gelu)
    if approximate != "tanh":
        raise RuntimeError(f"pyflash.gelu: approximate argument must be either none or tanh, got {approximate!r}")
    if _GELU_TANH.holds(input):
        return F.gelu(input, approximate="tanh")
    return _apply("gelu_tanh", input, lambda x: F.gelu(x, approximate="tanh"))


def silu(input: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    """x sigmoid(x), as torch.nn.functional.silu. Elfwing et al. 2017, arXiv:1702.03118."""
    if _SILU.holds(input):
        return F.silu(input, inplace)
    return _apply("silu", input, lambda x: F.silu(x, inplace), inplace)


def tanh(input: torch.Tensor) -> torch.Tensor:
    """tanh(x), as torch.tanh."""
    if _TANH.holds(input):
        return torch.tanh(input)
    return _apply("tanh", input, torch.tanh)


def sigmoid(input: torch.Tensor) -> torch.Tensor:
    """1 / (1 + exp(-x)), as torch.sigmoid."""
    if _SIGMOID.holds(input):
        return torch.sigmoid(input)
    return _apply("sigmoid", input, torch.sigmoid)
