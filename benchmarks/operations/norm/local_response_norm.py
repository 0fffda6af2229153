"""Local response normalisation, of the networks before batch normalisation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks.known import TINY, Gap, Story
from benchmarks.operation import Case, Operation, gpu_case

BOTH = ("forward", "training")
ALEXNET = (5, 1e-4, 0.75, 2.0)
GOOGLENET = (5, 1e-4, 0.75, 1.0)


@dataclass(frozen=True)
class Shape:
    input: tuple[int, ...]
    arguments: tuple = ALEXNET
    channels_last: bool = False


def inputs(case: Case) -> tuple[torch.Tensor, ...]:
    x = torch.randn(case.shape.input)
    return (x.contiguous(memory_format=torch.channels_last) if case.shape.channels_last else x,)


def bytes_(case: Case, mode: str) -> float:
    """x and y once; backward x, dy and dx."""
    tensors = {"forward": 2, "backward": 3, "training": 5}[mode]
    return tensors * torch.Size(case.shape.input).numel() * case.itemsize


def torchs(case: Case):
    return lambda x: F.local_response_norm(x, *case.shape.arguments)


def ours(case: Case):
    from pyflash import functional

    return lambda x: functional.local_response_norm(x, *case.shape.arguments)


CASES = (
    Case("32x96x55x55", Shape((32, 96, 55, 55)), (*BOTH, "backward"), model="AlexNet, its first"),
    Case("32x96x55x55 channels_last", Shape((32, 96, 55, 55), channels_last=True), (*BOTH, "backward"),
         model="AlexNet, its first"),
    Case("32x256x27x27", Shape((32, 256, 27, 27)), BOTH, quick=True, model="AlexNet, its second"),
    Case("8x64x56x56", Shape((8, 64, 56, 56), GOOGLENET), BOTH, model="GoogLeNet, its first"),
    Case("2x6x3x3", Shape((2, 6, 3, 3)), ("double-backward",), model="a penalty of a small critic"),
    Case("tiny 1x8x8x8", Shape((1, 8, 8, 8)), ("forward",), quick=True),
)  # fmt: skip

STORY = Story(
    limit="Memory: x and y once; the backward reads x and dy and writes dx. Two roots and a division an element.",
    elsewhere="torch composes it of a square, a padding, a 3D average pooling, three operations for the power and a division.",
    gaps=(TINY, Gap("", "roots and divisions, two and one an element, and every window is summed anew")),
)

OPERATION = Operation(
    name="local_response_norm",
    inputs=inputs,
    torch=torchs,
    pyflash=ours,
    flops=lambda case, mode: 0.0,
    bytes=bytes_,
    terms=lambda case: case.shape.arguments[0],
    cases=CASES,
    gpu=tuple(
        gpu_case(f"256x96x55x55{' channels_last' * last}", Shape((256, 96, 55, 55), channels_last=last),
                 Shape((2, 12, 5, 5), channels_last=last), "forward", "backward")
        for last in (False, True)
    ),
)  # fmt: skip

POINTS = {"local_response_norm": lambda kind, sizes: (OPERATION, Shape((1, 64, sizes[0] >> 10, 16)))}
