"""timm's models on our kernels: once this is imported, `pyflash.replace` takes timm's classes that are torch's in all but name.

    import pyflash, pyflash.integrations.timm
    pyflash.replace(model)

timm's attention calls torch.nn.functional.scaled_dot_product_attention, which `pyflash.overrides()` takes.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

import pyflash.functional as F
from pyflash.integrations._forms import Form, take
from pyflash.integrations._parts import GELU, GELUTanh, Part, gated
from pyflash.nn._fuse import activation_of
from pyflash.nn.transformer import feed_forward

__all__: list[str] = []


class _Norm(Part):
    """`_fast_norm`, which timm reads where the module is made, has a norm in half precision: theirs."""

    _fast_norm: bool
    weight: Any
    bias: Any
    eps: float
    normalized_shape: Any
    num_groups: int


class LayerNorm(_Norm):
    """As pyflash.nn.LayerNorm."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self._fast_norm else _layer_norm(self, x)


class LayerNorm2d(_Norm):
    """LayerNorm over the channels of [batch, channels, height, width]."""

    def forward(self, x: Tensor) -> Tensor:
        if self._fast_norm:
            return super().forward(x)
        return _layer_norm(self, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class RmsNorm(_Norm):
    """As pyflash.nn.RMSNorm."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self._fast_norm else F.rms_norm(x, self.normalized_shape, self.weight, self.eps)


class GroupNorm(_Norm):
    """As pyflash.nn.GroupNorm."""

    def forward(self, x: Tensor) -> Tensor:
        return (
            super().forward(x)
            if self._fast_norm
            else F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        )


class Mlp(Part):
    """drop2(fc2(norm(drop1(act(fc1(x)))))): the activation is in the product's kernel."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.drop2(feed_forward(x, self.fc1, self.act, lambda hidden: self.norm(self.drop1(hidden)), self.fc2))


class GluMlp(Part):
    """drop2(fc2(norm(drop1(gated(fc1(x)))))): the activation of a half is in the product of the two."""

    def forward(self: Any, x: Tensor) -> Tensor:
        fused = activation_of(self.act)
        if fused is None or self.chunk_dim != -1:
            return super().forward(x)
        value, gate = self.fc1(x).chunk(2, -1)
        if not self.gate_last:
            value, gate = gate, value
        hidden = F.gated_act(gate, value, fused)
        return self.drop2(self.fc2(self.norm(self.drop1(hidden))))


class SwiGLU(Part):
    """drop2(fc2(norm(drop1(act(fc1_g(x)) fc1_x(x))))): the activation is in the product of the two."""

    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = gated(x, self.fc1_g, self.fc1_x, self.act)
        return self.drop2(self.fc2(self.norm(self.drop1(hidden))))


def _layer_norm(norm: _Norm, x: Tensor) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


FORMS = (
    Form("timm.layers.activations:GELU", GELU, ("gelu",), activation="gelu"),
    Form("timm.layers.activations:GELUTanh", GELUTanh, ("gelu_tanh",), activation="gelu_tanh"),
    Form("timm.layers.norm:LayerNorm", LayerNorm, ("layer_norm",)),
    Form("timm.layers.norm:LayerNorm2d", LayerNorm2d, ("layer_norm",)),
    Form("timm.layers.norm:RmsNorm", RmsNorm, ("rms_norm",)),
    Form("timm.layers.norm:GroupNorm", GroupNorm, ("group_norm",)),
    Form("timm.layers.norm:GroupNorm1", GroupNorm, ("group_norm",)),
    Form("timm.layers.mlp:Mlp", Mlp, ("linear_act",)),
    Form("timm.layers.mlp:GluMlp", GluMlp, ("gated_act",)),
    Form("timm.layers.mlp:SwiGLU", SwiGLU, ("gated_act",)),
)
take(__name__, "timm", FORMS)
