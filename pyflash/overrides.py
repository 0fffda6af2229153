"""overrides: torch.nn.functional calls of any code go to pyflash.functional, inside a `with` block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

import pyflash.functional as ours

# F.tanh and F.sigmoid reach a mode as the tensor methods that they call.
_OURS = {
    F.linear: ours.linear,
    F.layer_norm: ours.layer_norm,
    F.dropout: ours.dropout,
    F.scaled_dot_product_attention: ours.scaled_dot_product_attention,
    F.multi_head_attention_forward: ours.multi_head_attention_forward,
    F.relu: ours.relu,
    torch.relu: ours.relu,
    torch.Tensor.relu: ours.relu,
    F.gelu: ours.gelu,
    F.silu: ours.silu,
    torch.tanh: ours.tanh,
    torch.Tensor.tanh: ours.tanh,
    torch.sigmoid: ours.sigmoid,
    torch.Tensor.sigmoid: ours.sigmoid,
}


class overrides(TorchFunctionMode):
    """Context manager: calls of torch.nn.functional's linear, layer_norm, dropout, scaled_dot_product_attention,
    multi_head_attention_forward, relu, gelu, silu, tanh and sigmoid inside are ours, whoever makes them.

    A torch function mode: nothing is patched, other threads see nothing, and it may be nested.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return _OURS.get(func, func)(*args, **(kwargs or {}))
