"""python -m pyflash demo: a stock Transformer learns real text; then the same one after pyflash.replace(model).

Same weights, same batches: the loss curves must agree, and the steps must be faster. It exits with 1 when they do not.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

import pyflash
from pyflash.cli import _language_model as lm
from pyflash.cli._memory import Memory
from pyflash.show import picture
from pyflash.show.progress import Progress

FULL = lm.Settings()
QUICK = lm.Settings(batch=4, steps=60, warmup=10, held_out_batches=8)

EARLY_STEPS, EARLY_DIFFERENCE = 100, 1e-3  # later, rounding has had time to grow in any two runs
HELD_OUT_DIFFERENCE = 1e-2


# What is compared.


@dataclass(frozen=True)
class Run:
    """One model's training at dropout 0."""

    losses: list[float]
    held_out: float
    seconds: float


@dataclass(frozen=True)
class Pace:
    """One step of one model, measured beside the other's."""

    seconds: float
    memory: int | None  # bytes that a step adds at its peak; None where that is not known
    spread: float = 0.0  # half the distance of the samples' quartiles, over their median: what a difference must exceed


def relative(value: float, expected: float) -> float:
    """NaN where either is, which no comparison accepts."""
    return abs(value - expected) / abs(expected)


def early_difference(stock: Run, ours: Run) -> float:
    pairs = list(zip(stock.losses, ours.losses, strict=True))[:EARLY_STEPS]
    differences = [relative(our_loss, loss) for loss, our_loss in pairs]
    return max(differences, key=lambda value: (value != value, value))  # a NaN is the largest of all


def failures(stock: Run, ours: Run, replaced: int, paces: dict[float, tuple[Pace, Pace]]) -> list[str]:
    """Every reason for which the demo must not exit with 0."""
    found = []
    if replaced == 0:
        found.append("nothing was replaced")
    difference = early_difference(stock, ours)
    if not difference <= EARLY_DIFFERENCE:
        found.append(f"the loss curves differ by {difference:.1e} in the first {EARLY_STEPS} steps")
    difference = relative(ours.held_out, stock.held_out)
    if not difference <= HELD_OUT_DIFFERENCE:
        found.append(f"the held-out losses differ by {difference:.2%}")
    for dropout, (torchs, pyflashs) in paces.items():
        if not pyflashs.seconds < torchs.seconds * (1 + max(torchs.spread, pyflashs.spread)):
            found.append(f"at dropout {dropout:g} the replaced model is not faster")
    return found


# Replacing.


def replace(model: nn.Module) -> tuple[nn.Module, Counter]:
    """The model after pyflash.replace, and how many modules of each class changed theirs."""
    before = {name: type(module) for name, module in model.named_modules()}
    model = pyflash.replace(model)
    changed = Counter(
        before[name].__name__ for name, module in model.named_modules() if type(module) is not before.get(name)
    )
    return model, changed


# Time and memory.


def measure(
    models: tuple[nn.Module, nn.Module],
    batch: tuple[torch.Tensor, torch.Tensor],
    settings: lm.Settings,
    device: str,
    rounds: int,
    round_done: Callable[[], None],
) -> tuple[Pace, Pace]:
    """Both models' steps in turn, the order changing every round, so that a busy machine is unfair to neither."""
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    steps = [lm.Trainer(model, settings) for model in models]
    seconds: list[list[float]] = [[] for _ in models]
    for step in steps * 2:  # the allocator needs more than one to settle
        step(*batch)
    for turn in range(rounds):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            synchronize()
            start = time.perf_counter()
            steps[which](*batch)
            synchronize()
            seconds[which].append(time.perf_counter() - start)
        round_done()
    memory = Memory(device)
    added = [memory.added_by(partial(step, *batch)) for step in steps]
    before, after = (
        Pace(statistics.median(taken), peak, spread(taken)) for taken, peak in zip(seconds, added, strict=True)
    )
    return before, after


def spread(seconds: list[float]) -> float:
    if len(seconds) < 2:
        return 0.0
    q25, median, q75 = statistics.quantiles(seconds, n=4, method="inclusive")
    return (q75 - q25) / 2 / median


# The demo, in the order in which it is printed.


def introduce(text: str, corpus: lm.Corpus, model: nn.Module, settings: lm.Settings) -> None:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"text      pydoc_data.topics: {len(text):,} characters, {len(corpus.alphabet)} different;"
        f" {len(corpus.train):,} to learn from, {len(corpus.held_out):,} held out\n"
        f"model     torch.nn.TransformerEncoder, {parameters / 1e6:.2f} M parameters: {settings.layers} layers,"
        f" width {settings.width}, {settings.heads} heads; {settings.batch} x {settings.context} characters a step"
    )


def print_replaced(model: nn.Module, changed: Counter) -> None:
    modules = sum(1 for _ in model.modules())
    kinds = ", ".join(f"{count} {name}" for name, count in changed.most_common())
    print(f"replaced  {changed.total()} of {modules} modules" + (f": {kinds}" if kinds else ""))


