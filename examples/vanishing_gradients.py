"""Where gradients vanish, and what keeps them: five deep nets, and recurrent layers over 200 steps.

The picture shows what of the loss's gradient reaches each layer of an untrained net, and each step of a sequence whose end
alone is judged, as pyflash.diagnostics.gradient_flow records it. Then the deep nets learn: those that the first layers' gradient
reaches get somewhere. It exits with 1 where the sigmoid's or the RNN's gradients do not vanish, or any other's do.

    python examples/vanishing_gradients.py [--quick] [--steps 150] [--out vanishing-output]
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

import pyflash
from pyflash.cli import demo
from pyflash.diagnostics import Report, gradient_flow
from pyflash.show import picture
from pyflash.show.progress import Progress

SEED = 20261128
FEATURES, WIDTH, DEPTH, CLASSES, BATCH = 32, 64, 24, 10, 128
HIDDEN, SEQUENCES, LENGTH = 32, 32, 200
STEPS, QUICK_STEPS = 150, 30
LEARNING_RATE = 1e-3
OPEN = 6.0  # the bias of a gate that keeps 0.9975 of what it holds: 61% after 200 steps


# The deep nets. In each, the weights begin as its activation wants them; the sigmoid's as torch has them.


def plain(activation: str, gain: float = 0.0, norm: str | None = None) -> nn.Module:
    """gain: of Gaussian weights, over the root of the inputs; 0: torch's own weights."""
    model = pyflash.models.MLP((FEATURES, *[WIDTH] * DEPTH, CLASSES), activation, norm=norm, nn=nn)
    for layer in model:
        if gain and isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.in_features))
            nn.init.zeros_(layer.bias)
    return model


