"""The mean of a function of each element, of one tensor or of two together: one reduction, one pass for its gradient, and one
more for the gradient of that. A loss is a pair of names of `terms.TERMS`.

mean_terms(x, z) = mean f(x) + mean h(z)
"""

from __future__ import annotations

import math
from functools import cache

import torch

from pyflash.ops.core.autograd import Function, apply, vjp
from pyflash.ops.core.checks import is_dense
from pyflash.ops.core.dtypes import acc_dtype
from pyflash.ops.core.registry import Op
from pyflash.ops.loss.terms import TERMS


def _wide(x):
    return x.to(acc_dtype(x.dtype))


# A mean of squares is one operation of torch's, and so is its gradient, where both are read as wide as they are summed. 64
# elements, Zen 4, one thread: 7.8 us for 11, with the gradient 42 for 61.
_TARGETS = {
    (term, dtype): torch.full((), value, dtype=dtype, device="cpu")
    for term, value in (("half_square_to_one", 1.0), ("half_square", 0.0))
    for dtype in (torch.float32, torch.float64)
}
_MEAN = 1  # torch's number of a reduction


def _mean_of(term: str):
    """(the mean of a term's size in torch operations, its sign)."""
    base, factor, *_ = TERMS[term]
    size = abs(factor)

    def mean(x):
        terms = base(x)
        return terms.mean() if x.dtype.itemsize > 2 else terms.mean(dtype=acc_dtype(x.dtype))

    def mean_of_squares(x):
        target = _TARGETS.get((term, x.dtype)) if x.is_cpu else None
        if target is None:
            return mean(x) * size
        return torch._C._nn.mse_loss(x, target.expand_as(x), _MEAN) * size  # duals and vmap want one shape

    return mean if size == 1 else mean_of_squares, factor > 0


@cache
def composer(x_term: str, z_term: str):
    """`composed` for these terms, as (x, z) -> the mean in the type it is summed in: of a few numbers to look up what is the
    same in every call takes as long as an operation."""
    of_x, is_positive = _mean_of(x_term)
    if not z_term:
        return (lambda x, z: of_x(x)) if is_positive else (lambda x, z: -of_x(x))
    of_z, _ = _mean_of(z_term)  # of which none has a sign
    return (lambda x, z: of_x(x) + of_z(z)) if is_positive else (lambda x, z: of_z(z) - of_x(x))


def _count(x):
    return x.numel() or math.nan  # torch's mean of no elements


def composed(x, z, x_term: str, z_term: str, dtype):
    """The same in torch operations, as one would write it, differentiable to any order; sums of half types in float32."""
    mean = composer(x_term, "" if z is None else z_term)(x, z)
    return mean if mean.dtype == dtype else mean.to(dtype)


def _gradient(dy, x, term):
    return TERMS[term].first(_wide(x), dy.to(acc_dtype(x.dtype)) / _count(x)).to(x.dtype)


def _gradients(dy, x, z, x_term, z_term):
    return _gradient(dy, x, x_term), None if z is None else _gradient(dy, z, z_term)


def _seconds(dy, ddx, ddz, x, z, x_term, z_term):
    """The gradients of dy, x and z, where ddx and ddz are those of dx and dz."""
    ddy, found = 0, []
    for dd, t, term in ((ddx, x, x_term), (ddz, z, z_term)):
        if dd is None:
            found.append(None)
            continue
        wide, dd = _wide(t), _wide(dd)
        ddy = ddy + TERMS[term].first(wide, dd).sum() / _count(t)
        found.append(TERMS[term].second(wide, dd * (dy.to(dd.dtype) / _count(t))).to(t.dtype))
    return ddy.to(dy.dtype), *found


def _or_empty(like, *found):
    return tuple(like.new_empty(0) if t is None else t for t in found)


def _reference_bwd(dy, x, z, x_term, z_term, need_dx, need_dz):
    dx, dz = _gradients(dy, x, z, x_term, z_term)
    return _or_empty(x, dx if need_dx else None, dz if need_dz else None)


def _reference_second(dy, ddx, ddz, x, z, x_term, z_term):
    ddy, dx, dz = _seconds(dy, ddx, ddz, x, z, x_term, z_term)
    return ddy, *_or_empty(x, dx, dz)


def _empty(t, is_wanted):
    return torch.empty_like(t) if is_wanted else None


