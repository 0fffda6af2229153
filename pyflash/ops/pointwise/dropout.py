"""Dropout with a mask that is recomputed from a seed wherever it is needed. Srivastava et al. 2014, JMLR 15."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from pyflash.auto import pointwise as auto
from pyflash.kernels.dropout import keep_scale, threshold
from pyflash.ops.core.autograd import Function, apply
from pyflash.ops.core.backends import IN_KERNELS, Operation
from pyflash.ops.core.checks import NOT_PLAIN, is_dense, is_plain
from pyflash.ops.core.choice import Refused, choose
from pyflash.ops.core.dtypes import FLOATS, acc_dtype
from pyflash.ops.core.philox import LOW, draw_seed, philox_words
from pyflash.ops.core.registry import Op

OPERATION = Operation(
    "dropout", dtypes={"cpu": FLOATS, "triton": FLOATS}, rules=auto.dropout_rules, second_derivative=IN_KERNELS
)


def words_of(seed, n):
    """The words of elements 0 to n - 1, in the order of memory; int64."""
    counter = torch.arange((n + 63) // 64 * 16, device=seed.device)
    zero = torch.zeros_like(counter)
    words = torch.stack(philox_words(seed, (counter & LOW, counter >> 32, zero, zero)))  # [4, blocks * 16]
    return words.view(4, -1, 16).transpose(0, 1).reshape(-1)[:n]


def factors_of(x, seed, p):
    """What each element of the dense `x` is multiplied by, in the accumulation type."""
    factors = (words_of(seed, x.numel()) >= threshold(p)).to(acc_dtype(x.dtype)) * keep_scale(p)
    return factors.as_strided(x.shape, x.stride())


def _reference(x, seed, p):
    return ((x * factors_of(x, seed, p)).to(x.dtype),)


_op = Op(
    "dropout(Tensor x, Tensor seed, float p, str backend) -> Tensor",
    outputs=lambda x, seed, p: (torch.empty_like(x),),
    reference=_reference,
    differentiable=True,
    triton="pyflash.kernels.pointwise.dropout:dropout",
    cpu="pyflash.ops.pointwise._cpu_dropout:dropout",
)


class _Dropout(Function):
    """Linear in x: the backward is the operation itself, to any order."""

    @staticmethod
    def forward(x, seed, p, backend):
        return _op(x, seed, p, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, seed, ctx.p, ctx.backend = inputs
        ctx.stride = output.stride()
        ctx.save_for_backward(seed)

    @staticmethod
    def backward(ctx, dy):
        if dy.stride() != ctx.stride:  # the mask is numbered in the order of y's memory
            dy = torch.empty_strided(dy.shape, ctx.stride, dtype=dy.dtype, device=dy.device).copy_(dy)
        return apply(_Dropout, dy, ctx.saved_tensors[0], ctx.p, ctx.backend), None, None, None


def _size_of(training, input):
    return input.numel() if is_plain(input) else None


_refused = Refused(OPERATION, _size_of, lambda input: (input.numel(), input.dtype, input.is_cpu))


def dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """Zeroes elements with probability p and scales the others by 1 / (1 - p), as torch.nn.functional.dropout.

    Args:
        input: any shape, float32, float64, bfloat16 or float16; other types go to torch.
        p: probability of an element to be zeroed, in [0, 1].
        training: False returns `input` itself.
        inplace: write the result into `input`.
    Raises:
        ValueError: p outside [0, 1].
    Numerics: the mask comes from Philox4x32-10 with one seed drawn from torch's generator: reproducible under
        torch.manual_seed, the same on every backend and number of threads, another one than torch's. It is numbered in
        the order of memory. As in torch, NaN and infinity become NaN where they are dropped.
    """
    if p < 0.0 or p > 1.0:
        raise ValueError(f"pyflash.dropout: dropout probability has to be between 0 and 1, but got {p} as p")
    if (p == 0.0 or (training is False and p == p)) and type(input) is torch.Tensor:
        return input  # as torch does, in 2 us
    if training is True and _refused.holds(input):
        return F.dropout(input, p, training, inplace)
    if not isinstance(input, torch.Tensor) or training is not True or p == 0.0 or p != p or input.numel() == 0:
        return F.dropout(input, p, training, inplace)
    refused = "" if is_plain(input) else NOT_PLAIN
    backend = None if refused and not torch.is_floating_point(input) else choose(OPERATION, input, refused=refused)
    if backend is None:
        return F.dropout(input, p, training, inplace)
    seed = draw_seed(input)
    x = input if is_dense(input) else input.clone()
    y = apply(_Dropout, x, seed, float(p), backend)
    return input.copy_(y) if inplace else y
