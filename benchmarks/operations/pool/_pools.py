"""What the files of poolings share: images and their windows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from benchmarks.operation import Case, Operation

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass(frozen=True)
class Shape:
    """An input [N, C, *spatial], and the arguments of the function of its dimensions behind it."""

    input: tuple[int, ...]
    function: str  # of torch.nn.functional, with {} for the number of dimensions
    arguments: tuple
    channels_last: bool = False

    @property
    def name(self) -> str:
        return self.function.format(len(self.input) - 2)


def inputs(case: Case) -> tuple[torch.Tensor, ...]:
    shape = case.shape.input
    x = torch.randn(shape)
    return (x.contiguous(memory_format=FORMATS[len(shape)]) if case.shape.channels_last else x,)


def bytes_(case: Case, mode: str) -> float:
    """The input and the output, or their gradients, once. A max pooling's 32-bit indices are ours, and not counted."""
    with torch.device("meta"):
        x = torch.empty(case.shape.input)
        outputs = getattr(F, case.shape.name)(x, *case.shape.arguments).numel()
    passes = 2 if mode == "training" else 1
    return passes * (x.numel() + outputs) * case.itemsize


def torchs(case: Case):
    function = getattr(F, case.shape.name)
    return lambda x: function(x, *case.shape.arguments)


def ours(case: Case):
    from pyflash import functional

    function = getattr(functional, case.shape.name)
    return lambda x: function(x, *case.shape.arguments)


def operation(name: str, **declared) -> Operation:
    return Operation(
        name=name, inputs=inputs, torch=torchs, pyflash=ours, flops=lambda case, mode: 0.0, bytes=bytes_, **declared
    )


OPERATION = operation("pool", cases=())


# ---- the walk of `python -m benchmarks auto`, which knows an operation by its name and a size


def of_elements(name: str, elements: int) -> Shape:
    """About so many elements in 32 planes, and windows of 2 that do not overlap."""
    n = int(name[-2])
    side = max(2, round((elements / 32) ** (1 / n)))
    return Shape((1, 32, *(side,) * n), name.replace(name[-2], "{}"), (2,))
