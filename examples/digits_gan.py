"""A GAN learns to write the digits of scikit-learn, 8x8 pixels: DCGAN, WGAN-GP or a small style-based one.

Whether it has learned is measured, not looked at: by the Frechet distance (Heusel et al. 2017, arXiv:1706.08500) between
samples and held-out digits in the features of a small classifier, which must fall below a fifth of the untrained
generator's, and by how many of the ten digits the samples show: nine at least. Otherwise it exits with 1.
It trains with pyflash, and times steps of the same model in torch.nn beside it. Layers this small go to torch where that
is faster; with PYFLASH_BACKEND=cpu all are pyflash's.
The digits come with scikit-learn: pip install 'pyflash[examples]'.

    python examples/digits_gan.py --model dcgan|wgan-gp|style [--quick] [--epochs N] [--out gan-output]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import pyflash
from pyflash.cli import _digits, demo
from pyflash.models import LeNet, gan

SEED, BATCH, HELD_OUT = 2, 64, 600
SAMPLES = 2000
WANTED_SHARE = 0.2  # of the untrained generator's distance
WANTED_DIGITS, LEAST_SHARE = 9, 0.02  # a digit is there with so many of the samples; of all alike it would be 0.1
TIMED_BLOCKS, TIMED_STEPS = 5, 10


class Recipe(NamedTuple):
    generator: type
    discriminator: type
    epochs: int
    sizes: dict
    training: dict


RECIPES = {
    "dcgan": Recipe(
        gan.DCGANGenerator, gan.DCGANDiscriminator, 60, {"width": 64, "latent_dim": 32},
        {"loss": "non_saturating", "r1": 0.2, "learning_rate": 5e-4, "ema_decay": 0.99},
    ),
    "wgan-gp": Recipe(
        gan.DCGANGenerator, gan.WGANCritic, 60, {"width": 64, "latent_dim": 32},
        {"loss": "wasserstein", "gradient_penalty": 10.0, "critic_steps": 3, "learning_rate": 5e-4, "betas": (0.0, 0.9),
         "ema_decay": 0.99},
    ),
    "style": Recipe(
        gan.StyleGenerator, gan.StyleDiscriminator, 100, {"width": 32, "latent_dim": 32, "mapping_depth": 4},
        {"loss": "non_saturating", "r1": 0.1, "regularize_every": 4, "learning_rate": 2e-3, "betas": (0.0, 0.99),
         "ema_decay": 0.99},
    ),
}  # fmt: skip


def digits() -> tuple[Tensor, Tensor]:
    """Pictures [N, 1, 8, 8] within [-1, 1], and what they show, in an order of their own."""
    x, y = _digits.load()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(SEED))
    return x[order, None] / 8 - 1, y[order]


class Judge:
    """A classifier of digits, and its features of real ones that it has not learned from."""

    def __init__(self, x: Tensor, y: Tensor, held_out: tuple[Tensor, Tensor], epochs: int = 20):
        torch.manual_seed(SEED)
        self.model = LeNet(image_size=8, nn=torch.nn)
        optimizer = torch.optim.AdamW(self.model.parameters(), 3e-3, weight_decay=5e-2)
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(BATCH):
                loss = F.cross_entropy(self.model(x[rows]), y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        self.model.eval()
        self.real = self._features(held_out[0])
        self.right = (self._read(held_out[0]) == held_out[1]).float().mean().item()

    @torch.no_grad()
    def _features(self, x: Tensor) -> Tensor:
        """Of the layer before the last."""
        return self.model.classifier[:-1](self.model.features(x)).double()

    @torch.no_grad()
    def _read(self, x: Tensor) -> Tensor:
        return self.model(x).argmax(-1)

    def distance(self, x: Tensor) -> float:
        """Frechet's, of normal distributions with the means and covariances of both features."""
        found = self._features(x)
        (m1, c1), (m2, c2) = ((f.mean(0), f.T.cov()) for f in (self.real, found))
        values, vectors = torch.linalg.eigh(c1)
        root = vectors * values.clamp(min=0).sqrt() @ vectors.T
        cross = torch.linalg.eigvalsh(root @ c2 @ root).clamp(min=0).sqrt().sum()
        return ((m1 - m2).square().sum() + c1.trace() + c2.trace() - 2 * cross).item()

    def shares(self, x: Tensor) -> Tensor:
        """Of the samples, for each digit."""
        return torch.bincount(self._read(x), minlength=10) / len(x)


