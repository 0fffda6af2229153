"""torch.nn.utils.parametrizations' functions, on modules of ours as on torch's: a parametrised module of ours computes with our
kernels. spectral_norm iterates with ours as well; in a model it may take the steps of all layers in one launch."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.utils import parametrizations as _torchs
from torch.nn.utils.parametrizations import orthogonal, weight_norm
from torch.nn.utils.parametrize import ParametrizationList

import pyflash.functional as F
from pyflash.nn._twins import set_class, twin
from pyflash.ops.norm import spectral

__all__ = ["orthogonal", "spectral_norm", "spectral_norms_together", "weight_norm"]

_AHEAD = "_pyflash_ahead"  # in a norm, during the forward of a model whose norms step together: (state, estimate)


@twin("spectral_norm")
class _SpectralNorm(_torchs._SpectralNorm):
    def _layer(self, weight: torch.Tensor) -> spectral.Layer:
        iterations = self.n_power_iterations if self.training else 0
        buffers: dict[str, Any] = self._buffers  # an attribute of a module takes three times as long
        return spectral.Layer(weight, buffers["_u"], buffers["_v"], iterations, self.eps, self.dim)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        if weight.ndim == 1:
            return F.normalize(weight, dim=0, eps=self.eps)
        if torch.compiler.is_compiling():
            return super().forward(weight)
        layer = self._layer(weight)
        state, ahead = vars(self).pop(_AHEAD, (None, None))
        result = spectral.divided_by_norm(layer, ahead if state is not None and state == layer.state() else None)
        return super().forward(weight) if result is None else result


def spectral_norm(
    module: torch.nn.Module,
    name: str = "weight",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: int | None = None,
) -> torch.nn.Module:
    """torch.nn.utils.parametrizations.spectral_norm, computed by our kernels: one walk over the weight for an iteration, one
    for the division. The same numbers, buffers, keys and random draws. Miyato et al. 2018, arXiv:1802.05957.

    Args:
        module: whose weight is divided by its largest singular value, as power iteration estimates it: a step with every
            access of the weight in training.
        name: of the parameter.
        n_power_iterations: steps of an access.
        eps: no vector is divided by less.
        dim: the outputs' dimension. Default: 0, 1 of ConvTranspose.
    Returns:
        `module`.
    """
    _torchs.spectral_norm(module, name, n_power_iterations, eps, dim)
    parametrizations: Any = module.parametrizations
    set_class(parametrizations[name][-1], _SpectralNorm)
    return module


def spectral_norms_together(model: torch.nn.Module) -> torch.nn.Module:
    """From here on the spectral norms in `model` that are ours take their steps in one launch, as `model` is called: for
    models of many small layers, whose launches take longer than their work.

    Numbers, buffers and gradients are those of the norms by themselves. What was computed ahead is written to a norm's
    buffers when its weight is asked for, so one that this forward does not reach makes no step, and one that is asked twice
    makes its second by itself. A weight that is written to between the start of the forward and its use is estimated
    again, but for writes in place through `.data`, which nobody can see.

    Args:
        model: called by the training loop itself; nothing happens where only its parts are called.
    Returns:
        `model`.
    """
    if _look_ahead not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_look_ahead)
        model.register_forward_hook(_forget, always_call=True)
    return model


def _norms(model: torch.nn.Module):
    """(norm, the weight that it is given) of all norms of ours that come first."""
    for module in model.modules():
        if type(module) is ParametrizationList and type(norm := module._modules["0"]) is _SpectralNorm:
            if module.original.dim() > 1:
                yield norm, module.original


def _look_ahead(model, args) -> None:
    if torch.compiler.is_compiling():
        return
    norms = list(_norms(model))
    layers = [norm._layer(weight) for norm, weight in norms]
    for (norm, _), layer, estimate in zip(norms, layers, spectral.estimated_ahead(layers)):
        if estimate is not None:
            vars(norm)[_AHEAD] = layer.state(), estimate


def _forget(model, args, output) -> None:
    for norm, _ in _norms(model):
        vars(norm).pop(_AHEAD, None)
