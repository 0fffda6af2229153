"""Training of a generator against a discriminator.

Goodfellow et al. 2014, arXiv:1406.2661: a step of the discriminator, a step of the generator, in turn. Regularisers:
the critic's gradient penalty (Gulrajani et al. 2017, arXiv:1704.00028), R1 (Mescheder, Geiger & Nowozin 2018,
arXiv:1801.04406), every few steps only (Karras et al. 2020, arXiv:1912.04958, appendix B). The generator that is kept is
the running mean of the weights (Yazıcı et al. 2018, arXiv:1806.04498).
"""

from __future__ import annotations

import copy
import io
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

import pyflash.functional as F
from pyflash.show import picture
from pyflash.show.progress import Progress

LOSSES = ("minimax", "non_saturating", "hinge", "wasserstein", "least_squares")
WINDOW = 50  # steps that the guard looks back
SURE = 0.995  # of the pairs of a real and another picture put in order: the generator learns little from such a one
ALIKE = 0.1  # samples differ so much less from one another than pictures do: one mode
SAMPLES = 64


@dataclass
class History:
    """One number a step, of each; `diversity` one for each look at it (step, number)."""

    discriminator: list[float] = field(default_factory=list)
    generator: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)  # how often a real picture is put above another: half is chance
    diversity: list[tuple[int, float]] = field(
        default_factory=list
    )  # samples' distance from one another, over pictures'
    warnings: list[str] = field(default_factory=list)  # what the guard saw, in words


@dataclass
class Trained:
    generator: torch.nn.Module  # the running mean
    history: History
    pictures: list[str]  # what to print about each picture drawn


def spread(x: Tensor) -> Tensor:
    """The mean distance of the pictures of a batch from one another, for each element of a picture: a number."""
    rows = x.flatten(1).float()
    return torch.pdist(rows).mean() / rows.shape[1] ** 0.5


