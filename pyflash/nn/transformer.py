"""Transformer, its encoder and decoder and their layers, as in torch.nn.

Constructors, masks and results are torch's. Inside a layer the residual addition is one kernel with the norm that
follows it, and the activation one with the linear before it, wherever the modules concerned are nothing but
themselves: with a hook, a subclass or another class in the place, the module itself is called.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._C import _is_any_autocast_enabled, _len_torch_function_stack
from torch.nn.modules.transformer import _detect_is_causal_mask, _get_seq_len

import pyflash.functional as F
from pyflash.nn._fuse import activation_of
from pyflash.nn._twins import adopt, are_bare, constructor_of, is_bare, leaf, twin
from pyflash.nn.activation import _OUT_PROJS, MultiheadAttention, nested_to_torch
from pyflash.nn.dropout import Dropout
from pyflash.nn.linear import Linear
from pyflash.nn.normalization import LayerNorm
from pyflash.ops.attention.multi_head import canonical_masks, torch_is_quicker
from pyflash.ops.core.checks import PLAIN_TYPES

__all__ = [
    "Transformer",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
]

_PARTS = {  # of an encoder layer, and the classes whose weights torch's fast path takes them for
    "self_attn": (MultiheadAttention, torch.nn.MultiheadAttention),
    "linear1": (Linear, torch.nn.Linear),
    "linear2": (Linear, torch.nn.Linear),
    "norm1": (LayerNorm, torch.nn.LayerNorm),
    "norm2": (LayerNorm, torch.nn.LayerNorm),
    "dropout": (Dropout, torch.nn.Identity, torch.nn.Dropout),
    "dropout1": (Dropout, torch.nn.Identity, torch.nn.Dropout),
    "dropout2": (Dropout, torch.nn.Identity, torch.nn.Dropout),
}
_PARTS_AND_ACTIVATION = frozenset((*_PARTS, "activation"))
_FAST_ACTIVATIONS = {1: "relu", 2: "gelu"}  # as torch notes them in activation_relu_or_gelu


def _read_by_torch(layer: torch.nn.TransformerEncoderLayer) -> dict[torch.nn.Module, tuple[type, ...]]:
    """What torch's fast path of an encoder layer reads, or leaves out, and never calls."""
    parts = {getattr(layer, name): classes for name, classes in _PARTS.items()}
    return {**parts, getattr(layer.self_attn, "out_proj", layer.self_attn): _OUT_PROJS}


def _is_as_built(layer: torch.nn.TransformerEncoderLayer) -> bool:
    """Does torch's fast path compute what the parts of an encoder layer would, if each were called?

    Not where the user put in another module, another activation, a hook, a method, or a part that is in training.
    """
    cls, held = type(layer), vars(layer)
    if cls._sa_block is not torch.nn.TransformerEncoderLayer._sa_block:
        return False
    if cls._ff_block is not TransformerEncoderLayer._ff_block or "_sa_block" in held or "_ff_block" in held:
        return False
    parts = [layer._modules.get(name) for name in _PARTS]
    for part in parts:
        if part is None or part.training:
            return False
    parts.append(layer.self_attn._modules.get("out_proj"))
    classes = tuple(map(type, parts))
    if not _are_parts(classes) or not are_bare(parts, classes):
        return False
    fast = layer.activation_relu_or_gelu  # of the activation that the constructor was given
    return not fast or activation_of(layer.activation) == _FAST_ACTIVATIONS[fast]


@lru_cache(maxsize=64)
def _are_parts(classes: tuple[type, ...]) -> bool:
    """Of _PARTS and of out_proj: does torch's fast path take the weights of these?"""
    return all([cls in known for cls, known in zip(classes, (*_PARTS.values(), _OUT_PROJS))])


