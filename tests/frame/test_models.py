"""Whole models of the suite: the same outputs after replace and with overrides; nothing of a model is left without use."""

import pytest
import torch

from benchmarks.check import Reference
from benchmarks.operation import Case
from benchmarks.operations.models import models


def case_of(name: str, mode: str) -> Case:
    return Case(name, models.Shape(name, 2), {mode: None}, optimizer=mode == "training")


@pytest.mark.parametrize("name", models.MODELS)
def test_outputs_are_torchs(name):
    case = case_of(name, "forward")
    try:
        reference = Reference(models.OPERATION, case, "forward", "cpu")
    except ImportError as missing:
        pytest.skip(f"{name}: {missing}")
    for provider in models.OPERATION.providers:
        if not provider.compiled and provider.name != "torch":
            reference.check(reference.bind(reference.build(lambda case, p=provider: p.build(models.OPERATION, case))))


def test_a_parameter_without_use_is_frozen(monkeypatch):
    """autograd.grad refuses what an answer does not depend on."""

    class Idle(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)

        def forward(self, x):
            return self.used(x.mean((-1, -2)))

    monkeypatch.setitem(models.MODELS, "idle", (models._timm("idle"), models.PICTURE, ""))
    whole = models.Whole(Idle(), models.PICTURE)
    models.freeze_unused(whole, case_of("idle", "training"))
    assert [p.requires_grad for p in whole.parameters()] == [True, True, False, False]
    assert all(p.grad is None for p in whole.parameters())
