"""RReLU: in training the slope of each element that is not positive is drawn, and drawn again in the backward. Xu et al. 2015,
arXiv:1505.00853."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from pyflash.auto import pointwise as auto
from pyflash.ops.core.autograd import Function, apply
from pyflash.ops.core.backends import IN_KERNELS, Operation
from pyflash.ops.core.checks import NOT_PLAIN, is_dense, is_plain
from pyflash.ops.core.choice import choose
from pyflash.ops.core.dtypes import FLOATS, acc_dtype
from pyflash.ops.core.philox import draw_seed
from pyflash.ops.core.registry import Op
from pyflash.ops.pointwise.activation import activate
from pyflash.ops.pointwise.channels import laid_out_as
from pyflash.ops.pointwise.dropout import words_of

OPERATION = Operation(
    "rrelu", dtypes={"cpu": FLOATS, "triton": FLOATS}, rules=auto.rrelu_rules, second_derivative=IN_KERNELS
)


def _reference(d, x, seed, lower, upper):
    slopes = lower + (upper - lower) * 2.0**-24 * (words_of(seed, x.numel()) >> 8).to(acc_dtype(x.dtype))
    slopes = slopes.as_strided(x.shape, x.stride())
    return (torch.where(x <= 0, d * slopes, d).to(d.dtype),)


# The rectified x where d is x, and the gradient where d is that of the result. Both dense, of one memory order.
_op = Op(
    "rrelu(Tensor d, Tensor x, Tensor seed, float lower, float upper, str backend) -> Tensor",
    outputs=lambda d, x, seed, lower, upper: (torch.empty_like(x),),
    reference=_reference,
    differentiable=True,
    triton="pyflash.kernels.pointwise.rrelu:rrelu",
    cpu="pyflash.ops.pointwise._cpu_rectifiers:rrelu",
)


class _RReLU(Function):
    """Linear in d; nothing goes to the x that decides on the side: the backward is the operation itself, to any order."""

    @staticmethod
    def forward(d, x, seed, lower, upper, backend):
        return _op(d, x, seed, lower, upper, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, x, seed, *ctx.rest = inputs
        ctx.save_for_backward(x, seed)

    @staticmethod
    def backward(ctx, dy):
        x, seed = ctx.saved_tensors
        return apply(_RReLU, laid_out_as(dy, x.stride()), x, seed, *ctx.rest), None, None, None, None, None


def rrelu(
    input: torch.Tensor,
    lower: float = 1.0 / 8,
    upper: float = 1.0 / 3,
    training: bool = False,
    inplace: bool = False,
) -> torch.Tensor:
    """x where it is positive, else x times a slope, as torch.nn.functional.rrelu.

    Args:
        input: any shape, float32, float64, bfloat16 or float16; other types go to torch.
        lower, upper: the slope's range in training; else it is their mean, and the function is `leaky_relu`.
        inplace: write the result into `input`.
    Raises:
        RuntimeError, TypeError: torch's own.
    Numerics: slopes come from Philox4x32-10, as the mask of `dropout` does: reproducible under torch.manual_seed, the same
        on every backend and number of threads, others than torch's.
    """

    def torchs(x):
        return F.rrelu(x, lower, upper, training, inplace)

    is_usual = isinstance(lower, (int, float)) and isinstance(upper, (int, float)) and type(training) is bool
    if not is_usual or not -math.inf < lower <= upper < math.inf:
        return torchs(input)
    if not training:
        return activate("leaky_relu", input, torchs, ((lower + upper) / 2,), inplace=inplace)
    if not isinstance(input, torch.Tensor) or not input.is_floating_point() or input.numel() == 0:
        return torchs(input)
    refused = "" if is_plain(input) else NOT_PLAIN
    backend = choose(OPERATION, input, refused=refused)
    if backend is None:
        return torchs(input)
    seed = draw_seed(input)
    x = input if is_dense(input) else input.clone()
    if not inplace:
        return apply(_RReLU, x, x.detach(), seed, float(lower), float(upper), backend)
    kept = x.detach().clone() if torch.is_grad_enabled() and input.requires_grad else x
    return input.copy_(apply(_RReLU, x, kept, seed, float(lower), float(upper), backend))


def rrelu_(input, lower=1.0 / 8, upper=1.0 / 3, training=False, generator=None):
    """torch.rrelu_."""
    if generator is not None:
        return torch.rrelu_(input, lower, upper, training, generator)
    return rrelu(input, lower, upper, training, inplace=True)
