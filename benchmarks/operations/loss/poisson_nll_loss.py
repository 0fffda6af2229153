"""The negative logarithm of Poisson's likelihood."""

from __future__ import annotations

from benchmarks.operations.loss._elementwise import STORY as STORY
from benchmarks.operations.loss._elementwise import declared, points

OPERATION = declared("poisson_nll_loss", "counts")
POINTS = points(OPERATION)
