"""Pixel norm: the channels of a place over the root of their mean square. Karras et al. 2018, arXiv:1710.10196, section 4.2."""

from __future__ import annotations

import torch

from pyflash.auto.normalize import pixel_norm_rules
from pyflash.ops.core.backends import Operation
from pyflash.ops.core.checks import NOT_PLAIN, expect_tensors, is_dense, is_plain
from pyflash.ops.core.choice import Refused, choose
from pyflash.ops.core.dtypes import FLOATS, acc_dtype
from pyflash.ops.norm.normalize import ROOT_MEAN_SQUARE, divided, vectors_of

OPERATION = Operation(
    "pixel_norm",
    dtypes={"cpu": FLOATS, "triton": FLOATS},
    rules=pixel_norm_rules,
    sizes="(vectors, elements of each, are gradients needed)",
)


def _composed(x, dim, eps):
    wide = x.to(acc_dtype(x.dtype)) if x.is_floating_point() else x
    return (wide * (wide.square().mean(dim, keepdim=True) + eps).rsqrt()).to(x.dtype)


def _size_of(training, x, dim):
    if not is_plain(x) or not -x.dim() <= dim < x.dim():
        return None
    n = x.shape[dim]
    return x.numel() // max(n, 1), n, training


def _key_of(x, dim):
    return x.shape, x.dtype, x.is_cpu, dim.__index__()


_refused = Refused(OPERATION, _size_of, _key_of)


def pixel_norm(x: torch.Tensor, dim: int = 1, eps: float = 1e-8) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) along a dimension: of the channels of each pixel, or of a latent vector.

    Args:
        x: float32, float64, bfloat16 or float16; read as it lies where it is dense, contiguous or channels_last say, which the
            result is then, too; else copied.
        dim: the dimension, of the channels.
        eps: added to the mean square, under the root.
    Raises:
        IndexError: no such dimension.  RuntimeError: no floating-point numbers.  TypeError: dim is no int.
    Numerics: computed in float32 (float64 for float64) and rounded once; deterministic, whatever the number of threads.
    """
    if _refused.holds(x, dim):
        return _composed(x, dim, eps)
    expect_tensors("pixel_norm", x=x)
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"pyflash.pixel_norm: dim is {dim!r}, expected an int")
    if not x.is_floating_point():
        raise RuntimeError(f"pyflash.pixel_norm: x is {x.dtype}, expected a floating-point tensor")
    if not -x.dim() <= dim < x.dim():
        raise IndexError(
            f"pyflash.pixel_norm: Dimension out of range (expected to be in range of [{-x.dim()}, {x.dim() - 1}], but got"
            f" {dim})"
        )
    is_served = is_plain(x)
    size = _size_of(torch.is_grad_enabled() and x.requires_grad, x, dim)
    backend = choose(OPERATION, x, size=size, refused="" if is_served else NOT_PLAIN)
    if backend is None:
        return _composed(x, dim, eps)
    x = x if is_dense(x) else x.contiguous()
    return divided(x, vectors_of(x, [dim % x.dim()]), ROOT_MEAN_SQUARE, float(eps), backend)
