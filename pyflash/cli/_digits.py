"""What the examples on the digits of scikit-learn share: the digits, and how a classifier learns to read them in torch.nn and
after pyflash.replace, from the same weights and in the same batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

from pyflash.cli import demo
from pyflash.show import picture
from pyflash.show.progress import Progress

MISSING = "scikit-learn, whose digits this reads, is not installed: pip install 'pyflash[examples]'"
SEED, BATCH = 2, 32
WEIGHT_DECAY = 5e-2


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


def learn(
    name: str,
    model: torch.nn.Module,
    batches: Iterable,
    steps: int,
    learning_rate: float,
    loss_of: Callable[[Any], torch.Tensor],
    right_of: Callable[[], float],
) -> demo.Run:
    """The losses of all steps, loss_of(a batch) each, and in the end right_of(): the share of what is held out that is right."""
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps)
    start, losses = time.perf_counter(), []
    with Progress(f"  training {name}", steps) as progress:
        for batch in batches:
            loss = loss_of(batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            progress.advance(f"loss {losses[-1]:.3f}")
        seconds = time.perf_counter() - start
        right = right_of()
        progress.print(f"  {name:<8}  loss {losses[0]:.4f} to {losses[-1]:.4f}, held out {right:.2%}, {seconds:.0f} s")
    return demo.Run(losses, right, seconds)


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


def compared(by_torch: demo.Run, by_ours: demo.Run) -> tuple[demo.Run, demo.Run]:
    """Both, and in words how far apart they are."""
    print(
        f"  the curves differ by at most {demo.early_difference(by_torch, by_ours):.1e} in the first"
        f" {demo.EARLY_STEPS} steps (allowed {demo.EARLY_DIFFERENCE:.0e})"
    )
    return by_torch, by_ours


def draw_curves(axes, stock: demo.Run, ours: demo.Run) -> None:
    axes.semilogy(stock.losses, **picture.STOCK, label="torch.nn")
    axes.semilogy(ours.losses, **picture.OURS, label="after pyflash.replace")
    axes.set(xlabel="step", ylabel="loss", title="The same weights, the same batches")


def mosaic(pictures: torch.Tensor, columns: int) -> torch.Tensor:
    """Pictures [N, height, width] beside and below each other, NaN between them."""
    framed = F.pad(pictures, (0, 1, 0, 1), value=float("nan"))
    rows = framed.unflatten(0, (-1, columns)).transpose(1, 2)  # [rows, height, columns, width]
    return rows.reshape(rows.shape[0] * rows.shape[1], -1)[:-1, :-1]


def failures(
    stock: demo.Run, ours: demo.Run, replaced: int, wanted: float, does: str = "reads {} of the held-out digits"
) -> list[str]:
    """Every reason for which an example must not exit with 0; wanted: the share that `does` tells of."""
    found = []
    if replaced == 0:
        found.append("nothing was replaced")
    difference = demo.early_difference(stock, ours)
    if not difference <= demo.EARLY_DIFFERENCE:
        found.append(f"the loss curves differ by {difference:.1e} in the first {demo.EARLY_STEPS} steps")
    for name, run in (("torch.nn", stock), ("pyflash", ours)):
        if not run.held_out > wanted:
            found.append(f"{name} {does.format(f'{run.held_out:.2%}')}, not more than {wanted:.0%}")
    return found