def _draw_grid(x: Tensor, path: Path) -> str:
    """Pictures of [-1, 1] beside and below each other, grey between them."""
    x = torch.nn.functional.pad(x, (1, 1, 1, 1))
    count, channels, _, width = x.shape
    columns = max(1, round(count**0.5))
    x = x[: count // columns * columns]
    grid = x.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2).reshape(-1, columns * width, channels)
    grid = (grid.float().clamp(-1, 1) + 1) / 2
    grid = grid if channels == 3 else grid[..., 0]

    def show(axes):
        axes.imshow(grid.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes.axis("off")

    return picture.draw(path, [show], (4, 4 * grid.shape[0] / grid.shape[1]), "examples")


def _draw_losses(history: History, path: Path) -> str:
    def losses(axes):
        axes.plot(history.discriminator, **picture.STOCK, label="discriminator")
        axes.plot(history.generator, **picture.OURS, label="generator")
        axes.set(xlabel="step", ylabel="loss")

    def guard(axes):
        axes.plot(history.accuracy, **picture.STOCK, label="discriminator's accuracy")
        if history.diversity:
            axes.plot(*zip(*history.diversity), **picture.OURS, label="samples' diversity")
        axes.set(xlabel="step", ylim=(0, 1.3))

    return picture.draw(path, [losses, guard], (9, 3.5), "examples", one_scale=False)


class _Guard:
    """Names what goes wrong, once each."""

    def __init__(self, history: History, watches_accuracy: bool):
        self.history, self.watches_accuracy = history, watches_accuracy

    def _warn(self, text: str) -> None:
        if text.split(":")[0] not in [seen.split(":")[0] for seen in self.history.warnings]:
            self.history.warnings.append(text)

    def look_at_losses(self, step: int) -> bool:
        """May training go on?"""
        last = self.history.discriminator[-1], self.history.generator[-1]
        if not all(abs(loss) < float("inf") for loss in last):
            self._warn(
                f"divergence: at step {step} the losses are {last[0]:g} (discriminator) and {last[1]:g} (generator);"
                " a smaller learning rate, or r1, or gradient_penalty would hold them"
            )
            return False
        accuracy = self.history.accuracy[-WINDOW:]
        if self.watches_accuracy and len(accuracy) == WINDOW and sum(accuracy) / WINDOW > SURE:
            self._warn(
                f"the discriminator wins: for {WINDOW} steps up to step {step} it has put {sum(accuracy) / WINDOW:.1%} of the"
                " pictures in order; r1, gradient_penalty or a slower discriminator would let the generator follow"
            )
        return True

    def look_at_samples(self, step: int, samples: Tensor, pictures: Tensor) -> None:
        diversity = float(spread(samples) / spread(pictures))
        self.history.diversity.append((step, diversity))
        if diversity < ALIKE:
            self._warn(
                f"mode collapse: at step {step} samples differ from one another {diversity:.0%} as much as pictures do;"
                " minibatch standard deviation, another loss or a smaller learning rate of the generator may help"
            )


class _State:
    """All that a step reads and writes: what a checkpoint holds."""

    def __init__(self, generator, discriminator, optimizers, seed: int, device: torch.device):
        self.modules = {
            "generator": generator,
            "discriminator": discriminator,
            "mean": copy.deepcopy(generator).eval().requires_grad_(False),
        }
        self.optimizers = optimizers
        self.history, self.step = History(), 0
        self.random = torch.Generator(device).manual_seed(seed)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        waiting = path.with_suffix(".part")  # a run that is stopped while it writes leaves the one before
        state = {
            "step": self.step,
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "random": [self.random.get_state(), torch.get_rng_state()],
            "cuda_random": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "history": vars(self.history),
        }
        torch.save(state, waiting)
        waiting.replace(path)

    def load(self, path: Path) -> None:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        for optimizer, of in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(of)
        self.step, self.history = state["step"], History(**state["history"])
        self.random.set_state(state["random"][0])
        torch.set_rng_state(state["random"][1])
        if state["cuda_random"]:
            torch.cuda.set_rng_state_all(state["cuda_random"])

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """The running mean takes a part of the weights, and buffers as they are."""
        mean, now = self.modules["mean"], self.modules["generator"]
        for kept, parameter in zip(mean.parameters(), now.parameters()):
            kept.lerp_(parameter, 1 - decay)
        for kept, buffer in zip(mean.buffers(), now.buffers()):
            kept.copy_(buffer)


def _batch_function(batches, begin: int) -> Callable[[int], tuple[Tensor, Tensor | None]]:
    """number -> (pictures, labels or None), for numbers that count up from `begin`."""

    def pair(batch):
        return (batch, None) if isinstance(batch, Tensor) else (batch[0], batch[1])

    if callable(batches):
        return lambda number: pair(batches(number))

    def again_and_again():
        while True:
            is_empty = True
            for batch in batches:
                is_empty = False
                yield batch
            if is_empty:
                raise ValueError(
                    "train: batches is empty, or an iterator that has ended: a function of the step will do"
                )

    items = itertools.islice(again_and_again(), begin, None)
    return lambda _: pair(next(items))


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Of the optimizer's parameters alone."""
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    optimizer.zero_grad(set_to_none=True)
    loss.backward(inputs=parameters)
    optimizer.step()


def train(
    generator: torch.nn.Module,
    discriminator: torch.nn.Module,
    batches: Iterable | Callable[[int], Tensor | tuple[Tensor, Tensor]],
    *,
    steps: int,
    loss: str = "non_saturating",
    r1: float = 0.0,
    gradient_penalty: float = 0.0,
    regularize_every: int = 1,
    critic_steps: int = 1,
    learning_rate: float | tuple[float, float] = 2e-4,
    betas: tuple[float, float] = (0.5, 0.999),
    ema_decay: float = 0.999,
    autocast: torch.dtype | None = None,
    seed: int = 0,
    look_every: int = 100,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1000,
    out: str | Path | None = None,
    title: str | None = "training",
    on_look: Callable[[int, torch.nn.Module], str] | None = None,
) -> Trained:
    """Trains both by Adam, in turn, and returns the running mean of the generator.

    Args:
        generator: of z [N, latent_dim], and of labels where batches have them: one of `pyflash.models.gan`, or one like it.
        discriminator: one number a picture, without a sigmoid.
        batches: number -> pictures [N, C, H, W] within [-1, 1], or (pictures, labels [N]); or an iterable of these, begun again
            when it ends. To be resumed it must give the same batch for the same number, or place.
        steps: of the generator.
        loss: "minimax", "non_saturating", "hinge", "wasserstein" or "least_squares": `functional.gan_discriminator_loss`.
        r1: gamma: the discriminator's loss has r1 / 2 times `functional.r1_penalty`.
        gradient_penalty: weight of `functional.gradient_penalty`; 10 in its paper.
        regularize_every: steps of the discriminator from one regulariser to the next, which weighs so many times as much.
        critic_steps: of the discriminator for each of the generator, each of a batch of its own.
        learning_rate: of both, or (the generator's, the discriminator's).
        ema_decay: of the running mean, a step; 0 for the generator itself.
        autocast: torch.bfloat16, say, for forwards; the regularisers are computed in full precision.
        seed: of z. What else is random, the noise of a StyleGenerator, follows `torch.manual_seed`.
        look_every: steps from one look at the samples to the next.
        checkpoint: a file, written every `checkpoint_every` steps and at the end. Where it is there, training goes on from
            it, bit for bit as if it had not been interrupted.
        out: a folder for samples-STEP.png, at every look, and losses.png.
        title: of the progress bar; None for none, and nothing is printed.
        on_look: (step, running mean) -> what to print.
    Returns:
        The running mean, the losses of every step, what a guard saw in words, and the pictures. Losses that are not finite
        end the training there.
    Raises:
        ValueError: a loss of another name; batches that are empty.
    """
    if loss not in LOSSES:
        raise ValueError(f"train: loss is {loss!r}, expected one of {', '.join(map(repr, LOSSES))}")
    device, latent_dim = next(generator.parameters()).device, int(generator.latent_dim)  # type: ignore[arg-type]
    rates = learning_rate if isinstance(learning_rate, tuple) else (learning_rate, learning_rate)
    adams = [torch.optim.Adam(m.parameters(), r, betas) for m, r in zip((generator, discriminator), rates, strict=True)]
    state = _State(generator.train(), discriminator.train(), adams, seed, device)
    if checkpoint is not None and Path(checkpoint).exists():
        state.load(Path(checkpoint))
    history, mean = state.history, state.modules["mean"]
    guard = _Guard(history, watches_accuracy=loss != "wasserstein")  # a critic is to tell them apart
    batch_of = _batch_function(batches, state.step * critic_steps)
    fixed_z = torch.randn(SAMPLES, latent_dim, generator=torch.Generator().manual_seed(seed)).to(device)
    pictures = []

    def forward(module, *inputs):
        with torch.autocast(device.type, autocast or torch.bfloat16, enabled=autocast is not None):
            return module(*inputs).float()

    def fakes(count: int, labels: tuple) -> Tensor:
        z = torch.randn(count, latent_dim, device=device, generator=state.random)
        return forward(generator, z, *labels)

    def train_discriminator(number: int, real: Tensor, labels: tuple) -> None:
        with torch.no_grad():
            fake = fakes(len(real), labels)
        of_real, of_fake = (forward(discriminator, x, *labels) for x in (real, fake))
        value = total = F.gan_discriminator_loss(of_real, of_fake, loss)
        if number % regularize_every == 0:

            def critic(x):
                return discriminator(x, *labels)

            if r1:
                total = total + regularize_every * r1 / 2 * F.r1_penalty(critic, real)
            if gradient_penalty:
                total = total + regularize_every * gradient_penalty * F.gradient_penalty(critic, real, fake)
        _step(adams[1], total)
        history.discriminator.append(value.item())
        history.accuracy.append((of_real[:, None] > of_fake).float().mean().item())

    def train_generator(count: int, labels: tuple) -> None:
        value = F.gan_generator_loss(forward(discriminator, fakes(count, labels), *labels), loss)
        _step(adams[0], value)
        history.generator.append(value.item())

    @torch.no_grad()
    def look(real: Tensor, labels: tuple) -> str:
        z = fixed_z[: len(real)]
        with torch.random.fork_rng([device] if device.type == "cuda" else []):  # a look changes nothing that follows
            samples = forward(mean, z, *(of[: len(z)] for of in labels)).cpu()
        guard.look_at_samples(state.step, samples, real[: len(z)].cpu())
        if out is not None:
            pictures.append(_draw_grid(samples, Path(out) / f"samples-{state.step:06d}.png"))
        return f"  step {state.step}: {on_look(state.step, mean)}" if on_look else ""

    with Progress(title or "", steps - state.step, stream=None if title is not None else io.StringIO()) as progress:
        for step in range(state.step, steps):
            for number in range(step * critic_steps, (step + 1) * critic_steps):
                real, of_batch = batch_of(number)
                real, labels = real.to(device), () if of_batch is None else (of_batch.to(device),)
                train_discriminator(number, real, labels)
            train_generator(len(real), labels)
            state.follow(ema_decay)
            state.step = step + 1
            progress.advance(f"losses {history.discriminator[-1]:.3f}, {history.generator[-1]:.3f}")
            may_go_on = guard.look_at_losses(state.step)
            if state.step % look_every == 0 or state.step == steps:
                said = look(real, labels)
                if said:
                    progress.print(said)
            if checkpoint is not None and (state.step % checkpoint_every == 0 or state.step == steps):
                state.save(Path(checkpoint))
            if not may_go_on:
                break
        for warning in history.warnings:
            progress.print(f"  {warning}")
    if out is not None:
        pictures.append(_draw_losses(history, Path(out) / "losses.png"))
    return Trained(mean, history, pictures)
