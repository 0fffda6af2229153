"""Two runs of the suite: which rows changed by more than their noise.

A row's speed is known in two ways: as a multiple of torch's in the same rounds, and by its own time, corrected by how
much torch's rows, all together, changed between the runs. The first wavers with torch, which has fast and slow states
of its own in another process, the second with every slow minute of the machine; a kernel that became slower shows in
both. So a row has changed when both say so, each by more than the 95% interval of the difference of its two medians
and by more than what two runs of one commit show, and when the clock, uncorrected, points the same way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

from benchmarks.machine import Machine
from benchmarks.rows import Row
from benchmarks.table import seconds

STATE = 1.25  # times: peaks of one machine further apart say that something else ran on it, or on its host
MARGIN = 0.08  # memory lies elsewhere in another process: worth a few percent, of which a run that moves it sees a part


def direction(change: float, old_half: float, new_half: float, margin: float = MARGIN) -> int:
    """-1 where a speed is clearly less than it was, 1 where it is clearly more, of the logarithm of new over old.

    The halves of the two intervals are relative; that these intervals do not touch would be asking for 99%, not 95%.
    """
    clear = abs(change) > max(math.log1p(margin), math.hypot(old_half, new_half))
    return (1 if change > 0 else -1) if clear else 0


def ratio_half(row: Row) -> float:
    return math.log(row.ratio_high / row.ratio_low) / 2


def time_half(row: Row) -> float:
    """From the quartiles, as the notches of a box plot (McGill, Tukey and Larsen 1978), here 1.96 standard errors."""
    return 1.96 * 1.25 / 1.35 * (row.q75 - row.q25) / row.median / math.sqrt(row.clean)


@dataclass(frozen=True)
class Change:
    """One row in both runs. `verdict`: slower, faster, same, noisy, broken (it had a time) or mended.

    Args:
        pace: torch's times in the new run as a multiple of those in the old, the median of its rows.
    """

    old: Row
    new: Row
    pace: float = 1.0

    @property
    def speed(self) -> float:
        """The new speed as a multiple of the old, both as multiples of torch's."""
        return self.new.ratio / self.old.ratio

    @property
    def verdict(self) -> str:
        old, new = self.old, self.new
        if "wrong" in (old.status, new.status) or "error" in (old.status, new.status):
            return "same" if old.status == new.status else "broken" if old.status == "ok" else "mended"
        if old.ratio_low is None or new.ratio_low is None:
            return "noisy"
        halves = time_half(old), time_half(new)
        clock = math.log(old.median / new.median)
        says = {
            direction(math.log(self.speed), ratio_half(old), ratio_half(new)),
            direction(clock + math.log(self.pace), *halves),
            direction(clock, *halves, margin=0.0),  # all there is where torch has but one row, which is the pace then
        }
        return "slower" if says == {-1} else "faster" if says == {1} else "same"


def changes(old: list[Row], new: list[Row]) -> list[Change]:
    """Rows of both runs, torch's own left out: they are the yardstick."""
    before = {row.key: row for row in old}
    common = [(before[row.key], row) for row in new if row.key in before]
    torchs = [two.median / one.median for one, two in common if two.provider == "torch" and one.median and two.median]
    pace = median(torchs) if torchs else 1.0
    return [Change(one, two, pace) for one, two in common if two.provider != "torch"]


def differing(old: Machine, new: Machine) -> list[str]:
    """What besides pyflash is not the same in the two runs, in words."""
    facts = ("label", "torch", "python", "triton", "driver")
    pairs = [(name, getattr(old, name), getattr(new, name)) for name in facts]
    found = [f"{'machine' if name == 'label' else name}: {a} and {b}" for name, a, b in pairs if a != b]
    peaks = [
        (f"{dtype} GFLOP/s", old.peak_flops[dtype], new.peak_flops[dtype])
        for dtype in old.peak_flops
        if dtype in new.peak_flops
    ]
    for name, a, b in (*peaks, ("copy GB/s", old.bandwidth, new.bandwidth)):
        if max(a, b) > STATE * min(a, b):
            found.append(f"measured {name}: {a * 1e-9:.0f} and {b * 1e-9:.0f}, as on a machine that others use")
    return found


def text(found: list[Change], old: list[Row], new: list[Row]) -> str:
    by_verdict = {name: [c for c in found if c.verdict == name] for name in ("broken", "slower", "mended", "faster")}
    lines = []
    for name, rows in by_verdict.items():
        for change in sorted(rows, key=lambda c: c.speed if c.old.ratio and c.new.ratio else 0):
            operation, case, mode, dtype, provider = change.new.key
            measured = f"{change.new.status}: {change.new.note}" if name == "broken" else change.new.status
            if change.old.ratio and change.new.ratio:
                measured = (
                    f"{change.old.ratio:.2f}x -> {change.new.ratio:.2f}x of torch ({100 * (change.speed - 1):+.0f}%),"
                    f" {seconds(change.old.median)} -> {seconds(change.new.median)}"
                )
            lines.append(f"  {name:<7} {operation}, {case}, {mode}, {dtype}, {provider}: {measured}")
    count = {name: len(rows) for name, rows in by_verdict.items()}
    unpaired = {row.key for row in old} ^ {row.key for row in new}
    noisy = sum(change.verdict == "noisy" for change in found)
    lines.append(
        f"{len(found)} rows compared: {count['slower']} slower, {count['broken']} broken, {count['faster']} faster,"
        f" {count['mended']} mended, {noisy} without a ratio in one of the runs; {len(unpaired)} rows in one run only"
    )
    return "\n".join(lines)
