"""Modules, one behind the other, that run as one: a convolution, a batch norm and an activation, or two of these; a Linear
and an activation.

In evaluation the batch norm is folded into the convolution, whose sums it scales and shifts before they are written; in
training it takes the activation into its own pass. Nothing is kept between calls: scale and shift are made of the parameters
and buffers as they are now, and gradients go through them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

import pyflash.functional as F
from pyflash.nn._fuse import activation_of, is_activation
from pyflash.nn._twins import ORIGINALS, class_of, is_bare
from pyflash.nn.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d, normalise
from pyflash.nn.conv import Conv1d, Conv2d, Conv3d, convolve
from pyflash.nn.linear import Linear
from pyflash.ops.conv.functions import conv_norm_act, is_norm_apart
from pyflash.ops.core.dtypes import HALVES, acc_dtype
from pyflash.ops.pointwise.argument import ActivationArgument

# A convolution's class, and that of the batch norm of its rank.
_NORM_OF: dict[type, type] = {Conv1d: BatchNorm1d, Conv2d: BatchNorm2d, Conv3d: BatchNorm3d}
_NORMS = tuple(_NORM_OF.values())
_RANK = {cls: rank for rank, pair in enumerate(_NORM_OF.items(), 1) for cls in pair}

FOLDED, FUSED = "folded into", "fused into"


class Chain(NamedTuple):
    """Bare modules of ours (is_bare), in the order in which they are called; one that is absent is None."""

    linear: Linear | None
    conv: Any
    norm: Any
    last: torch.nn.Module | None  # the module of the activation
    activation: ActivationArgument

    @property
    def head(self) -> torch.nn.Module:
        return self.modules[0]

    @property
    def modules(self) -> list[torch.nn.Module]:
        return [module for module in self[:4] if module is not None]

    def without_conv(self) -> Chain:
        return self._replace(conv=None)

    def inner(self, is_folded: bool) -> dict[torch.nn.Module, str]:
        """What becomes of the modules that run as part of the head."""
        if self.norm is self.head:
            return {} if self.last is None else {self.last: FUSED}
        if self.norm is not None and not is_folded:
            return {}  # the head is called; what is behind it is a chain of its own
        found = dict.fromkeys(self.modules[1:], FUSED)
        return found if self.norm is None else {**found, self.norm: FOLDED}

    def folds(self) -> bool:
        """In the mode its modules are in: is the batch norm an affine function of each channel?"""
        conv, norm = self.conv, self.norm
        if conv is None or norm is None or norm.training or norm.running_mean is None or norm.running_var is None:
            return False
        dtype = conv.weight.dtype
        types = (dtype, torch.float32) if dtype in HALVES else (dtype,)
        given = norm.running_mean, norm.running_var, norm.weight, norm.bias
        return norm.num_features == conv.out_channels and all([t is None or t.dtype in types for t in given])


def chain_of(modules: Sequence[torch.nn.Module], least: int = 2) -> Chain | None:
    """The longest chain of `least` to three modules that the first of these begin; None where they are to be called."""
    head = modules[0]
    cls = type(head)
    if (cls not in _RANK and cls is not Linear) or not is_bare(head, cls):
        return None
    found: dict[str, Any] = dict(linear=None, conv=None, norm=None, last=None, activation=None)
    found["linear" if cls is Linear else "conv" if cls in _NORM_OF else "norm"] = head
    at = 1
    if cls in _NORM_OF and at < len(modules) and is_bare(modules[at], _NORM_OF[cls]):
        found["norm"] = modules[at]
        at += 1
    if at < len(modules) and type(modules[at]) in ORIGINALS:
        activation = activation_of(modules[at])
        if activation is not None:
            found.update(last=modules[at], activation=activation)
            at += 1
    return Chain(**found) if at >= least else None


def chains_of(modules: Sequence[torch.nn.Module]) -> Iterator[Chain]:
    """Those that a Sequential of these runs."""
    at = 0
    while at < len(modules):
        chain = chain_of(modules[at : at + 3])
        at += 1 if chain is None else len(chain.modules)
        if chain is not None:
            yield chain


def may_be_chained(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """May these two run as one when they are of our classes, as they are or will be?"""
    first, second = (ORIGINALS.get(class_of(module), class_of(module)) for module in (a, b))
    rank = next((n for n in (1, 2, 3) if first in _classes("Conv", n)), None)
    if rank is not None and second in _classes("BatchNorm", rank):
        return True
    heads = [cls for n in (1, 2, 3) for cls in (*_classes("Conv", n), *_classes("BatchNorm", n))]
    return first in (torch.nn.Linear, torch.nn.LazyLinear, *heads) and is_activation(second)


def _classes(name: str, rank: int) -> tuple[type, type]:
    return getattr(torch.nn, f"{name}{rank}d"), getattr(torch.nn, f"Lazy{name}{rank}d")


def run(chain: Chain, input: Tensor, residual: Tensor | None = None) -> Tensor:
    """What calling its modules one after the other gives; `residual` is added before the activation."""
    linear, conv, norm, _, activation = chain
    if linear is not None:
        return F.linear_act(input, linear.weight, linear.bias, activation)
    if conv is not None and norm is None:
        behind = {"activation": activation, "residual": residual}
        return convolve(conv, F.conv_bias_act, input, conv.weight, conv.bias, **behind)
    # Without a batch, BatchNorm1d reads the result's channels as one.
    if conv is not None and not norm.training and input.dim() == _RANK[type(conv)] + 2:
        options = conv.stride, conv.padding, conv.dilation, conv.groups
        if not is_norm_apart(input, conv.weight, residual, *options) and chain.folds():
            return run_folded(chain, input, residual)
    return run_apart(chain, input, residual)


def run_apart(chain: Chain, input: Tensor, residual: Tensor | None = None) -> Tensor:
    """As `run`, a batch norm by itself; it takes the activation into its own pass."""
    if chain.conv is not None:
        return run(chain.without_conv(), chain.conv(input), residual)
    if chain.activation is None and residual is None:
        return chain.norm(input)
    return normalise(chain.norm, input, F.batch_norm_act, activation=chain.activation, residual=residual)


def run_folded(chain: Chain, input: Tensor, residual: Tensor | None = None) -> Tensor:
    """As `run`, the batch norm in what ends the convolution."""
    scale, bias = affine_of(chain.conv, chain.norm)
    return convolve(
        chain.conv, conv_norm_act, input, chain.conv.weight, bias, scale=scale, activation=chain.activation, residual=residual,
        unfused=lambda: run_apart(chain, input, residual),
    )  # fmt: skip


def affine_of(conv, norm) -> tuple[Tensor, Tensor]:
    """(scale, bias) that make of the sums of `conv` what `norm`, in evaluation, makes of its result: gamma / sqrt(var + eps)
    and beta + (bias - mean) gamma / sqrt(var + eps), in the weight's type. Jacob et al. 2018, arXiv:1712.05877, section 3.2."""
    dtype = conv.weight.dtype
    wide = acc_dtype(dtype)
    mean, var, gamma, beta = norm.running_mean, norm.running_var, norm.weight, norm.bias
    mean, scale = _as(mean, wide), torch.rsqrt(_as(var, wide) + norm.eps)
    scale = scale if gamma is None else scale * gamma
    if conv.bias is not None:
        mean = mean - conv.bias
    bias = -mean * scale if beta is None else torch.addcmul(_as(beta, wide), mean, scale, value=-1)
    return _as(scale, dtype), _as(bias, dtype)


def _as(t: Tensor, dtype: torch.dtype) -> Tensor:
    """t.to(dtype), which takes 1 us to find that it has nothing to do."""
    return t if t.dtype == dtype else t.to(dtype)
