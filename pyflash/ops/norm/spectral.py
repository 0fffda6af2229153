"""Weights divided by their spectral norm. Miyato et al. 2018, arXiv:1802.05957; as torch's parametrization of that name.

A step of power iteration makes u = W v / |W v| and v = W^T u / |W^T u|, of one walk over W's rows (csrc/cpu/norm/spectral.h);
sigma = u . (W v) comes with it. u and v are constants to autograd, as in torch: d(W / sigma) = dW / sigma - W / sigma^2
(u . (dW v)).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from pyflash.auto.minima import minima
from pyflash.ops.core.autograd import Function, apply, vjp
from pyflash.ops.core.backends import Operation
from pyflash.ops.core.checks import NOT_PLAIN, expect, expect_tensors, is_dense, is_plain
from pyflash.ops.core.choice import choose
from pyflash.ops.core.dtypes import FLOATS, acc_dtype
from pyflash.ops.core.registry import Op

OPERATION = Operation(
    "spectral_norm",
    dtypes={"cpu": FLOATS, "triton": FLOATS},
    rules=minima("spectral_norm", inference=0, training=0),
    sizes="(elements of the weight, are gradients needed)",
    notes=dict.fromkeys(("cpu", "triton"), "dense weights of two dimensions or more"),
)


def _matrix(weight, dim):
    return weight.movedim(dim, 0).flatten(1)


def _sigma_in_torch(weight, u, v, dim, iterations, eps):
    """(u, v, sigma) behind the iterations, in the accumulation type."""
    matrix, u, v = (t.to(acc_dtype(weight.dtype)) for t in (_matrix(weight, dim), u, v))
    for _ in range(iterations):
        u = F.normalize(matrix @ v, dim=0, eps=eps)
        v = F.normalize(matrix.mT @ u, dim=0, eps=eps)
    return u, v, torch.dot(u, matrix @ v)


def _reference_sigma(weights, us, vs, dims, iterations, eps):
    found = [_sigma_in_torch(*of) for of in zip(weights, us, vs, dims, iterations, eps)]
    next_us, next_vs, sigmas = zip(*found)
    vectors = [t.to(like.dtype, copy=True) for t, like in zip(next_us + next_vs, us + vs)]  # none is an argument itself
    return *vectors, *sigmas


def _sigma_outputs(weights, us, vs, dims, iterations, eps):
    sigmas = [weight.new_empty((), dtype=acc_dtype(weight.dtype)) for weight in weights]
    return *map(torch.empty_like, us), *map(torch.empty_like, vs), *sigmas


def _scaled_in_torch(weight, u, v, dim):
    return weight / torch.dot(u, _matrix(weight, dim) @ v)


def _gradient(dy, weight, u, v, dim):
    weight = weight if weight.requires_grad else weight.detach().requires_grad_()
    u, v = (t.to(acc_dtype(weight.dtype)) for t in (u, v))
    return vjp(lambda w: _scaled_in_torch(w.to(u.dtype), u, v, dim).to(w.dtype), (weight,), (dy,))


# Of weights, contiguous and of one type, as matrices with dimension `dim` in front: u [rows] and v [columns], the others'
# elements in their order, behind so many iterations, and u . (W v).
_sigma = Op(
    "spectral_sigma(Tensor[] weights, Tensor[] us, Tensor[] vs, int[] dims, int[] iterations, float[] eps, str backend)"
    " -> Tensor[]",
    outputs=_sigma_outputs,
    reference=_reference_sigma,
    triton="pyflash.kernels.norm.spectral:spectral_sigma",
    cpu="pyflash.ops.norm._cpu_spectral:spectral_sigma",
)
# weight / sigma, where sigma is u . (weight v).
_scale_fwd = Op(
    "spectral_scale_fwd(Tensor weight, Tensor u, Tensor v, Tensor sigma, int dim, str backend) -> Tensor",
    outputs=lambda weight, *_: (torch.empty_like(weight),),
    reference=lambda weight, u, v, sigma, dim: ((weight.to(sigma.dtype) / sigma).to(weight.dtype),),
    triton="pyflash.kernels.norm.spectral:spectral_scale_fwd",
    cpu="pyflash.ops.norm._cpu_spectral:spectral_scale_fwd",
)
_scale_bwd = Op(
    "spectral_scale_bwd(Tensor dy, Tensor weight, Tensor u, Tensor v, Tensor sigma, int dim, str backend) -> Tensor",
    outputs=lambda dy, weight, *_: (torch.empty_like(weight),),
    reference=lambda dy, weight, u, v, sigma, dim: _gradient(dy, weight, u, v, dim),
    triton="pyflash.kernels.norm.spectral:spectral_scale_bwd",
    cpu="pyflash.ops.norm._cpu_spectral:spectral_scale_bwd",
)


class _SpectralScale(Function):
    @staticmethod
    def forward(weight, u, v, sigma, dim, backend):
        return _scale_fwd(weight, u, v, sigma, dim, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        weight, u, v, sigma, ctx.dim, ctx.backend = inputs
        ctx.save_for_backward(weight, u, v, sigma)

    @staticmethod
    def backward(ctx, dy):
        return apply(_SpectralScaleBwd, dy.contiguous(), *ctx.saved_tensors, ctx.dim, ctx.backend), *(None,) * 5


class _SpectralScaleBwd(Function):
    @staticmethod
    def forward(dy, weight, u, v, sigma, dim, backend):
        return _scale_bwd(dy, weight, u, v, sigma, dim, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        dy, weight, u, v, _, ctx.dim, _ = inputs
        ctx.save_for_backward(dy, weight, u, v)

    @staticmethod
    def backward(ctx, ddweight):  # sigma is a function of the weight: computed again
        dy, weight, u, v = ctx.saved_tensors
        found = vjp(lambda dy, weight: _gradient(dy, weight, u, v, ctx.dim), (dy, weight), (ddweight,))
        return *found, *(None,) * 5


class Layer(NamedTuple):
    """A weight, and what its norm is estimated with."""

    weight: torch.Tensor
    u: torch.Tensor
    v: torch.Tensor
    iterations: int
    eps: float
    dim: int

    def state(self) -> tuple:
        """Equal to that of another layer only if nothing was changed; not even by `data`, but in place through it."""
        weight, u, v, *numbers = self
        return (
            id(weight), weight.data_ptr(), weight._version, id(u), u.data_ptr(), u._version, id(v), v.data_ptr(), v._version,
            *numbers,
        )  # fmt: skip


class Estimate(NamedTuple):
    """u, v and sigma behind a layer's iterations. v is in the order of the weight's memory."""

    backend: str
    u: torch.Tensor
    v: torch.Tensor
    sigma: torch.Tensor


def _order(weight) -> list[int] | None:
    """The dimensions of a dense tensor in the order of its memory; None: as they are written."""
    if weight.is_contiguous():
        return None
    return sorted(range(weight.dim()), key=lambda d: (-weight.stride(d), d))


def _in_memory(layer: Layer):
    """(weight, v, dim) in the order of the weight's memory."""
    weight, dim, order = layer.weight, layer.dim, _order(layer.weight)
    if order is None:
        return weight, layer.v, dim
    return weight.permute(order), _reordered(layer.v, weight, dim, order), order.index(dim)


