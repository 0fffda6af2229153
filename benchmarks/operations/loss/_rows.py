"""What the files of losses of rows share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.known import TINY, TORCHS, Story
from benchmarks.operation import Case, Operation, gpu_case, in_rows
from benchmarks.operations.loss._elementwise import BOTH, Shape

TENSORS = {"cosine_embedding_loss": 2, "triplet_margin_loss": 3}  # of rows that are compared


def called(name: str, functional) -> Callable:
    """The function of its tensors of rows."""

    def of(*tensors):
        # every other pair is alike; .to: the truth's is of float64
        target = (1.0 - 2.0 * (torch.arange(len(tensors[0]), device=tensors[0].device) % 2)).to(tensors[0].dtype)
        return functional.cosine_embedding_loss(*tensors, target)

    return of if name == "cosine_embedding_loss" else functional.triplet_margin_loss


def torchs(name: str, case: Case):
    return called(name, F)


def ours(name: str, case: Case):
    from pyflash import functional

    return called(name, functional)


def _bytes(name: str, case: Case, mode: str) -> float:
    """The forward reads all, the backward reads them and writes a gradient of each."""
    count = TENSORS[name]
    return {"forward": count, "backward": 2 * count, "training": 3 * count}[mode] * case.shape.numel * case.itemsize


def declared(name: str, model: str) -> Operation:
    """The operation of a file."""

    def case(label, *sizes, modes=BOTH, **more):
        return Case(label, Shape(sizes), modes, model=model, **more)

    return Operation(
        name=name,
        cases=(
            case("256x128", 256, 128, quick=True),
            case("4096x512", 4096, 512, modes=("forward", "backward", "training")),
            case("4096x512 bfloat16", 4096, 512, dtype="bfloat16"),
            case("tiny 32x16", 32, 16, modes=("training",), quick=True),
        ),
        inputs=lambda case: tuple(torch.randn(case.shape.sizes) for _ in range(TENSORS[name])),
        torch=partial(torchs, name),
        pyflash=partial(ours, name),
        flops=lambda case, mode: 0.0,
        bytes=partial(_bytes, name),
        gpu=tuple(
            gpu_case("65536x512", Shape((65536, 512)), Shape((33, 70)), *modes, dtype=dtype)
            for dtype, modes in (("bfloat16", ("forward", "backward")), ("float32", BOTH))
        ),
    )


def points(operation: Operation) -> dict:
    """Of so many elements, of the walk of `python -m benchmarks auto`."""
    return {operation.name: lambda kind, sizes: (operation, Shape(in_rows(sizes[0])))}


STORY = Story(
    limit="Memory: the tensors once; the backward reads them and writes their gradients.",
    elsewhere="torch writes differences or products, which its sums read again: six to ten operations, and twice as many backward.",
    gaps=(TORCHS, TINY),
)