class Residual(nn.Module):
    """Each layer's output is added to what comes in. He et al. 2016, arXiv:1512.03385."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.inner = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(DEPTH - 1))

    def forward(self, x):
        x = self.first(x)
        for layer in self.inner:
            x = x + layer(x)
        return self.last(x)


DEEP: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": lambda: plain("sigmoid"),
    "tanh, Xavier's weights": lambda: plain("tanh", 1.0),
    "ReLU, He's weights": lambda: plain("relu", math.sqrt(2)),
    "tanh, residual": Residual,
    "sigmoid, batch norm": lambda: plain("sigmoid", 1.0, norm="batch"),
}


# The recurrent ones, of which the last step alone is asked.


class Recurrent(nn.Module):
    def __init__(self, cell: str, gates: slice = slice(0)):
        """gates: whose bias is OPEN."""
        super().__init__()
        self.layer = getattr(nn, cell)(CLASSES, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, CLASSES)
        with torch.no_grad():
            self.layer.bias_hh_l0[gates] = OPEN

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


SECOND_GATE = slice(HIDDEN, 2 * HIDDEN)  # LSTM's forget gate, GRU's update gate
RECURRENT: dict[str, Callable[[], nn.Module]] = {
    "RNN": lambda: Recurrent("RNN"),
    "LSTM": lambda: Recurrent("LSTM"),
    "LSTM, forget gate open": lambda: Recurrent("LSTM", SECOND_GATE),
    "GRU, update gate open": lambda: Recurrent("GRU", SECOND_GATE),
}
VANISH = ("sigmoid", "RNN", "LSTM")  # of all of them
COLORS = ("#c53030", "#dd6b20", "#2b6cb0", "#2f855a", "#805ad5")


class Found(NamedTuple):
    report: Report
    gradients: list[float]  # by layer or by step, over the last one's
    loss: float = math.nan  # after training

    @property
    def vanishes(self) -> bool:
        return any(row.verdict == "vanishing" for row in self.report.rows)


def clusters(generator: torch.Generator) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    """Batches of points around ten centres, and whose they are."""
    centres = torch.randn(CLASSES, FEATURES, generator=generator)

    def batch():
        y = torch.randint(CLASSES, (BATCH,), generator=generator)
        return centres[y] + 0.5 * torch.randn(BATCH, FEATURES, generator=generator), y

    return batch


def watch(model: nn.Module, x, y) -> Report:
    """One forward and backward."""
    with gradient_flow(model) as flow:
        F.cross_entropy(model(x), y).backward()
    return flow.report()


def in_depth(build: Callable[[], nn.Module], steps: int, progress: Progress) -> Found:
    generator = torch.Generator().manual_seed(SEED)
    torch.manual_seed(SEED)
    model, batch = pyflash.replace(build()), clusters(generator)
    report = watch(model, *batch())
    layers = sorted((row for row in report.rows if row.kind == "Linear"), key=lambda row: row.order)
    optimizer, losses = torch.optim.Adam(model.parameters(), LEARNING_RATE), []
    for _ in range(steps):
        x, y = batch()
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        progress.advance(f"loss {losses[-1]:.3f}")
    return Found(report, [row.relative for row in layers], sum(losses[-10:]) / len(losses[-10:]))


def in_time(build: Callable[[], nn.Module], progress: Progress) -> Found:
    torch.manual_seed(SEED)
    model = pyflash.replace(build())
    x, y = torch.randn(SEQUENCES, LENGTH, CLASSES), torch.randint(CLASSES, (SEQUENCES,))
    report = watch(model, x, y)
    progress.advance("")
    steps = next(row.steps for row in report.rows if row.name == "layer")
    return Found(report, [norm / steps[-1] for norm in steps])


def draw(deep: dict[str, Found], recurrent: dict[str, Found], path: Path) -> str:
    floor = 1e-16

    def lines(found, xlabel, title):
        def panel(axes):
            for (name, of), color in zip(found.items(), COLORS):
                axes.semilogy([max(value, floor) for value in of.gradients], color=color, linewidth=2.5, label=name)
            axes.axhspan(floor, 1e-3, color="#c53030", alpha=0.06, linewidth=0)
            axes.text(0.02, 5e-4, "vanishing", color="#c53030", va="top", transform=axes.get_yaxis_transform())
            axes.set(xlabel=xlabel, title=title, ylim=(floor, 1e3))
            axes.set_ylabel("norm of the gradient, over the last one's")

        return panel

    panels = [
        lines(deep, f"layer, from the input to the loss ({DEPTH + 1} linear layers)", "Gradients by depth"),
        lines(recurrent, "time step; only the last one is judged", "Gradients by time"),
    ]
    return picture.draw(path, panels, (13, 5), "examples", one_scale=False)


def failures(found: dict[str, Found]) -> list[str]:
    """Every reason for which it must not exit with 0."""
    wrong = []
    for name, of in found.items():
        if of.vanishes != (name in VANISH):
            wrong.append(f"{name}: gradients {'vanish' if of.vanishes else 'do not vanish'}")
        if any(row.verdict not in ("healthy", "vanishing") for row in of.report.rows):
            wrong.append(f"{name}:\n{of.report}")
    return wrong


def run(steps: int, out: Path) -> int:
    print(f"{len(DEEP)} nets of {DEPTH + 1} linear layers, {len(RECURRENT)} recurrent ones over {LENGTH} steps")
    with Progress("  watching and training", len(DEEP) * steps + len(RECURRENT)) as progress:
        deep = {name: in_depth(build, steps, progress) for name, build in DEEP.items()}
        recurrent = {name: in_time(build, progress) for name, build in RECURRENT.items()}
    print(f"  {'':<24} gradient, first over last   verdicts                  loss after {steps} steps")
    for name, of in {**deep, **recurrent}.items():
        sick = sum(row.verdict == "vanishing" for row in of.report.rows)
        verdict = f"{sick} of {len(of.report.rows)} vanishing" if sick else "healthy"
        learned = "" if math.isnan(of.loss) else f"{of.loss:.3f}"
        print(f"  {name:<24} {of.gradients[0]:<27.1e} {verdict:<25} {learned}".rstrip())
    print(draw(deep, recurrent, out / "vanishing-gradients.png"))
    wrong = failures({**deep, **recurrent})
    print("\n".join(f"FAILED: {reason}" for reason in wrong) if wrong else "all of it as the verdicts say")
    return 1 if wrong else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps of training")
    parser.add_argument("--steps", type=demo.at_least_one, help="instead of the default")
    parser.add_argument("--out", type=Path, default=Path("vanishing-output"), help="folder of the picture")
    options = parser.parse_args(arguments)
    return run(options.steps or (QUICK_STEPS if options.quick else STEPS), options.out)


if __name__ == "__main__":
    sys.exit(main())
