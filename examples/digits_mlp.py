"""A feed-forward net learns handwritten digits of 8x8 pixels: torch.nn, and the same after pyflash.replace.

Same weights, same batches: the loss curves must agree, and more than 96% of the held-out digits must be read, or it exits
with 1. One picture shows both curves, what the first layer looks for, and how much of the loss's gradient reached each layer
before and after, by pyflash.diagnostics.gradient_flow.
Layers this small go to torch where that is faster; with PYFLASH_BACKEND=cpu all are pyflash's.
The digits come with scikit-learn: pip install 'pyflash[examples]'.

    python examples/digits_mlp.py [--quick] [--epochs 30] [--out digits-mlp-output]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import pyflash
from pyflash.cli import demo
from pyflash.diagnostics import Report, gradient_flow
from pyflash.show import picture
from pyflash.show.progress import Progress

MISSING = "scikit-learn, whose digits this reads, is not installed: pip install 'pyflash[examples]'"
SEED = 2
SIZES = (64, 128, 64, 10)
BATCH, HELD_OUT = 32, 360
EPOCHS, QUICK_EPOCHS = 30, 12
LEARNING_RATE, WEIGHT_DECAY = 3e-3, 5e-2
WANTED = 0.96  # of the held-out digits
SHOWN = 24  # of the first layer's units


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures [N, 64] of mean 0 and deviation 1, and what they show."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise SystemExit(MISSING) from None
    data = load_digits()
    x = torch.tensor(data.data).float()
    return (x - x.mean()) / x.std(), torch.tensor(data.target).long()


def build() -> nn.Module:
    torch.manual_seed(SEED)
    return pyflash.models.MLP(SIZES, nn=nn)


def train(name: str, model: nn.Module, x, y, held_out, epochs: int) -> demo.Run:
    """The losses of all steps, and the share of the held-out digits that it reads."""
    generator = torch.Generator().manual_seed(SEED)
    steps = epochs * -(-len(x) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps)
    start, losses = time.perf_counter(), []
    with Progress(f"  training {name}", steps) as progress:
        for _ in range(epochs):
            for rows in torch.randperm(len(x), generator=generator).split(BATCH):
                loss = F.cross_entropy(model(x[rows]), y[rows])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
                progress.advance(f"loss {losses[-1]:.3f}")
        seconds = time.perf_counter() - start
        with torch.no_grad():
            right = (model(held_out[0]).argmax(-1) == held_out[1]).float().mean().item()
        progress.print(f"  {name:<8}  loss {losses[0]:.4f} to {losses[-1]:.4f}, held out {right:.2%}, {seconds:.0f} s")
    return demo.Run(losses, right, seconds)


def watch(model: nn.Module, x, y) -> Report:
    """One forward and backward of all digits at once."""
    with gradient_flow(model) as flow:
        F.cross_entropy(model(x), y).backward()
    model.zero_grad(set_to_none=True)
    return flow.report()


def mosaic(rows: torch.Tensor, columns: int = 6) -> torch.Tensor:
    """Weights [N, 64] as pictures of 8x8 beside and below each other, NaN between them."""
    framed = F.pad(rows.unflatten(1, (8, 8)), (0, 1, 0, 1), value=float("nan"))
    return framed.unflatten(0, (-1, columns)).transpose(1, 2).flatten(2).flatten(0, 1)[:-1, :-1]


def draw(stock: demo.Run, ours: demo.Run, flows: dict[str, Report], weight: torch.Tensor, path: Path) -> str:
    def curves(axes):
        axes.semilogy(stock.losses, **picture.STOCK, label="torch.nn")
        axes.semilogy(ours.losses, **picture.OURS, label="after pyflash.replace")
        axes.set(xlabel="step", ylabel="loss", title="The same weights, the same batches")

    def gradients(axes):
        for (name, report), color in zip(flows.items(), ("#a0aec0", picture.OURS["color"])):
            axes.semilogy([row.gradient.norm for row in report.rows], color=color, marker="o", label=name)
        names = [f"{row.name} {row.kind}" for row in report.rows]
        axes.set_xticks(range(len(names)), names, rotation=30)
        axes.set(ylabel="norm of the gradient", title="What of the loss's gradient reaches each layer")

    def first_layer(axes):
        strongest = weight[weight.norm(dim=1).argsort(descending=True)[:SHOWN]]
        largest = strongest.abs().max()
        axes.imshow(mosaic(strongest).numpy(), cmap="RdBu", vmin=-largest, vmax=largest)
        axes.set(title=f"Weights of the first layer; {ours.held_out:.1%} of the held-out digits are read")
        axes.axis("off")

    return picture.draw(path, [curves, gradients, first_layer], (16, 4.5), "examples", one_scale=False)


def failures(stock: demo.Run, ours: demo.Run, replaced: int, flows: dict[str, Report]) -> list[str]:
    """Every reason for which it must not exit with 0."""
    found = []
    if replaced == 0:
        found.append("nothing was replaced")
    difference = demo.early_difference(stock, ours)
    if not difference <= demo.EARLY_DIFFERENCE:
        found.append(f"the loss curves differ by {difference:.1e} in the first {demo.EARLY_STEPS} steps")
    for name, run in (("torch.nn", stock), ("pyflash", ours)):
        if not run.held_out > WANTED:
            found.append(f"{name} reads {run.held_out:.2%} of the held-out digits, not more than {WANTED:.0%}")
    for name, report in flows.items():
        found += [f"{name}: layer {row.name} is {row.verdict}" for row in report.rows if row.verdict != "healthy"]
    return found


def run(epochs: int, out: Path) -> int:
    x, y = digits()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(SEED))
    x, y = x[order], y[order]
    learned, held_out = (x[HELD_OUT:], y[HELD_OUT:]), (x[:HELD_OUT], y[:HELD_OUT])
    stock, (ours, changed) = build(), demo.replace(build())
    parameters = sum(parameter.numel() for parameter in stock.parameters())
    print(f"MLP {SIZES}, {parameters:,} parameters, learns from {len(learned[0])} digits; {HELD_OUT} are held out")
    demo.print_replaced(ours, changed)
    print(pyflash.report(ours, example_inputs=learned[0][:BATCH]))
    flows = {"before": watch(ours, *learned)}
    stock_run, our_run = (
        train(name, model, *learned, held_out, epochs) for name, model in (("torch.nn", stock), ("pyflash", ours))
    )
    print(
        f"  the curves differ by at most {demo.early_difference(stock_run, our_run):.1e} in the first"
        f" {demo.EARLY_STEPS} steps (allowed {demo.EARLY_DIFFERENCE:.0e})"
    )
    flows["after"] = watch(ours, *learned)
    print(flows["after"])
    print(draw(stock_run, our_run, flows, ours[0].weight.detach(), out / "digits-mlp.png"))
    found = failures(stock_run, our_run, changed.total(), flows)
    print("\n".join(f"FAILED: {reason}" for reason in found) if found else "all comparisons passed")
    return 1 if found else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_EPOCHS} epochs")
    parser.add_argument("--epochs", type=demo.at_least_one, help="instead of the default")
    parser.add_argument("--out", type=Path, default=Path("digits-mlp-output"), help="folder of the picture")
    options = parser.parse_args(arguments)
    return run(options.epochs or (QUICK_EPOCHS if options.quick else EPOCHS), options.out)


if __name__ == "__main__":
    sys.exit(main())
