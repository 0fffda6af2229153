"""What the distances of a triplet lack of a margin."""

from __future__ import annotations

from benchmarks.operations.loss._rows import STORY as STORY
from benchmarks.operations.loss._rows import declared, points

OPERATION = declared("triplet_margin_loss", "embeddings of triplets")
POINTS = points(OPERATION)
