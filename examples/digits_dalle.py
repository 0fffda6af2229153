"""A small text-to-image model draws digits by their label, as DALL-E does: torch.nn, and the same after pyflash.replace.

First squares of 2x2 pixels learn to be one of 48 codes each; then a GPT learns to write a picture's 16 codes behind its label.
Same weights, same batches: the loss curves of both steps must agree, and a classifier that has learned from the same digits
must read at least three quarters of the drawn ones as the label that was asked for, or it exits with 1. One picture shows the
curves, digits beside what their codes make of them, and digits drawn by label.
The digits come with scikit-learn: pip install 'pyflash[examples]'.

    python examples/digits_dalle.py [--quick] [--epochs 30] [--out digits-dalle-output]
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
from pyflash.show import picture

HELD_OUT = 360
EPOCHS, QUICK_EPOCHS = 30, 15
CODE_EPOCHS = 6
LEARNING_RATE = 4e-3
WANTED = 0.75  # of the drawn digits
DRAWN, SHOWN = 20, 8  # of each digit: by whose likeness it is judged, and in the picture

CONFIG = pyflash.models.DALLEConfig(
    image_size=8, patch_size=2, num_classes=10, num_codes=48, width=64, depth=2, num_heads=4, hidden=32, code_width=8
)


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures [N, 1, 8, 8] from -1 to 1, and what they show."""
    x, y = _digits.load()
    return x[:, None] / 8 - 1, y


def build() -> nn.Module:
    torch.manual_seed(_digits.SEED)
    return pyflash.models.DALLE(CONFIG, nn=nn)


def judge(learned, held_out) -> tuple[nn.Module, float]:
    """A classifier, and the share of the held-out digits that it reads."""
    torch.manual_seed(_digits.SEED)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(learned[0]), learned[1]).backward()
        optimizer.step()
    return model, (_digits.read(model, held_out[0]) == held_out[1]).float().mean().item()


def draw_digits(model: nn.Module, each: int) -> tuple[torch.Tensor, torch.Tensor]:
    """So many pictures of each digit, and their labels."""
    torch.manual_seed(_digits.SEED)
    labels = torch.arange(CONFIG.num_classes).repeat_interleave(each)
    return model.eval().generate(labels), labels


@torch.no_grad()
def coded(model: nn.Module, pictures: torch.Tensor) -> torch.Tensor:
    """What the codes of pictures make of them."""
    return model.eval().tokenizer(pictures)[0]


def train(
    name: str, model: nn.Module, learned, held_out, classifier: nn.Module, epochs: int
) -> tuple[demo.Run, demo.Run]:
    """The codes' and the GPT's. What is right: of held-out digits, how much of their deviation the codes keep; of drawn ones,
    the share that is read as its label."""
    pictures, shown = learned
    steps_an_epoch = -(-len(pictures) // _digits.BATCH)

    def kept():
        return 1 - (F.mse_loss(coded(model, held_out[0]), held_out[0]) / held_out[0].var()).item()

    def as_asked():
        drawn, labels = draw_digits(model, DRAWN)
        return (_digits.read(classifier, drawn) == labels).float().mean().item()

    codes = _learning.learn(
        f"{name}, codes", model.tokenizer, _digits.shuffled(len(pictures), CODE_EPOCHS), CODE_EPOCHS * steps_an_epoch,
        LEARNING_RATE, lambda rows: model(pictures[rows])[1], kept,
    )  # fmt: skip
    gpt = _learning.learn(
        f"{name}, GPT", model.gpt, _digits.shuffled(len(pictures), epochs), epochs * steps_an_epoch,
        LEARNING_RATE, lambda rows: model.train()(pictures[rows], shown[rows])[1], as_asked,
    )  # fmt: skip
    return codes, gpt


def draw(stock, ours, model: nn.Module, pictures: torch.Tensor, path: Path) -> str:
    def by_codes(axes):
        rows = torch.stack((pictures, coded(model, pictures)), 1).flatten(0, 1)[:, 0]
        axes.imshow(_digits.mosaic(rows, 4).numpy(), cmap="Greys", vmin=-1, vmax=1)
        axes.set(title="Held-out digits, and by their codes")
        axes.axis("off")

    def by_label(axes):
        drawn, _ = draw_digits(model, SHOWN)
        axes.imshow(_digits.mosaic(drawn[:, 0], SHOWN).numpy(), cmap="Greys", vmin=-1, vmax=1)
        side = CONFIG.image_size + 1
        axes.set_yticks([side * i + side // 2 for i in range(CONFIG.num_classes)], range(CONFIG.num_classes))
        axes.set(xticks=[], ylabel="asked for", title=f"Drawn; {ours[1].held_out:.1%} are read as that")

    def curves(which, axes):
        _learning.draw_curves(axes, stock[which], ours[which])
        axes.set(title=("Codes: loss of the same batches", "GPT: loss of the same batches")[which])

    panels = [partial(curves, 0), partial(curves, 1), by_codes, by_label]
    return picture.draw(path, panels, (18, 5), "examples", one_scale=False)


def run(epochs: int, out: Path) -> int:
    learned, held_out = _digits.split(*digits(), HELD_OUT)
    stock, (ours, changed) = build(), demo.replace(build())
    classifier, right = judge(learned, held_out)
    parameters = sum(parameter.numel() for parameter in stock.parameters())
    print(
        f"DALLE, {parameters:,} parameters, learns from {len(learned[0])} digits; a classifier that reads {right:.1%} of"
        f" {len(held_out[0])} others judges it"
    )
    demo.print_replaced(ours, changed)
    stock_runs = train("torch.nn", stock, learned, held_out, classifier, epochs)
    our_runs = train("pyflash", ours, learned, held_out, classifier, epochs)
    for by_torch, by_ours in zip(stock_runs, our_runs):
        _learning.compared(by_torch, by_ours)
        print(f"  torch.nn took {by_torch.seconds / by_ours.seconds:.2f} times as long")
    print(draw(stock_runs, our_runs, ours, held_out[0][:16], out / "digits-dalle.png"))
    wanted = (
        ("codes", 0, "keeps {} of the held-out digits"),
        ("GPT", WANTED, "has {} of its digits read as their label"),
    )
    found = []
    for (part, least, does), by_torch, by_ours in zip(wanted, stock_runs, our_runs):
        found += [f"{part}: {reason}" for reason in _learning.failures(by_torch, by_ours, changed.total(), least, does)]
    return _learning.verdict(found)


def main(arguments: list[str] | None = None) -> int:
    return _learning.command(arguments, __doc__, run, "epochs", EPOCHS, QUICK_EPOCHS, "digits-dalle-output")


if __name__ == "__main__":
    sys.exit(main())
