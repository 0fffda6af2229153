"""The squared difference near 0, delta times the absolute one beyond."""

from __future__ import annotations

from benchmarks.operations.loss._elementwise import STORY as STORY
from benchmarks.operations.loss._elementwise import declared, points

OPERATION = declared("huber_loss", "temporal differences, regression")
POINTS = points(OPERATION)
