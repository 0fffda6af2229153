"""GPT. Radford et al. 2019, "Language models are unsupervised multitask learners", section 2.3; and, by its options, Llama.
Touvron et al. 2023, arXiv:2302.13971, section 2.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import init

import pyflash.nn
from pyflash.models._config import expect, expect_counts, expect_heads, expect_one_of, expect_probabilities
from pyflash.models._feed_forward import feed_forward
from pyflash.models._functional import functional_of, rotary_tables
from pyflash.models._generation import continued, expect_sampling, flush_left
from pyflash.nn._named import ActivationArgument

NORMS = {"layer": "LayerNorm", "rms": "RMSNorm"}  # the option -> the class


@dataclass(frozen=True)
class GPTConfig:
    """
    Args:
        vocab_size: tokens there are.
        context_length: of the longest text, in tokens.
        width: features of a token.
        depth: blocks.
        num_heads: heads of queries; they share the width.
        num_kv_heads: heads of keys and values, each for a group of queries' heads (Ainslie et al. 2023,
            arXiv:2305.13245). Default: one a head.
        hidden: features inside a feed-forward part. Default: 4 width, gated 8/3 width, which are as many weights.
        positions: "learned", an embedding that is added, or "rotary", queries and keys turned by their positions.
        rotary_base: of the rotary angles.
        norm: "layer" or "rms".
        norm_eps: what a norm adds to the mean square.
        activation: of the feed-forward part, as pyflash.models.MLP takes it.
        gated: a feed-forward part is down(activation(gate(x)) value(x)), not down(activation(up(x))).
        bias: of the linear layers; the head has none.
        tied_head: the head's weight is the embedding's.
        dropout: the probability of a 0 behind embeddings, in attention, and behind each part of a block.
    """

    vocab_size: int
    context_length: int
    width: int
    depth: int
    num_heads: int
    num_kv_heads: int | None = None
    hidden: int | None = None
    positions: str = "learned"
    rotary_base: float = 10000.0
    norm: str = "layer"
    norm_eps: float = 1e-5
    activation: ActivationArgument = "gelu_tanh"
    gated: bool = False
    bias: bool = True
    tied_head: bool = True
    dropout: float = 0.0

    def __post_init__(self):
        expect_counts(self, "vocab_size", "context_length", "width", "depth", "num_heads")
        expect_counts(self, *(field for field in ("num_kv_heads", "hidden") if getattr(self, field) is not None))
        expect_heads(self)
        expect(self, "num_kv_heads", self.num_heads % self.kv_heads == 0, f"a divisor of num_heads, {self.num_heads}")
        expect_one_of(self, "positions", ("learned", "rotary"))
        expect_one_of(self, "norm", NORMS)
        if self.positions == "rotary":
            expect(
                self, "num_heads", self.head_dim % 2 == 0, f"heads of an even width / num_heads, not {self.head_dim}"
            )
        expect_probabilities(self, "dropout")
        expect(self, "activation", self.activation is not None, "a name, a pair or a module")

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def inner(self) -> int:
        return self.hidden or (8 * self.width // 3 if self.gated else 4 * self.width)


class Cache:
    """Keys and values of one block, [batch, kv_heads, tokens, head_dim], of sequences that all begin at token 0."""

    def __init__(self, config: GPTConfig, batch: int, tokens: int, like: Tensor):
        shape = batch, config.kv_heads, tokens, config.head_dim
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)
        self.rows = torch.arange(batch, device=like.device)

    def fill(self, k: Tensor, v: Tensor) -> None:
        """With the prompt's; behind a short one is what its successors overwrite, one by one, before they look."""
        self.keys[:, :, : k.shape[2]], self.values[:, :, : v.shape[2]] = k, v

    def append(self, k: Tensor, v: Tensor, lengths: Tensor) -> None:
        """One token a sequence, behind the `lengths` [batch] that it has."""
        self.keys[self.rows, :, lengths], self.values[self.rows, :, lengths] = k[:, :, 0], v[:, :, 0]


class Attention(torch.nn.Module):
    """Causal self-attention. One product makes queries, keys and values, head by head."""

    def __init__(self, config: GPTConfig, nn: ModuleType):
        super().__init__()
        self.heads = config.num_heads, config.kv_heads, config.kv_heads
        self.head_dim, self.dropout = config.head_dim, config.dropout
        self.qkv = nn.Linear(config.width, sum(self.heads) * config.head_dim, bias=config.bias)
        self.out = nn.Linear(config.width, config.width, bias=config.bias)

    def forward(
        self, x: Tensor, tables: tuple[Tensor, Tensor] | None, cache: Cache | None = None, lengths: Tensor | None = None
    ) -> Tensor:
        """x [batch, tokens, width]; with `lengths` one token, which follows as many of the cache."""
        F = functional_of(self.out)
        q, k, v = self.qkv(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2).split(self.heads, 1)
        if tables is not None:
            q, k = F.rotary_embedding(q, k, *tables)
        if cache is not None and lengths is not None:
            cache.append(k, v, lengths)
            y = F.attention_decode(q, cache.keys, cache.values, lengths + 1)
        else:
            if cache is not None:
                cache.fill(k, v)
            dropout = self.dropout if self.training else 0.0
            is_grouped = self.heads[0] != self.heads[1]
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, enable_gqa=is_grouped)
        return self.out(y.transpose(1, 2).flatten(2))


def norm(config: GPTConfig, nn: ModuleType) -> torch.nn.Module:
    return getattr(nn, NORMS[config.norm])(config.width, eps=config.norm_eps)


