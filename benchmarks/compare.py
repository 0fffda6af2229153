"""Two runs of the suite: which rows changed by more than their noise.

What is compared is each row's speed as a multiple of torch's in the same run, so a machine that is slower on another
day changes nothing. A row has changed when the 95% intervals of the two runs do not touch and the difference is more
than what two runs of one commit show.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.machine import Machine
from benchmarks.rows import Row

STATE = 1.25  # times: peaks of one machine further apart say that something else ran on it, or on its host
MARGIN = 0.08  # memory lies elsewhere in another process: worth a few percent, of which a run that moves it sees a part


@dataclass(frozen=True)
class Change:
    """One row in both runs. `verdict`: slower, faster, same, noisy, broken (it had a time) or mended."""

    old: Row
    new: Row

    @property
    def speed(self) -> float:
        """The new speed as a multiple of the old."""
        return self.new.ratio / self.old.ratio

    @property
    def verdict(self) -> str:
        if "wrong" in (self.old.status, self.new.status) or "error" in (self.old.status, self.new.status):
            return "same" if self.old.status == self.new.status else "broken" if self.old.status == "ok" else "mended"
        if self.old.ratio_low is None or self.new.ratio_low is None:
            return "noisy"
        if self.new.ratio_high < self.old.ratio_low and self.speed < 1 / (1 + MARGIN):
            return "slower"
        if self.new.ratio_low > self.old.ratio_high and self.speed > 1 + MARGIN:
            return "faster"
        return "same"


def changes(old: list[Row], new: list[Row]) -> list[Change]:
    """Rows of both runs, torch's own left out: they are the yardstick."""
    before = {row.key: row for row in old}
    return [Change(before[row.key], row) for row in new if row.key in before and row.provider != "torch"]


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
                    f"{change.old.ratio:.2f}x -> {change.new.ratio:.2f}x of torch ({100 * (change.speed - 1):+.0f}%)"
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