def _fast_arguments(layer: TransformerEncoderLayer, src: Tensor) -> tuple | None:
    """What torch's forward of a layer as built calls torch._transformer_encoder_layer_fwd with; None where it does not, or may
    not. Its own way there takes 25 us (Zen 4), of a tiny layer's call a fifth: it reads every weight twice, as attributes.
    """
    modules: dict[str, Any] = layer._modules
    attn, norm1, norm2 = modules["self_attn"], modules["norm1"], modules["norm2"]
    if (
        not torch.backends.mha.get_fastpath_enabled()
        or src.dim() != 3
        or type(src) is not Tensor
        or not attn.batch_first
        or not attn._qkv_same_embed_dim
        or not layer.activation_relu_or_gelu
        or norm1.eps != norm2.eps
        or attn.num_heads % 2
        or _is_any_autocast_enabled()
        or _len_torch_function_stack()
        or layer._forward_hooks
        or layer._forward_pre_hooks
        or not _PARTS_AND_ACTIVATION.issuperset(modules)  # any other child's hooks keep torch from it
        or ("activation" in modules and not is_bare(modules["activation"], type(modules["activation"])))
    ):
        return None
    try:
        in_weight, in_bias = attn._parameters["in_proj_weight"], attn._parameters["in_proj_bias"]
        weights = in_weight, in_bias, *_weights(attn._modules["out_proj"])
        behind = *_weights(norm1), *_weights(norm2), *_weights(modules["linear1"]), *_weights(modules["linear2"])
    except KeyError:  # parametrized, or taken in hand by FSDP
        return None
    for weight in (*weights, *behind):
        if type(weight) not in PLAIN_TYPES:
            return None
    options = layer.activation_relu_or_gelu == 2, layer.norm_first, norm1.eps
    return src, attn.embed_dim, attn.num_heads, *weights, *options, *behind


def _weights(part: torch.nn.Module):
    own: dict[str, Any] = part._parameters
    return own["weight"], own["bias"]


def feed_forward(x: Tensor, linear1, activation, dropout, linear2) -> Tensor:
    """linear2(dropout(activation(linear1(x))))"""
    fused = activation_of(activation)
    if fused is not None and is_bare(linear1, Linear, torch.nn.Linear):
        hidden = F.linear_act(x, linear1.weight, linear1.bias, fused)
    else:
        hidden = activation(linear1(x))
    return linear2(dropout(hidden))


