"""Binary cross entropy of probabilities."""

from __future__ import annotations

from benchmarks.operations.loss._elementwise import STORY as STORY
from benchmarks.operations.loss._elementwise import declared, points

OPERATION = declared("binary_cross_entropy", "masks, an autoencoder's pixels")
POINTS = points(OPERATION)
