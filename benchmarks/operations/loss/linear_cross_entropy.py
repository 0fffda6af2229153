"""Cross entropy of a linear layer's results, the head and the loss of a language model, against torch's two calls."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks.known import TINY, Story
from benchmarks.operation import Case, Operation, gpu_case


@dataclass(frozen=True)
class Shape:
    rows: int
    classes: int
    features: int


BOTH = ("forward", "training")

CASES = (
    Case("4096x50257x512", Shape(4096, 50257, 512), ("training",), model="GPT-2's vocabulary, 4096 tokens"),
    Case("1024x50257x768", Shape(1024, 50257, 768), BOTH, model="GPT-2, 1024 tokens"),
    Case(
        "1024x32000x512",
        Shape(1024, 32000, 512),
        ("training",),
        dtype="bfloat16",
        model="Llama 2's vocabulary, 1024 tokens",
    ),
    Case("512x8192x256", Shape(512, 8192, 256), BOTH, quick=True, model="a small language model, 512 tokens"),
    Case("tiny 32x100x32", Shape(32, 100, 32), ("training",), quick=True, model="characters"),
)

GPU = tuple(
    gpu_case(name, shape, Shape(70, 300, 40), *BOTH, dtype=dtype)
    for name, shape, dtype in (
        ("8192x50257x1024", Shape(8192, 50257, 1024), "bfloat16"),
        ("4096x128256x4096", Shape(4096, 128256, 4096), "bfloat16"),
        ("4096x50257x768", Shape(4096, 50257, 768), "float32"),
    )
)


def inputs(case: Case) -> tuple[torch.Tensor, ...]:
    shape = case.shape
    return torch.randn(shape.rows, shape.features), torch.randn(shape.classes, shape.features) / shape.features**0.5


def target_of(shape: Shape) -> torch.Tensor:
    """The same of every call: it is no input that is differentiated."""
    generator = torch.Generator(device="cpu").manual_seed(1)
    return torch.randint(shape.classes, (shape.rows,), generator=generator, device="cpu").to(torch.empty(0).device)


def torchs(case: Case):
    target = target_of(case.shape)
    return lambda x, weight: F.cross_entropy(F.linear(x, weight), target)


def ours(case: Case):
    from pyflash import functional

    target = target_of(case.shape)
    return lambda x, weight: functional.linear_cross_entropy(x, weight, target)


def flops(case: Case, mode: str) -> float:
    """Of the products that there have to be: what is computed twice is no work."""
    products = {"forward": 1, "backward": 2, "training": 3}[mode]
    return products * 2 * case.shape.rows * case.shape.classes * case.shape.features


def bytes_(case: Case, mode: str) -> float:
    """x and the weight once for each product; the scores never."""
    shape = case.shape
    once = (shape.rows + shape.classes) * shape.features
    return {"forward": 1, "backward": 2, "training": 3}[mode] * once * case.itemsize


def exps(case: Case, mode: str) -> float:
    return {"forward": 1, "backward": 1, "training": 2}[mode] * case.shape.rows * case.shape.classes


STORY = Story(
    limit="FLOPs: 2 rows classes features a product, two products backward; an exponential a score, twice.",
    elsewhere="torch's two calls keep the scores, the logarithm of their softmax and its gradient; torch 2.13's"
    " linear_cross_entropy does so, too, unless it is given options that cut the rows.",
    gaps=(TINY,),
)

OPERATION = Operation(
    name="linear_cross_entropy",
    cases=CASES,
    inputs=inputs,
    torch=torchs,
    pyflash=ours,
    flops=flops,
    bytes=bytes_,
    exps=exps,
    gpu=GPU,
)

POINTS = {"linear_cross_entropy": lambda kind, sizes: (OPERATION, Shape(*sizes))}
