"""RMSprop with momentum, as MobileNets are trained with it. It has no fused=True in torch."""

from __future__ import annotations

from benchmarks.operations.optim._steps import STORY as STORY
from benchmarks.operations.optim._steps import declared

OPERATION = declared("rmsprop", "RMSprop", dict(lr=1e-3, momentum=0.9), 7)
