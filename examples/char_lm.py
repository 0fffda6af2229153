"""A character language model of two LSTM layers, then of two GRU layers: torch.nn, and the same after pyflash.replace.

The text is Python's own reference (pydoc_data.topics). Same weights, same batches: the loss curves must agree, or it
exits with 1. At the end the replaced model writes a sample, one character at a time, its state carried along.

    python examples/char_lm.py [--quick] [--steps 160] [--out char-lm-output]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import nn

from pyflash.cli import _language_model as lm
from pyflash.cli import demo
from pyflash.show import picture
from pyflash.show.progress import Progress

CELLS = ("LSTM", "GRU")
HIDDEN, EMBEDDING = 256, 64
FULL = lm.Settings(layers=2, context=96, batch=32, steps=160, warmup=10, learning_rate=3e-3, held_out_batches=4)
QUICK = lm.Settings(layers=2, context=48, batch=8, steps=40, warmup=5, learning_rate=3e-3, held_out_batches=4)


class CharacterModel(nn.Module):
    """Embedding, recurrent layers, head; plain torch.nn."""

    def __init__(self, cell: str, characters: int, layers: int):
        super().__init__()
        self.embedding = nn.Embedding(characters, EMBEDDING)
        self.layers = getattr(nn, cell)(EMBEDDING, HIDDEN, layers, batch_first=True)
        self.head = nn.Linear(HIDDEN, characters)

    def forward(self, characters):
        return self.step(characters)[0]

    def step(self, characters, state=None):
        """Logits of what comes after each character, and the state to continue from."""
        y, state = self.layers(self.embedding(characters), state)
        return self.head(y), state


def build(cell: str, corpus: lm.Corpus, settings: lm.Settings) -> CharacterModel:
    torch.manual_seed(settings.seed)
    return CharacterModel(cell, len(corpus.alphabet), settings.layers)


@torch.no_grad()
def sample(model: CharacterModel, corpus: lm.Corpus, settings: lm.Settings, prompt: str, length: int) -> str:
    """Continues the prompt at temperature 0.5; the past is in the state, so each character costs one step."""
    model.eval()
    generator = torch.Generator().manual_seed(settings.seed)
    written = [corpus.alphabet.index(character) for character in prompt if character in corpus.alphabet]
    logits, state = model.step(torch.tensor([written]))
    for _ in range(length):
        probabilities = (logits[0, -1] / 0.5).softmax(-1)
        written.append(torch.multinomial(probabilities, 1, generator=generator).item())
        logits, state = model.step(torch.tensor([written[-1:]]), state)
    return "".join(corpus.alphabet[i] for i in written)


def draw(runs: dict[str, tuple[demo.Run, demo.Run]], path: Path) -> str:
    """The curves of both cells side by side; what to print about it."""

    def panel(cell, stock, ours):
        def curves(axes):
            axes.plot(stock.losses, **picture.STOCK, label=f"torch.nn, {stock.seconds:.0f} s")
            axes.plot(ours.losses, **picture.OURS, label=f"after pyflash.replace, {ours.seconds:.0f} s")
            axes.set(xlabel="step", ylabel="loss (nats a character)", title=cell)

        return curves

    panels = [panel(cell, stock, ours) for cell, (stock, ours) in runs.items()]
    return picture.draw(path, panels, (10, 4), "examples")


def compare(cell: str, corpus: lm.Corpus, settings: lm.Settings) -> tuple[demo.Run, demo.Run, nn.Module, list[str]]:
    """Trains both; the reasons why they are not the same model, if there are any."""
    stock, (ours, changed) = build(cell, corpus, settings), demo.replace(build(cell, corpus, settings))
    parameters = sum(p.numel() for p in stock.parameters())
    print(f"\n{settings.layers} {cell} layers of {HIDDEN} units, {parameters / 1e6:.2f} M parameters")
    demo.print_replaced(ours, changed)
    runs = [
        demo.train_one(name, model, corpus, settings, "cpu") for name, model in (("torch.nn", stock), ("pyflash", ours))
    ]
    difference = demo.early_difference(*runs)
    print(
        f"  the curves differ by at most {difference:.1e} in the first {demo.EARLY_STEPS} steps"
        f" (allowed {demo.EARLY_DIFFERENCE:.0e}); {runs[0].seconds / runs[1].seconds:.2f}x as fast",
        flush=True,
    )
    return *runs, ours, [f"{cell}: {reason}" for reason in demo.failures(*runs, changed.total(), {})]


def run(settings: lm.Settings, out: Path, length: int) -> int:
    text = lm.topics()
    corpus = lm.Corpus.from_text(text)
    print(
        f"text  pydoc_data.topics: {len(text):,} characters, {len(corpus.alphabet)} different;"
        f" {settings.batch} x {settings.context} characters a step, {settings.steps} steps"
    )
    runs, found = {}, []
    for cell in CELLS:
        stock_run, our_run, ours, reasons = compare(cell, corpus, settings)
        runs[cell], found = (stock_run, our_run), found + reasons
    print("\n" + draw(runs, out / "char-lm.png"))
    with Progress("  writing", 1) as progress:
        progress.note("a sample")
        written = sample(ours, corpus, settings, "The statement ", length)
    print(f"\na sample from the replaced {CELLS[-1]}:\n" + "\n".join("  | " + line for line in written.splitlines()))
    print("\n" + "\n".join(f"FAILED: {reason}" for reason in found) if found else "\nall comparisons passed")
    return 1 if found else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="half a minute: fewer, smaller steps")
    parser.add_argument("--steps", type=demo.at_least_one, help="training steps, instead of the default")
    parser.add_argument("--out", type=Path, default=Path("char-lm-output"), help="folder of the picture")
    options = parser.parse_args(arguments)
    settings = QUICK if options.quick else FULL
    if options.steps is not None:
        settings = lm.Settings(**{**vars(settings), "steps": options.steps})
    return run(settings, options.out, 200 if options.quick else 400)


if __name__ == "__main__":
    sys.exit(main())
