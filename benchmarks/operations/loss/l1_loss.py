"""The absolute difference."""

from __future__ import annotations

from benchmarks.operations.loss._elementwise import STORY as STORY
from benchmarks.operations.loss._elementwise import declared, points

OPERATION = declared("l1_loss", "images of super-resolution and pix2pix")
POINTS = points(OPERATION)