@torch.no_grad()
def samples(generator: torch.nn.Module) -> Tensor:
    z = torch.randn(SAMPLES, generator.latent_dim, generator=torch.Generator().manual_seed(SEED + 1))
    torch.manual_seed(SEED)  # of a style's noise
    return copy.deepcopy(generator).eval()(z).clamp(-1, 1)


def build(recipe: Recipe, nn=pyflash.nn):
    torch.manual_seed(SEED)
    sizes = {"image_size": 8, "channels": 1, **recipe.sizes}
    return recipe.generator(**sizes, nn=nn), recipe.discriminator(**sizes, nn=nn)


def milliseconds_of_a_step(recipe: Recipe, x: Tensor) -> tuple[float, float]:
    """torch.nn's and pyflash's, in turn on this machine as it is now."""
    pairs, times = [build(recipe, nn) for nn in (torch.nn, pyflash.nn)], ([], [])
    for i in range(1 + TIMED_BLOCKS):
        for pair, of in zip(pairs, times):
            start = time.perf_counter()
            gan.train(*pair, lambda _: x[:BATCH], steps=TIMED_STEPS, title=None, **recipe.training)
            if i:  # the first one warms up
                of.append(1e3 * (time.perf_counter() - start) / TIMED_STEPS)
    return statistics.median(times[0]), statistics.median(times[1])


def run(name: str, epochs: int | None, out: Path) -> int:
    recipe = RECIPES[name]
    epochs = epochs or recipe.epochs
    x, y = digits()
    held_out, x, y = (x[:HELD_OUT], y[:HELD_OUT]), x[HELD_OUT:], y[HELD_OUT:]
    judge = Judge(x, y, held_out)
    print(
        f"{name} learns from {len(x)} digits; a classifier that reads {judge.right:.1%} of {HELD_OUT} others judges it"
    )
    generator, discriminator = build(recipe)
    untrained = judge.distance(samples(generator))
    nearest = judge.distance(x)
    print(f"  distance from the others: {untrained:.1f} before training; the digits it learns from: {nearest:.2f}")
    batches_an_epoch = len(x) // BATCH
    critic_steps = recipe.training.get("critic_steps", 1)

    def batch(number: int) -> Tensor:
        """Every epoch has an order of its own, which its number gives."""
        epoch, place = divmod(number, batches_an_epoch)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
        return x[order[place * BATCH : (place + 1) * BATCH]]

    def judged(step: int, mean: torch.nn.Module) -> str:
        found = samples(mean)
        return f"distance {judge.distance(found):.2f}, digits {int((judge.shares(found) >= LEAST_SHARE).sum())} of 10"

    steps_an_epoch = max(1, batches_an_epoch // critic_steps)
    start = time.perf_counter()
    trained = gan.train(
        generator, discriminator, batch, steps=epochs * steps_an_epoch, look_every=steps_an_epoch * max(1, epochs // 10),
        out=out / name, title=f"  training {name}", on_look=judged, **recipe.training,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    found = samples(trained.generator)
    distance, shares = judge.distance(found), judge.shares(found)
    covered = int((shares >= LEAST_SHARE).sum())
    print(f"  distance {distance:.2f}, {distance / untrained:.1%} of the untrained generator's; {seconds:.0f} s")
    print("  samples read as 0 to 9: " + " ".join(f"{share:.0%}" for share in shares.tolist()))
    torchs, ours = milliseconds_of_a_step(recipe, x)
    print(f"  a step: torch.nn {torchs:.1f} ms, pyflash {ours:.1f} ms")
    print("\n".join(trained.pictures[-2:]))
    failed = []
    if not distance < WANTED_SHARE * untrained:
        failed.append(
            f"the distance is {distance / untrained:.0%} of the untrained generator's, not below {WANTED_SHARE:.0%}"
        )
    if covered < WANTED_DIGITS:
        failed.append(f"samples show {covered} of ten digits, fewer than {WANTED_DIGITS}")
    print("\n".join(f"FAILED: {reason}" for reason in failed) if failed else "it has learned to write digits")
    return 1 if failed else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=RECIPES, default="dcgan")
    parser.add_argument("--quick", action="store_true", help="half of the epochs")
    parser.add_argument("--epochs", type=demo.at_least_one, help="instead of the default")
    parser.add_argument("--out", type=Path, default=Path("gan-output"), help="folder of the pictures")
    options = parser.parse_args(arguments)
    epochs = RECIPES[options.model].epochs // 2 if options.quick else None
    return run(options.model, options.epochs or epochs, options.out)


if __name__ == "__main__":
    sys.exit(main())
