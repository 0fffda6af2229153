"""One training step of the character model of examples/char_lm.py: embedding, two recurrent layers, head, AdamW."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.known import Gap, Story
from benchmarks.operation import Case, Operation
from benchmarks.operations.recurrent.rnn import GATES
from examples.char_lm import EMBEDDING, HIDDEN, CharacterModel


@dataclass(frozen=True)
class Shape:
    cell: str  # LSTM, GRU
    batch: int
    length: int
    layers: int = 2
    characters: int = 103  # different ones in the example's text


def step(cell: str, quick: bool) -> Case:
    shape = Shape(cell, 32, 96)
    name = f"step {shape.layers} {cell} layers H{HIDDEN}"
    return Case(name, shape, ("training",), quick=quick, optimizer=True, model="examples/char_lm.py: B32 T96, AdamW")


CASES = (step("LSTM", quick=True), step("GRU", quick=False))

# Of 256 units whatever the case says: nothing for the interpreter.
GPU = tuple(Case(f"{cell} B64 T128", Shape(cell, 64, 128), ("forward", "training")) for cell in ("LSTM", "GRU"))


def module(case: Case) -> torch.nn.Module:
    return CharacterModel(case.shape.cell, case.shape.characters, case.shape.layers)


def inputs(case: Case) -> tuple[torch.Tensor]:
    return (torch.randint(case.shape.characters, (case.shape.batch, case.shape.length)),)


def ours(case: Case) -> torch.nn.Module:
    import pyflash

    return pyflash.replace(module(case))


def parameters(shape: Shape) -> int:
    """How many the matrix products have: the layers' and the head's."""
    widths = [EMBEDDING] + [HIDDEN] * (shape.layers - 1)
    return sum(GATES[shape.cell] * HIDDEN * (width + HIDDEN) for width in widths) + HIDDEN * shape.characters


def flops(case: Case, mode: str) -> float:
    products = {"forward": 1, "backward": 2, "training": 3}[mode]
    return products * 2 * parameters(case.shape) * case.shape.batch * case.shape.length


def bytes_(case: Case, mode: str) -> float:
    """Weights, and each layer's input and output once: far below the FLOPs, so nothing finer is counted."""
    shape = case.shape
    once = parameters(shape) + 2 * shape.layers * shape.batch * shape.length * HIDDEN
    return {"forward": 1, "backward": 2, "training": 3}[mode] * once * case.itemsize


STORY = Story(
    limit="The recurrent layers' FLOPs; the head's products and AdamW are a few percent.",
    elsewhere="as of the recurrent layers: oneDNN's LSTM near the peak, GRU step by step in torch's dispatcher.",
    gaps=(Gap("LSTM", "the LSTM's backward, where oneDNN is as near to the peak"),),
)

OPERATION = Operation(
    name="char_lm", cases=CASES, inputs=inputs, torch=module, pyflash=ours, flops=flops, bytes=bytes_, gpu=GPU
)
