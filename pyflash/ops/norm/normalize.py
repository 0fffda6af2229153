"""Vectors divided by their norm, or by the root of their mean square, along any dimension."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from pyflash.auto.normalize import rules
from pyflash.ops.core.autograd import Function, apply, shaped, vjp
from pyflash.ops.core.backends import Operation
from pyflash.ops.core.checks import NOT_PLAIN, is_dense, is_plain
from pyflash.ops.core.choice import Refused, choose
from pyflash.ops.core.dtypes import FLOATS, acc_dtype
from pyflash.ops.core.registry import Op
from pyflash.ops.norm.rows import cast_for_autocast

POWERS = {1.0: "one", 2.0: "two", float("inf"): "most"}  # p, and what the kernels call it
ROOT_MEAN_SQUARE = "mean"  # eps is then under the root

_torchs: Callable[..., torch.Tensor] = F.normalize  # whose annotations know of no tuple of dimensions

OPERATION = Operation(
    "normalize",
    dtypes={"cpu": FLOATS, "triton": FLOATS},
    rules=rules,
    sizes="(vectors, elements of each, are gradients needed)",
    notes=dict.fromkeys(("cpu", "triton"), "p of 1, 2 and infinity"),
)


def _of_torch(x, kind, eps):
    """(y, norm) of x [outer, n, inner], in the accumulation type."""
    if kind == ROOT_MEAN_SQUARE:
        norm = (x.to(acc_dtype(x.dtype)).square().mean(1, True) + eps).sqrt()
        return x / norm, norm
    p = next(p for p, name in POWERS.items() if name == kind)
    norm = torch.linalg.vector_norm(x.to(acc_dtype(x.dtype)), p, 1, True)
    return x / norm.clamp_min(eps), norm


def _reference_fwd(x, kind, eps):
    y, norm = _of_torch(x, kind, eps)
    return y.to(x.dtype), norm[:, 0]


def _gradient(dy, x, kind, eps):
    x = x if x.requires_grad else x.detach().requires_grad_()
    return vjp(lambda x: _of_torch(x, kind, eps)[0].to(x.dtype), (x,), (dy,))


# x [outer, n, inner], contiguous: vectors of n elements; kind one of POWERS, or ROOT_MEAN_SQUARE.
_fwd = Op(
    "normalize_fwd(Tensor x, str kind, float eps, str backend) -> (Tensor y, Tensor norm)",
    outputs=lambda x, kind, eps: (
        torch.empty_like(x),
        x.new_empty(x.shape[0], x.shape[2], dtype=acc_dtype(x.dtype)),
    ),
    reference=_reference_fwd,
    differentiable=True,
    triton="pyflash.kernels.norm.normalize:normalize_fwd",
    cpu="pyflash.ops.norm._cpu_normalize:normalize_fwd",
)
_bwd = Op(
    "normalize_bwd(Tensor dy, Tensor x, Tensor norm, str kind, float eps, str backend) -> Tensor",
    outputs=lambda dy, x, *_: (torch.empty_like(x),),
    reference=lambda dy, x, norm, kind, eps: _gradient(dy, x, kind, eps),
    triton="pyflash.kernels.norm.normalize:normalize_bwd",
    cpu="pyflash.ops.norm._cpu_normalize:normalize_bwd",
)


class _Normalize(Function):
    @staticmethod
    def forward(x, kind, eps, backend):
        return _fwd(x, kind, eps, backend)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        x, *ctx.rest = inputs
        ctx.save_for_backward(x, outputs[1])
        ctx.mark_non_differentiable(outputs[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, dy, _norm):
        if dy is None:
            return (None,) * 4
        return apply(_NormalizeBwd, dy.contiguous(), *ctx.saved_tensors, *ctx.rest), None, None, None


class _NormalizeBwd(Function):
    @staticmethod
    def forward(dy, x, norm, kind, eps, backend):
        return _bwd(dy, x, norm, kind, eps, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        dy, x, _, *ctx.rest, _ = inputs
        ctx.save_for_backward(dy, x)

    @staticmethod
    def backward(ctx, ddx):  # the norm is a function of x: computed again
        return *vjp(lambda dy, x: _gradient(dy, x, *ctx.rest), ctx.saved_tensors, (ddx,)), *(None,) * 4


def vectors_of(x, dims):
    """(order, at, outer, n, inner): x in the order of its memory, permuted by `order`, is [outer, n, inner] with `dims` in
    n. None where they are not neighbours there."""
    order = sorted(range(x.dim()), key=lambda d: (-x.stride(d), d)) if not x.is_contiguous() else list(range(x.dim()))
    places = sorted(order.index(d) for d in dims)
    first, last = places[0], places[-1]
    if last - first + 1 != len(places):
        return None
    outer = n = inner = 1
    for place, d in enumerate(order):
        size = x.shape[d]
        if place < first:
            outer *= size
        elif place > last:
            inner *= size
        else:
            n *= size
    return order, outer, n, inner


def divided(x, vectors, kind: str, eps: float, backend: str) -> torch.Tensor:
    """x, which is dense, over its vectors' norms; `vectors` as `vectors_of` has them of x."""
    order, *view = vectors
    is_ordered = order == list(range(len(order)))
    ordered = x if is_ordered else x.permute(order)
    y, _ = apply(_Normalize, ordered.reshape(view), kind, eps, backend)
    y = shaped(y, ordered.shape)
    return y if is_ordered else y.permute([order.index(d) for d in range(len(order))])


