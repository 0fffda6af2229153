"""What the files of GAN losses share: the losses as they are written with torch, of logits [batch, ...]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks.known import TINY, TORCHS, Gap, Story
from benchmarks.operation import Case, Operation, gpu_case

BOTH = ("forward", "training")
EXPS = ("minimax", "non_saturating")
DISCRIMINATOR = {
    "minimax": lambda real, fake: F.softplus(-real).mean() + F.softplus(fake).mean(),
    "non_saturating": lambda real, fake: F.softplus(-real).mean() + F.softplus(fake).mean(),
    "hinge": lambda real, fake: F.relu(1 - real).mean() + F.relu(1 + fake).mean(),
    "wasserstein": lambda real, fake: fake.mean() - real.mean(),
    "least_squares": lambda real, fake: ((real - 1) ** 2).mean() / 2 + (fake**2).mean() / 2,
}
GENERATOR = {
    "minimax": lambda fake: -F.softplus(fake).mean(),
    "non_saturating": lambda fake: F.softplus(-fake).mean(),
    "hinge": lambda fake: -fake.mean(),
    "wasserstein": lambda fake: -fake.mean(),
    "least_squares": lambda fake: ((fake - 1) ** 2).mean() / 2,
}


@dataclass(frozen=True)
class Shape:
    """Of the logits of one tensor; a discriminator has two."""

    logits: tuple[int, ...]
    kind: str
    tensors: int = 2

    @property
    def numel(self) -> int:
        return self.tensors * torch.Size(self.logits).numel()


def inputs(case: Case) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(case.shape.logits) for _ in range(case.shape.tensors))


def bytes_(case: Case, mode: str) -> float:
    """The forward reads the logits, the backward reads them and writes their gradients."""
    return {"forward": 1, "backward": 2, "training": 3}[mode] * case.shape.numel * case.itemsize


def exps(case: Case, mode: str) -> float:
    each = {"forward": 1, "backward": 1, "training": 2}[mode]
    return each * case.shape.numel if case.shape.kind in EXPS else 0.0


def cases(tensors: int) -> tuple[Case, ...]:
    def case(name, logits, kind, modes=BOTH, **more):
        return Case(f"{name} {kind}", Shape(logits, kind, tensors), modes, **more)

    return (
        case("64x1", (64, 1), "non_saturating", quick=True, model="DCGAN's and StyleGAN2's logits, a batch"),
        case("64x1", (64, 1), "wasserstein", model="WGAN-GP's critic, a batch"),
        case("64x1x30x30", (64, 1, 30, 30), "least_squares", model="pix2pix' patches, 64 images of 256 x 256"),
        case("16x1x126x126", (16, 1, 126, 126), "hinge", quick=True, model="pix2pixHD's finest patches, 1024 x 1024"),
        case("16x256x256", (16, 256, 256), "non_saturating", (*BOTH, "backward"), model="a U-Net discriminator's logit a pixel"),
        case("tiny 8x1", (8, 1), "hinge", ("forward",)),
    )  # fmt: skip


def gpu(tensors: int) -> tuple[Case, ...]:
    return tuple(
        gpu_case(f"64x1024x1024 {kind}", Shape((64, 1024, 1024), kind, tensors), Shape((3, 70), kind, tensors), *modes)
        for kind, modes in (
            ("non_saturating", ("forward", "backward", "double-backward")),
            ("least_squares", ("forward", "backward")),
        )
    )


STORY = Story(
    limit="Memory: the logits once; the backward reads them and writes their gradients. Of a batch's few logits the call itself.",
    elsewhere="With torch it is two to four operations an argument and as many backward, each a pass over all logits.",
    gaps=(Gap("64x1 ", "a batch's logits: `auto` leaves them to torch, and what remains is Python"), TORCHS, TINY),
)


def points(operation: Operation, tensors: int) -> dict:
    """Of so many elements in all, of the walk of `python -m benchmarks auto`."""
    return {
        operation.name: lambda kind, sizes: (
            operation,
            Shape((sizes[0] // tensors, *sizes[1:]), "non_saturating", tensors),
        )
    }
