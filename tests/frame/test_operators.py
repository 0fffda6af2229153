"""Every operator keeps the rules of torch.library: schema, aliasing, fake tensors, tracing. A family's tests/<family>/operators.py
has the arguments, of each operator one row or more."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import torch

import pyflash.functional
import pyflash.ops.recurrent.operators  # noqa: F401  registers the operators
from pyflash.ops.core.registry import OPS

ROWS = {}
for file in sorted(Path(__file__).parents[1].glob("*/operators.py")):
    ROWS.update(import_module(f"tests.{file.parent.name}.operators").OPERATORS)


def test_every_operator_has_a_row():
    assert set(ROWS) == set(OPS)


@pytest.mark.parametrize("backend", ["cpu", pytest.param("torch", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ROWS)
def test_operators_keep_torchs_rules(name, backend):
    if backend not in (*OPS[name].kernels, "torch"):
        pytest.skip(f"no {backend} kernel")
    for args in ROWS[name]():
        torch.library.opcheck(getattr(torch.ops.pyflash, name).default, (*args, backend))