def _size_of(training, input, p, dim):
    if not is_plain(input) or not -input.dim() <= dim < input.dim():
        return None
    n = input.shape[dim]
    return input.numel() // max(n, 1), n, training


def _key_of(input, p, dim):
    return input.shape, input.dtype, input.is_cpu, dim.__index__(), p.__float__()  # an AttributeError of other things


_refused = Refused(OPERATION, _size_of, _key_of)


def _dims(input, dim):
    """The dimensions, not negative; None for what torch refuses, or has a meaning of its own for."""
    dims = (dim,) if type(dim) is int else dim
    if not isinstance(dims, (tuple, list)) or not dims:
        return None
    found = set()
    for d in dims:
        if type(d) is not int or not -input.dim() <= d < input.dim():
            return None
        found.add(d % input.dim())
    return sorted(found) if len(found) == len(dims) else None


def normalize(
    input: torch.Tensor,
    p: float = 2.0,
    dim: int | tuple[int, ...] = 1,
    eps: float = 1e-12,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """x / max(norm(x), eps) along a dimension, as torch.nn.functional.normalize.

    Args:
        input: float32, float64, bfloat16 or float16; read as it lies where it is dense, in any order of its dimensions, which
            the result has then, too; else copied.
        p: 1, 2 or infinity; torch serves others.
        dim: a dimension, or several that are neighbours in memory; torch serves others.
        out: torch serves it.
    Raises:
        IndexError, RuntimeError, TypeError: torch's.
    Numerics: computed in float32 (float64 for float64) and rounded once, where torch rounds a half type's norm as well;
        deterministic, whatever the number of threads.
    """
    if not isinstance(input, torch.Tensor) or (out is None and _refused.holds(input, p, dim)):
        return _torchs(input, p, dim, eps, out)
    dims, refused = _dims(input, dim), ""
    if out is not None:
        refused = "out= is torch's"
    elif not is_plain(input):
        refused = NOT_PLAIN
    elif type(p) not in (int, float) or float(p) not in POWERS:
        refused = f"p is {p}; the kernels have 1, 2 and infinity"
    elif dims is None or type(eps) not in (int, float) or eps != eps or (p == float("inf") and not input.numel()):
        refused = "arguments that only torch's function takes"
    vectors = None
    if not refused:
        (input,) = cast_for_autocast(input)
        x = input if is_dense(input) else input.contiguous()
        vectors = vectors_of(x, dims)
        refused = "" if vectors else f"the dimensions {dims} are no neighbours in memory"
    elif dims is None and is_plain(input):
        result = _torchs(input, p, dim, eps, out)  # or torch's error
        choose(OPERATION, input, refused=refused)
        return result
    size = (vectors[1] * vectors[3], vectors[2], torch.is_grad_enabled() and input.requires_grad) if vectors else None
    backend = choose(OPERATION, input, size=size, refused=refused)
    if backend is None or vectors is None:
        return _torchs(input, p, dim, eps, out)
    return divided(x, vectors, POWERS[float(p)], float(eps), backend)
