"""Samples: timed calls, whether anything disturbed them, and what a few dozen of them say.

On a CPU a sample is clean when no thread of ours waited for a processor during it, which the kernel counts for us.
"""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import cuda_timing


@dataclass(frozen=True)
class Sample:
    seconds: float  # of one call
    clean: bool


def run_queue_delay() -> dict[str, int]:
    """Nanoseconds that each of our threads has waited, ready to run, for a processor. Empty where unknown."""
    delays = {}
    try:
        threads = os.listdir("/proc/self/task")
    except OSError:
        return delays
    for thread in threads:
        with contextlib.suppress(OSError, IndexError, ValueError):  # a thread may end while we look
            delays[thread] = int(Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[1])
    return delays


def waited_ns(before: dict[str, int], after: dict[str, int]) -> int:
    return sum(max(0, delay - before.get(thread, 0)) for thread, delay in after.items())


def is_clean(wall_ns: int, waiting_ns: int) -> bool:
    return waiting_ns <= 0.02 * wall_ns + 3000


def sample_cpu(call: Callable[[], object], repeats: int) -> Sample:
    before = run_queue_delay()
    start = time.perf_counter_ns()
    for _ in range(repeats):
        call()
    wall = time.perf_counter_ns() - start
    return Sample(wall / repeats * 1e-9, is_clean(wall, waited_ns(before, run_queue_delay())))


SAMPLERS = {"cpu": sample_cpu, "cuda": lambda call, repeats: Sample(cuda_timing.seconds(call, repeats), True)}


def first_seconds(call: Callable[[], object], device: str) -> float:
    """The time of a first call by the wall clock: what it compiles, packs or looks up is what one waits for."""
    start = time.perf_counter()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def quartiles(values: list[float]) -> tuple[float, float, float]:
    return tuple(statistics.quantiles(values, n=4, method="inclusive"))


def median_interval(values: list[float]) -> tuple[float, float]:
    """95% confidence interval of the median from order statistics, which asks nothing of the distribution.

    The ranks are n/2 -+ 1.96 sqrt(n)/2, the normal approximation of the binomial: for 11 values the 3rd and the 9th.
    """
    ordered = sorted(values)
    outside = max(0, math.floor((len(ordered) - 1.96 * math.sqrt(len(ordered))) / 2))
    return ordered[outside], ordered[-1 - outside]


def paired_ratios(baseline: list[Sample], samples: list[Sample]) -> list[float]:
    """baseline over samples, round by round where both are clean: what slows a machine for a while slows both."""
    return [one.seconds / other.seconds for one, other in zip(baseline, samples) if one.clean and other.clean]
