"""The machine's limit for a row: the least time that the peaks measured in the same run allow for its work.

A roofline: each kind of work over its peak, and the slowest of them decides. What has no such limit has none here either:
work that nobody has counted, peaks that the run did not measure, and calls so short that calling them is the work.
"""

from __future__ import annotations

from dataclasses import dataclass

LEAST_SECONDS = 5e-6  # a call from Python takes as long: below it a peak says nothing about a row
PAST_CACHES = 64 << 20  # bytes from which a row comes from memory, whatever cache the host has
FLOPS, MEMORY, CACHE, EXP = "FLOPs", "memory", "cache", "exp"  # what may be the limit


@dataclass(frozen=True)
class Work:
    """What one call has to do at least: floating-point operations, bytes read and written, values of exp."""

    flops: float
    bytes: float
    exps: float = 0.0


@dataclass(frozen=True)
class Limit:
    seconds: float
    kind: str  # FLOPS, MEMORY, CACHE or EXP


def limit(work: Work | None, machine, dtype: str) -> Limit | None:
    """The least time of this work on that Machine; None where the run's peaks do not say."""
    if work is None:
        return None
    times = {}
    if work.flops:
        peak = machine.peak_flops.get(dtype)
        if not peak:
            return None
        times[FLOPS] = work.flops / peak
    if work.bytes and machine.bandwidth:
        kind, rate = copy_rate(work.bytes, machine)
        times[kind] = work.bytes / rate
    if work.exps and machine.exps:
        times[EXP] = work.exps / machine.exps
    kind = max(times, key=times.get, default="")
    if not kind or times[kind] < LEAST_SECONDS:
        return None
    if kind == MEMORY and not machine.copies and work.bytes < PAST_CACHES:
        return None  # in some cache, whose rate that run did not measure
    return Limit(times[kind], kind)


def copy_rate(bytes_: float, machine) -> tuple[str, float]:
    """The rate of the largest copy that was measured and moves no more bytes than these; at least the smallest's."""
    smaller = {int(size): rate for size, rate in machine.copies.items()}
    fitting = [size for size in smaller if size <= bytes_] or list(smaller)[:1]
    if not fitting or bytes_ >= PAST_CACHES:
        return MEMORY, machine.bandwidth
    return CACHE, max(smaller[max(fitting)], machine.bandwidth)


def set_limit(row, work: Work | None, machine) -> None:
    """Gives a Row that has its time the rates, what limits it, and the share of that limit which it reaches."""
    if work is not None:
        row.flops_per_s, row.bytes_per_s = work.flops / row.median, work.bytes / row.median
        row.exps_per_s = work.exps / row.median
    found = limit(work, machine, row.dtype)
    row.share, row.limit = (None, "") if found is None else (found.seconds / row.median, found.kind)


def set_older_limit(row, machine) -> None:
    """The same for a Row from a file that knew no limits, by the work that its rates tell and the peaks that are there."""
    if row.median is None or row.flops_per_s is None or row.bytes_per_s is None:
        row.share, row.limit = None, ""
    else:
        set_limit(row, Work(row.flops_per_s * row.median, row.bytes_per_s * row.median), machine)
        row.exps_per_s = None  # not counted then
        if row.share is not None and row.share > 1:  # faster than the peaks of that run: something else is its limit
            row.share, row.limit = None, ""
