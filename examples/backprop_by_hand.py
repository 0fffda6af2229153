"""Backpropagation written out: y = sigma(W x + b), the chain rule in the kernels' own terms, beside torch's autograd.

For a layer with the batch's inputs as rows of x, and dy the loss's gradient at y:

    z = x W^T + b     y = sigma(z)
    dz = dy sigma'(z) = dy y (1 - y)      the kernel reads y alone: the sigmoid's slope is known from its value
    dW = dz^T x                           every row's outer product, added up
    db = the sum of dz over the rows
    dx = dz W                             which is the dy of the layer below

First each gradient of one layer is compared with autograd's, both against float64; then a net of two layers learns by these
lines alone, as one does by autograd from the same weights, and the curves must agree, or it exits with 1.

    python examples/backprop_by_hand.py [--quick] [--steps 1500] [--out backprop-output]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import pyflash  # noqa: F401  registers the operators
from pyflash.cli import demo
from pyflash.show import picture
from pyflash.show.progress import Progress

SEED = 20261128
ROWS, FEATURES, UNITS = 256, 64, 48
STEPS, QUICK_STEPS = 1500, 200
HIDDEN, RATE = 16, 4.0
AGREE = 1e-3  # of the loss curves, relative
LEARNED = 0.9  # of the first loss, below which the last must be
BACKEND = "auto"  # our kernels where they are built

kernels = torch.ops.pyflash
SIGMOID = ("sigmoid", 0.0, 0.0)  # a row of the activation table, which has no parameters


class Gradients(NamedTuple):
    dx: Tensor
    dW: Tensor
    db: Tensor


def forward(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """sigma(x W^T + b) in one pass."""
    y, _ = kernels.linear_fwd(x, W, b, *SIGMOID, False, BACKEND)
    return y


def backward(dy: Tensor, x: Tensor, W: Tensor, y: Tensor) -> Gradients:
    """The chain rule, a kernel a line."""
    dz = kernels.activation_bwd(dy, y, *SIGMOID, BACKEND)
    dW = kernels.matmul(dz.T, x, BACKEND)
    db = dz.sum(0)
    dx = kernels.matmul(dz, W, BACKEND)
    return Gradients(dx, dW, db)


def backward_in_one(dy: Tensor, x: Tensor, W: Tensor, y: Tensor) -> Gradients:
    """The same as one operator, which is what pyflash.nn calls."""
    return Gradients(*kernels.linear_bwd(dy, x, W, y, *SIGMOID, True, True, True, BACKEND))


def by_autograd(x: Tensor, W: Tensor, b: Tensor, dy: Tensor) -> Gradients:
    leaves = [t.clone().requires_grad_() for t in (x, W, b)]
    y = torch.sigmoid(torch.nn.functional.linear(*leaves))
    return Gradients(*torch.autograd.grad(y, leaves, dy))


class Error(NamedTuple):
    """Of a gradient against float64, in units of the last place of its largest element."""

    name: str
    torchs: float
    by_hand: float
    in_one: float

    def is_rounding(self) -> bool:
        """At most twice torch's own, and 4 units: the rule of pyflash's tests."""
        return max(self.by_hand, self.in_one) <= 2 * self.torchs + 4


def compare() -> list[Error]:
    generator = torch.Generator().manual_seed(SEED)
    x, W, b, dy = (
        torch.randn(shape, generator=generator)
        for shape in ((ROWS, FEATURES), (UNITS, FEATURES), (UNITS,), (ROWS, UNITS))
    )
    W /= FEATURES**0.5
    truth = by_autograd(*(t.double() for t in (x, W, b, dy)))
    y = forward(x, W, b)
    found = by_autograd(x, W, b, dy), backward(dy, x, W, y), backward_in_one(dy, x, W, y)
    errors = []
    for name, true, *others in zip(Gradients._fields, truth, *found):
        unit = torch.finfo(torch.float32).eps * true.abs().max().item()
        errors.append(Error(name, *((other.double() - true).abs().max().item() / unit for other in others)))
    return errors


# A net of two such layers: is the product of two numbers positive?


def points(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = 2 * torch.rand(n, 2, generator=generator) - 1
    return x, (x[:, :1] * x[:, 1:] > 0).float()


def first_weights() -> list[Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    shapes = (HIDDEN, 2), (HIDDEN,), (1, HIDDEN), (1,)
    scales = 3.0, 1.0, 1.0, 0.0
    return [scale * torch.randn(shape, generator=generator) for shape, scale in zip(shapes, scales)]


def predict(x: Tensor, W1: Tensor, b1: Tensor, W2: Tensor, b2: Tensor) -> Tensor:
    return forward(forward(x, W1, b1), W2, b2)


def step_by_hand(x: Tensor, t: Tensor, weights: list[Tensor]) -> float:
    """One step down the gradient of mean (y - t)^2."""
    W1, b1, W2, b2 = weights
    h = forward(x, W1, b1)
    y = forward(h, W2, b2)
    dy = 2 * (y - t) / t.numel()
    second = backward(dy, h, W2, y)
    first = backward(second.dx, x, W1, h)
    for weight, gradient in zip(weights, (first.dW, first.db, second.dW, second.db)):
        weight -= RATE * gradient
    return (y - t).square().mean().item()


def step_by_autograd(x: Tensor, t: Tensor, weights: list[Tensor]) -> float:
    leaves = [weight.requires_grad_() for weight in weights]
    W1, b1, W2, b2 = leaves
    h = torch.sigmoid(torch.nn.functional.linear(x, W1, b1))
    loss = (torch.sigmoid(torch.nn.functional.linear(h, W2, b2)) - t).square().mean()
    gradients = torch.autograd.grad(loss, leaves)
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients):
            weight.requires_grad_(False).sub_(gradient, alpha=RATE)
    return loss.item()


def train(step, steps: int, progress: Progress) -> tuple[list[float], list[Tensor]]:
    weights, generator, losses = first_weights(), torch.Generator().manual_seed(SEED), []
    for _ in range(steps):
        losses.append(step(*points(ROWS, generator), weights))
        progress.advance(f"loss {losses[-1]:.4f}")
    return losses, weights


def draw(errors: list[Error], by_hand: list[float], theirs: list[float], weights: list[Tensor], path: Path) -> str:
    def bars(axes):
        for offset, color, label, field in (
            (-0.27, picture.STOCK["color"], "torch's autograd", "torchs"),
            (0.0, picture.OURS["color"], "the chain rule, by hand", "by_hand"),
            (0.27, "#2f855a", "in one operator", "in_one"),
        ):
            axes.bar(
                [i + offset for i in range(len(errors))],
                [getattr(e, field) for e in errors],
                0.25,
                color=color,
                label=label,
            )
        axes.set_xticks(range(len(errors)), [error.name for error in errors])
        axes.set_ylim(top=1.5 * max(max(error[1:]) for error in errors))
        axes.set(title="Largest error against float64", ylabel="units in the last place of the largest element")

    def curves(axes):
        axes.semilogy(theirs, **picture.STOCK, label="torch's autograd")
        axes.semilogy(by_hand, **picture.OURS, label="by hand")
        axes.set(xlabel="step", ylabel="mean squared error", title="The same weights, the same batches")

    def learned(axes):
        grid = torch.linspace(-1, 1, 101)
        x = torch.cartesian_prod(grid, grid)
        y = predict(x, *weights).reshape(101, 101).T
        axes.imshow(y.numpy(), origin="lower", extent=(-1, 1, -1, 1), cmap="RdBu", vmin=0, vmax=1)
        axes.set(title="What it has learned: is the product positive?")

    return picture.draw(path, [bars, curves, learned], (15, 4.5), "examples", one_scale=False)


def run(steps: int, out: Path) -> int:
    errors = compare()
    print(f"y = sigma(W x + b), {ROWS} rows of {FEATURES} to {UNITS}: largest errors against float64, in ulp")
    for error in errors:
        print(
            f"  {error.name:<3} torch {error.torchs:5.2f}   by hand {error.by_hand:5.2f}   in one operator {error.in_one:5.2f}"
        )
    with Progress("  training", 2 * steps) as progress:
        theirs, _ = train(step_by_autograd, steps, progress)
        by_hand, weights = train(step_by_hand, steps, progress)
    x, t = points(4096, torch.Generator().manual_seed(SEED + 1))
    right = ((predict(x, *weights) > 0.5) == (t > 0.5)).float().mean().item()
    difference = max(demo.relative(a, b) for a, b in zip(by_hand, theirs))
    print(f"  two layers by hand: loss {by_hand[0]:.4f} to {by_hand[-1]:.4f}, {right:.1%} of new points right")
    print(f"  the curves differ by at most {difference:.1e} (allowed {AGREE:.0e})")
    print(draw(errors, by_hand, theirs, weights, out / "backprop.png"))
    failed = [f"{error.name} is further from float64 than rounding" for error in errors if not error.is_rounding()]
    if not difference <= AGREE:
        failed.append(f"the curves differ by {difference:.1e}")
    if not by_hand[-1] < LEARNED * by_hand[0]:
        failed.append("it has not learned")
    print("\n".join(f"FAILED: {reason}" for reason in failed) if failed else "all comparisons passed")
    return 1 if failed else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps")
    parser.add_argument("--steps", type=demo.at_least_one, help="instead of the default")
    parser.add_argument("--out", type=Path, default=Path("backprop-output"), help="folder of the picture")
    options = parser.parse_args(arguments)
    return run(options.steps or (QUICK_STEPS if options.quick else STEPS), options.out)


if __name__ == "__main__":
    sys.exit(main())
