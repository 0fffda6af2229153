"""What every model's config checks: an error names the config, its field, the value, and what would do."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any


def expect(config: Any, field: str, holds: bool, wanted: str) -> None:
    if not holds:
        value = getattr(config, field)
        raise ValueError(f"pyflash.models.{type(config).__name__}: {field} is {value!r}, expected {wanted}")


def is_count(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def expect_counts(config: Any, *fields: str) -> None:
    for field in fields:
        expect(config, field, is_count(getattr(config, field)), "an integer from 1 on")


def expect_probabilities(config: Any, *fields: str) -> None:
    for field in fields:
        value = getattr(config, field)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        expect(config, field, is_number and 0 <= value <= 1, "a probability, 0 to 1")


def expect_one_of(config: Any, field: str, choices: Collection[str]) -> None:
    expect(config, field, getattr(config, field) in choices, f"one of {', '.join(map(repr, choices))}")


def expect_heads(config: Any, width: str = "width", heads: str = "num_heads") -> None:
    """The heads share the width."""
    of, by = getattr(config, width), getattr(config, heads)
    expect(config, heads, of % by == 0, f"a divisor of {width}, {of}")
