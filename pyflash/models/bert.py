"""BERT. Devlin, Chang, Lee & Toutanova 2019, arXiv:1810.04805, section 3."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

import pyflash.nn
from pyflash.models._config import expect_counts
from pyflash.models._encoder import encoder, expect_encoder, initialise
from pyflash.models._functional import functional_of


@dataclass(frozen=True)
class BERTConfig:
    """
    Args:
        vocab_size: tokens there are.
        context_length: of the longest text, in tokens.
        width: features of a token.
        depth: layers.
        num_heads: of attention; they share the width.
        num_classes: None: the head says what stands at each token (MLM); a number: it gives so many logits a text.
        hidden: features inside a feed-forward part. Default: 4 width.
        num_segments: texts that stand together in one.
        activation: "gelu", "relu" or "quick_gelu", of the layers; the head's is GELU.
        norm_eps: what a norm adds to the variance.
        dropout: the probability of a 0 behind the embedding, in attention, in and behind each part of a layer, and before
            the logits of classes.
    """

    vocab_size: int
    context_length: int
    width: int
    depth: int
    num_heads: int
    num_classes: int | None = None
    hidden: int | None = None
    num_segments: int = 2
    activation: str = "gelu"
    norm_eps: float = 1e-12
    dropout: float = 0.0

    def __post_init__(self):
        expect_counts(self, "vocab_size", "context_length", "num_segments")
        if self.num_classes is not None:
            expect_counts(self, "num_classes")
        expect_encoder(self)


class BERT(torch.nn.Module):
    """Embeddings of tokens, positions and segments, post-norm Transformer layers that look both ways, a head.

    The head of MLM is a linear layer, GELU, a norm, and a linear layer whose weight is the embedding's; that of classes
    reads the first token through a linear layer and tanh.

    Args:
        config: BERTConfig.
        nn: torch.nn for the twin.
    Shape:
        ids [batch, tokens], int64, to logits [batch, tokens, vocab_size] or [batch, num_classes].
    Raises:
        ValueError: more tokens than context_length.
    """

    def __init__(self, config: BERTConfig, *, nn: ModuleType = pyflash.nn):
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Embedding(config.context_length, config.width)
        self.segments = nn.Embedding(config.num_segments, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = encoder(config, nn, norm_first=False)
        dense = nn.Linear(config.width, config.width)
        if config.num_classes is None:
            parts = OrderedDict(
                dense=dense, activation=nn.GELU(), norm=nn.LayerNorm(config.width, eps=config.norm_eps),
                out=nn.Linear(config.width, config.vocab_size),
            )  # fmt: skip
        else:
            out = nn.Linear(config.width, config.num_classes)
            parts = OrderedDict(dense=dense, activation=nn.Tanh(), dropout=nn.Dropout(config.dropout), out=out)
        self.head = nn.Sequential(parts)
        self.apply(initialise)
        if config.num_classes is None:
            self.head.out.weight = self.tokens.weight

    def forward(
        self,
        ids: Tensor,
        targets: Tensor | None = None,
        *,
        attention_mask: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits; with `targets` (logits, the mean cross entropy).

        Args:
            targets: tokens [batch, tokens], -100 where none was hidden; or classes [batch].
            attention_mask: [batch, tokens], 0 for padding, on either side.
            segments: [batch, tokens], the number of each token's text. Default: all of the first.
        """
        length, most = ids.shape[1], self.config.context_length
        if length > most:
            raise ValueError(
                f"pyflash.models.BERT: ids has {length} tokens, expected at most context_length, {most}; cut the text, or"
                " build the model for longer ones"
            )
        x = self.tokens(ids) + self.positions.weight[:length]
        x = x + self.segments(torch.zeros_like(ids) if segments is None else segments)
        hidden = None if attention_mask is None else attention_mask == 0
        x = self.encoder(self.dropout(self.norm(x)), src_key_padding_mask=hidden)
        logits = self.head(x if self.config.num_classes is None else x[:, 0])
        if targets is None:
            return logits
        loss = functional_of(self.head.out).cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.flatten())
        return logits, loss
