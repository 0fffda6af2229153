"""The Kullback-Leibler divergence, of a teacher's probabilities."""

from __future__ import annotations

from benchmarks.operations.loss._elementwise import STORY as STORY
from benchmarks.operations.loss._elementwise import declared, points

OPERATION = declared("kl_div", "distillation", "batchmean")
POINTS = points(OPERATION, "batchmean")
