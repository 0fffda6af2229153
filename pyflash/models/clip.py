"""CLIP. Radford et al. 2021, arXiv:2103.00020, section 2 and figure 3."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import init

import pyflash.nn
from pyflash.models._config import expect, expect_counts
from pyflash.models._encoder import encoder, expect_encoder, initialise
from pyflash.models._functional import functional_of

MOST = 100.0  # times a cosine: section 2.5


@dataclass(frozen=True)
class CLIPConfig:
    """
    Args:
        vocab_size: tokens there are. The last, vocab_size - 1, is meant to end each text: a text is read where its token of
            the largest number first stands.
        context_length: of the longest text, in tokens.
        image_size, patch_size, channels: of the pictures, as ViTConfig.
        text_width, text_depth, text_num_heads, text_hidden: of the tower that reads texts.
        image_width, image_depth, image_num_heads, image_hidden: of the tower that looks at pictures.
        features: in which texts and pictures are compared.
        activation: "quick_gelu", "gelu" or "relu".
        norm_eps: what a norm adds to the variance.
        dropout: the probability of a 0 in attention and in and behind each part of a layer.
    """

    vocab_size: int
    context_length: int
    image_size: int
    patch_size: int
    text_width: int
    text_depth: int
    text_num_heads: int
    image_width: int
    image_depth: int
    image_num_heads: int
    features: int
    channels: int = 3
    text_hidden: int | None = None
    image_hidden: int | None = None
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5
    dropout: float = 0.0

    def __post_init__(self):
        expect_counts(self, "vocab_size", "context_length", "image_size", "patch_size", "features", "channels")
        expect(
            self, "patch_size", self.image_size % self.patch_size == 0, f"a divisor of image_size, {self.image_size}"
        )
        expect_encoder(self, "text_")
        expect_encoder(self, "image_")


class TextTower(torch.nn.Module):
    """Tokens and learned positions through causal pre-norm layers and a norm, read where the text ends."""

    def __init__(self, config: CLIPConfig, nn: ModuleType):
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.text_width)
        self.positions = nn.Embedding(config.context_length, config.text_width)
        self.encoder = encoder(config, nn, norm_first=True, prefix="text_")
        self.norm = nn.LayerNorm(config.text_width, eps=config.norm_eps)

    def forward(self, ids: Tensor) -> Tensor:
        length, most = ids.shape[1], self.positions.num_embeddings
        if length > most:
            raise ValueError(
                f"pyflash.models.CLIP: ids has {length} tokens, expected at most context_length, {most}; cut the texts, or"
                " build the model for longer ones"
            )
        x = self.tokens(ids) + self.positions.weight[:length]
        later = torch.full((length, length), float("-inf"), device=x.device, dtype=x.dtype).triu(1)
        x = self.norm(self.encoder(x, later, is_causal=True))
        return x[torch.arange(len(x), device=x.device), ids.argmax(1)]


class ImageTower(torch.nn.Module):
    """A token and a picture's patches, with learned positions, through a norm and pre-norm layers; the token, normed."""

    def __init__(self, config: CLIPConfig, nn: ModuleType):
        super().__init__()
        width, side = config.image_width, config.image_size // config.patch_size
        self.size = config.channels, config.image_size, config.image_size
        self.patches = nn.Conv2d(config.channels, width, config.patch_size, config.patch_size, bias=False)
        self.token = torch.nn.Parameter(torch.empty(width))
        self.positions = torch.nn.Parameter(torch.empty(side * side + 1, width))
        self.norm_before = nn.LayerNorm(width, eps=config.norm_eps)
        self.encoder = encoder(config, nn, norm_first=True, prefix="image_")
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1:] != self.size:
            raise ValueError(
                f"pyflash.models.CLIP: images has shape {tuple(images.shape)}, expected [N, {', '.join(map(str, self.size))}];"
                " resize the pictures, or build the model for theirs"
            )
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(len(x), 1, -1), x), 1) + self.positions
        return self.norm(self.encoder(self.norm_before(x))[:, 0])


class CLIP(torch.nn.Module):
    """How well each text says what is in each picture: a cosine, times a number that is learned.

    Args:
        config: CLIPConfig.
        nn: torch.nn for the twin.
    Shape:
        images [N, channels, image_size, image_size], ids [M, tokens], int64, to logits [N, M].
    """

    def __init__(self, config: CLIPConfig, *, nn: ModuleType = pyflash.nn):
        super().__init__()
        self.config = config
        self.text = TextTower(config, nn)
        self.text_projection = nn.Linear(config.text_width, config.features, bias=False)
        self.image = ImageTower(config, nn)
        self.image_projection = nn.Linear(config.image_width, config.features, bias=False)
        self.logit_scale = torch.nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # section 2.5
        self.apply(initialise)
        for parameter in (self.image.token, self.image.positions):
            init.normal_(parameter, std=config.image_width**-0.5)
        init.normal_(self.text.positions.weight, std=0.01)
        init.normal_(self.text_projection.weight, std=config.text_width**-0.5)
        init.normal_(self.image_projection.weight, std=config.image_width**-0.5)

    def text_features(self, ids: Tensor) -> Tensor:
        """[M, features], each of length 1."""
        return functional_of(self.text_projection).normalize(self.text_projection(self.text(ids)), dim=-1)

    def image_features(self, images: Tensor) -> Tensor:
        """[N, features], each of length 1."""
        return functional_of(self.image_projection).normalize(self.image_projection(self.image(images)), dim=-1)

    def forward(self, images: Tensor, ids: Tensor, *, with_loss: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Logits; `with_loss`, for picture i and text i that belong together, (logits, the contrastive loss): the mean of
        the cross entropies of finding each picture's text and each text's picture."""
        pictures, texts = self.image_features(images), self.text_features(ids)
        F = functional_of(self.text_projection)
        logits = F.linear(pictures, texts) * self.logit_scale.clamp(max=math.log(MOST)).exp()
        if not with_loss:
            return logits
        if logits.shape[0] != logits.shape[1]:
            raise ValueError(
                f"pyflash.models.CLIP: {logits.shape[0]} images and {logits.shape[1]} ids, expected as many of both"
            )
        pairs = torch.arange(len(logits), device=logits.device)
        return logits, (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.t(), pairs)) / 2
