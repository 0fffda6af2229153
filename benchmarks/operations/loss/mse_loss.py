"""The squared difference."""

from __future__ import annotations

from benchmarks.operations.loss._elementwise import STORY as STORY
from benchmarks.operations.loss._elementwise import declared, points

OPERATION = declared("mse_loss", "an autoencoder's or a denoiser's images")
POINTS = points(OPERATION)
