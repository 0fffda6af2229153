"""LeNet learns handwritten digits of 8x8 pixels: torch.nn, and the same after pyflash.replace.

Same weights, same batches: the loss curves must agree, and more than 98% of the held-out digits must be read, or it exits
with 1. One picture shows both curves, which digits are taken for which, and the filters of the first layer.
Layers this small go to torch where that is faster; with PYFLASH_BACKEND=cpu all are pyflash's.
The digits come with scikit-learn: pip install 'pyflash[examples]'.

    python examples/digits_cnn.py [--quick] [--epochs 30] [--out digits-output]
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
from torch import nn

import pyflash
from pyflash.cli import _digits, _learning, demo
from pyflash.show import picture

HELD_OUT = 360
EPOCHS, QUICK_EPOCHS = 30, 12
LEARNING_RATE = 3e-3
WANTED = 0.98  # of the held-out digits. Of another 360 it may be 97 to 99%: one digit is 0.3%


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures [N, 1, 8, 8] of mean 0 and deviation 1, and what they show."""
    x, y = _digits.standardised()
    return x[:, None], y


def build() -> nn.Module:
    torch.manual_seed(_digits.SEED)
    return pyflash.models.LeNet(image_size=8, nn=nn)


def confusion(shown: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """[shown, read]: how often."""
    return torch.bincount(10 * shown + found, minlength=100).reshape(10, 10)


def draw(stock: demo.Run, ours: demo.Run, table: torch.Tensor, filters: torch.Tensor, path: Path) -> str:
    def taken_for(axes):
        axes.imshow(table.numpy(), cmap="Blues")
        for shown, row in enumerate(table.tolist()):
            for found, count in enumerate(row):
                if count:
                    color = "white" if shown == found else "#c05621"
                    axes.text(found, shown, count, ha="center", va="center", color=color)
        every = range(len(table))
        axes.set(
            xlabel="read",
            ylabel="shown",
            title=f"Held-out digits: {ours.held_out:.1%} right",
            xticks=every,
            yticks=every,
        )

    def first_layer(axes):
        largest = filters.abs().max()
        axes.imshow(_digits.mosaic(filters, 3).numpy(), cmap="RdBu", vmin=-largest, vmax=largest)
        axes.set(title="Filters of the first layer")
        axes.axis("off")

    return picture.draw(
        path,
        [partial(_learning.draw_curves, stock=stock, ours=ours), taken_for, first_layer],
        (14, 4.5),
        "examples",
        one_scale=False,
    )


def run(epochs: int, out: Path) -> int:
    learned, held_out = _digits.split(*digits(), HELD_OUT)
    stock, (ours, changed) = build(), demo.replace(build())
    parameters = sum(parameter.numel() for parameter in stock.parameters())
    print(f"LeNet, {parameters:,} parameters, learns from {len(learned[0])} digits; {HELD_OUT} are held out")
    demo.print_replaced(ours, changed)
    print(pyflash.report(ours, example_inputs=learned[0][: _digits.BATCH]))
    stock_run, our_run = _digits.train_both(stock, ours, learned, held_out, epochs, LEARNING_RATE)
    table = confusion(held_out[1], _digits.read(ours, held_out[0]))
    print(draw(stock_run, our_run, table, ours.features[0].weight.detach()[:, 0], out / "digits.png"))
    found = _learning.failures(stock_run, our_run, changed.total(), WANTED)
    return _learning.verdict(found)


def main(arguments: list[str] | None = None) -> int:
    return _learning.command(arguments, __doc__, run, "epochs", EPOCHS, QUICK_EPOCHS, "digits-output")


if __name__ == "__main__":
    sys.exit(main())
