"""What the tests of the benchmark machinery share: a machine, and an operation that takes no time."""

from dataclasses import dataclass

import torch

from benchmarks import harness, machine
from benchmarks.harness import Effort
from benchmarks.operation import PROVIDERS, Case, Operation
from benchmarks.rows import Row

HERE = machine.Machine(
    device="cpu", cpu="a processor", isa="avx512", threads=2, python="3", torch="2", pyflash="0", commit="abc",
    date="2026-01-01", clean_samples="run-queue delay", peak_flops={"float32": 1e12}, bandwidth=1e10,
)  # fmt: skip
FEW = Effort(clean=1, seconds=0.0)


@dataclass(frozen=True)
class Numel:
    numel: int


def doubling(ours, *, shape=Numel(64), **settings) -> tuple[Operation, Case]:
    """An operation whose truth is 2 * x, done our way."""
    case = Case("64", shape, ("forward", "training"), **settings)
    operation = Operation(
        name="doubling",
        cases=(case,),
        inputs=lambda case: (torch.randn(case.shape.numel),),
        torch=lambda case: lambda x: 2 * x,
        pyflash=lambda case: ours,
        flops=lambda case, mode: 1e6,
        bytes=lambda case, mode: 2 * case.shape.numel * case.itemsize,
    )
    return operation, case


def outcome(ours, mode="forward", **settings) -> Row:
    operation, case = doubling(ours, **settings)
    providers = [PROVIDERS["torch"], PROVIDERS["pyflash"]]
    return harness.run_case(operation, case, mode, providers, HERE, effort=FEW)[1]
