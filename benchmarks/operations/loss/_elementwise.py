"""What the files of losses of an input and a target share: a row says what both are, as a network makes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.known import TINY, TORCHS, Story
from benchmarks.operation import Case, Operation, gpu_case, in_rows

BOTH = ("forward", "training")


@dataclass(frozen=True)
class Shape:
    sizes: tuple[int, ...]
    reduction: str = "mean"

    @property
    def numel(self) -> int:
        return torch.Size(self.sizes).numel()


@dataclass(frozen=True)
class Sort:
    """How an input and a target are made of random numbers, and of the target what else is read; the values of exp of an
    element, forward and backward."""

    input: Callable = lambda x: x
    target: Callable = lambda x: x
    others: tuple[Callable, ...] = ()
    exps: int = 0


SORTS = {
    **dict.fromkeys(("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"), Sort()),
    "binary_cross_entropy": Sort(torch.sigmoid, torch.sigmoid),
    "binary_cross_entropy_with_logits": Sort(target=torch.sigmoid, exps=1),
    "kl_div": Sort(lambda x: x.log_softmax(-1), lambda x: x.softmax(-1)),
    "poisson_nll_loss": Sort(target=lambda x: x.exp().round(), exps=1),
    "soft_margin_loss": Sort(target=lambda x: x.sign(), exps=1),
    "margin_ranking_loss": Sort(others=(lambda x: x.cos().sign(),)),  # where which is to rank higher
    "hinge_embedding_loss": Sort(target=lambda x: x.sign()),
}


def loss(name: str, functional):
    def of(case: Case):
        generator = torch.Generator(device="cpu").manual_seed(1)
        target = SORTS[name].target(torch.randn(case.shape.sizes, generator=generator, device="cpu"))
        target = target.to(torch.empty(0).device, getattr(torch, case.dtype))
        tensors = target, *(made(target) for made in SORTS[name].others)
        # .to: the truth's is of float64, all others are of this type
        return lambda x: getattr(functional, name)(x, *(t.to(x.dtype) for t in tensors), reduction=case.shape.reduction)

    return of


def _ours(name: str, case: Case):
    from pyflash import functional

    return loss(name, functional)(case)


def _bytes(name: str, case: Case, mode: str) -> float:
    """The forward reads all, the backward reads them and writes a gradient."""
    read = 2 + len(SORTS[name].others)
    passes = {"forward": read, "backward": read + 1, "training": 2 * read + 1}[mode]
    return passes * case.shape.numel * case.itemsize


def declared(name: str, model: str, reduction: str = "mean") -> Operation:
    """The operation of a file."""
    exps = SORTS[name].exps

    def case(label, *sizes, modes=BOTH, **more):
        return Case(label, Shape(sizes, reduction), modes, model=model, **more)

    return Operation(
        name=name,
        cases=(
            case("64x3x64x64", 64, 3, 64, 64, quick=True),
            case("32x3x256x256", 32, 3, 256, 256, modes=("forward", "backward", "training")),
            case("32x3x256x256 bfloat16", 32, 3, 256, 256, dtype="bfloat16"),
            case("tiny 64x10", 64, 10, modes=("training",), quick=True),
        ),
        inputs=lambda case: (SORTS[name].input(torch.randn(case.shape.sizes)),),
        torch=loss(name, F),
        pyflash=partial(_ours, name),
        flops=lambda case, mode: 0.0,
        bytes=partial(_bytes, name),
        exps=lambda case, mode: exps * {"forward": 1, "backward": 1, "training": 2}[mode] * case.shape.numel,
        gpu=tuple(
            gpu_case("64x1024x1024", Shape((64, 1024, 1024), reduction), Shape((3, 70), reduction), *modes, dtype=dtype)
            for dtype, modes in (("bfloat16", ("forward", "backward")), ("float32", BOTH))
        ),
    )  # fmt: skip


def points(operation: Operation, reduction: str = "mean") -> dict:
    """Of so many elements, of the walk of `python -m benchmarks auto`."""
    return {operation.name: lambda kind, sizes: (operation, Shape(in_rows(sizes[0]), reduction))}


STORY = Story(
    limit="Memory: input and target once; the backward reads them and writes a gradient. In cache, what a loss computes.",
    elsewhere="torch writes a loss for each element and reads it again for the mean, some in two to five operations.",
    gaps=(TORCHS, TINY),
)
