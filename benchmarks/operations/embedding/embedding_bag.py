"""Sums and means over bags of a table's rows, and the gradient of the table."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks.known import CPUS, NOT_LOOKED_INTO, TINY, TORCHS, Gap, Story
from benchmarks.operation import Case, Operation, gpu_case


@dataclass(frozen=True)
class Shape:
    bags: int
    length: int
    rows: int
    cols: int
    mode: str = "sum"


CASES = (
    Case("2048 bags of 32 of 100000x64", Shape(2048, 32, 100000, 64), ("forward", "backward", "training"), quick=True,
         model="DLRM, a batch of 2048"),
    Case("mean 2048 bags of 32 of 100000x64", Shape(2048, 32, 100000, 64, "mean"), ("forward", "training"),
         model="DLRM, a batch of 2048"),
    Case("max 512 bags of 32 of 30522x300", Shape(512, 32, 30522, 300, "max"), ("forward", "training"),
         model="fastText's width"),
    Case("tiny 4 bags of 8 of 100x16", Shape(4, 8, 100, 16), ("forward", "training"), quick=True),
)  # fmt: skip

GPU = (
    gpu_case("65536 bags of 32 of 1Mx64", Shape(1 << 16, 32, 1 << 20, 64), Shape(20, 8, 50, 16), "forward", "backward",
             dtype="float32"),
    gpu_case("mean 65536 bags of 32 of 1Mx64", Shape(1 << 16, 32, 1 << 20, 64, "mean"), Shape(20, 8, 50, 16, "mean"),
             "forward"),
)  # fmt: skip

STORY = Story(
    limit="Memory: a row for every place of a bag, and a sum a bag; the gradient of a table is written whole, mostly zeros.",
    elsewhere="torch's sums on a CPU are FBGEMM's, compiled for the width; its gradient is zeros, then additions.",
    gaps=(
        TINY,
        Gap(
            "",
            "rows are read, by torch as by ours; `auto` leaves sums without gradients to torch",
            mode="forward",
            served="torch",
        ),
        TORCHS,
        Gap("", NOT_LOOKED_INTO, mode="forward"),
        Gap(
            "",
            "one thread sorts the places by the row that was looked up, with the bag that each is of, before the gradient is"
            " summed",
            families=CPUS,
        ),
    ),
)


def inputs(case: Case) -> tuple[torch.Tensor, ...]:
    shape = case.shape
    return torch.randint(shape.rows, (shape.bags, shape.length)), torch.randn(shape.rows, shape.cols)


def torchs(case: Case):
    return lambda indices, weight: F.embedding_bag(indices, weight, mode=case.shape.mode)


def ours(case: Case):
    from pyflash.functional import embedding_bag

    return lambda indices, weight: embedding_bag(indices, weight, mode=case.shape.mode)


def bytes_(case: Case, mode: str) -> float:
    shape = case.shape
    rows = {"forward": shape.bags * (shape.length + 1), "backward": shape.bags + shape.rows}
    rows["training"] = sum(rows.values())
    return rows[mode] * shape.cols * case.itemsize + 8 * shape.bags * shape.length


OPERATION = Operation(
    name="embedding_bag",
    cases=CASES,
    inputs=inputs,
    torch=torchs,
    pyflash=ours,
    flops=lambda case, mode: 0.0,
    bytes=bytes_,
    gpu=GPU,
)

# bags of 32, as in the suite
POINTS = {"embedding_bag": lambda kind, sizes: (OPERATION, Shape(sizes[0] // 32, 32, *sizes[1:], kind))}
