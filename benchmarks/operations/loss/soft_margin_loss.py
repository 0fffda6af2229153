"""The logistic loss of 1 and -1."""

from __future__ import annotations

from benchmarks.operations.loss._elementwise import STORY as STORY
from benchmarks.operations.loss._elementwise import declared, points

OPERATION = declared("soft_margin_loss", "two classes")
POINTS = points(OPERATION)
