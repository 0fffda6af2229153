"""What the examples share that train a small model in torch.nn and after pyflash.replace, from the same weights and in the same
batches."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from pyflash.cli import demo
from pyflash.show import picture
from pyflash.show.progress import Progress

WEIGHT_DECAY = 5e-2


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


def verdict(found: list[str]) -> int:
    """The exit status, with every reason for which it is not 0."""
    print("\n".join(f"FAILED: {reason}" for reason in found) if found else "all comparisons passed")
    return 1 if found else 0


def command(
    arguments: list[str] | None,
    doc: str,
    run: Callable[[int, Path], int],
    unit: str,
    whole: int,
    quick: int,
    folder: str,
) -> int:
    """An example's command line: run(so many epochs or steps, the folder of its picture)."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{quick} {unit}")
    parser.add_argument(f"--{unit}", type=demo.at_least_one, dest="count", help="instead of the default")
    parser.add_argument("--out", type=Path, default=Path(folder), help="folder of the picture")
    options = parser.parse_args(arguments)
    return run(options.count or (quick if options.quick else whole), options.out)