class Block(torch.nn.Module):
    """Attention and feed-forward, each behind a norm and added to what came in."""

    def __init__(self, config: GPTConfig, nn: ModuleType):
        super().__init__()
        self.norm1 = norm(config, nn)
        self.attention = Attention(config, nn)
        self.norm2 = norm(config, nn)
        self.feed_forward = feed_forward(
            "GPT", config.width, config.inner, config.activation, nn, gated=config.gated, bias=config.bias
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, *of_attention: Any) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), *of_attention))
        return x + self.dropout(self.feed_forward(self.norm2(x)))


class GPT(torch.nn.Module):
    """Tokens to what comes next: embedding, blocks, a norm, a head.

    Initial weights are GPT-2's: normal with deviation 0.02, what ends a block's parts by sqrt(2 depth) less, so that the
    sum over the blocks begins as large as one.

    Args:
        config: GPTConfig.
        nn: torch.nn for the twin.
    Shape:
        ids [batch, tokens], int64, to logits [batch, tokens, vocab_size].
    Raises:
        ValueError: more tokens than context_length.
    """

    def __init__(self, config: GPTConfig, *, nn: ModuleType = pyflash.nn):
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        if config.positions == "learned":
            self.positions = nn.Embedding(config.context_length, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, nn) for _ in range(config.depth))
        self.norm = norm(config, nn)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        self.apply(_initialise)
        for name, parameter in self.named_parameters():
            if name.endswith(("out.weight", "down.weight")):
                init.normal_(parameter, std=0.02 / math.sqrt(2 * config.depth))
        if config.tied_head:
            self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Tensor | tuple[Tensor | None, Tensor]:
        """Logits; with `targets` [batch, tokens] (None, the mean cross entropy), where a target of -100 does not count."""
        x = self._hidden(ids, torch.arange(ids.shape[1], device=ids.device))
        if targets is None:
            return self.head(x)
        x, targets = x.flatten(0, 1), targets.flatten()
        loss = functional_of(self.head).linear_cross_entropy(x, self.head.weight, targets, ignore_index=-100)
        return None, loss

    def _hidden(
        self, ids: Tensor, positions: Tensor, caches: list[Cache] | None = None, lengths: Tensor | None = None
    ) -> Tensor:
        """What the head reads of ids [batch, tokens] at these positions, [tokens] or [batch, tokens]."""
        config, tables = self.config, None
        if ids.shape[1] > config.context_length:
            raise ValueError(
                f"pyflash.models.GPT: ids has {ids.shape[1]} tokens, expected at most context_length,"
                f" {config.context_length}; cut the text, or build the model for longer ones"
            )
        x = self.tokens(ids)
        if config.positions == "learned":
            x = x + self.positions(positions)
        else:
            tables = rotary_tables(positions, config.head_dim, config.rotary_base)
        x = self.dropout(x)
        for number, block in enumerate(self.blocks):
            x = block(x, tables, caches[number] if caches is not None else None, lengths)
        return self.norm(x)

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
        """Prompts and their continuations, [batch, tokens + max_new_tokens]. Call eval() first: dropout is for training.

        Args:
            ids: [batch, tokens], at least one; shorter prompts padded on the left.
            max_new_tokens: to write, to each prompt.
            temperature: divides the logits; 0 takes the likeliest token.
            top_k, top_p: draws among the likeliest k only, and among the fewest that have probability p together.
            use_cache: keys and values of what is written are kept; without, each token costs the whole text again.
            attention_mask: [batch, tokens], 0 where a prompt is padded. Padding changes nothing.
        Raises:
            ValueError: arguments out of range, or a text would grow beyond context_length.
        """
        expect_sampling("GPT", max_new_tokens, temperature, top_k, top_p)
        prompt, lengths = flush_left("GPT", ids, attention_mask)
        longest = int(lengths.max())
        if longest + max_new_tokens > self.config.context_length:
            raise ValueError(
                f"pyflash.models.GPT.generate: max_new_tokens is {max_new_tokens} behind a prompt of {longest}, expected at"
                f" most context_length together, {self.config.context_length}; ask for fewer, or cut the prompt"
            )
        write = self._cached if use_cache else self._from_the_start
        first, step = write(prompt[:, :longest], lengths, longest + max_new_tokens)
        return torch.cat((ids, continued(first, step, max_new_tokens, temperature, top_k, top_p)), 1)

    def _cached(self, prompt: Tensor, lengths: Tensor, tokens: int):
        """The logits behind each prompt, and a function from a token to those behind it."""
        caches = [Cache(self.config, len(prompt), tokens, self.head.weight) for _ in self.blocks]
        x = self._hidden(prompt, torch.arange(prompt.shape[1], device=prompt.device), caches)

        def step(token: Tensor) -> Tensor:
            nonlocal lengths
            x = self._hidden(token.unsqueeze(1), lengths.unsqueeze(1), caches, lengths)
            lengths = lengths + 1
            return self.head(x[:, 0])

        return self.head(x[torch.arange(len(x), device=x.device), lengths - 1]), step

    def _from_the_start(self, prompt: Tensor, lengths: Tensor, tokens: int):
        """As `_cached`, reading the whole text at each token."""
        rows = torch.arange(len(prompt), device=prompt.device)
        text = torch.nn.functional.pad(prompt, (0, tokens - prompt.shape[1]))

        def logits() -> Tensor:
            return self.head(self._hidden(text, torch.arange(tokens, device=text.device))[rows, lengths - 1])

        def step(token: Tensor) -> Tensor:
            nonlocal lengths
            text[rows, lengths] = token
            lengths = lengths + 1
            return logits()

        return logits(), step


def _initialise(module: torch.nn.Module) -> None:
    if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
        init.normal_(module.weight, std=0.02)
    if isinstance(module, torch.nn.Linear) and module.bias is not None:
        init.zeros_(module.bias)
