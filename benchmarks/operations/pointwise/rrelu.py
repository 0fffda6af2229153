"""RReLU in training: slopes from a counter-based generator against torch's, and none of them stored.

The slopes of two providers differ by design, so each is held to its own: within their range, and the gradient has the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks.check import SEED, Bound, Wrong
from benchmarks.known import CPUS, TORCHS, Gap, Story
from benchmarks.operation import Case, Operation, gpu_case

LOWER, UPPER = 0.125, 0.375


@dataclass(frozen=True)
class Shape:
    numel: int


CASES = (
    Case(
        "3M elements", Shape(16 * 64 * 56 * 56), ("forward", "training"), quick=True, model="16 images of 64 x 56 x 56"
    ),
    Case("64K elements", Shape(1 << 16), ("forward",), quick=True, model="one of 64 x 32 x 32"),
)

GPU = (gpu_case("64M elements", Shape(1 << 26), Shape(30000), "forward", "backward", dtype="float32"),)


def truth(case: Case, bound: Bound):
    torch.manual_seed(SEED)
    with torch.no_grad():
        (x,) = bound.inputs
        slopes = bound() / x
    drawn = slopes[x <= 0]
    slack = 4 * torch.finfo(x.dtype).eps
    if drawn.min() < LOWER - slack or drawn.max() > UPPER + slack or abs(drawn.double().mean() - 0.25) > 0.01:
        raise Wrong(f"slopes from {drawn.min():.4f} to {drawn.max():.4f}, asked for {LOWER} to {UPPER}")
    slopes = slopes.double()
    return lambda x: torch.where(x <= 0, x * slopes.to(x.device), x)


def inputs(case: Case) -> tuple[torch.Tensor]:
    x = torch.randn(case.shape.numel)
    return (torch.where(x == 0, 1.0, x),)


def ours(case: Case):
    from pyflash.functional import rrelu

    return lambda x: rrelu(x, LOWER, UPPER, True)


STORY = Story(
    limit="Memory, and ten rounds of Philox for every four elements.",
    elsewhere="torch draws its slopes one after another on one thread, and keeps them for the backward.",
    gaps=(
        TORCHS,
        Gap("", "a random number for each element: ten rounds of Philox for every four", families=CPUS),
    ),
)

OPERATION = Operation(
    name="rrelu",
    cases=CASES,
    inputs=inputs,
    torch=lambda case: lambda x: F.rrelu(x, LOWER, UPPER, True),
    pyflash=ours,
    flops=lambda case, mode: 0.0,
    bytes=lambda case, mode: {"forward": 2, "backward": 3, "training": 5}[mode] * case.shape.numel * case.itemsize,
    truth=truth,
    gpu=GPU,
)

POINTS = {"rrelu": lambda kind, sizes: (OPERATION, Shape(*sizes))}
