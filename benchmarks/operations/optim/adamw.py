"""AdamW, as language models are trained with it."""

from __future__ import annotations

from benchmarks.operations.optim._steps import STORY as STORY
from benchmarks.operations.optim._steps import declared

OPERATION = declared("adamw", "AdamW", dict(lr=1e-3, weight_decay=0.1), 7)
