"""Dropout: torch draws its mask serially, so ours wins as soon as Python's share of a call is paid."""

from pyflash.auto import SMALL

MIN_ELEMENTS = {"cpu": 2048, "triton": 0}  # provisional; benchmarks: dropout, rows "tiny" and "small"


def rules(backend: str, elements: int, dtype) -> str:
    if elements < MIN_ELEMENTS[backend]:
        return SMALL
    return ""
