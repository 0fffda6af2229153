"""What ViT, BERT and CLIP share: an nn.TransformerEncoder, and the weights that one begins with."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import init

from pyflash.models._config import expect_counts, expect_heads, expect_one_of, expect_probabilities


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), which CLIP was trained with. Hendrycks & Gimpel 2016, arXiv:1606.08415, section 2."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, str | Callable[[Tensor], Tensor]] = {  # the option -> what an encoder layer takes
    "gelu": "gelu", "relu": "relu", "quick_gelu": quick_gelu,
}  # fmt: skip


def expect_encoder(config: Any, prefix: str = "") -> None:
    """Checks the fields of a config that `encoder` reads; `prefix` of a tower's."""
    counts = [f"{prefix}{field}" for field in ("width", "depth", "num_heads")]
    expect_counts(config, *counts)
    if getattr(config, f"{prefix}hidden") is not None:
        expect_counts(config, f"{prefix}hidden")
    expect_heads(config, counts[0], counts[2])
    expect_one_of(config, "activation", ACTIVATIONS)
    expect_probabilities(config, "dropout")


def encoder(config: Any, nn: ModuleType, *, norm_first: bool, prefix: str = "") -> torch.nn.TransformerEncoder:
    """Layers of `width`, `depth`, `num_heads` and `hidden` (default: 4 width) of a config."""
    width, depth, num_heads, hidden = (getattr(config, prefix + f) for f in ("width", "depth", "num_heads", "hidden"))
    layer = nn.TransformerEncoderLayer(
        width, num_heads, hidden or 4 * width, config.dropout, ACTIVATIONS[config.activation], config.norm_eps,
        batch_first=True, norm_first=norm_first,
    )  # fmt: skip
    return nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)


def initialise(module: torch.nn.Module) -> None:
    """Weights normal with deviation 0.02, cut at two deviations, biases 0, norms 1: for Module.apply."""
    if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Embedding)):
        init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
    if isinstance(module, torch.nn.MultiheadAttention):
        init.trunc_normal_(module.in_proj_weight, std=0.02, a=-0.04, b=0.04)
        init.zeros_(module.in_proj_bias)
    if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) and module.bias is not None:
        init.zeros_(module.bias)