def add_norm(x: Tensor, residual: Tensor, norm: torch.nn.Module) -> tuple[Tensor, Tensor]:
    """(norm(x + residual), x + residual)"""
    if is_bare(norm, LayerNorm, torch.nn.LayerNorm) and x.dtype == residual.dtype:
        return F.add_layer_norm(x, residual, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    total = residual + x
    return norm(total), total


def _adopt_children(layer: torch.nn.Module) -> None:
    """What torch's constructor made becomes ours; an activation is the caller's own module."""
    for name, child in layer.named_children():
        if name != "activation":
            adopt(child)


@twin("linear_act", "add_layer_norm")
@leaf
class TransformerEncoderLayer(torch.nn.TransformerEncoderLayer):
    """Self-attention and feed-forward with residuals and norms, as torch.nn.TransformerEncoderLayer."""

    @constructor_of(torch.nn.TransformerEncoderLayer.__init__)
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        _adopt_children(self)

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        if src.is_nested:
            with nested_to_torch("transformer_encoder_layer", _read_by_torch(self)):
                return super().forward(src, src_mask, src_key_padding_mask, is_causal)
        if not self.training and src_mask is None and src_key_padding_mask is None and not is_causal:
            if not torch.is_grad_enabled() and not torch.compiler.is_compiling() and _is_as_built(self):
                if torch_is_quicker(src, src.shape[-1], src.shape[-2]):
                    arguments = _fast_arguments(self, src)
                    if arguments is None:
                        return super().forward(src)
                    return torch._transformer_encoder_layer_fwd(*arguments)
        src_mask, src_key_padding_mask = canonical_masks(
            src_mask,
            src_key_padding_mask,
            src.dtype,
            "src_mask",
            "src_key_padding_mask",
            keep_bool=isinstance(self.self_attn, MultiheadAttention),
        )
        if self.norm_first:
            attended = self._sa_block(self.norm1(src), src_mask, src_key_padding_mask, is_causal)
            normed, x = add_norm(attended, src, self.norm2)
            return x + self._ff_block(normed)
        attended = self._sa_block(src, src_mask, src_key_padding_mask, is_causal)
        x, _ = add_norm(attended, src, self.norm1)
        return add_norm(self._ff_block(x), x, self.norm2)[0]

    def _ff_block(self, x: Tensor) -> Tensor:
        return self.dropout2(feed_forward(x, self.linear1, self.activation, self.dropout, self.linear2))


@twin("linear_act", "add_layer_norm")
@leaf
class TransformerDecoderLayer(torch.nn.TransformerDecoderLayer):
    """Self-attention, attention to the encoder's output and feed-forward, as torch.nn.TransformerDecoderLayer."""

    @constructor_of(torch.nn.TransformerDecoderLayer.__init__)
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        _adopt_children(self)

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        to_self = (tgt_mask, tgt_key_padding_mask, tgt_is_causal)
        to_memory = (memory_mask, memory_key_padding_mask, memory_is_causal)
        if self.norm_first:
            normed, x = add_norm(self._sa_block(self.norm1(tgt), *to_self), tgt, self.norm2)
            normed, x = add_norm(self._mha_block(normed, memory, *to_memory), x, self.norm3)
            return x + self._ff_block(normed)
        x, _ = add_norm(self._sa_block(tgt, *to_self), tgt, self.norm1)
        x, _ = add_norm(self._mha_block(x, memory, *to_memory), x, self.norm2)
        return add_norm(self._ff_block(x), x, self.norm3)[0]

    def _ff_block(self, x: Tensor) -> Tensor:
        return self.dropout3(feed_forward(x, self.linear1, self.activation, self.dropout, self.linear2))


@twin()
@leaf
class TransformerEncoder(torch.nn.TransformerEncoder):
    """A stack of encoder layers, as torch.nn.TransformerEncoder.

    In evaluation without gradients torch makes a NestedTensor of a padded batch, and its padded rows come back as
    zeros (before the last norm). Here the layers see the padding mask, and those rows are zeroed after them: also in a
    compiled or exported graph, where torch does not.
    """

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        if src.is_nested:
            with nested_to_torch("transformer_encoder", {}):
                return super().forward(src, mask, src_key_padding_mask, is_causal)
        keep_bool = all(isinstance(layer, TransformerEncoderLayer) for layer in self.layers)
        mask, src_key_padding_mask = canonical_masks(
            mask, src_key_padding_mask, src.dtype, "mask", "src_key_padding_mask", keep_bool
        )
        zeroed = self._rows_torch_zeroes(src, mask, src_key_padding_mask)
        if zeroed is not None and src_key_padding_mask is not None and src_key_padding_mask.dtype != torch.bool:
            src_key_padding_mask = src_key_padding_mask.masked_fill(zeroed, float("-inf"))  # any other float than 0
        is_causal = _detect_is_causal_mask(mask, is_causal, _get_seq_len(src, self.layers[0].self_attn.batch_first))
        x = src
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=is_causal, src_key_padding_mask=src_key_padding_mask)
        if zeroed is not None:
            x = x.masked_fill(zeroed.unsqueeze(-1), 0.0)
        return x if self.norm is None else self.norm(x)

    def _rows_torch_zeroes(self, src: Tensor, mask: Tensor | None, padding: Tensor | None) -> Tensor | None:
        """[batch, seq], True for the rows that torch's forward would return as zeros; None when there are none."""
        first = self.layers[0]
        if (
            padding is None
            or mask is not None
            or src.dim() != 3
            or first.training
            or not getattr(self, "use_nested_tensor", False)
            or not torch.backends.mha.get_fastpath_enabled()
            or torch.is_autocast_enabled()
        ):
            return None
        if torch.is_grad_enabled() and (src.requires_grad or any(p.requires_grad for p in first.parameters())):
            return None
        padding = padding if padding.dtype == torch.bool else padding != 0
        if getattr(self, "mask_check", True):
            # What torch._nested_tensor_from_mask_left_aligned finds, without a value to wait for: it holds in a graph too.
            valid = ~padding
            aligned = valid == (torch.arange(padding.shape[1], device=padding.device) < valid.sum(1, keepdim=True))
            padding = padding & aligned.all()
        return padding


@twin()
@leaf
class TransformerDecoder(torch.nn.TransformerDecoder):
    """A stack of decoder layers, as torch.nn.TransformerDecoder."""


@twin()
@leaf
class Transformer(torch.nn.Transformer):
    """Encoder and decoder, as torch.nn.Transformer. Vaswani et al. 2017, arXiv:1706.03762."""

    @constructor_of(torch.nn.Transformer.__init__)
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        given = {id(value) for value in (*args, *kwargs.values())}
        for child in (self.encoder, self.decoder):
            if id(child) not in given:
                adopt(child)
