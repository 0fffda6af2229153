"""SGD with momentum, as ResNets are trained with it."""

from __future__ import annotations

from benchmarks.operations.optim._steps import STORY as STORY
from benchmarks.operations.optim._steps import declared

OPERATION = declared("sgd", "SGD", dict(lr=0.1, momentum=0.9, weight_decay=1e-4), 5)
