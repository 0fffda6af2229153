"""A small GPT, built as Llama is, on torch.nn, and the same after pyflash.replace, learn the text of Python's own reference.

Same weights, same batches: the loss curves must agree, or it exits with 1. At the end the replaced model continues prompts of
different lengths at once, by its cache of keys and values.

    python examples/train_gpt.py [--quick] [--steps 200] [--out train-gpt-output]
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path

import torch

from pyflash import models
from pyflash.cli import _language_model as lm
from pyflash.cli import demo
from pyflash.show.progress import Progress

FULL = lm.Settings(
    width=192, heads=6, hidden=512, layers=4, context=128, batch=12, steps=200, warmup=20, learning_rate=1e-3
)
QUICK = dataclasses.replace(FULL, batch=8, steps=40, warmup=10, held_out_batches=4)
PROMPTS = ("The statement ", "A class", "If an exception is raised in ")


def build(corpus: lm.Corpus, settings: lm.Settings) -> models.GPT:
    """On torch.nn, the same weights every time."""
    torch.manual_seed(settings.seed)
    config = models.GPTConfig(
        len(corpus.alphabet), settings.context, settings.width, settings.layers, settings.heads,
        num_kv_heads=settings.heads // 2, hidden=settings.hidden, positions="rotary", norm="rms", activation="silu",
        gated=True, bias=False,
    )  # fmt: skip
    return models.GPT(config, nn=torch.nn)


def write(
    model: models.GPT, corpus: lm.Corpus, prompts: tuple[str, ...], length: int, use_cache: bool = True
) -> list[str]:
    """Each prompt and its continuation; short prompts are padded on the left."""
    encoded = [[corpus.alphabet.index(c) for c in prompt if c in corpus.alphabet] for prompt in prompts]
    longest = max(map(len, encoded))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in encoded])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in encoded])
    torch.manual_seed(lm.Settings.seed)
    written = model.eval().generate(ids, length, temperature=0.7, top_p=0.95, attention_mask=mask, use_cache=use_cache)
    return [
        "".join(corpus.alphabet[i] for i in row[is_text.sum().neg() - length :]) for row, is_text in zip(written, mask)
    ]


def run(settings: lm.Settings, out: Path) -> int:
    text = lm.topics()
    corpus = lm.Corpus.from_text(text)
    stock, (ours, changed) = build(corpus, settings), demo.replace(build(corpus, settings))
    parameters = sum(p.numel() for p in stock.parameters())
    print(
        f"text  pydoc_data.topics: {len(text):,} characters, {len(corpus.alphabet)} different;"
        f" {settings.batch} x {settings.context} characters a step, {settings.steps} steps\n"
        f"GPT   {parameters / 1e6:.2f} M parameters: {settings.layers} blocks, width {settings.width}, {settings.heads} heads"
    )
    demo.print_replaced(ours, changed)
    stock_run, our_run = (
        demo.train_one(name, model, corpus, settings, "cpu") for name, model in (("torch.nn", stock), ("pyflash", ours))
    )
    print(
        f"  the curves differ by at most {demo.early_difference(stock_run, our_run):.1e} in the first {demo.EARLY_STEPS} steps"
        f" (allowed {demo.EARLY_DIFFERENCE:.0e}); {stock_run.seconds / our_run.seconds:.2f}x as fast",
        flush=True,
    )
    print("\n" + demo.draw(stock_run, our_run, out / "train-gpt.png"))
    found = demo.failures(stock_run, our_run, changed.total(), {})
    length = settings.context - max(map(len, PROMPTS))
    seconds, texts = {}, {}
    with Progress("  writing", 3) as progress:
        for name, model, use_cache in (
            ("pyflash", ours, True),
            ("without the cache", ours, False),
            ("torch.nn", stock, True),
        ):
            start = time.perf_counter()
            texts[name] = write(model, corpus, PROMPTS, length, use_cache)
            seconds[name] = time.perf_counter() - start
            progress.advance(name)
    if texts["pyflash"] != texts["without the cache"]:
        found.append("with the cache another text is written than without")
    print(
        f"\n{length} characters behind each of {len(PROMPTS)} prompts: "
        + ", ".join(f"{n} {s:.2f} s" for n, s in seconds.items())
    )
    for sample in texts["pyflash"]:
        print("\n".join("  | " + line for line in sample.splitlines()) + "\n")
    print("\n".join(f"FAILED: {reason}" for reason in found) if found else "all comparisons passed")
    return 1 if found else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="half a minute: fewer, smaller steps")
    parser.add_argument("--steps", type=demo.at_least_one, help="training steps, instead of the default")
    parser.add_argument("--out", type=Path, default=Path("train-gpt-output"), help="folder of the picture")
    options = parser.parse_args(arguments)
    settings = QUICK if options.quick else FULL
    if options.steps is not None:
        settings = dataclasses.replace(settings, steps=options.steps)
    return run(settings, options.out)


if __name__ == "__main__":
    sys.exit(main())
