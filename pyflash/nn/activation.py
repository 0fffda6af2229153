"""MultiheadAttention, the activations of the table, those with a parameter, with chance or with a gate, and softmax and its kin."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import pyflash.functional as F
from pyflash.nn import _activations, _softmax
from pyflash.nn._activations import *  # noqa: F403
from pyflash.nn._softmax import *  # noqa: F403
from pyflash.nn._twins import ORIGINALS, adopt, constructor_of, is_bare, leaf, twin
from pyflash.nn.linear import Linear, NonDynamicallyQuantizableLinear
from pyflash.ops.attention.multi_head import multi_head_attention, torch_is_quicker
from pyflash.ops.core.backends import record, use_backend

__all__ = ["GLU", "MultiheadAttention", "PReLU", "RReLU"]
__all__ += _activations.__all__
__all__ += _softmax.__all__

_OUT_PROJS = tuple(cls for ours in (Linear, NonDynamicallyQuantizableLinear) for cls in (ours, ORIGINALS[ours]))


@twin("glu")
class GLU(torch.nn.GLU):
    """The first half times the sigmoid of the second, as torch.nn.GLU. Dauphin et al. 2016, arXiv:1612.08083."""

    def forward(self, input: Tensor) -> Tensor:
        return F.glu(input, self.dim)


@twin("prelu")
class PReLU(torch.nn.PReLU):
    """x where it is positive, else weight x, as torch.nn.PReLU. He et al. 2015, arXiv:1502.01852."""

    def forward(self, input: Tensor) -> Tensor:
        return F.prelu(input, self.weight)


@twin("rrelu", "leaky_relu")
class RReLU(torch.nn.RReLU):
    """x where it is positive, else x times a slope that is drawn in training, as torch.nn.RReLU. Xu et al. 2015,
    arXiv:1505.00853."""

    def forward(self, input: Tensor) -> Tensor:
        return F.rrelu(input, self.lower, self.upper, self.training, self.inplace)


def nested_to_torch(operation: str, parts: dict[torch.nn.Module, tuple[type, ...]]) -> use_backend:
    """A context for torch's own forward of a NestedTensor, whatever backend is asked for; counted for `explain`.

    Args:
        parts: what that forward reads the weights of, and never calls: each with the classes that it takes it for.
    """
    for part, classes in parts.items():
        if type(part) not in classes or "forward" in part.__dict__:
            raise RuntimeError(
                f"pyflash.{operation}: a NestedTensor goes through torch's fast path, which would not call the"
                f" {type(part).__name__} in place of a {classes[-1].__name__}; pass a padded tensor and its mask"
            )
    record(operation, "torch", "NestedTensor input")
    return use_backend("torch")


@twin("linear", "attention")
@leaf
class MultiheadAttention(torch.nn.MultiheadAttention):
    """Projects, attends with several heads, projects back, as torch.nn.MultiheadAttention.

    The attention is fused with dropout too, and with need_weights; a query that may attend to nothing gives zeros.
    Vaswani et al. 2017, arXiv:1706.03762, section 3.2.2.
    """

    @constructor_of(torch.nn.MultiheadAttention.__init__)
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        adopt(self.out_proj)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if query.is_nested or key.is_nested or value.is_nested:
            with nested_to_torch("multi_head_attention_forward", {self.out_proj: _OUT_PROJS}):
                return super().forward(
                    query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
                )
        # torch reads the weights of out_proj and never calls it; so do we, where calling it would do nothing else.
        modules: dict[str, Any] = self._modules
        out_proj = modules["out_proj"]
        is_read = is_bare(out_proj, *_OUT_PROJS)
        # Without masks torch's result is ours in every mode, also on its fast path. But for dropout, whose mask must not
        # depend on whether gradients are recorded (see `attention`), as this choice does where no weights are needed.
        drops = self.training and self.dropout > 0 and not need_weights
        if is_read and attn_mask is None and key_padding_mask is None and not is_causal and not drops:
            keys = key.shape[0 if not self.batch_first or key.dim() < 3 else 1]
            if torch_is_quicker(query, self.embed_dim, keys, need_weights):
                return super().forward(query, key, value, None, need_weights, None, average_attn_weights)
        try:  # not as attributes, each of which is a call of nn.Module's __getattr__
            own: dict[str, Any] = self._parameters
            in_weight, in_bias = own["in_proj_weight"], own["in_proj_bias"]
        except KeyError:  # parametrized, or taken in hand by FSDP
            in_weight, in_bias = self.in_proj_weight, self.in_proj_bias
        if not self._qkv_same_embed_dim:
            in_weight = self.q_proj_weight, self.k_proj_weight, self.v_proj_weight
        out_weight = out_bias = None
        if is_read:
            own = out_proj._parameters
            out_weight = own["weight"] if "weight" in own else out_proj.weight
            out_bias = own["bias"] if "bias" in own else out_proj.bias
        return multi_head_attention(
            query,
            key,
            value,
            self.num_heads,
            in_weight,
            in_bias,
            out_weight,
            out_bias,
            out_proj=None if is_read else out_proj,
            embed_dim=self.embed_dim,
            bias_kv=None if self.bias_k is None or self.bias_v is None else (self.bias_k, self.bias_v),
            add_zero_attn=self.add_zero_attn,
            dropout_p=self.dropout if self.training else 0.0,
            attn_mask=attn_mask,
            key_padding_mask=key_padding_mask,
            is_causal=is_causal,
            need_weights=need_weights,
            average_attn_weights=average_attn_weights,
            batch_first=self.batch_first,
        )
