"""T5. Raffel et al. 2020, arXiv:1910.10683, section 2.1; and its version 1.1, with a gated feed-forward part and a head of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import init

import pyflash.nn
from pyflash.models._config import expect, expect_counts, expect_heads, expect_probabilities
from pyflash.models._feed_forward import feed_forward
from pyflash.models._functional import functional_of
from pyflash.models._generation import continued, expect_sampling, shifted
from pyflash.nn._named import ActivationArgument


@dataclass(frozen=True)
class T5Config:
    """
    Args:
        vocab_size: tokens there are.
        width: features of a token.
        depth: blocks of the encoder.
        num_heads: of attention.
        head_dim: features of a head. Default: width / num_heads.
        decoder_depth: blocks of the decoder. Default: as many as the encoder has.
        hidden: features inside a feed-forward part. Default: 4 width, gated 8/3 width.
        activation: of the feed-forward part, as pyflash.models.MLP takes it.
        gated: a feed-forward part is down(activation(gate(x)) value(x)), not down(activation(up(x))).
        num_buckets: distances that are told apart; an even number. Half of them are for the near ones, one each.
        max_distance: from which on distances are one.
        norm_eps: what a norm adds to the mean square.
        tied_head: the head's weight is the embedding's, and what it reads is divided by sqrt(width).
        start_token: what a decoder begins with, and what fills a text that has ended.
        end_token: ends a text.
        dropout: the probability of a 0 behind embeddings, in attention, in and behind each part of a block, behind the stacks.
    """

    vocab_size: int
    width: int
    depth: int
    num_heads: int
    head_dim: int | None = None
    decoder_depth: int | None = None
    hidden: int | None = None
    activation: ActivationArgument = "gelu_tanh"
    gated: bool = True
    num_buckets: int = 32
    max_distance: int = 128
    norm_eps: float = 1e-6
    tied_head: bool = False
    start_token: int = 0
    end_token: int = 1
    dropout: float = 0.0

    def __post_init__(self):
        expect_counts(self, "vocab_size", "width", "depth", "num_heads", "num_buckets", "max_distance")
        optional = ("head_dim", "decoder_depth", "hidden")
        expect_counts(self, *(field for field in optional if getattr(self, field) is not None))
        if self.head_dim is None:
            expect_heads(self)
        expect(self, "num_buckets", self.num_buckets >= 4 and self.num_buckets % 4 == 0, "a multiple of 4")
        least = self.num_buckets // 2
        expect(self, "max_distance", self.max_distance > least, f"more than half of num_buckets, {least}")
        expect(self, "activation", self.activation is not None, "a name, a pair or a module")
        for field in ("start_token", "end_token"):
            expect(
                self, field, 0 <= getattr(self, field) < self.vocab_size, f"a token below vocab_size, {self.vocab_size}"
            )
        expect_probabilities(self, "dropout")

    @property
    def features(self) -> int:
        """Of a head."""
        return self.head_dim or self.width // self.num_heads

    @property
    def inner(self) -> int:
        return self.hidden or (8 * self.width // 3 if self.gated else 4 * self.width)


class Attention(torch.nn.Module):
    """Attention to `memory`, scores not scaled; without biases."""

    def __init__(self, config: T5Config, nn: ModuleType):
        super().__init__()
        inner = config.num_heads * config.features
        self.head_dim, self.dropout = config.features, config.dropout
        self.q = nn.Linear(config.width, inner, bias=False)
        self.kv = nn.Linear(config.width, 2 * inner, bias=False)
        self.out = nn.Linear(inner, config.width, bias=False)

    def keys_and_values(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Each [batch, heads, tokens, head_dim]."""
        k, v = self.kv(memory).unflatten(-1, (-1, self.head_dim)).transpose(1, 2).chunk(2, 1)
        return k, v

    def forward(self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """x [batch, tokens, width]; mask as scaled_dot_product_attention takes it."""
        q = self.q(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        attend = functional_of(self.out).scaled_dot_product_attention
        y = attend(q, k, v, mask, dropout_p=self.dropout if self.training else 0.0, scale=1.0)
        return self.out(y.transpose(1, 2).flatten(2))


class Past:
    """What a block of the decoder keeps while it writes: keys and values of the text so far, and of the memory."""

    def __init__(self) -> None:
        self.of_text: tuple[Tensor, Tensor] | None = None
        self.of_memory: tuple[Tensor, Tensor] | None = None


class Block(torch.nn.Module):
    """Self-attention, in a decoder attention to the memory, feed-forward, each behind a norm and added to what came in."""

    def __init__(self, config: T5Config, nn: ModuleType, is_decoder: bool):
        super().__init__()
        self.norm1 = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config, nn)
        if is_decoder:
            self.norm_memory = nn.RMSNorm(config.width, eps=config.norm_eps)
            self.attention_memory = Attention(config, nn)
        self.norm2 = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.feed_forward = feed_forward(
            "T5",
            config.width,
            config.inner,
            config.activation,
            nn,
            gated=config.gated,
            bias=False,
            dropout=config.dropout,
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        past: Past | None = None,
    ) -> Tensor:
        normed = self.norm1(x)
        kv = self.attention.keys_and_values(normed)
        if past is not None:
            if past.of_text is not None:
                kv = torch.cat((past.of_text[0], kv[0]), 2), torch.cat((past.of_text[1], kv[1]), 2)
            past.of_text = kv
        x = x + self.dropout(self.attention(normed, *kv, mask))
        if memory is not None:
            of_memory = past.of_memory if past is not None else None
            if of_memory is None:
                of_memory = self.attention_memory.keys_and_values(memory)
                if past is not None:
                    past.of_memory = of_memory
            x = x + self.dropout(self.attention_memory(self.norm_memory(x), *of_memory, memory_mask))
        return x + self.dropout(self.feed_forward(self.norm2(x)))


def buckets(distance: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """The bucket of each distance from 0 on: its own up to half of them, then by its logarithm. Raffel et al., section 2.1."""
    exact = num_buckets // 2
    share = (distance.clamp(min=1).float() / exact).log() / math.log(max_distance / exact)
    far = (exact + (share * (num_buckets - exact)).to(torch.int64)).clamp(max=num_buckets - 1)
    return torch.where(distance < exact, distance, far)


class Stack(torch.nn.Module):
    """Blocks and a norm; what the scores of all blocks get added, by distance: a number a head and bucket."""

    def __init__(self, config: T5Config, nn: ModuleType, is_decoder: bool):
        super().__init__()
        self.num_buckets, self.max_distance, self.is_decoder = config.num_buckets, config.max_distance, is_decoder
        depth = (is_decoder and config.decoder_depth) or config.depth
        self.distances = nn.Embedding(config.num_buckets, config.num_heads)
        self.blocks = nn.ModuleList(Block(config, nn, is_decoder) for _ in range(depth))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def bias(self, tokens: int, before: int, device: torch.device) -> Tensor:
        """[1, heads, tokens, before + tokens], of tokens that follow `before` others; -inf where a decoder may not look."""
        keys = torch.arange(before + tokens, device=device)
        ahead = keys - keys[before:, None]  # of each query
        if self.is_decoder:
            bucket = buckets((-ahead).clamp(min=0), self.num_buckets, self.max_distance)
        else:
            half = self.num_buckets // 2
            bucket = buckets(ahead.abs(), half, self.max_distance) + half * (ahead > 0)
        bias = self.distances(bucket).permute(2, 0, 1).unsqueeze(0)
        return bias.masked_fill(ahead > 0, float("-inf")) if self.is_decoder else bias

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        pasts: list[Past] | None = None,
        before: int = 0,
    ) -> Tensor:
        """x [batch, tokens, width]; masks [batch, 1, 1, keys], True where there is text."""
        bias = self.bias(x.shape[1], before, x.device)
        if mask is not None:
            bias = bias.masked_fill(~mask, float("-inf"))
        x = self.dropout(x)
        for number, block in enumerate(self.blocks):
            x = block(x, bias, memory, memory_mask, None if pasts is None else pasts[number])
        return self.dropout(self.norm(x))


class T5(torch.nn.Module):
    """An encoder that looks both ways, and a decoder that writes, looking at what the encoder made of the text.

    Args:
        config: T5Config.
        nn: torch.nn for the twin.
    Shape:
        ids [batch, tokens], decoder_ids [batch, written], int64, to logits [batch, written, vocab_size].
    """

    def __init__(self, config: T5Config, *, nn: ModuleType = pyflash.nn):
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.encoder = Stack(config, nn, is_decoder=False)
        self.decoder = Stack(config, nn, is_decoder=True)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        deviations = {"tokens.weight": 1.0, "head.weight": 1.0, "q.weight": (config.width * config.features) ** -0.5}
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:  # as the authors' code: of what each reads
                key = name if name in deviations else ".".join(name.split(".")[-2:])
                reads = config.width if key == "distances.weight" else parameter.shape[1]
                init.normal_(parameter, std=deviations.get(key, reads**-0.5))
        if config.tied_head:
            self.head.weight = self.tokens.weight

    def forward(
        self,
        ids: Tensor,
        decoder_ids: Tensor | None = None,
        targets: Tensor | None = None,
        *,
        attention_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits; with `targets` (logits, the mean cross entropy).

        Args:
            decoder_ids: [batch, written]. Default: start_token and the targets but the last.
            targets: [batch, written]; -100 does not count.
            attention_mask: [batch, tokens], 0 where `ids` is padding, on either side.
        Raises:
            ValueError: neither decoder_ids nor targets.
        """
        decoder_ids = shifted("T5", decoder_ids, targets, self.config.start_token)
        memory, mask = self._read(ids, attention_mask)
        logits = self._logits(self.decoder(self.tokens(decoder_ids), None, memory, mask))
        if targets is None:
            return logits
        return logits, functional_of(self.head).cross_entropy(logits.flatten(0, 1), targets.flatten())

    def _read(self, ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None]
        return self.encoder(self.tokens(ids), mask), mask

    def _logits(self, x: Tensor) -> Tensor:
        return self.head(x * self.config.width**-0.5 if self.config.tied_head else x)

    @torch.no_grad()
    def generate(
        self,
        ids: Tensor,
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        use_cache: bool = True,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """What the decoder writes, [batch, at most 1 + max_new_tokens]: start_token, tokens up to end_token, and start_token
        again behind it. It stops when all texts have ended. Call eval() first: dropout is for training. Arguments: as
        GPT.generate; padding may be on either side."""
        expect_sampling("T5", max_new_tokens, temperature, top_k, top_p)
        memory, mask = self._read(ids, attention_mask)
        start = ids.new_full((ids.shape[0], 1), self.config.start_token)
        text, pasts = start, [Past() for _ in self.decoder.blocks] if use_cache else None

        def step(token: Tensor | None = None) -> Tensor:
            nonlocal text
            if token is not None:
                text = torch.cat((text, token.unsqueeze(1)), 1)
            before = text.shape[1] - 1 if pasts else 0
            x = self.decoder(self.tokens(text[:, before:]), None, memory, mask, pasts, before)
            return self._logits(x[:, -1])

        ends = self.config.end_token, self.config.start_token
        return torch.cat((start, continued(step(), step, max_new_tokens, temperature, top_k, top_p, *ends)), 1)
