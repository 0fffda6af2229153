"""Dropout: a counter-based generator against torch's, and the mask never stored.

The masks of two providers differ by design, so each is held to its own: what is kept is x / (1 - p) exactly, what is
dropped is zero, the share that is kept is the one asked for, and the gradient has the same mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks.check import SEED, Bound, Wrong
from benchmarks.known import CPUS, TORCHS, Gap, Story
from benchmarks.operation import Case, Operation, gpu_case


@dataclass(frozen=True)
class Shape:
    numel: int
    p: float = 0.1


CASES = (
    Case("1M elements", Shape(1 << 20), ("forward", "training"), quick=True,
         model="the demo, 16 x 256 tokens of 256"),
    Case("4M elements", Shape(1 << 22), ("forward", "training"),
         model="the demo's feed-forward, 16 x 256 tokens of 1024"),
    Case("64K elements", Shape(1 << 16), ("forward",), quick=True, model="one sequence of 256 tokens"),
)  # fmt: skip

GPU = (
    gpu_case("64M elements", Shape(1 << 26), Shape(30000), "forward", "backward"),
    gpu_case("64M elements", Shape(1 << 26), Shape(30000), "forward", dtype="float32"),
)


def expect_share(kept: torch.Tensor, p: float) -> None:
    """Within six standard deviations of 1 - p: one honest run in a thousand million fails."""
    share, deviation = kept.double().mean().item(), (p * (1 - p) / kept.numel()) ** 0.5
    if abs(share - (1 - p)) > 6 * deviation:
        raise Wrong(f"keeps {share:.4f} of the elements, asked for {1 - p:.4f}")


def truth(case: Case, bound: Bound):
    torch.manual_seed(SEED)
    with torch.no_grad():
        kept = bound() != 0
    expect_share(kept, case.shape.p)
    return lambda x: x * kept / (1 - case.shape.p)


def inputs(case: Case) -> tuple[torch.Tensor]:
    x = torch.randn(case.shape.numel)
    return (torch.where(x == 0, 1.0, x),)  # so that a zero in the output is a dropped element


def torchs(case: Case):
    return lambda x: F.dropout(x, case.shape.p, True)


def ours(case: Case):
    from pyflash.functional import dropout

    return lambda x: dropout(x, case.shape.p, True)


STORY = Story(
    limit="Memory, and ten rounds of Philox for every four elements.",
    elsewhere="torch draws its mask one element after another on one thread.",
    gaps=(TORCHS, Gap("", "the rounds of Philox, of which the limit counts none", families=CPUS)),
)

OPERATION = Operation(
    name="dropout",
    cases=CASES,
    inputs=inputs,
    torch=torchs,
    pyflash=ours,
    flops=lambda case, mode: 0.0,
    bytes=lambda case, mode: {"forward": 2, "backward": 2, "training": 4}[mode] * case.shape.numel * case.itemsize,
    truth=truth,
    gpu=GPU,
)

POINTS = {"dropout": lambda kind, sizes: (OPERATION, Shape(*sizes))}
