"""What the figures cannot say themselves: per operation the limit, the best known elsewhere, and why a gap is there.

An operation's file says it as STORY; the page that `report` writes takes its words from there and its numbers from the results.
"""

from __future__ import annotations

from dataclasses import dataclass

ZEN_4, ZEN_5, AMX = ("zen4",), ("zen5",), ("amx",)


@dataclass(frozen=True)
class Gap:
    """Why rows fall short. Applies where `case` is part of the case's name and, if given, mode and dtype are equal.

    Args:
        families: the processors (Machine.family) of which it is known; empty where it holds on any.
    """

    case: str
    reason: str
    mode: str = ""
    dtype: str = ""
    families: tuple[str, ...] = ()

    def explains(self, row, machine) -> bool:
        return (
            self.case in row.case
            and self.mode in ("", row.mode)
            and self.dtype in ("", row.dtype)
            and (not self.families or machine.family in self.families)
        )


@dataclass(frozen=True)
class Story:
    limit: str
    elsewhere: str
    gaps: tuple[Gap, ...] = ()


TWICE = Gap("", "the second derivative computes the backward again, in torch's operations", mode="double-backward")
TINY = Gap("tiny", "what remains is Python: the check that sends a small call to torch")