# x and z dense, in any order of their dimensions; x_term and z_term name what is averaged of each.
_fwd = Op(
    "mean_terms_fwd(Tensor x, Tensor? z, str x_term, str z_term, ScalarType dtype, str backend) -> Tensor",
    outputs=lambda x, z, x_term, z_term, dtype: (x.new_empty((), dtype=dtype),),
    reference=lambda *args: (composed(*args),),
    differentiable=True,
    triton="pyflash.kernels.loss.means:mean_terms_fwd",
    cpu="pyflash.ops.loss._cpu:mean_terms_fwd",
)
# dy one number; what is not needed is empty.
_bwd = Op(
    "mean_terms_bwd(Tensor dy, Tensor x, Tensor? z, str x_term, str z_term, bool need_dx, bool need_dz, str backend)"
    " -> (Tensor dx, Tensor dz)",
    outputs=lambda dy, x, z, x_term, z_term, need_dx, need_dz: _or_empty(x, _empty(x, need_dx), _empty(z, need_dz)),
    reference=_reference_bwd,
    triton="pyflash.kernels.loss.means:mean_terms_bwd",
    cpu="pyflash.ops.loss._cpu:mean_terms_bwd",
)
# ddx like x, ddz like z: at least one of them.
_second = Op(
    "mean_terms_second(Tensor dy, Tensor? ddx, Tensor? ddz, Tensor x, Tensor? z, str x_term, str z_term, str backend)"
    " -> (Tensor ddy, Tensor dx, Tensor dz)",
    outputs=lambda dy, ddx, ddz, x, z, x_term, z_term: (
        torch.empty_like(dy), *_or_empty(x, _empty(x, ddx is not None), _empty(z, ddz is not None)),
    ),
    reference=_reference_second,
    triton="pyflash.kernels.loss.means:mean_terms_second",
    cpu="pyflash.ops.loss._cpu:mean_terms_second",
)  # fmt: skip


def _like(x, t):
    """t in the memory order of x."""
    return t if t is None or t.stride() == x.stride() else torch.empty_like(x, dtype=t.dtype).copy_(t)


class _MeanTerms(Function):
    @staticmethod
    def forward(x, z, x_term, z_term, dtype, backend):
        return _fwd(x, z, x_term, z_term, dtype, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, z, *terms, _, ctx.backend = inputs
        ctx.terms = terms
        ctx.save_for_backward(x, z)

    @staticmethod
    def backward(ctx, dy):
        needs = ctx.needs_input_grad[:2]
        grads = apply(_MeanTermsBwd, dy, *ctx.saved_tensors, *ctx.terms, *needs, ctx.backend)
        return *(grad if need else None for grad, need in zip(grads, needs)), *(None,) * 4


class _MeanTermsBwd(Function):
    @staticmethod
    def forward(dy, x, z, x_term, z_term, need_dx, need_dz, backend):
        return _bwd(dy, x, z, x_term, z_term, need_dx, need_dz, backend)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        dy, x, z, *terms, need_dx, need_dz, ctx.backend = inputs
        ctx.terms, ctx.needs = terms, (need_dx, need_dz)
        ctx.mark_non_differentiable(*(t for t, need in zip(outputs, ctx.needs) if not need))
        ctx.save_for_backward(dy, x, z)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *dds):
        dy, x, z = ctx.saved_tensors
        dds = [dd if need else None for dd, need in zip(dds, ctx.needs)]
        if dds == [None, None]:
            return (None,) * 8
        ddy, dx, dz = apply(_MeanTermsSecond, dy, *dds, x, z, *ctx.terms, ctx.backend)
        return ddy, None if dds[0] is None else dx, None if dds[1] is None else dz, *(None,) * 5


class _MeanTermsSecond(Function):
    @staticmethod
    def forward(dy, ddx, ddz, x, z, x_term, z_term, backend):
        return _second(dy, _like(x, ddx), _like(z, ddz), x, z, x_term, z_term, backend)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        *tensors, x_term, z_term, _ = inputs
        ctx.terms = x_term, z_term
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, dddy, *grads):
        tensors = ctx.saved_tensors
        grads = [dddy, *(g if dd is not None else None for g, dd in zip(grads, tensors[1:3]))]

        def function(*tensors):
            return [t if t is not None else tensors[0].new_empty(0) for t in _seconds(*tensors, *ctx.terms)]

        return *vjp(function, tensors, grads), *(None,) * 3


def mean_terms(x, z, x_term: str, z_term: str, dtype: torch.dtype, backend: str) -> torch.Tensor:
    """The mean, a number of type `dtype`. x and z that are not dense are copied; z may be None."""
    x, z = (t if t is None or is_dense(t) else t.contiguous() for t in (x, z))
    return apply(_MeanTerms, x, z, x_term, z_term, dtype, backend)
