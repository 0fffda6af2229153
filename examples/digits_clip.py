"""CLIP learns which words belong to which picture of a digit, and then reads digits by texts that it never saw: torch.nn, and
the same after pyflash.replace.

A batch has one picture of each digit, each with its name in one of several sentences; the model must find out which belong
together. To read a held-out digit it is compared with ten sentences of another form: zero-shot classification (Radford et al.
2021, section 3.1). Same weights, same batches: the loss curves must agree, and more than 88% of the held-out digits must be
read, or it exits with 1. One picture shows both curves, how well each sentence says what is in each picture, and the pictures
that each sentence finds first. The digits come with scikit-learn: pip install 'pyflash[examples]'.

    python examples/digits_clip.py [--quick] [--epochs 20] [--out digits-clip-output]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import nn

import pyflash
from pyflash.cli import _digits, _learning, demo
from pyflash.show import picture

HELD_OUT = 360
EPOCHS, QUICK_EPOCHS = 20, 12
LEARNING_RATE = 3e-3
WANTED = 0.88  # of the held-out digits
FOUND = 8  # pictures of each sentence that are drawn

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LEARNED = ("the digit {}", "a photo of a {}", "a drawing of the number {}")
UNSEEN = "a photo of the number {}"  # its words are known, together they are not
WORDS = sorted({word for form in LEARNED for word in form.split()} - {"{}"} | set(NAMES))
NUMBER_OF = {word: 1 + i for i, word in enumerate(WORDS)}  # 0 fills up
END = 1 + len(WORDS)  # the largest: a text is read there
CONTEXT = 1 + max(len(form.split()) for form in (*LEARNED, UNSEEN))

CONFIG = pyflash.models.CLIPConfig(
    vocab_size=END + 1, context_length=CONTEXT, image_size=8, patch_size=2, channels=1, features=32,
    text_width=32, text_depth=1, text_num_heads=4, image_width=48, image_depth=2, image_num_heads=4, image_hidden=96,
)  # fmt: skip


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures [N, 1, 8, 8] of mean 0 and deviation 1, and what they show."""
    x, y = _digits.standardised()
    return x[:, None], y


def build() -> nn.Module:
    torch.manual_seed(_digits.SEED)
    return pyflash.models.CLIP(CONFIG, nn=nn)


def tokens(texts: list[str]) -> torch.Tensor:
    """[N, CONTEXT]: the numbers of the words, and the end."""
    rows = [[NUMBER_OF[word] for word in text.split()] + [END] for text in texts]
    return torch.tensor([row + [0] * (CONTEXT - len(row)) for row in rows])


def pairs(shown: torch.Tensor, epochs: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of the rows of ten pictures, one of each digit, and a text for each; the same every time."""
    generator = torch.Generator().manual_seed(_digits.SEED)
    for _ in range(epochs):
        order = torch.randperm(len(shown), generator=generator)
        of_each = [order[shown[order] == digit][: batches(shown)] for digit in range(len(NAMES))]
        for rows in torch.stack(of_each, 1):
            forms = torch.randint(len(LEARNED), (len(NAMES),), generator=generator).tolist()
            yield rows, tokens([LEARNED[form].format(name) for form, name in zip(forms, NAMES)])


def batches(shown: torch.Tensor) -> int:
    """Of an epoch: as many as the rarest digit has pictures."""
    return int(torch.bincount(shown, minlength=len(NAMES)).min())


@torch.no_grad()
def cosines(model: nn.Module, pictures: torch.Tensor) -> torch.Tensor:
    """[N, 10]: how well each sentence of the unseen form says what is in each picture."""
    model.eval()
    texts = model.text_features(tokens([UNSEEN.format(name) for name in NAMES]))
    return model.image_features(pictures) @ texts.t()


def train(name: str, model: nn.Module, learned, held_out, epochs: int) -> demo.Run:
    pictures, shown = learned
    return _learning.learn(
        name, model, pairs(shown, epochs), epochs * batches(shown), LEARNING_RATE,
        lambda batch: model(pictures[batch[0]], batch[1], with_loss=True)[1],
        lambda: (cosines(model, held_out[0]).argmax(1) == held_out[1]).float().mean().item(),
    )  # fmt: skip


def draw(stock: demo.Run, ours: demo.Run, model: nn.Module, held_out, path: Path) -> str:
    pictures, shown = held_out
    alike = cosines(model, pictures)

    def table(axes):
        means = torch.stack([alike[shown == digit].mean(0) for digit in range(len(NAMES))])
        axes.imshow(means.numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
        every = range(len(NAMES))
        axes.set(xticks=every, yticks=every, ylabel="shown", title="Cosines of pictures and sentences")
        axes.set_xticks(every, NAMES, rotation=45)

    def found(axes):
        first = alike.t().argsort(1, descending=True)[:, :FOUND]
        axes.imshow(_digits.mosaic(pictures[first.flatten(), 0], FOUND).numpy(), cmap="Greys")
        side = CONFIG.image_size + 1
        axes.set_yticks([side * i + side // 2 for i in range(len(NAMES))], [UNSEEN.format(name) for name in NAMES])
        axes.set(xticks=[], title=f"What each finds first; {ours.held_out:.1%} are read")

    return picture.draw(
        path,
        [partial(_learning.draw_curves, stock=stock, ours=ours), table, found],
        (16, 4.8),
        "examples",
        one_scale=False,
    )


def run(epochs: int, out: Path) -> int:
    learned, held_out = _digits.split(*digits(), HELD_OUT)
    stock, (ours, changed) = build(), demo.replace(build())
    parameters = sum(parameter.numel() for parameter in stock.parameters())
    print(
        f"CLIP, {parameters:,} parameters, learns from {len(learned[0])} digits and {len(LEARNED)} kinds of sentences;"
        f" {len(held_out[0])} are held out, and a kind"
    )
    demo.print_replaced(ours, changed)
    stock_run, our_run = _learning.compared(
        train("torch.nn", stock, learned, held_out, epochs), train("pyflash", ours, learned, held_out, epochs)
    )
    print(f"  torch.nn took {stock_run.seconds / our_run.seconds:.2f} times as long")
    print(draw(stock_run, our_run, ours, held_out, out / "digits-clip.png"))
    found = _learning.failures(stock_run, our_run, changed.total(), WANTED)
    return _learning.verdict(found)


def main(arguments: list[str] | None = None) -> int:
    return _learning.command(arguments, __doc__, run, "epochs", EPOCHS, QUICK_EPOCHS, "digits-clip-output")


if __name__ == "__main__":
    sys.exit(main())
