"""Inference of small whole models, whose kernels take as long as what is around them: torch's own on a tensor of these sizes
is near, and what a call of ours adds is what a user feels. Modules go through `pyflash.replace`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.known import TORCHS, Gap, Story
from benchmarks.operation import Case, Operation

FEATURES, HEADS, TOKENS, STEPS = 64, 4, 16, 32
DIGIT = 8  # pixels a side of scikit-learn's digits


@dataclass(frozen=True)
class Shape:
    name: str
    batch: int


class CellLoop(nn.Module):
    """A cell called step by step, and a head on the last state."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTMCell(FEATURES, FEATURES), nn.Linear(FEATURES, 10)

    def forward(self, x):
        h = c = x.new_zeros(x.shape[1], FEATURES)
        for step in x:
            h, c = self.cell(step, (h, c))
        return self.head(h)


class LeNet(nn.Module):
    """As it is written by hand: a forward of code, its modules named one by one."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 16, 3)
        self.relu, self.pool = nn.ReLU(), nn.MaxPool2d(2)
        self.fc1, self.fc2, self.fc3 = nn.Linear(16, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x):
        x = self.pool(self.relu(self.conv1(x)))
        x = torch.flatten(self.pool(self.relu(self.conv2(x))), 1)
        return self.fc3(self.relu(self.fc2(self.relu(self.fc1(x)))))


def _mlp():
    return nn.Sequential(nn.Linear(FEATURES, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def _layer(**options):
    return nn.TransformerEncoderLayer(FEATURES, HEADS, 2 * FEATURES, batch_first=True, **options)


MODELS = {  # name -> (its maker, the shape of its input by the batch)
    "encoder layer": (_layer, lambda batch: (batch, TOKENS, FEATURES)),
    "encoder of 2 layers": (lambda: nn.TransformerEncoder(_layer(), 2), lambda batch: (batch, TOKENS, FEATURES)),
    "encoder layer norm_first": (lambda: _layer(norm_first=True), lambda batch: (batch, TOKENS, FEATURES)),
    "LSTMCell loop": (CellLoop, lambda batch: (STEPS, batch, FEATURES)),
    "LeNet": (LeNet, lambda batch: (batch, 1, DIGIT, DIGIT)),
    "MLP": (_mlp, lambda batch: (batch, FEATURES)),
}

CASES = tuple(
    Case(f"{name} B{batch}", Shape(name, batch), ("forward",), quick=batch == 1, model=origin)
    for name, batches, origin in (
        ("encoder layer", (1, 2), "width 64, 4 heads, 16 tokens"),
        ("encoder of 2 layers", (2,), "width 64, 4 heads, 16 tokens"),
        ("encoder layer norm_first", (2,), "width 64, 4 heads, 16 tokens"),
        ("LSTMCell loop", (1, 8), "64 units, 32 steps"),
        ("LeNet", (1, 64), "scikit-learn's digits"),
        ("MLP", (1, 32), "64, 128, 128, 10 units"),
    )
    for batch in batches
)


def module(case: Case) -> nn.Module:
    return MODELS[case.shape.name][0]()


def inputs(case: Case) -> tuple[torch.Tensor]:
    return (torch.randn(MODELS[case.shape.name][1](case.shape.batch)),)


def ours(case: Case) -> nn.Module:
    import pyflash

    return pyflash.replace(module(case))


def bytes_(case: Case, mode: str) -> float:
    """Weights and input once."""
    with torch.device("meta"):
        return case.itemsize * float(sum(t.numel() for t in (*module(case).parameters(), *inputs(case))))


STORY = Story(
    limit="What is around the kernels: modules, checks, torch's dispatcher.",
    elsewhere="torch.compile removes most of that, for a compilation of seconds to a minute.",
    gaps=(TORCHS, Gap("", "what remains is Python, once for every module")),
)

OPERATION = Operation(
    name="small_models",
    cases=CASES,
    inputs=inputs,
    torch=module,
    pyflash=ours,
    flops=lambda case, mode: 0.0,
    bytes=bytes_,
    outputs_only=True,
)
