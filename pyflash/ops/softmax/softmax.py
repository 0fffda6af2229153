"""Softmax over any dimension, its logarithm, and softmax of -x."""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F

from pyflash.auto.softmax import MEASURED_AS, softmax_rules
from pyflash.ops.core.autograd import Function, apply, vjp
from pyflash.ops.core.backends import Operation
from pyflash.ops.core.checks import NOT_PLAIN, is_plain
from pyflash.ops.core.choice import Refused, choose
from pyflash.ops.core.dtypes import BY_ALL, HALVES, acc_dtype
from pyflash.ops.core.registry import Op

_default_dim = F._get_softmax_dim  # type: ignore[attr-defined]  # torch's stub has only what is public

OPERATION = {
    name: Operation(
        name,
        dtypes=BY_ALL,
        rules=softmax_rules(name),
        sizes="(softmaxes, elements of each, elements in memory from one of these to the next, are gradients needed)",
    )
    for name in MEASURED_AS
}


def _reference_fwd(x, dim, kind, dtype):
    if kind == "log_softmax":
        return (torch.log_softmax(x, dim, dtype),)
    return (torch.softmax(-x if kind == "softmin" else x, dim, dtype),)


def _reference_bwd(dy, y, dim, kind, dtype):
    wide = acc_dtype(y.dtype)
    dy, y = dy.to(wide), y.to(wide)
    if kind == "log_softmax":
        dx = dy - y.exp() * dy.sum(dim, True)
    else:
        dx = y * (dy - (dy * y).sum(dim, True))
    return ((-dx if kind == "softmin" else dx).to(dtype),)


def _outputs_bwd(dy, y, dim, kind, dtype):
    if dy.shape != y.shape or dy.dtype != y.dtype:
        raise RuntimeError(
            f"pyflash::softmax_bwd: dy is {dy.dtype} of shape {tuple(dy.shape)}, y {y.dtype} of {tuple(y.shape)}; expected"
            " one type and shape"
        )
    return (y.new_empty(y.shape, dtype=dtype),)


# Over the dimension `dim`; kind is "softmax", "log_softmax" or "softmin". Results are contiguous, as torch's, and of `dtype`:
# that of x, or float32 for a half type. The backward's is x's again.
_fwd = Op(
    "softmax_fwd(Tensor x, int dim, str kind, ScalarType dtype, str backend) -> Tensor",
    outputs=lambda x, dim, kind, dtype: (x.new_empty(x.shape, dtype=dtype),),
    reference=_reference_fwd,
    differentiable=True,
    triton="pyflash.kernels.softmax.softmax:softmax_fwd",
    cuda="pyflash.ops.softmax._cuda:softmax_fwd",
    cpu="pyflash.ops.softmax._cpu:softmax_fwd",
)
_bwd = Op(
    "softmax_bwd(Tensor dy, Tensor y, int dim, str kind, ScalarType dtype, str backend) -> Tensor",
    outputs=_outputs_bwd,
    reference=_reference_bwd,
    differentiable=True,
    triton="pyflash.kernels.softmax.softmax:softmax_bwd",
    cuda="pyflash.ops.softmax._cuda:softmax_bwd",
    cpu="pyflash.ops.softmax._cpu:softmax_bwd",
)


class _Softmax(Function):
    @staticmethod
    def forward(x, dim, kind, dtype, backend):
        return _fwd(x, dim, kind, dtype, backend)

    @staticmethod
    def setup_context(ctx, inputs, y):
        x, ctx.dim, ctx.kind, _, ctx.backend = inputs
        ctx.dtype = x.dtype
        ctx.save_for_backward(y)

    @staticmethod
    def backward(ctx, dy):
        (y,) = ctx.saved_tensors
        return apply(_SoftmaxBwd, dy, y, ctx.dim, ctx.kind, ctx.dtype, ctx.backend), None, None, None, None


class _SoftmaxBwd(Function):
    @staticmethod
    def forward(dy, y, dim, kind, dtype, backend):
        return _bwd(dy, y, dim, kind, dtype, backend)

    @staticmethod
    def setup_context(ctx, inputs, dx):
        dy, y, *ctx.rest, ctx.backend = inputs
        ctx.save_for_backward(dy, y)

    @staticmethod
    def backward(ctx, ddx):
        dy, y = ctx.saved_tensors
        dim, kind, _ = ctx.rest
        needs_dy, needs_y = ctx.needs_input_grad[:2]
        d_dy = d_y = None
        if needs_dy:
            if kind == "log_softmax":  # whose Jacobian is not symmetric
                (d_dy,) = vjp(lambda dy: _reference_bwd(dy, y, *ctx.rest), (dy,), (ddx,))
            else:
                d_dy = apply(_SoftmaxBwd, ddx.to(y.dtype), y, dim, kind, y.dtype, ctx.backend)
        if needs_y:
            (d_y,) = vjp(lambda y: _reference_bwd(dy, y, *ctx.rest), (y,), (ddx,))
        return d_dy, d_y, None, None, None, None


