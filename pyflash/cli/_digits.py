"""What the examples on the digits of scikit-learn share: the digits, and how a classifier learns to read them in torch.nn and
after pyflash.replace, from the same weights and in the same batches."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from pyflash.cli import demo
from pyflash.cli._learning import compared, learn

MISSING = "scikit-learn, whose digits this reads, is not installed: pip install 'pyflash[examples]'"
SEED, BATCH = 2, 32


def load() -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures [N, 8, 8] of 0 to 16, and what they show."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise SystemExit(MISSING) from None
    data = load_digits()
    return torch.tensor(data.images).float(), torch.tensor(data.target).long()


def standardised() -> tuple[torch.Tensor, torch.Tensor]:
    """The same of mean 0 and deviation 1."""
    x, y = load()
    return (x - x.mean()) / x.std(), y


def split(x: torch.Tensor, y: torch.Tensor, held_out: int):
    """(pictures, digits) to learn from, and those that are held out, in an order of their own."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(SEED))
    x, y = x[order], y[order]
    return (x[held_out:], y[held_out:]), (x[:held_out], y[:held_out])


@torch.no_grad()
def read(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model.eval()(x).argmax(-1)


def shuffled(count: int, epochs: int) -> Iterator[torch.Tensor]:
    """The rows of each batch, in the same order every time."""
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(epochs):
        yield from torch.randperm(count, generator=generator).split(BATCH)


def train(name: str, model: torch.nn.Module, learned, held_out, epochs: int, learning_rate: float) -> demo.Run:
    """Of a classifier: the share of the held-out digits that it reads."""
    x, y = learned

    def loss_of(rows):
        return F.cross_entropy(model(x[rows]), y[rows])

    def right_of():
        return (read(model, held_out[0]) == held_out[1]).float().mean().item()

    steps = epochs * -(-len(x) // BATCH)
    return learn(name, model, shuffled(len(x), epochs), steps, learning_rate, loss_of, right_of)


def train_both(stock, ours, learned, held_out, epochs: int, learning_rate: float) -> tuple[demo.Run, demo.Run]:
    return compared(
        train("torch.nn", stock, learned, held_out, epochs, learning_rate),
        train("pyflash", ours, learned, held_out, epochs, learning_rate),
    )


def mosaic(pictures: torch.Tensor, columns: int) -> torch.Tensor:
    """Pictures [N, height, width] beside and below each other, NaN between them."""
    framed = F.pad(pictures, (0, 1, 0, 1), value=float("nan"))
    rows = framed.unflatten(0, (-1, columns)).transpose(1, 2)  # [rows, height, columns, width]
    return rows.reshape(rows.shape[0] * rows.shape[1], -1)[:-1, :-1]
