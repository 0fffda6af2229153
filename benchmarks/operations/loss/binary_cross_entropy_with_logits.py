"""Binary cross entropy of logits."""

from __future__ import annotations

from benchmarks.operations.loss._elementwise import STORY as STORY
from benchmarks.operations.loss._elementwise import declared, points

OPERATION = declared("binary_cross_entropy_with_logits", "masks, labels")
POINTS = points(OPERATION)
