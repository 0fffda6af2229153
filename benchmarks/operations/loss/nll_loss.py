"""The negative of the score of each target, of logarithms of probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F

from benchmarks.known import TINY, TORCHS, Story
from benchmarks.operation import Case, Operation, gpu_case, in_rows


@dataclass(frozen=True)
class Shape:
    scores: tuple[int, ...]  # [N, classes, ...]


BOTH = ("forward", "training")

CASES = (
    Case("4096x32000", Shape((4096, 32000)), BOTH, model="Llama 2, 4096 tokens"),
    Case("256x1000", Shape((256, 1000)), BOTH, quick=True, model="ImageNet, 256 images"),
    Case("4x21x256x256", Shape((4, 21, 256, 256)), BOTH, quick=True, model="segmentation, 21 classes"),
    Case("tiny 128x10", Shape((128, 10)), ("training",), quick=True, model="digits"),
)

GPU = tuple(
    gpu_case("x".join(map(str, scores)), Shape(scores), Shape(small), *BOTH, dtype=dtype)
    for scores, small, dtype in (
        ((4096, 16384), (3, 500), "bfloat16"),
        ((4096, 16384), (3, 500), "float32"),
        ((32, 21, 512, 512), (2, 21, 5, 9), "bfloat16"),
    )
)


def loss(functional):
    def of(case: Case):
        generator = torch.Generator(device="cpu").manual_seed(1)
        n, classes, *rest = case.shape.scores
        target = torch.randint(classes, (n, *rest), generator=generator, device="cpu").to(torch.empty(0).device)
        return lambda x: functional.nll_loss(x, target)

    return of


def ours(case: Case):
    from pyflash import functional

    return loss(functional)(case)


def bytes_(case: Case, mode: str) -> float:
    """Targets, and of scores one each; the backward writes the gradient of all."""
    classes = case.shape.scores[1]
    places = prod(case.shape.scores) // classes
    read, written = places * (8 + case.itemsize), places * classes * case.itemsize
    return {"forward": read, "backward": written + 8 * places, "training": read + written + 8 * places}[mode]


STORY = Story(
    limit="Memory: the gradient, which is 0 but for a number of each place, is written once; the forward reads next to nothing.",
    elsewhere="torch's reads and writes the same.",
    gaps=(TORCHS, TINY),
)

OPERATION = Operation(
    name="nll_loss",
    cases=CASES,
    inputs=lambda case: (torch.randn(case.shape.scores).log_softmax(1),),
    torch=loss(F),
    pyflash=ours,
    flops=lambda case, mode: 0.0,
    bytes=bytes_,
    gpu=GPU,
)

POINTS = {"nll_loss": lambda kind, sizes: (OPERATION, Shape(in_rows(sizes[0])))}
