"""Which function of ours stands for which of torch's: what `overrides` swaps. A family's __init__ says it for its own."""

from __future__ import annotations

from collections.abc import Callable

STANDS_FOR: dict[Callable, Callable] = {}  # torch's -> ours


def stands_for(functions: dict[Callable, Callable]) -> None:
    STANDS_FOR.update(functions)