def train_one(name: str, model: nn.Module, corpus: lm.Corpus, settings: lm.Settings, device: str) -> Run:
    start = time.perf_counter()
    with Progress(f"  training {name}", settings.steps) as progress:
        losses = lm.train(model, corpus, settings, device, lambda loss: progress.advance(f"loss {loss:.3f}"))
        seconds = time.perf_counter() - start
        progress.note("held-out text")
        held_out = lm.held_out_loss(model, corpus, settings, device)
        progress.print(
            f"  {name:<8}  loss {losses[0]:.4f} to {losses[-1]:.4f}, held out {held_out:.4f}, {seconds:.0f} s"
        )
    return Run(losses, held_out, seconds)


def print_paces(paces: dict[float, tuple[Pace, Pace]], settings: lm.Settings) -> None:
    def row(what: str, show: Callable[[Pace], str], pair: tuple[Pace, Pace], after: str = "") -> None:
        print(f"    {what:<26} {show(pair[0]):>10} {show(pair[1]):>10}{after}")

    print(f"\nsteps of both, in turn         {'torch.nn':>10} {'pyflash':>10}")
    for dropout, pair in paces.items():
        print(f"  dropout {dropout:g}")
        ratio = f"   {pair[0].seconds / pair[1].seconds:.2f}x as fast"
        row("milliseconds a step", lambda pace: f"{pace.seconds * 1e3:,.0f}", pair, ratio)
        row("tokens a second", lambda pace: f"{settings.tokens / pace.seconds:,.0f}", pair)
        row("peak memory a step adds", lambda pace: megabytes(pace.memory), pair)


def megabytes(count: int | None) -> str:
    return "not known" if count is None else f"{count / 2**20:,.0f} MB"


def draw(stock: Run, ours: Run, path: Path) -> str:
    """Both loss curves in one picture; what to print about it."""

    def curves(axes):
        axes.plot(stock.losses, **picture.STOCK, label="torch.nn")
        axes.plot(ours.losses, **picture.OURS, label="after pyflash.replace")
        axes.set(xlabel="step", ylabel="loss (nats a character)", title="The same weights, the same batches")

    return picture.draw(path, [curves], (7, 4))


def run(settings: lm.Settings, device: str, out: Path, *, rounds: int, length: int, report: bool) -> int:
    text = lm.topics()
    corpus = lm.Corpus.from_text(text)
    stock = lm.build(corpus, settings, 0.0, device)
    ours, changed = replace(lm.build(corpus, settings, 0.0, device))
    introduce(text, corpus, stock, settings)
    print_replaced(ours, changed)
    if report:
        print(pyflash.report(ours))

    print(f"\n{settings.steps} steps from the same weights on the same batches, dropout 0", flush=True)
    stock_run = train_one("torch.nn", stock, corpus, settings, device)
    our_run = train_one("pyflash", ours, corpus, settings, device)
    print(
        f"  the curves differ by at most {early_difference(stock_run, our_run):.1e} in the first {EARLY_STEPS} steps"
        f" (allowed {EARLY_DIFFERENCE:.0e}), the held-out losses by"
        f" {relative(our_run.held_out, stock_run.held_out):.1e} (allowed {HELD_OUT_DIFFERENCE:.0e})",
        flush=True,
    )

    batch = next(lm.training_batches(corpus, settings, device))
    paces = {}
    with Progress("  timing", 2 * rounds) as progress:
        for dropout in (0.0, 0.1):
            progress.note(f"dropout {dropout:g}")
            models = [lm.build(corpus, settings, dropout, device) for _ in range(2)]
            pair = (models[0], replace(models[1])[0])
            paces[dropout] = measure(pair, batch, settings, device, rounds, progress.advance)
    print_paces(paces, settings)
    print("\n" + draw(stock_run, our_run, out / "loss.png"))
    written = lm.sample(ours, corpus, settings, device, prompt="The statement ", length=length)
    print("\na sample from the replaced model:\n" + "\n".join("  | " + line for line in written.splitlines()))

    found = failures(stock_run, our_run, changed.total(), paces)
    print("\n" + "\n".join(f"FAILED: {reason}" for reason in found) if found else "\nall comparisons passed")
    return 1 if found else 0


def device(name: str) -> str:
    if name not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"{name!r} is neither cpu nor cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("this torch sees no GPU")
    return name


def at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="under a minute: fewer, smaller steps")
    parser.add_argument("--device", type=device, default="cpu", help="cpu or cuda")
    parser.add_argument("--steps", type=at_least_one, help="training steps, instead of the default")
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="folder of the picture")
    parser.add_argument("--report", action="store_true", help="also print pyflash.report: module by module")


def main(options: argparse.Namespace) -> int:
    settings = QUICK if options.quick else FULL
    if options.steps is not None:
        settings = dataclasses.replace(settings, steps=options.steps)
    rounds, length = (9, 200) if options.quick else (7, 400)
    return run(settings, options.device, options.out, rounds=rounds, length=length, report=options.report)
