"""A feed-forward net learns handwritten digits of 8x8 pixels: torch.nn, and the same after pyflash.replace.

Same weights, same batches: the loss curves must agree, and more than 96% of the held-out digits must be read, or it exits
with 1. One picture shows both curves, what the first layer looks for, and how much of the loss's gradient reached each layer
before and after, by pyflash.diagnostics.gradient_flow.
Layers this small go to torch where that is faster; with PYFLASH_BACKEND=cpu all are pyflash's.
The digits come with scikit-learn: pip install 'pyflash[examples]'.

    python examples/digits_mlp.py [--quick] [--epochs 30] [--out digits-mlp-output]
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import pyflash
from pyflash.cli import _digits, _learning, demo
from pyflash.diagnostics import Report, gradient_flow
from pyflash.show import picture

SIZES = (64, 128, 64, 10)
HELD_OUT = 360
EPOCHS, QUICK_EPOCHS = 30, 12
LEARNING_RATE = 3e-3
WANTED = 0.96  # of the held-out digits
SHOWN = 24  # of the first layer's units


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures [N, 64] of mean 0 and deviation 1, and what they show."""
    x, y = _digits.standardised()
    return x.flatten(1), y


def build() -> nn.Module:
    torch.manual_seed(_digits.SEED)
    return pyflash.models.MLP(SIZES, nn=nn)


def watch(model: nn.Module, x, y) -> Report:
    """One forward and backward of all digits at once."""
    with gradient_flow(model) as flow:
        F.cross_entropy(model(x), y).backward()
    model.zero_grad(set_to_none=True)
    return flow.report()


def draw(stock: demo.Run, ours: demo.Run, flows: dict[str, Report], weight: torch.Tensor, path: Path) -> str:
    def gradients(axes):
        for (name, report), color in zip(flows.items(), ("#a0aec0", picture.OURS["color"])):
            axes.semilogy([row.gradient.norm for row in report.rows], color=color, marker="o", label=name)
        names = [f"{row.name} {row.kind}" for row in report.rows]
        axes.set_xticks(range(len(names)), names, rotation=30)
        axes.set(ylabel="norm of the gradient", title="What of the loss's gradient reaches each layer")

    def first_layer(axes):
        strongest = weight[weight.norm(dim=1).argsort(descending=True)[:SHOWN]]
        largest = strongest.abs().max()
        axes.imshow(_digits.mosaic(strongest.unflatten(1, (8, 8)), 6).numpy(), cmap="RdBu", vmin=-largest, vmax=largest)
        axes.set(title=f"Weights of the first layer; {ours.held_out:.1%} of the held-out digits are read")
        axes.axis("off")

    return picture.draw(
        path,
        [partial(_learning.draw_curves, stock=stock, ours=ours), gradients, first_layer],
        (16, 4.5),
        "examples",
        one_scale=False,
    )


def run(epochs: int, out: Path) -> int:
    learned, held_out = _digits.split(*digits(), HELD_OUT)
    stock, (ours, changed) = build(), demo.replace(build())
    parameters = sum(parameter.numel() for parameter in stock.parameters())
    print(f"MLP {SIZES}, {parameters:,} parameters, learns from {len(learned[0])} digits; {HELD_OUT} are held out")
    demo.print_replaced(ours, changed)
    print(pyflash.report(ours, example_inputs=learned[0][: _digits.BATCH]))
    flows = {"before": watch(ours, *learned)}
    stock_run, our_run = _digits.train_both(stock, ours, learned, held_out, epochs, LEARNING_RATE)
    flows["after"] = watch(ours, *learned)
    print(flows["after"])
    print(draw(stock_run, our_run, flows, ours[0].weight.detach(), out / "digits-mlp.png"))
    found = _learning.failures(stock_run, our_run, changed.total(), WANTED)
    for name, report in flows.items():
        found += [f"{name}: layer {row.name} is {row.verdict}" for row in report.rows if row.verdict != "healthy"]
    return _learning.verdict(found)


def main(arguments: list[str] | None = None) -> int:
    return _learning.command(arguments, __doc__, run, "epochs", EPOCHS, QUICK_EPOCHS, "digits-mlp-output")


if __name__ == "__main__":
    sys.exit(main())