def _reordered(v, weight, dim, order, back: bool = False):
    """v, a number for each place of the other dimensions, in the order of the weight's memory; or `back` from it."""
    written = [d for d in range(weight.dim()) if d != dim]
    in_memory = [d for d in order if d != dim]
    source, target = (in_memory, written) if back else (written, in_memory)
    return v.view([weight.shape[d] for d in source]).permute([source.index(d) for d in target]).flatten()


def _fit(layer: Layer) -> bool:
    """Are u and v of the weight's sizes? A kernel reads as many elements."""
    rows = layer.weight.shape[layer.dim]
    return layer.u.shape == (rows,) and layer.v.shape == (layer.weight.numel() // rows,)


def _backend(layer: Layer) -> str | None:
    weight, u, v = layer.weight, layer.u, layer.v
    refused = ""
    if not (is_plain(weight) and is_plain(u) and is_plain(v)):
        refused = NOT_PLAIN
    elif not weight.numel() or not is_dense(weight):
        refused = "the weight is empty, or has holes"
    elif not (u.is_contiguous() and v.is_contiguous() and u.dtype == v.dtype == weight.dtype):
        refused = "u or v are of another type than the weight, or not contiguous"
    elif not (u.device == v.device == weight.device and _fit(layer)):
        refused = "u or v are of another size than the weight's, or on another device"  # a module's buffers can be set
    training = torch.is_grad_enabled() and weight.requires_grad
    return choose(OPERATION, weight, (u, v), size=None if refused else (weight.numel(), training), refused=refused)


@torch.no_grad()
def _estimates(layers: Sequence[Layer], backend: str) -> list[Estimate]:
    """Of layers of one type on one device, in one launch."""
    weights, vs, dims = zip(*map(_in_memory, layers))
    us, iterations, eps = zip(*((layer.u, layer.iterations, layer.eps) for layer in layers))
    found = _sigma(*map(list, (weights, us, vs, dims, iterations, eps)), backend)
    n = len(layers)
    return [Estimate(backend, *found[i::n]) for i in range(n)]


def estimated_ahead(layers: Sequence[Layer]) -> list[Estimate | None]:
    """The estimates of all layers, of each type and device in one launch; nothing is written to u and v. None for a layer
    that no kernel serves."""
    backends = [_backend(layer) for layer in layers]
    together: dict[tuple, list[int]] = {}
    for i, (layer, backend) in enumerate(zip(layers, backends)):
        if backend is not None:
            together.setdefault((layer.weight.dtype, layer.weight.device, backend), []).append(i)
    found: list[Estimate | None] = [None] * len(layers)
    for (_, _, backend), group in together.items():
        for i, estimate in zip(group, _estimates([layers[i] for i in group], backend)):
            found[i] = estimate
    return found


def divided_by_norm(layer: Layer, ahead: Estimate | None = None) -> torch.Tensor | None:
    """The weight over its norm, with the iterations' u and v written to the layer's, which torch leaves to its parametrization;
    None: no kernel serves it. `ahead`: the estimate, if it was made before."""
    if ahead is None:
        backend = _backend(layer)
        if backend is None:
            return None
        (ahead,) = _estimates([layer], backend)
    weight, dim, order = layer.weight, layer.dim, _order(layer.weight)
    if layer.iterations:
        with torch.no_grad():
            layer.u.copy_(ahead.u)
            layer.v.copy_(ahead.v if order is None else _reordered(ahead.v, weight, dim, order, back=True))
    if order is None:
        return apply(_SpectralScale, weight, ahead.u, ahead.v, ahead.sigma, dim, ahead.backend)
    y = apply(_SpectralScale, weight.permute(order), ahead.u, ahead.v, ahead.sigma, order.index(dim), ahead.backend)
    return y.permute([order.index(d) for d in range(weight.dim())])


def spectral_norm(
    weight: torch.Tensor,
    u: torch.Tensor,
    v: torch.Tensor,
    training: bool = True,
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: int = 0,
) -> torch.Tensor:
    """The weight over its spectral norm u . (W v), as torch.nn.utils.parametrizations.spectral_norm has it; W is the weight
    as a matrix, dimension `dim` in front.

    Args:
        weight: of two dimensions or more; float32, float64, bfloat16 or float16, dense in any order, which the result has, too.
        u, v: [weight.shape[dim]] and [the other elements], of the weight's type. In training the iterations' are written to
            them; to autograd they are constants.
        training: iterate before.
        n_power_iterations: of u = W v and v = W^T u, each divided by its norm.
        eps: no vector is divided by less.
    Raises:
        ValueError: u, v or dim do not fit the weight.
    Numerics: sums in float32 (float64 for float64), u and v rounded once behind the last iteration; deterministic, whatever
        the number of threads.
    """
    expect_tensors("spectral_norm", weight=weight, u=u, v=v)
    expect(
        -weight.dim() <= dim < weight.dim() >= 2,
        "spectral_norm",
        lambda: (
            f"dim is {dim} of a weight of shape {tuple(weight.shape)}, expected two dimensions or more, dim one of them"
        ),
    )
    dim %= weight.dim()
    rows = weight.shape[dim]
    expect(
        u.shape == (rows,) and v.shape == (weight[(slice(None),) * dim + (0,)].numel(),),
        "spectral_norm",
        lambda: f"u has shape {tuple(u.shape)}, v {tuple(v.shape)}; the weight {tuple(weight.shape)} has {rows} rows",
    )
    expect(
        n_power_iterations > 0,
        "spectral_norm",
        lambda: f"n_power_iterations is {n_power_iterations}, expected 1 or more",
    )
    layer = Layer(weight, u, v, n_power_iterations if training else 0, eps, dim)
    found = divided_by_norm(layer)
    return _by_torch(layer) if found is None else found


def _by_torch(layer: Layer) -> torch.Tensor:
    """In torch's steps, rounded as torch's are."""
    weight, u, v, dim, eps = layer.weight, layer.u, layer.v, layer.dim, layer.eps
    with torch.no_grad():
        matrix = _matrix(weight, dim)
        for _ in range(layer.iterations):
            u.copy_(F.normalize(matrix @ v, dim=0, eps=eps))
            v.copy_(F.normalize(matrix.mT @ u, dim=0, eps=eps))
    return _scaled_in_torch(weight, u.clone(), v.clone(), dim)
