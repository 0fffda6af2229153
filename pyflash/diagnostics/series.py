"""What is kept of one kind of tensor of one layer: sums, whose size does not grow with the number of calls."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, nan, sqrt

import torch

from pyflash.ops.statistics.tensor_stats import MOMENTS, tensor_stats

_SUM, _SQUARES, _ZEROS, _OUTSIDE, _NOT_FINITE = range(len(MOMENTS))


@dataclass(frozen=True)
class Moments:
    """Of all tensors of one kind that a layer had.

    Attributes:
        norm: sqrt(the mean over the calls of a tensor's sum of squares), of its finite elements, as is the mean.
        zeros: share of the elements that are 0.
        ends: share of the elements that are near an end of the layer's range.
        not_finite: elements that are infinite or NaN.
    """

    norm: float
    mean: float
    zeros: float
    ends: float
    not_finite: int


class Series:
    """Adds up `tensor_stats` of tensors, on their device: nothing waits for a GPU until it is read."""

    def __init__(self):
        self.sums: torch.Tensor | None = None  # [groups, 5]
        self.elements = self.calls = 0
        self.visits: list[int] = []  # of each step, where the steps are calls
        self.groups = 0  # that there were; `sums` may have room for more
        self.are_alike = True  # had all tensors as many groups

    def begin(self, step: int | None = None) -> None:
        """A call of the layer, of which one tensor or more follow; step: which of a cell's."""
        self.calls += 1
        if step is not None:
            self.visits += [0] * (step + 1 - len(self.visits))
            self.visits[step] += 1

    def add(self, x: torch.Tensor, dim: int | None = None, low: float = -inf, high: float = inf) -> None:
        """dim: its indices are groups."""
        self._add_at(0, tensor_stats(x, dim, low, high))
        self.elements += x.numel()

    def add_step(self, x: torch.Tensor, step: int, low: float = -inf, high: float = inf) -> None:
        """All of x is the group `step`."""
        self._add_at(step, tensor_stats(x, None, low, high))
        self.elements += x.numel()

    def add_packed(self, x: torch.Tensor, batch_sizes: torch.Tensor, low: float = -inf, high: float = inf) -> None:
        """x [rows, ...] of a PackedSequence: the first batch_sizes[0] rows are the group 0, and so on."""
        of_rows = tensor_stats(x, 0, low, high)
        steps = torch.arange(len(batch_sizes)).repeat_interleave(batch_sizes).to(of_rows.device)
        self._add_at(0, of_rows.new_zeros(len(batch_sizes), len(MOMENTS)).index_add_(0, steps, of_rows))
        self.elements += x.numel()

    def _add_at(self, first: int, found: torch.Tensor) -> None:
        last = first + len(found)
        sums = found.new_zeros(last, len(MOMENTS)) if self.sums is None else self.sums
        self.are_alike &= first == 0 and last == (self.groups or last)
        self.groups = max(self.groups, last)
        if last > len(sums):  # half as many again: a cell's steps come one by one
            grown = found.new_zeros(max(last, len(sums) * 3 // 2), len(MOMENTS))
            grown[: len(sums)] = sums
            sums = grown
        sums[first:last].add_(found)
        self.sums = sums

    def moments(self) -> Moments | None:
        """None where there was no tensor."""
        if self.sums is None:
            return None
        sums = self.sums.sum(0).tolist()
        number = self.elements or nan
        return Moments(
            norm=sqrt(sums[_SQUARES] / max(self.calls, 1)),
            mean=sums[_SUM] / ((self.elements - sums[_NOT_FINITE]) or nan),
            zeros=sums[_ZEROS] / number,
            ends=sums[_OUTSIDE] / number,
            not_finite=int(sums[_NOT_FINITE]),
        )

    def silent(self) -> float:
        """The share of the groups all of whose elements were 0, in all tensors; NaN where that is not known."""
        if self.sums is None or not self.are_alike or not self.elements:
            return nan
        return (self.sums[: self.groups, _ZEROS] == self.elements / self.groups).double().mean().item()

    def norms(self) -> list[float]:
        """Of each group, as `Moments.norm`."""
        if self.sums is None:
            return []
        calls = self.visits or [self.calls] * self.groups
        return [sqrt(squares / max(of, 1)) for squares, of in zip(self.sums[: self.groups, _SQUARES].tolist(), calls)]
