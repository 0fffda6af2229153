"""What the files of resampling share: an image that is read once, and one that is written once."""

from __future__ import annotations

from math import prod

import torch

from benchmarks.operation import Case


def inputs(case: Case) -> tuple[torch.Tensor]:
    x = torch.randn(case.shape.sizes)
    return (x.contiguous(memory_format=torch.channels_last),) if case.shape.channels_last else (x,)


def bytes_(case: Case, mode: str) -> float:
    """x and y, or dy and dx; a training step has both."""
    passes = {"forward": 1, "backward": 1, "training": 2}[mode]
    return passes * (prod(case.shape.sizes) + prod(case.shape.result)) * case.itemsize
