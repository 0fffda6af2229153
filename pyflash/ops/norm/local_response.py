"""Local response normalisation: x over a power of what its neighbours among the channels amount to. Krizhevsky et al. 2012,
"ImageNet classification with deep convolutional neural networks", section 3.3."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pyflash.auto.local_response import rules
from pyflash.ops.core.autograd import Function, apply, shaped, vjp
from pyflash.ops.core.backends import Operation
from pyflash.ops.core.checks import NOT_PLAIN, is_plain
from pyflash.ops.core.choice import Refused, choose
from pyflash.ops.core.dtypes import FLOATS, acc_dtype, cast_by_autocast
from pyflash.ops.core.registry import Op
from pyflash.ops.norm.channels import is_dense

OPERATION = Operation(
    "local_response_norm",
    dtypes={"cpu": FLOATS, "triton": FLOATS},
    rules=rules,
    sizes="(elements, are gradients needed, channels of a window, is beta a quarter)",
)


def _of_torch(x, size, alpha, beta, k):
    return F.local_response_norm(x.to(acc_dtype(x.dtype)), size, alpha, beta, k).to(x.dtype)


def _gradient(dy, x, size, alpha, beta, k):
    x = x if x.requires_grad else x.detach().requires_grad_()
    return vjp(lambda x: _of_torch(x, size, alpha, beta, k), (x,), (dy,))


# x [batch, channels, positions], dense (`is_last`), and so the result; dy in any order of memory. Window of channel c: from
# c - size // 2 to c + (size - 1) // 2. alpha and k are 0 or more, beta is more than 0.
_fwd = Op(
    "local_response_norm_fwd(Tensor x, SymInt size, float alpha, float beta, float k, str backend) -> Tensor",
    outputs=lambda x, *_: (torch.empty_like(x),),
    reference=lambda *args: (_of_torch(*args),),
    differentiable=True,
    triton="pyflash.kernels.norm.local_response:local_response_norm_fwd",
    cpu="pyflash.ops.norm._cpu_local_response:local_response_norm_fwd",
)
_bwd = Op(
    "local_response_norm_bwd(Tensor dy, Tensor x, SymInt size, float alpha, float beta, float k, str backend) -> Tensor",
    outputs=lambda dy, x, *_: (torch.empty_like(x),),
    reference=_gradient,
    triton="pyflash.kernels.norm.local_response:local_response_norm_bwd",
    cpu="pyflash.ops.norm._cpu_local_response:local_response_norm_bwd",
)


class _LocalResponse(Function):
    @staticmethod
    def forward(x, size, alpha, beta, k, backend):
        return _fwd(x, size, alpha, beta, k, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, *ctx.rest = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        return apply(_LocalResponseBwd, dy, x, *ctx.rest), *(None,) * 5


class _LocalResponseBwd(Function):
    @staticmethod
    def forward(dy, x, size, alpha, beta, k, backend):
        return _bwd(dy, x, size, alpha, beta, k, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        dy, x, *ctx.rest, _ = inputs
        ctx.save_for_backward(dy, x)

    @staticmethod
    def backward(ctx, ddx):
        return *vjp(lambda dy, x: _gradient(dy, x, *ctx.rest), ctx.saved_tensors, (ddx,)), *(None,) * 5


def _size_of(training, input, size, beta):
    """Also of arguments that are refused later."""
    if not is_plain(input):
        return None
    return input.numel(), training, size, beta * 4 in (1, 2, 3, 4)


def _key_of(input, size, beta):
    return (
        input.shape,
        input.dtype,
        input.is_cpu,
        size.__index__(),
        beta.__float__(),
    )  # an AttributeError of other things


_refused = Refused(OPERATION, _size_of, _key_of)


def _refusal(input, size, alpha, beta, k) -> str:
    """Why no kernel takes this call."""
    if not is_plain(input):
        return NOT_PLAIN
    if type(size) not in (int, torch.SymInt) or any([type(v) not in (int, float) for v in (alpha, beta, k)]):
        return "size is to be an int, alpha, beta and k are to be numbers"
    if input.dim() < 3 or size < 1:
        return "arguments that only torch's function takes"
    if not (0 <= alpha < float("inf") and 0 < beta < float("inf") and 0 <= k < float("inf")):
        return "alpha or k below 0, beta not above it, or one that is not finite"
    return ""


def local_response_norm(
    input: torch.Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> torch.Tensor:
    """x / (k + alpha / size * sum of the squares of `size` channels around its own)^beta, as torch's local_response_norm.

    Args:
        input: [batch, channels, ...] of 3 dimensions or more, float32, float64, bfloat16 or float16; read as it lies where it
            is contiguous or channels_last (2d, 3d), which the result is then, too; else copied.
        size: channels of a window, size // 2 of them before its own; those that are not there count as zeros.
        alpha, k: 0 or more; beta: more than 0. torch serves others.
    Raises:
        ValueError, RuntimeError, TypeError: torch's.
    Numerics: computed in float32 (float64 for float64) and rounded once; every window is summed by itself, so that large
        neighbours leave nothing behind; deterministic.
    """
    if _refused.holds(input, size, beta) or not isinstance(input, torch.Tensor):
        return F.local_response_norm(input, size, alpha, beta, k)
    refused = _refusal(input, size, alpha, beta, k)
    if not refused and (input.is_cuda or input.dim() > 3):  # by its pooling and, on a GPU, its power
        (input,) = cast_by_autocast((input,), torch.float32)
    elif is_plain(input) and (type(size) is not int or size < 1 or input.dim() < 3):
        result = F.local_response_norm(input, size, alpha, beta, k)  # or torch's error
        choose(OPERATION, input, refused=refused)
        return result
    training = torch.is_grad_enabled() and input.requires_grad
    backend = choose(OPERATION, input, size=None if refused else _size_of(training, input, size, beta), refused=refused)
    if backend is None:
        return F.local_response_norm(input, size, alpha, beta, k)
    x = input if is_dense(input) else input.contiguous()
    y = apply(_LocalResponse, x.flatten(2), size, float(alpha), float(beta), float(k), backend)
    return shaped(y, input.shape)
