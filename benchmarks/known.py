"""What the figures cannot say themselves: per operation the limit, the best known elsewhere, and why a gap is there.

An operation's file says it as STORY; the page that `report` writes takes its words from there and its numbers from the results.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

ZEN_4, ZEN_5, AMX = ("zen4",), ("zen5",), ("amx",)
CPUS = ZEN_4 + ZEN_5 + AMX
NOT_LOOKED_INTO = "not looked into"  # what the page says of a row that nothing here explains


@dataclass(frozen=True)
class Gap:
    """Why rows fall short. Applies where `case` is part of the case's name and, if given, mode and dtype are equal.
    Of a story's the first that applies is printed.

    Args:
        families: the processors (Machine.family) of which it is known; empty where it holds on any.
        served: "torch": of calls that `auto` left to torch alone.
        host: of calls of which this part and more was measured outside of our native core.
        up_to: of rows that are at most this many times as fast as torch.
        before: of results of days before this one.
    """

    case: str
    reason: str
    mode: str = ""
    dtype: str = ""
    families: tuple[str, ...] = ()
    served: str = ""
    host: float = 0.0
    up_to: float = math.inf
    before: str = ""

    def explains(self, row, machine) -> bool:
        return (
            self.case in row.case
            and self.mode in ("", row.mode)
            and self.dtype in ("", row.dtype)
            and (not self.families or machine.family in self.families)
            and self.served in ("", row.served)
            and (not self.host or (row.host_seconds or 0.0) >= self.host * row.median)
            and row.ratio <= self.up_to
            and (not self.before or machine.date < self.before)
        )


@dataclass(frozen=True)
class Story:
    limit: str
    elsewhere: str
    gaps: tuple[Gap, ...] = ()


TWICE = Gap("", "the second derivative computes the backward again, in torch's operations", mode="double-backward")
WAS_TWICE = Gap(
    "",
    "measured while the second derivative computed the backward again, in torch's operations",
    mode="double-backward",
    before="2026-11-28",
)
TINY = Gap("tiny", "what remains is Python: the check that sends a small call to torch")
TORCHS = Gap(
    "", "torch's own kernel, to which `auto` leaves the call, and the check that sends it there", served="torch"
)
HOST = Gap("", "a quarter of the call and more is outside of our core: the column host", families=CPUS, host=0.25)


def fresh(case: str, mode: str = "", also: str = "") -> Gap:
    """Of cases with an output from 32 MB on, which the C library asks the system for anew in every call."""
    return Gap(
        case,
        f"the output's pages are new at every call, which a copy into memory that is there does not pay{also}",
        mode,
        families=CPUS,
    )


def turned(layout: str) -> tuple[Gap, ...]:
    """Of inputs with the channels last: the suite draws gradients in NCHW's order."""
    reason = "the gradient comes in NCHW's order here, and torch copies it into the input's before the kernel reads it"
    return tuple(Gap(layout, reason, mode, families=CPUS) for mode in ("backward", "training"))
