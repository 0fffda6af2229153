"""ViT. Dosovitskiy et al. 2021, "An image is worth 16x16 words", arXiv:2010.11929, section 3.1."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import init

import pyflash.nn
from pyflash.models._config import expect, expect_counts, expect_one_of
from pyflash.models._encoder import encoder, expect_encoder, initialise


@dataclass(frozen=True)
class ViTConfig:
    """
    Args:
        image_size: height and width of a picture.
        patch_size: of the squares that it is cut into; divides image_size.
        width: features of a patch.
        depth: layers.
        num_heads: of attention; they share the width.
        num_classes: logits a picture.
        channels: of a picture.
        hidden: features inside a feed-forward part. Default: 4 width.
        activation: "gelu", "relu" or "quick_gelu".
        pooling: what the head reads: "token", one that is put before the patches, or "mean", over the patches.
        norm_eps: what a norm adds to the variance; 1e-6 in timm and torchvision, 1e-12 in transformers.
        dropout: the probability of a 0 behind the embedding, in attention, and in and behind each part of a layer.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    num_classes: int = 1000
    channels: int = 3
    hidden: int | None = None
    activation: str = "gelu"
    pooling: str = "token"
    norm_eps: float = 1e-6
    dropout: float = 0.0

    def __post_init__(self):
        expect_counts(self, "image_size", "patch_size", "num_classes", "channels")
        expect(
            self, "patch_size", self.image_size % self.patch_size == 0, f"a divisor of image_size, {self.image_size}"
        )
        expect_encoder(self)
        expect_one_of(self, "pooling", ("token", "mean"))

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


class ViT(torch.nn.Module):
    """A picture's patches, with learned positions, through pre-norm Transformer layers, a norm and a linear layer.

    Args:
        config: ViTConfig.
        nn: torch.nn for the twin.
    Shape:
        x [N, channels, image_size, image_size] to logits [N, num_classes].
    Raises:
        ValueError: pictures of another size.
    """

    def __init__(self, config: ViTConfig, *, nn: ModuleType = pyflash.nn):
        super().__init__()
        self.config = config
        self.patches = nn.Conv2d(config.channels, config.width, config.patch_size, config.patch_size)
        has_token = config.pooling == "token"
        self.token = torch.nn.Parameter(torch.empty(1, 1, config.width)) if has_token else None
        self.positions = torch.nn.Parameter(torch.empty(1, config.num_patches + has_token, config.width))
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = encoder(config, nn, norm_first=True)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.head = nn.Linear(config.width, config.num_classes)
        self.apply(initialise)
        for parameter in (self.token, self.positions):
            if parameter is not None:
                init.trunc_normal_(parameter, std=0.02, a=-0.04, b=0.04)

    def forward(self, x: Tensor) -> Tensor:
        config = self.config
        if x.shape[1:] != (config.channels, config.image_size, config.image_size):
            raise ValueError(
                f"pyflash.models.ViT: x has shape {tuple(x.shape)}, expected [N, {config.channels}, {config.image_size},"
                f" {config.image_size}]; resize the pictures, or build the model for theirs"
            )
        x = self.patches(x).flatten(2).transpose(1, 2)
        if self.token is not None:
            x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1)
        x = self.norm(self.encoder(self.dropout(x + self.positions)))
        return self.head(x.mean(1) if self.token is None else x[:, 0])
