"""A distance, or what it lacks of a margin."""

from __future__ import annotations

from benchmarks.operations.loss._elementwise import STORY as STORY
from benchmarks.operations.loss._elementwise import declared, points

OPERATION = declared("hinge_embedding_loss", "similar pairs and others")
POINTS = points(OPERATION)
