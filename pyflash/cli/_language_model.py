"""The demo's text, its model in plain torch.nn, and how it is trained: nothing in this file knows pyflash."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Settings:
    width: int = 256
    heads: int = 8
    hidden: int = 1024
    layers: int = 4
    context: int = 256
    batch: int = 8
    steps: int = 240
    warmup: int = 30
    learning_rate: float = 1e-3
    held_out_batches: int = 16
    seed: int = 20261122

    @property
    def tokens(self) -> int:
        return self.batch * self.context


@dataclass(frozen=True)
class Corpus:
    """Text as indices into its alphabet; the last tenth is held out."""

    alphabet: str
    train: torch.Tensor
    held_out: torch.Tensor

    @classmethod
    def from_text(cls, text: str, held_out: float = 0.1) -> Corpus:
        alphabet = "".join(sorted(set(text)))
        index = {character: i for i, character in enumerate(alphabet)}
        encoded = torch.tensor([index[character] for character in text])
        border = len(text) - int(len(text) * held_out)
        return cls(alphabet, encoded[:border], encoded[border:])


def topics() -> str:
    """Python's own reference texts: about 465 000 characters of English that every installation carries."""
    from pydoc_data.topics import topics as texts

    return "\n\n".join(texts[name] for name in sorted(texts))


class SinusoidalEncoding(nn.Module):
    """Adds sin and cos of the position to the embedding. Vaswani et al. 2017, section 3.5."""

    def __init__(self, width: int, context: int):
        super().__init__()
        position = torch.arange(context)[:, None]
        angle = position * torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
        self.register_buffer("table", torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1), persistent=False)

    def forward(self, x):
        return x + self.table[: x.shape[1]]


class LanguageModel(nn.Module):
    """Decoder-only: a torch.nn.TransformerEncoder under a causal mask, between an embedding and a head."""

    def __init__(self, characters: int, settings: Settings, dropout: float):
        super().__init__()
        self.embedding = nn.Embedding(characters, settings.width)
        self.position = SinusoidalEncoding(settings.width, settings.context)
        self.dropout = nn.Dropout(dropout)
        layer = nn.TransformerEncoderLayer(
            settings.width,
            settings.heads,
            settings.hidden,
            dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        norm = nn.LayerNorm(settings.width)
        self.encoder = nn.TransformerEncoder(layer, settings.layers, norm, enable_nested_tensor=False)
        self.head = nn.Linear(settings.width, characters)
        mask = nn.Transformer.generate_square_subsequent_mask(settings.context)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, characters):
        length = characters.shape[1]
        x = self.dropout(self.position(self.embedding(characters)))
        return self.head(self.encoder(x, mask=self.mask[:length, :length], is_causal=True))


def build(corpus: Corpus, settings: Settings, dropout: float, device: str) -> LanguageModel:
    """The same weights every time, whatever the dropout."""
    torch.manual_seed(settings.seed)
    return LanguageModel(len(corpus.alphabet), settings, dropout).to(device)


def batch_at(text: torch.Tensor, starts: torch.Tensor, context: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows of the text, and the same windows one character on."""
    windows = text[starts[:, None] + torch.arange(context + 1)]
    return windows[:, :-1], windows[:, 1:]


def training_batches(corpus: Corpus, settings: Settings, device: str):
    """The same ones for every model that asks."""
    generator = torch.Generator().manual_seed(settings.seed)
    last = len(corpus.train) - settings.context
    for _ in range(settings.steps):
        starts = torch.randint(last, (settings.batch,), generator=generator)
        inputs, targets = batch_at(corpus.train, starts, settings.context)
        yield inputs.to(device), targets.to(device)


def loss_of(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


class Trainer:
    """AdamW with a linear warm-up and a cosine decay; one call is one step."""

    def __init__(self, model: nn.Module, settings: Settings):
        self.model = model.train()
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.01)

        def rate(step: int) -> float:
            warm = min(1.0, (step + 1) / settings.warmup)
            return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / settings.steps)))

        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, rate)

    def __call__(self, inputs: torch.Tensor, targets: torch.Tensor) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        loss = loss_of(self.model, inputs, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        return loss.item()


def train(
    model: nn.Module, corpus: Corpus, settings: Settings, device: str, step_done: Callable[[float], None]
) -> list[float]:
    """The loss of every step, before that step."""
    step = Trainer(model, settings)
    losses = []
    for inputs, targets in training_batches(corpus, settings, device):
        losses.append(step(inputs, targets))
        step_done(losses[-1])
    return losses


@torch.no_grad()
def held_out_loss(model: nn.Module, corpus: Corpus, settings: Settings, device: str) -> float:
    """Mean over windows spread evenly over the held-out text."""
    model.eval()
    last = len(corpus.held_out) - settings.context - 1
    starts = torch.linspace(0, last, settings.batch * settings.held_out_batches).long()
    losses = []
    for part in starts.split(settings.batch):
        inputs, targets = batch_at(corpus.held_out, part, settings.context)
        losses.append(loss_of(model, inputs.to(device), targets.to(device)).item())
    return sum(losses) / len(losses)


@torch.no_grad()
def sample(model: nn.Module, corpus: Corpus, settings: Settings, device: str, prompt: str, length: int) -> str:
    """Continues the prompt, one character at a time, at temperature 0.7."""
    model.eval()
    generator = torch.Generator().manual_seed(settings.seed)
    text = [corpus.alphabet.index(character) for character in prompt if character in corpus.alphabet]
    for _ in range(length):
        window = torch.tensor([text[-settings.context :]], device=device)
        probabilities = (model(window)[0, -1].float().cpu() / 0.7).softmax(-1)
        text.append(int(torch.multinomial(probabilities, 1, generator=generator)))
    return "".join(corpus.alphabet[i] for i in text)
