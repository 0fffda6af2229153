"""The cosine of two rows, or what it exceeds a margin by."""

from __future__ import annotations

from benchmarks.operations.loss._rows import STORY as STORY
from benchmarks.operations.loss._rows import declared, points

OPERATION = declared("cosine_embedding_loss", "embeddings of pairs")
POINTS = points(OPERATION)
