"""Rows of a table looked up by index, and the gradient of the table."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks.known import CPUS, NOT_LOOKED_INTO, TINY, TORCHS, Gap, Story, fresh
from benchmarks.operation import Case, Operation, gpu_case


@dataclass(frozen=True)
class Shape:
    """max_norm: of rows about half of which are longer."""

    indices: int
    rows: int
    cols: int
    max_norm: float | None = None


CASES = (
    Case("words 4096 of 30522x768", Shape(4096, 30522, 768), ("forward", "backward", "training"), quick=True,
         model="BERT base, 8 x 512 tokens"),
    Case("words 8192 of 50257x768", Shape(8192, 50257, 768), ("forward", "training"),
         model="GPT-2, 8 x 1024 tokens"),
    Case("words 2048 of 32000x4096", Shape(2048, 32000, 4096), ("forward",), full=True, model="Llama 2 7B, 2048 tokens"),
    Case("features 65536 of 100000x64", Shape(65536, 100000, 64), ("forward", "training"),
         model="DLRM, 2048 x 32 categories"),
    Case("max_norm 4096 of 30522x768", Shape(4096, 30522, 768, 27.7), ("forward",), model="BERT base"),
    Case("tiny 32 of 100x16", Shape(32, 100, 16), ("forward", "training"), quick=True),
)  # fmt: skip

GPU = (
    gpu_case("words 16384 of 50257x768", Shape(16384, 50257, 768), Shape(300, 50, 96), "forward", "backward"),
    gpu_case(
        "features 1M of 1Mx64", Shape(1 << 20, 1 << 20, 64), Shape(300, 50, 16), "forward", "backward", dtype="float32"
    ),
    gpu_case("max_norm 16384 of 50257x768", Shape(16384, 50257, 768, 27.7), Shape(20, 30, 96, 9.8), "forward"),
)

STORY = Story(
    limit="Memory: a look-up reads and writes each row once; the gradient of a table is written whole, mostly zeros.",
    elsewhere="torch fills the gradient with zeros, then reads, adds to and writes a row for every index.",
    gaps=(
        TINY,
        Gap(
            "",
            "rows are copied, by torch as by ours; `auto` leaves look-ups without gradients to torch",
            mode="forward",
            served="torch",
        ),
        Gap(
            "max_norm",
            "the rows are scaled into a tensor of their own, and torch copies them into the table before they are looked up",
            families=CPUS,
        ),
        TORCHS,
        Gap("", NOT_LOOKED_INTO, mode="forward"),
        fresh("30522x768", also="; and one thread sorts the places by the row that was looked up"),
        fresh("50257x768", also="; and one thread sorts the places by the row that was looked up"),
        Gap(
            "", "one thread sorts the places by the row that was looked up before the gradient is summed", families=CPUS
        ),
    ),
)


def inputs(case: Case) -> tuple[torch.Tensor, ...]:
    shape = case.shape
    return torch.randint(shape.rows, (shape.indices,)), torch.randn(shape.rows, shape.cols)


def looked_up(function, case: Case):
    if case.shape.max_norm is None:
        return lambda indices, weight: function(indices, weight)

    def with_max_norm(indices, weight):  # of a table of its own: it is written to
        return function(indices, weight, max_norm=case.shape.max_norm)

    return with_max_norm


def ours(case: Case):
    from pyflash.functional import embedding

    return looked_up(embedding, case)


def bytes_(case: Case, mode: str) -> float:
    shape = case.shape
    row = shape.cols * case.itemsize
    rows = {"forward": 2 * shape.indices, "backward": shape.indices + shape.rows}
    if shape.max_norm is not None:
        rows["forward"] = 3 * shape.indices
    rows["training"] = sum(rows.values())
    return rows[mode] * row + 8 * shape.indices


OPERATION = Operation(
    name="embedding",
    cases=CASES,
    inputs=inputs,
    torch=lambda case: looked_up(F.embedding, case),
    pyflash=ours,
    flops=lambda case, mode: 0.0,
    bytes=bytes_,
    gpu=GPU,
)

POINTS = {"embedding": lambda kind, sizes: (OPERATION, Shape(*sizes))}
