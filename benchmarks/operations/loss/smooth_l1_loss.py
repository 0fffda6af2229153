"""The squared difference near 0, the absolute one beyond."""

from __future__ import annotations

from benchmarks.operations.loss._elementwise import STORY as STORY
from benchmarks.operations.loss._elementwise import declared, points

OPERATION = declared("smooth_l1_loss", "boxes and disparities")
POINTS = points(OPERATION)
