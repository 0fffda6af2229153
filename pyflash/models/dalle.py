"""Pictures from labels in two steps, as DALL-E: a picture becomes a few tokens, and a GPT writes tokens behind a label.
Ramesh et al. 2021, arXiv:2102.12092, section 2; the tokens by van den Oord et al. 2017, arXiv:1711.00937, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import init

import pyflash.nn
from pyflash.models._config import expect, expect_counts, expect_heads, expect_probabilities
from pyflash.models._functional import functional_of
from pyflash.models._generation import continued, expect_sampling
from pyflash.models.gpt import GPT, GPTConfig


@dataclass(frozen=True)
class DALLEConfig:
    """
    Args:
        image_size: height and width of a picture.
        patch_size: of the squares that become a token each; divides image_size.
        num_classes: labels there are.
        num_codes: tokens that a square may become.
        width, depth, num_heads: of the GPT.
        channels: of a picture.
        hidden: features of a square before and behind its token.
        code_width: features of a token's code.
        commitment: weight of what draws a square to its code.
        dropout: of the GPT.
    """

    image_size: int
    patch_size: int
    num_classes: int
    num_codes: int
    width: int
    depth: int
    num_heads: int
    channels: int = 1
    hidden: int = 64
    code_width: int = 16
    commitment: float = 0.25
    dropout: float = 0.0

    def __post_init__(self):
        expect_counts(self, "image_size", "patch_size", "num_classes", "num_codes", "width", "depth", "num_heads")
        expect_counts(self, "channels", "hidden", "code_width")
        expect(
            self, "patch_size", self.image_size % self.patch_size == 0, f"a divisor of image_size, {self.image_size}"
        )
        expect_heads(self)
        expect(self, "commitment", self.commitment >= 0, "0 or a positive number")
        expect_probabilities(self, "dropout")

    @property
    def side(self) -> int:
        return self.image_size // self.patch_size


class Tokenizer(torch.nn.Module):
    """Squares of a picture to the nearest of so many codes, and codes to squares. Each square is seen alone."""

    def __init__(self, config: DALLEConfig, nn: ModuleType):
        super().__init__()
        self.config = config
        patch = config.patch_size
        self.encoder = nn.Sequential(
            nn.Conv2d(config.channels, config.hidden, patch, patch),
            nn.ReLU(),
            nn.Conv2d(config.hidden, config.code_width, 1),
        )
        self.codes = nn.Embedding(config.num_codes, config.code_width)
        self.decoder = nn.Sequential(
            nn.Conv2d(config.code_width, config.hidden, 1), nn.ReLU(),
            nn.ConvTranspose2d(config.hidden, config.channels, patch, patch),
        )  # fmt: skip
        init.uniform_(self.codes.weight, -0.5, 0.5)

    def nearest(self, features: Tensor) -> Tensor:
        """The number of the code nearest to each of features [..., code_width]."""
        codes = self.codes.weight
        F = functional_of(self.encoder[0])
        return (codes.square().sum(1) - 2 * F.linear(features, codes)).argmin(-1)

    def encode(self, images: Tensor) -> Tensor:
        """images [N, channels, image_size, image_size] to tokens [N, side * side]."""
        return self.nearest(self.encoder(images).flatten(2).transpose(1, 2))

    def decode(self, tokens: Tensor) -> Tensor:
        """Back again."""
        return self._drawn(self.codes(tokens))

    def _drawn(self, codes: Tensor) -> Tensor:
        side = self.config.side
        return self.decoder(codes.transpose(1, 2).unflatten(2, (side, side)))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What comes back, and the loss: its mean squared error, and how far squares are from their codes. The gradient
        passes the choice of a code as if it were none: eq. 3."""
        features = self.encoder(images).flatten(2).transpose(1, 2)
        codes = self.codes(self.nearest(features.detach()))
        back = self._drawn(features + (codes - features).detach())
        F = functional_of(self.encoder[0])
        to_codes, to_features = F.mse_loss(codes, features.detach()), F.mse_loss(features, codes.detach())
        return back, F.mse_loss(back, images) + to_codes + self.config.commitment * to_features


class DALLE(torch.nn.Module):
    """The tokenizer of pictures, which is trained first, and the GPT that reads a label and writes a picture's tokens.

    Args:
        config: DALLEConfig.
        nn: torch.nn for the twin.
    """

    def __init__(self, config: DALLEConfig, *, nn: ModuleType = pyflash.nn):
        super().__init__()
        self.config = config
        self.tokenizer = Tokenizer(config, nn)
        self.gpt = GPT(
            GPTConfig(
                config.num_codes + config.num_classes, 1 + config.side**2, config.width, config.depth, config.num_heads,
                dropout=config.dropout,
            ),
            nn=nn,
        )  # fmt: skip

    def forward(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor | None, Tensor]:
        """The first step: (what comes back, the tokenizer's loss). With labels [N], the second: (None, the mean cross entropy
        of the pictures' tokens behind them), in which the tokenizer is not trained."""
        if labels is None:
            return self.tokenizer(images)
        with torch.no_grad():
            tokens = self.tokenizer.encode(images)
        return self.gpt(torch.cat((self._prompt(labels), tokens[:, :-1]), 1), tokens)

    def _prompt(self, labels: Tensor) -> Tensor:
        """Labels are tokens behind those of pictures."""
        return labels.unsqueeze(1) + self.config.num_codes

    @torch.no_grad()
    def generate(
        self, labels: Tensor, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
    ) -> Tensor:
        """Pictures [N, channels, image_size, image_size] of labels [N]. Call eval() first. Arguments: as GPT.generate."""
        most, count = self.config.num_codes, self.config.side**2
        expect_sampling("DALLE", count, temperature, top_k, top_p)
        first, step = self.gpt._cached(self._prompt(labels), torch.ones_like(labels), 1 + count)
        tokens = continued(first[:, :most], lambda token: step(token)[:, :most], count, temperature, top_k, top_p)
        return self.tokenizer.decode(tokens)
