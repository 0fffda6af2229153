"""A training step that pyflash.diagnostics.gradient_flow watches, against the same step of the same torch.nn model alone: the ratio is
what watching costs."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from benchmarks.known import Gap, Story
from benchmarks.operation import Case, Provider
from benchmarks.operations.models import transformer
from benchmarks.operations.models.transformer import DEMO, Shape

CASES = (
    Case("step 4 layers, no dropout", Shape("encoder", **DEMO), ("training",), optimizer=True,
         model="the demo: B16 S256 d256 h8 ffn1024, causal, AdamW"),
    Case("step 1 layer B4", Shape("encoder", **(DEMO | {"batch": 4, "layers": 1})), ("training",), quick=True, optimizer=True,
         model="a quarter of a layer's tokens"),
)  # fmt: skip


def watched(case: Case) -> nn.Module:
    """The hooks stay as long as the model does, and hold what they record."""
    from pyflash.diagnostics import gradient_flow

    model = transformer.module(case)
    gradient_flow(model).__enter__()
    return model


STORY = Story(
    limit="The step's own: what is watched is read once more, in a pass over each tensor.",
    elsewhere="hooks of one's own take torch a pass for each number: a norm, a mean, a count of zeros.",
    gaps=(Gap("", "watching costs a pass over each activation and each gradient: at most 15% is what the rows allow"),),
)

OPERATION = replace(
    transformer.OPERATION,
    name="gradient_flow",
    cases=CASES,
    gpu=(),  # a whole model launches what the others do
    outputs_only=True,
    pyflash=watched,
    providers=(Provider("torch", "torch"), Provider("pyflash", "pyflash")),
)
