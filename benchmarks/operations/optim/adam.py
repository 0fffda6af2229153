"""Adam, torch's defaults."""

from __future__ import annotations

from benchmarks.operations.optim._steps import STORY as STORY
from benchmarks.operations.optim._steps import declared

OPERATION = declared("adam", "Adam", dict(lr=1e-3), 7)
