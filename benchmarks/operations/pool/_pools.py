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

    @property
    def is_unpooling(self) -> bool:
        return self.function.startswith("max_unpool")

    def pooled(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What an unpooling to `input` takes: values and indices."""
        return getattr(F, self.name.replace("unpool", "pool"))(x, *self.arguments, return_indices=True)


def inputs(case: Case) -> tuple[torch.Tensor, ...]:
    shape = case.shape.input
    x = torch.randn(shape)
    if case.shape.channels_last:
        x = x.contiguous(memory_format=FORMATS[len(shape)])
    return case.shape.pooled(x) if case.shape.is_unpooling else (x,)


def bytes_(case: Case, mode: str) -> float:
    """The input and the output, or their gradients, once. A max pooling's 32-bit indices are ours, and not counted; an
    unpooling is given its own, of 64 bits."""
    passes = 2 if mode == "training" else 1
    with torch.device("meta"):
        x = torch.empty(case.shape.input)
        if case.shape.is_unpooling:
            values, indices = case.shape.pooled(x)
            return passes * ((values.numel() + x.numel()) * case.itemsize + indices.nbytes)
        outputs = getattr(F, case.shape.name)(x, *case.shape.arguments).numel()
    return passes * (x.numel() + outputs) * case.itemsize


def torchs(case: Case):
    function = getattr(F, case.shape.name)
    return lambda *x: function(*x, *case.shape.arguments)


def ours(case: Case):
    from pyflash import functional

    function = getattr(functional, case.shape.name)
    return lambda *x: function(*x, *case.shape.arguments)


def operation(name: str, **declared) -> Operation:
    return Operation(
        name=name, inputs=inputs, torch=torchs, pyflash=ours, flops=lambda case, mode: 0.0, bytes=bytes_, **declared
    )


OPERATION = operation("pool", cases=())


# ---- the walk of `python -m benchmarks auto`, which knows an operation by its name and a size


def of_elements(name: str, elements: int) -> Shape:
    """About so many elements in 32 planes, and windows of 2 that do not overlap; an unpooling takes so many."""
    elements *= 2 ** int(name[-2]) if name.startswith("max_unpool") else 1
    n = int(name[-2])
    side = max(2, round((elements / 32) ** (1 / n)) // 2 * 2)
    return Shape((1, 32, *(side,) * n), name.replace(name[-2], "{}"), (2,))


def points(*names: str) -> dict:
    return {name: lambda kind, sizes, name=name: (OPERATION, of_elements(name, *sizes)) for name in names}