def _size_of(training, input, dim, dtype=None):
    """Also of a dimension that there is not, which is refused later."""
    if not input.dim() or not -input.dim() <= dim < input.dim() or not is_plain(input):
        return None
    length = input.shape[dim]
    step = prod(input.shape[dim + 1 :]) if dim != -1 else 1
    return input.numel() // max(length, 1), length, step, training


def _key_of(input, dim, dtype):
    return input.shape, input.dtype, input.is_cpu, dim.__index__(), dtype  # an AttributeError of what is no number


_REFUSED = {name: Refused(operation, _size_of, _key_of) for name, operation in OPERATION.items()}


def _softmax(kind, torchs, input, dim, dtype):
    """A softmax on whatever a user passed; torchs(input, dim, dtype=dtype) is torch's own, and so are its errors."""
    is_asked_right = (
        (dtype is None or type(dtype) is torch.dtype) and type(dim) is not bool and hasattr(dim, "__index__")
    )
    if not isinstance(input, torch.Tensor) or not is_asked_right:
        return torchs(input, dim, dtype=dtype)
    if kind == "softmin" and not (input.is_floating_point() or input.is_complex()):
        return _softmax("softmax", F.softmax, -input, dim, dtype)  # as integers are negated, and a bool is not
    dim = dim.__index__()
    x, narrow = input, input.dtype
    if dtype is None and narrow != torch.float64 and input.is_cuda and torch.is_autocast_enabled("cuda"):
        dtype = torch.float32  # as torch's
    wide = dtype or narrow
    if not wide.is_floating_point:
        return torchs(input, dim, dtype=dtype)
    if wide != narrow and not (wide == torch.float32 and narrow in HALVES) and input.layout is torch.strided:
        x = input.to(wide)
    refused = "" if is_plain(x) else NOT_PLAIN
    if not refused and not -max(x.dim(), 1) <= dim < max(x.dim(), 1):
        top = max(x.dim(), 1)
        raise IndexError(
            f"Dimension out of range (expected to be in range of [{-top}, {top - 1}], but got {dim})"
            f" for pyflash.{kind} of shape {tuple(x.shape)}"
        )
    size = None
    if not refused:
        dim %= max(x.dim(), 1)
        length = x.shape[dim] if x.dim() else 1
        size = (
            x.numel() // max(length, 1), length, prod(x.shape[dim + 1 :]), torch.is_grad_enabled() and x.requires_grad
        )  # fmt: skip
    backend = choose(OPERATION[kind], x, size=size, refused=refused)
    if backend is None:
        return torchs(input, dim, dtype=dtype)
    return apply(_Softmax, x, dim, kind, wide, backend)


def softmax(
    input: torch.Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """exp(x) / sum(exp(x)) over one dimension, as torch.nn.functional.softmax. Bridle 1990.

    Args:
        input: any shape and strides, float32, float64, bfloat16 or float16; copied where neither the elements of `dim` nor
            those of the last dimension are adjacent, or where the dimensions before or after `dim` have no common stride.
        dim: None is deprecated: 0 for tensors of 0, 1 and 3 dimensions, else 1.
        dtype: of the result; the input is converted to it first. From a half type to float32 in the same pass.
    Returns:
        like input, contiguous.
    Raises:
        IndexError: there is no such dimension.
    Numerics: computed in float32 (float64 for float64) and rounded once; NaN where a row has NaN or infinity, or nothing
        but -infinity, as torch's; deterministic, whatever the number of threads.
    Source: Milakov & Gimelshein 2018, arXiv:1805.02867, where a row is longer than the fast memory.
    """
    if dim is None and isinstance(input, torch.Tensor):
        dim = _default_dim("softmax", input.dim(), _stacklevel)
    if _REFUSED["softmax"].holds(input, dim, dtype):
        return input.softmax(dim, dtype=dtype)
    return _softmax("softmax", F.softmax, input, dim, dtype)


def log_softmax(
    input: torch.Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """x - log(sum(exp(x))) over one dimension, as torch.nn.functional.log_softmax; otherwise as `softmax`."""
    if dim is None and isinstance(input, torch.Tensor):
        dim = _default_dim("log_softmax", input.dim(), _stacklevel)
    if _REFUSED["log_softmax"].holds(input, dim, dtype):
        return input.log_softmax(dim, dtype=dtype)
    return _softmax("log_softmax", F.log_softmax, input, dim, dtype)


def softmin(
    input: torch.Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """softmax(-x) in one pass, as torch.nn.functional.softmin; otherwise as `softmax`."""
    if dim is None and isinstance(input, torch.Tensor):
        dim = _default_dim("softmin", input.dim(), _stacklevel)
    if _REFUSED["softmin"].holds(input, dim, dtype):
        return F.softmin(input, dim, dtype=dtype)
    return _softmax("softmin", F.softmin, input, dim, dtype)
