"""What was measured, one table for each family of processors (tables/<family>.json, written by `python -m benchmarks
auto`), and the question that every rule asks of it.

A table is a list of points: for an operation, its kind, dtype, mode and number of threads (one or several) the sizes that
were tried, torch's time over ours, and the low end of that ratio's 95% interval. A call is ours where the measured points
around its sizes all have a low end of 1 or more: a tie goes to torch; or where they differ, but the low end that lies on the
way from one to the other is 1.05. Beyond the grid the nearest points decide; of less work than any of them, where what a call
costs whatever its size weighs more, they must have a low end of 2.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property, lru_cache, wraps
from math import exp, log, prod
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pyflash.auto import processor
from pyflash.auto.processor import Place, place

# instance_norm of 288 elements, without gradients: torch 14 us, ours 27, where the least point measured, 32768 elements, is
# won by 1.25. The layers of LSTM and GRU, won by 2 and 3.4 there, are won below, too.
BELOW_THE_GRID = 2.0
WHERE_POINTS_DIFFER = 1.05
FOLDER = Path(__file__).parent / "tables"


class Question(NamedTuple):
    """What is asked for some sizes. Modes: "inference", "training" (a forward and a backward), or "any" where the answer
    must not depend on it."""

    operation: str
    kind: str
    dtype: torch.dtype
    mode: str


@dataclass(frozen=True, eq=False)
class Group:
    """The points of one question."""

    axes: tuple[tuple[int, ...], ...]
    lows: dict[tuple[int, ...], float]  # sizes -> low end of the ratio

    @cached_property
    def least(self) -> int:
        """The work of the smallest point: the product of its sizes."""
        return min(prod(sizes) for sizes in self.lows)


def grouped(rows: list[dict]) -> dict[tuple, Group]:
    """By (question, threads). A row is a dictionary with "operation", "kind", "dtype", "mode", "threads", "sizes", "low"."""
    found: dict[tuple, dict] = {}
    for row in rows:
        question = Question(row["operation"], row["kind"], getattr(torch, row["dtype"]), row["mode"])
        found.setdefault((question, row["threads"]), {})[tuple(row["sizes"])] = row["low"]
    return {
        key: Group(tuple(tuple(sorted(set(axis))) for axis in zip(*lows, strict=True)), lows)
        for key, lows in found.items()
    }


@lru_cache(maxsize=8)
def table(family: str) -> dict[tuple, Group]:
    path = FOLDER / f"{family}.json"
    return grouped(json.loads(path.read_text())["rows"]) if path.exists() else {}


def neighbours(axis: tuple[int, ...], size: int) -> tuple[int, int]:
    """The nearest sizes tried at or below, and at or above."""
    at = bisect_left(axis, size)
    if at < len(axis) and axis[at] == size:
        return size, size
    return axis[max(at - 1, 0)], axis[min(at, len(axis) - 1)]


@lru_cache(maxsize=8192)
def around(group: Group, spans: tuple[tuple[int, int], ...]) -> tuple[float, float]:
    """Of the measured points around all sizes of `spans`, or of the nearest one: the worst, and what they say of one size together:
    their mean on a logarithmic scale, the nearer the more. Of a range of sizes the worst, twice."""
    cell = [(neighbours(axis, low)[0], neighbours(axis, high)[1]) for axis, (low, high) in zip(group.axes, spans)]
    corners = {sizes: low for sizes, low in group.lows.items() if all(a <= n <= b for n, (a, b) in zip(sizes, cell))}
    if not corners:
        middle = [(log(max(low, 1)) + log(max(high, 1))) / 2 for low, high in cell]
        nearest = min(group.lows, key=lambda sizes: sum((log(max(n, 1)) - m) ** 2 for n, m in zip(sizes, middle)))
        return group.lows[nearest], group.lows[nearest]
    worst = min(corners.values())
    weights = {sizes: prod(map(_nearness, sizes, cell, spans)) for sizes in corners}
    total = sum(weights.values())
    if worst <= 0 or not total or any(low != high for low, high in spans):
        return worst, worst
    return worst, exp(sum(weights[sizes] * log(low) for sizes, low in corners.items()) / total)


def _nearness(n: int, ends: tuple[int, int], span: tuple[int, int]) -> float:
    """Of an end of a cell to the size within: 1 there, 0 at the other end, by logarithms. Beyond the cell the near end's is 1."""
    low, high = (log(max(end, 1)) for end in ends)
    if low == high:
        return 1.0
    part = (log(max(span[0], 1)) - low) / (high - low)
    return part if n == ends[1] else 1 - part


def is_measured_ours(family, threads, operation, kind, dtype, mode, *ends) -> bool | None:
    group = table(family).get((Question(operation, kind, dtype, mode), threads))
    if group is None:
        return None
    worst, together = around(group, tuple(zip(ends[::2], ends[1::2])))
    if prod(ends[1::2]) < group.least:
        return worst >= BELOW_THE_GRID
    return worst >= 1 or together >= WHERE_POINTS_DIFFER


# torch.compiler.assume_constant_result of these, which would import torch._dynamo here.
_constants: tuple[Any, ...] = (processor.family, processor.isa, processor.threads, is_measured_ours)
for _function in _constants:
    _function._dynamo_marked_constant = True

# What a size is compared with where a graph is compiled, which then serves all sizes between two rungs. The sizes that move
# from call to call (rows, tokens) have few rungs: each is a graph of its own, and torch.compile gives up after eight.
LADDER = (0, *sorted({n << power for n in (1, 3) for power in range(40)}))  # 1, 2, 3, 4, 6, 8, 12, 16, ...
FEW_RUNGS = (0, *(4**power for power in range(20)))
MOVING = {"attention": 3}  # how many of the first sizes do; of other operations one


def span(size: int, ladder=LADDER) -> tuple[int, int]:
    """The rungs around a size, or of many rungs the one that it is; of few by comparisons alone, because an equation would
    make a graph for one size."""
    low, high = 0, len(ladder) - 1
    while low < high:
        middle = (low + high) // 2
        if ladder[middle] < size:
            low = middle + 1
        else:
            high = middle
    if ladder is LADDER and ladder[low] == size:
        return ladder[low], ladder[low]
    return ladder[max(low - 1, 0)], ladder[low]


def ours(where: Place, operation: str, kind: str, dtype: torch.dtype, mode: str, sizes) -> bool | None:
    """Is the call ours? None where the table of this family has nothing to say: a GPU's speaks of Triton's kernels."""
    if where.kernels == "cuda":
        return None
    if torch.compiler.is_compiling():
        moving = MOVING.get(operation, 1)
        spans = [span(size, FEW_RUNGS if i < moving else LADDER) for i, size in enumerate(sizes)]
    else:
        spans = [(size, size) for size in sizes]
    ends = [end for around in spans for end in around]
    return is_measured_ours(where.family, where.threads, operation, kind, dtype, mode, *ends)


def remembered(decide):
    """A rule (place, size, dtype) -> reason as `choose` asks for it: by backend; what was decided once is looked up."""
    decided = lru_cache(maxsize=4096)(decide)

    @wraps(decide)
    def rules(backend: str, size, dtype) -> str:
        if torch.compiler.is_compiling():
            return decide(place(backend), size, dtype)
        try:
            return decided(place(backend), size, dtype)
        except TypeError:  # symbolic sizes are not to be remembered
            return decide(place(backend), size, dtype)

    rules.decide, rules.forget = decide, decided.cache_clear
    return rules
