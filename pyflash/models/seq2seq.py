"""A recurrent encoder and decoder with attention. Sutskever et al. 2014, arXiv:1409.3215; Luong, Pham & Manning 2015,
arXiv:1508.04025, section 3.1, with scores divided by the root of the features.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import pyflash.nn
from pyflash.models._config import expect, expect_counts, expect_one_of, expect_probabilities
from pyflash.models._functional import functional_of
from pyflash.models._generation import continued, expect_sampling, shifted

CELLS = {"lstm": "LSTM", "gru": "GRU"}  # the option -> the class


@dataclass(frozen=True)
class Seq2SeqConfig:
    """
    Args:
        source_vocab_size, target_vocab_size: tokens of what is read and of what is written.
        width: features of a token and of a state.
        depth: recurrent layers of either side.
        cell: "lstm" or "gru".
        has_attention: False: all that the decoder knows of the source is the state that it begins with.
        start_token: what the decoder begins with, and what fills a text that has ended.
        end_token: ends a text.
        dropout: the probability of a 0 behind embeddings and between layers.
    """

    source_vocab_size: int
    target_vocab_size: int
    width: int
    depth: int = 1
    cell: str = "lstm"
    has_attention: bool = True
    start_token: int = 0
    end_token: int = 1
    dropout: float = 0.0

    def __post_init__(self):
        expect_counts(self, "source_vocab_size", "target_vocab_size", "width", "depth")
        expect_one_of(self, "cell", CELLS)
        for field in ("start_token", "end_token"):
            known = 0 <= getattr(self, field) < self.target_vocab_size
            expect(self, field, known, f"a token below target_vocab_size, {self.target_vocab_size}")
        expect_probabilities(self, "dropout")


class Seq2Seq(torch.nn.Module):
    """Reads a text, then writes one: its states, and what they attend to of the source's, give the next token.

    Args:
        config: Seq2SeqConfig.
        nn: torch.nn for the twin.
    Shape:
        ids [batch, tokens], decoder_ids [batch, written], int64, to logits [batch, written, target_vocab_size].
    """

    def __init__(self, config: Seq2SeqConfig, *, nn: ModuleType = pyflash.nn):
        super().__init__()
        self.config = config
        width, layers = config.width, getattr(nn, CELLS[config.cell])
        between = config.dropout if config.depth > 1 else 0.0
        self.source = nn.Embedding(config.source_vocab_size, width)
        self.encoder = layers(width, width, config.depth, batch_first=True, dropout=between)
        self.target = nn.Embedding(config.target_vocab_size, width)
        self.decoder = layers(width, width, config.depth, batch_first=True, dropout=between)
        self.dropout = nn.Dropout(config.dropout)
        if config.has_attention:
            self.query = nn.Linear(width, width, bias=False)
            self.combine = nn.Sequential(nn.Linear(2 * width, width, bias=False), nn.Tanh())
        self.head = nn.Linear(width, config.target_vocab_size)

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
            attention_mask: [batch, tokens], 0 where `ids` is padding, which stands on the right.
        Raises:
            ValueError: neither decoder_ids nor targets, or a padding that is not on the right.
        """
        decoder_ids = shifted("Seq2Seq", decoder_ids, targets, self.config.start_token)
        memory, mask, state = self._read(ids, attention_mask)
        logits, _ = self._write(decoder_ids, memory, mask, state)
        if targets is None:
            return logits
        return logits, functional_of(self.head).cross_entropy(logits.flatten(0, 1), targets.flatten())

    def attention_weights(self, ids: Tensor, decoder_ids: Tensor, *, attention_mask: Tensor | None = None) -> Tensor:
        """[batch, written, tokens]: how much of each source token goes into each that is written."""
        if not self.config.has_attention:
            raise ValueError(
                "pyflash.models.Seq2Seq.attention_weights: has_attention is False, expected a model that attends"
            )
        memory, mask, state = self._read(ids, attention_mask)
        states, _ = self.decoder(self.dropout(self.target(decoder_ids)), state)
        return functional_of(self.query).attention_weights(self.query(states), memory, mask)

    def _read(self, ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None, Any]:
        """The source's states [batch, tokens, width], where there is text [batch, 1, tokens], and the last state."""
        x = self.dropout(self.source(ids))
        if attention_mask is None:
            memory, state = self.encoder(x)
            return memory, None, state
        mask = attention_mask.bool()
        if not bool(mask[:, 0].all()) or bool((mask[:, 1:] & ~mask[:, :-1]).any()):
            raise ValueError(
                "pyflash.models.Seq2Seq: attention_mask has a 1 behind a 0, or nothing but 0, expected each row to be ones and"
                " then zeros: pad texts on the right, and write something into each"
            )
        packed, state = self.encoder(pack_padded_sequence(x, mask.sum(1).cpu(), batch_first=True, enforce_sorted=False))
        return pad_packed_sequence(packed, batch_first=True, total_length=ids.shape[1])[0], mask.unsqueeze(1), state

    def _write(self, ids: Tensor, memory: Tensor, mask: Tensor | None, state: Any) -> tuple[Tensor, Any]:
        """Logits behind each of `ids`, and the state behind the last."""
        states, state = self.decoder(self.dropout(self.target(ids)), state)
        if self.config.has_attention:
            attend = functional_of(self.query).scaled_dot_product_attention
            states = self.combine(torch.cat((attend(self.query(states), memory, memory, mask), states), -1))
        return self.head(states), state

    @torch.no_grad()
    def generate(
        self,
        ids: Tensor,
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """What the decoder writes, [batch, at most 1 + max_new_tokens]: start_token, tokens up to end_token, and start_token
        again behind it. It stops when all texts have ended. Call eval() first: dropout is for training. Arguments: as
        GPT.generate; padding stands on the right. The state is the cache."""
        expect_sampling("Seq2Seq", max_new_tokens, temperature, top_k, top_p)
        memory, mask, state = self._read(ids, attention_mask)
        start = ids.new_full((ids.shape[0],), self.config.start_token)

        def step(token: Tensor) -> Tensor:
            nonlocal state
            logits, state = self._write(token.unsqueeze(1), memory, mask, state)
            return logits[:, 0]

        ends = self.config.end_token, self.config.start_token
        written = continued(step(start), step, max_new_tokens, temperature, top_k, top_p, *ends)
        return torch.cat((start.unsqueeze(1), written), 1)
