"""The functions between the modules of a model: pyflash's where its modules are pyflash's, torch's in the twin.

A block asks at each call, by one of its own modules, and keeps nothing. So what pyflash.replace and pyflash.restore do to
the modules of a model is done to its functions as well.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import pyflash.functional
import pyflash.nn


def functional_of(layer: torch.nn.Module) -> Any:
    """pyflash.functional where this linear layer or convolution is pyflash.nn's, otherwise the same in torch's operations."""
    return pyflash.functional if isinstance(layer, (pyflash.nn.Linear, pyflash.nn.Conv2d)) else Torchs


class Torchs:
    """What the models use of pyflash.functional, in torch's operations: the same names, the arguments that are used."""

    cross_entropy = staticmethod(F.cross_entropy)
    linear = staticmethod(F.linear)
    mse_loss = staticmethod(F.mse_loss)
    normalize = staticmethod(F.normalize)
    scaled_dot_product_attention = staticmethod(F.scaled_dot_product_attention)

    @staticmethod
    def attention_weights(q: Tensor, k: Tensor, attn_mask: Tensor | None) -> Tensor:
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        return (scores if attn_mask is None else scores.masked_fill(~attn_mask, float("-inf"))).softmax(-1)

    @staticmethod
    def linear_cross_entropy(x: Tensor, weight: Tensor, target: Tensor, *, ignore_index: int) -> Tensor:
        return F.cross_entropy(F.linear(x, weight), target, ignore_index=ignore_index)

    @staticmethod
    def gated_act(gate: Tensor, value: Tensor, activation: torch.nn.Module) -> Tensor:
        return activation(gate) * value

    @staticmethod
    def rotary_embedding(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return _rotated(q, cos, sin), _rotated(k, cos, sin)

    @staticmethod
    def attention_decode(q: Tensor, k_cache: Tensor, v_cache: Tensor, cache_seqlens: Tensor) -> Tensor:
        """Of one query a sequence."""
        mask = torch.arange(k_cache.shape[2], device=q.device) < cache_seqlens[:, None, None, None]
        return F.scaled_dot_product_attention(q, k_cache, v_cache, mask, enable_gqa=True)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    if cos.dim() == 3:  # of each sequence its own positions
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    a, b = x.to(torch.promote_types(x.dtype, cos.dtype)).chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


def rotary_tables(positions: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [..., head_dim / 2] of the angles position base^(-2 i / head_dim), Su et al. 2021, eq. 15.

    In float32, whatever type the model is cast to: bfloat16 cannot tell position 257 from 256.
    """
    steps = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    angles = positions.unsqueeze(-1) * base ** (-steps / head_dim)
    return angles.cos(), angles.sin()
