"""What a difference lacks of a margin."""

from __future__ import annotations

from benchmarks.operations.loss._elementwise import STORY as STORY
from benchmarks.operations.loss._elementwise import declared, points

OPERATION = declared("margin_ranking_loss", "what ranks before what")
POINTS = points(OPERATION)
