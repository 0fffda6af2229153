"""Softmax, its logarithm and softmin: over rows that fit into a cache and rows that do not, and over columns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import prod

import torch
import torch.nn.functional as F

from benchmarks.known import CPUS, TINY, TORCHS, TWICE, Gap, Story, fresh
from benchmarks.operation import Case, Operation, gpu_case
from pyflash.auto.softmax import COLUMNS


@dataclass(frozen=True)
class Shape:
    kind: str  # softmax, log_softmax or softmin
    sizes: tuple[int, ...]
    dim: int = -1


BOTH = ("forward", "backward")
HEADS, VOCABULARY, CHANNELS = (8, 12, 512, 512), (8, 50257), (4, 21, 256, 256)

CASES = (
    Case("softmax 4096x4096", Shape("softmax", (4096, 4096)), BOTH, model="attention scores, from memory"),
    Case("log_softmax 4096x4096", Shape("log_softmax", (4096, 4096)), BOTH, model="from memory"),
    Case("softmax 1024x32768", Shape("softmax", (1024, 32768)), BOTH, model="scores of 32k keys"),
    Case("log_softmax 1024x32768", Shape("log_softmax", (1024, 32768)), BOTH, model="Llama 2's vocabulary"),
    Case("softmax 8x12x512x512", Shape("softmax", HEADS), (*BOTH, "double-backward"), model="BERT base, 8 x 512 tokens"),
    Case("softmax 8x50257", Shape("softmax", VOCABULARY), BOTH, quick=True, model="GPT-2, the next token of 8 texts"),
    Case("log_softmax 8x50257", Shape("log_softmax", VOCABULARY), BOTH, quick=True, model="GPT-2, 8 tokens' loss"),
    Case("softmax 4x1048576", Shape("softmax", (4, 1 << 20)), ("forward",), model="rows longer than a cache"),
    Case("softmax channels 4x21x256x256", Shape("softmax", CHANNELS, 1), BOTH, quick=True,
         model="segmentation, 21 classes"),
    Case("log_softmax channels 4x21x256x256", Shape("log_softmax", CHANNELS, 1), BOTH, quick=True,
         model="segmentation, 21 classes"),
    Case("softmin 2048x2048", Shape("softmin", (2048, 2048)), BOTH, model="weights of distances"),
    Case("log_softmax 65536x10", Shape("log_softmax", (65536, 10)), BOTH, model="ten classes, many rows"),
    Case("tiny 8x16", Shape("softmax", (8, 16)), ("forward",), quick=True),
)  # fmt: skip

# Rows in registers, longer ones, columns.
GPU = tuple(
    gpu_case(
        f"{kind} {'x'.join(map(str, sizes))}", Shape(kind, sizes, dim), Shape(kind, small, dim), *BOTH, dtype=dtype
    )
    for kind, sizes, small, dim, dtype in (
        ("softmax", (16384, 4096), (20, 300), -1, "bfloat16"),
        ("softmax", (16384, 4096), (20, 300), -1, "float32"),
        ("log_softmax", (4096, 32768), (3, 5000), -1, "bfloat16"),
        ("softmax", (512, 262144), (2, 9000), -1, "bfloat16"),
        ("softmax", (32, 21, 512, 512), (2, 21, 5, 9), 1, "bfloat16"),
        ("log_softmax", (32, 1024, 2048), (2, 70, 40), 1, "float32"),
    )
)


def ours(case: Case):
    from pyflash import functional

    function = getattr(functional, case.shape.kind)
    return lambda x: function(x, case.shape.dim)


def bytes_(case: Case, mode: str) -> float:
    tensors = {"forward": 2, "backward": 3, "training": 5}[mode]  # x, y; dy, y, dx
    return tensors * prod(case.shape.sizes) * case.itemsize


def exps(case: Case, mode: str) -> float:
    """One an element; of the backward the logarithm's alone has one."""
    of_backward = case.shape.kind == "log_softmax"
    return {"forward": 1, "backward": of_backward, "training": 1 + of_backward}[mode] * prod(case.shape.sizes)


STORY = Story(
    limit="Memory: x and y once; in cache, one exponential an element.",
    elsewhere="torch's vectorised loops, three passes over a row that is in cache; a compiler fuses what is around them.",
    gaps=(
        TWICE,
        TINY,
        TORCHS,
        Gap("1048576", "a row is longer than the second cache and is read twice, with its exponentials", families=CPUS),
        Gap(
            "65536x10",
            "a vector has 16 lanes, of which a row takes 10; each row has a division or a logarithm of its own",
            families=CPUS,
        ),
        fresh("4096x4096"),
        fresh("1024x32768"),
        fresh("8x12x512x512"),
    ),
)

OPERATION = Operation(
    name="softmax",
    cases=CASES,
    inputs=lambda case: (torch.randn(case.shape.sizes),),
    torch=lambda case: lambda x: getattr(F, case.shape.kind)(x, case.shape.dim),
    pyflash=ours,
    flops=lambda case, mode: 0.0,
    bytes=bytes_,
    exps=exps,
    gpu=GPU,
)


def _point(kind, sizes, name):
    count, length = sizes
    return OPERATION, Shape(name, (1, length, count) if kind == COLUMNS else (count, length), 1)


POINTS = {name: partial(_point, name=name) for name in ("softmax", "log_softmax")}
