"""PReLU: a rectifier whose slope is a parameter, one or one a channel. He et al. 2015, arXiv:1502.01852."""

from __future__ import annotations

import torch

from pyflash.auto.minima import minima
from pyflash.ops.core.autograd import Function, apply
from pyflash.ops.core.backends import Operation
from pyflash.ops.core.checks import NOT_PLAIN, is_dense, is_plain
from pyflash.ops.core.choice import Refused, choose
from pyflash.ops.core.dtypes import FLOATS, acc_dtype, cast_by_autocast
from pyflash.ops.core.registry import Op
from pyflash.ops.pointwise.channels import along, laid_out_as, over_channels

# Zen 5, one thread, torch's time over ours: forward 0.6 to 0.8 in cache, training 3 to 5 from 64K elements on. Of outputs of
# 32 MB and more large pages tell.
OPERATION = Operation(
    "prelu",
    dtypes={"cpu": FLOATS, "triton": FLOATS},
    rules=minima("prelu", inference=1 << 23, training=65536),
    sizes="(elements, are gradients needed)",
)


def _slopes(x, weight):
    return weight if weight.numel() == 1 else along(weight, x, 1)


def _added(dy, x, factor, weight):
    """The sums by weight of dy times a factor where x is not positive, in the accumulation type."""
    added = torch.where(x > 0, 0, factor.to(acc_dtype(x.dtype)) * dy)
    return added.sum().view(1) if weight.numel() == 1 else over_channels(added, 1)


# x and dy dense, of one memory order; weight [1], or [channels] for dimension 1; dweight comes in the accumulation type, or
# is empty.
_fwd = Op(
    "prelu_fwd(Tensor x, Tensor weight, str backend) -> Tensor",
    outputs=lambda x, weight: (torch.empty_like(x),),
    reference=lambda x, weight: (torch.where(x > 0, x, _slopes(x, weight) * x),),
    differentiable=True,
    triton="pyflash.kernels.pointwise.prelu:prelu_fwd",
    cpu="pyflash.ops.pointwise._cpu_rectifiers:prelu_fwd",
)


def _bwd_outputs(dy, x, weight, need_dweight):
    return torch.empty_like(x), x.new_empty(weight.numel() if need_dweight else 0, dtype=acc_dtype(x.dtype))


def _reference_bwd(dy, x, weight, need_dweight):
    dx = torch.where(x > 0, dy, _slopes(x, weight) * dy)
    return dx, _added(dy, x, x, weight) if need_dweight else x.new_empty(0, dtype=acc_dtype(x.dtype))


_bwd = Op(
    "prelu_bwd(Tensor dy, Tensor x, Tensor weight, bool need_dweight, str backend) -> (Tensor dx, Tensor dweight)",
    outputs=_bwd_outputs,
    reference=_reference_bwd,
    triton="pyflash.kernels.pointwise.prelu:prelu_bwd",
    cpu="pyflash.ops.pointwise._cpu_rectifiers:prelu_bwd",
)


class _PReLU(Function):
    @staticmethod
    def forward(x, weight, backend):
        return _fwd(x, weight, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, ctx.backend = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        dx, dweight = apply(_PReLUBwd, laid_out_as(dy, x.stride()), x, weight, needs_weight, ctx.backend)
        return dx if needs_x else None, dweight.to(weight.dtype) if needs_weight else None, None


class _PReLUBwd(Function):
    @staticmethod
    def forward(dy, x, weight, need_dweight, backend):
        return _bwd(dy, x, weight, need_dweight, backend)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        *tensors, ctx.need_dweight, ctx.backend = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, ddx, ddweight):
        """dx is linear in dy, the operator again, and in the weight; dweight is linear in dy and in x."""
        dy, x, weight = ctx.saved_tensors
        of_dy = of_x = of_weight = None
        if ddx is not None:
            if ctx.needs_input_grad[0]:
                of_dy, _ = apply(_PReLUBwd, laid_out_as(ddx, x.stride()), x, weight, False, ctx.backend)
            if ctx.needs_input_grad[2]:
                of_weight = _added(dy, x, ddx, weight).to(weight.dtype)
        if ddweight is not None and ctx.need_dweight:
            slopes = _slopes(x, ddweight.to(x.dtype))
            of_x = torch.where(x > 0, 0, slopes * dy)
            of_dy = torch.where(x > 0, 0, slopes * x) if of_dy is None else of_dy + torch.where(x > 0, 0, slopes * x)
        return of_dy, of_x, of_weight, None, None


def _size_of(training, input, weight):
    return (input.numel(), training) if is_plain(input) else None


_refused = Refused(OPERATION, _size_of, lambda input, weight: (input.numel(), input.dtype, input.is_cpu))


def _is_torchs(input, weight) -> bool:
    """Is this a call that torch refuses, or serves in a way of its own?"""
    if (
        weight.dim() > 1
        or weight.dtype != input.dtype
        or weight.device != input.device
        or not input.is_floating_point()
    ):
        return True
    return weight.numel() != 1 and weight.numel() != (input.shape[1] if input.dim() > 1 else 1)


def prelu(input: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x where it is positive, else weight x, as torch.nn.functional.prelu.

    Args:
        input: any shape, float32, float64, bfloat16 or float16; other types go to torch.
        weight: of one element, or of one for each channel: of dimension 1. The type is input's.
    Raises:
        RuntimeError, TypeError: torch's own.
    Numerics: the weight's gradient is summed in float32, and from 128 rows on in double; deterministic, whatever the number
        of threads.
    """
    if _refused.holds(input, weight):
        return torch.prelu(input, weight)
    if not isinstance(input, torch.Tensor) or not isinstance(weight, torch.Tensor):
        return torch.prelu(input, weight)
    input, weight = cast_by_autocast((input, weight))
    if _is_torchs(input, weight):
        return torch.prelu(input, weight)
    needs_grad = torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad)
    refused = "" if is_plain(input) and is_plain(weight) else NOT_PLAIN
    size = None if refused else (input.numel(), needs_grad)
    backend = choose(OPERATION, input, (weight,), size=size, refused=refused)
    if backend is None:
        return torch.prelu(input, weight)
    return apply(_PReLU, input if is_dense(input) else input.clone(), weight.reshape(-1).contiguous(), backend)
