"""What a benchmark file declares: an Operation, its cases, and the providers that compete for them."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

import pyflash
from benchmarks import FILES, FOLDER, OPERATIONS
from benchmarks.limits import Work

# training is a forward and a backward in one; double-backward adds a backward through that backward, whose least work
# nobody has defined: `flops`, `bytes` and `exps` are not asked for it
MODES = ("forward", "backward", "training", "double-backward")
DTYPES = ("float32", "float64", "bfloat16", "float16")


@dataclass(frozen=True)
class Case:
    """One row of work.

    Args:
        shape: whatever the operation's functions read.
        modes: what is timed, of MODES.
        model: where the shape comes from.
        quick: also part of --quick.
        full: only part of --full.
        optimizer: training includes an AdamW step.
        small: of a case at a GPU's size, the shape that stands for it in Triton's interpreter; None runs on a GPU only.
    """

    name: str
    shape: Any
    modes: tuple[str, ...]
    dtype: str = "float32"
    model: str = ""
    quick: bool = False
    full: bool = False
    optimizer: bool = False
    small: Any = None

    @property
    def itemsize(self) -> int:
        return getattr(torch, self.dtype).itemsize

    def as_dtype(self, dtype: str) -> Case:
        """The same work in another dtype."""
        return replace(self, dtype=dtype)


@dataclass(frozen=True)
class Operation:
    """One benchmark file.

    Args:
        inputs: case -> tensors, float32 or integer, on the CPU; the harness casts and moves them.
        torch: case -> a function of those tensors, or a module: PyTorch's way, and in float64 the truth.
        pyflash: case -> the same with ours; the harness chooses the backend around the call.
        flops, bytes, exps: (case, mode) -> the least work one call has to do: floating-point operations, bytes read and
            written, values of exp. flops is None where nobody can say, and the row then has no limit.
        truth: for random operations, (case, bound) -> the float64 function that made the same random choices.
        peers: who else does this operation (peers.py); timed when asked for.
        providers: in place of PROVIDERS, torch first.
        outputs_only: what is compared in every mode: through a whole model gradients amplify each provider's rounding.
        gpu: cases at a GPU's sizes, one or more for each launcher of the Triton backend (tools/gpu/smoke.py).
        part: (case, inputs) -> fewer of them, of which torch makes the leading corner of every output and gradient; for
            what float64 has no room for.
        terms: case -> the terms of the longest sum that a result comes from, where `flops` does not say it as twice the products
            of an output: by so many roundings the truth, a float64 sum in an order of its own, differs from a float64 result.
    """

    name: str
    cases: tuple[Case, ...]
    inputs: Callable[[Case], tuple[torch.Tensor, ...]]
    torch: Callable[[Case], Callable]
    pyflash: Callable[[Case], Callable]
    flops: Callable[[Case, str], float | None]
    bytes: Callable[[Case, str], float]
    truth: Callable | None = None
    peers: tuple[Provider, ...] = ()
    providers: tuple[Provider, ...] = ()
    outputs_only: bool = False
    gpu: tuple[Case, ...] = ()
    part: Callable[[Case, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]] | None = None
    exps: Callable[[Case, str], float] = lambda case, mode: 0.0
    terms: Callable[[Case], int] = lambda case: 1

    def work(self, case: Case, mode: str) -> Work | None:
        flops = None if mode == "double-backward" else self.flops(case, mode)
        return None if flops is None else Work(flops, self.bytes(case, mode), self.exps(case, mode))


@dataclass(frozen=True)
class Provider:
    """Who computes: one of an Operation's two functions on one backend, or a function of the provider's own.

    A provider of its own is a name and `case -> function of the case's inputs`; what it cannot serve raises ImportError
    or NotImplementedError, when built or when called, and becomes an "unsupported" row.
    """

    name: str
    function: str | Callable[[Case], Callable]  # "torch", "pyflash", or its own
    backend: str = "auto"
    devices: tuple[str, ...] = ("cpu", "cuda")
    compiled: bool = False

    def build(self, operation: Operation, case: Case) -> Callable:
        build = getattr(operation, self.function) if isinstance(self.function, str) else self.function
        function = build(case)
        if not self.compiled:
            return function
        # Cases whose functions have one code share its recompilations, of which torch allows eight: the rest would run uncompiled.
        torch.compiler.reset()
        return torch.compile(function)

    def scope(self) -> contextlib.AbstractContextManager:
        """The backend this provider asks for; "auto" also where the environment wishes another."""
        return pyflash.use_backend(self.backend) if self.function == "pyflash" else contextlib.nullcontext()


PROVIDERS = {
    provider.name: provider
    for provider in (
        Provider("torch", "torch"),
        Provider("torch.compile", "torch", compiled=True),
        Provider("pyflash", "pyflash"),
        Provider("pyflash:cpu", "pyflash", "cpu", devices=("cpu",)),
        Provider("pyflash:triton", "pyflash", "triton", devices=("cuda",)),
    )
}


def gpu_case(name: str, shape: Any, small: Any, *modes: str, dtype: str = "bfloat16") -> Case:
    return Case(name, shape, modes, dtype, small=small)


def module_of(name: str):
    """The file of an operation: OPERATION, STORY for what its figures cannot say, and POINTS."""
    parts = FILES[name].relative_to(FOLDER).with_suffix("").parts
    return importlib.import_module(".".join(("benchmarks", "operations", *parts)))


def load(name: str) -> Operation:
    return module_of(name).OPERATION


# ---- what `python -m benchmarks auto` measures (auto.py): a file says as POINTS, for each name that it stands for in the
# tables of `auto`, (kind, sizes) -> (the operation, the shape of a case)

ROW = 1024  # elements of one, where a rule asks for elements alone


def in_rows(elements: int) -> tuple[int, int]:
    return elements // ROW, ROW


def points() -> dict[str, Callable[[str, tuple[int, ...]], tuple[Operation, Any]]]:
    found: dict = {}
    for name in OPERATIONS:
        of_file = getattr(module_of(name), "POINTS", {})
        twice = found.keys() & of_file.keys()
        if twice:
            raise ValueError(f"{name}: another file has points of {', '.join(twice)}")
        found |= of_file
    return found


def in_dtype(cases: tuple[Case, ...], dtype: str | None) -> list[Case]:
    """All cases in one dtype; those declared in it win over a copy of the same name."""
    if dtype is None:
        return list(cases)
    declared = {case.name for case in cases if case.dtype == dtype}
    return [
        case if case.dtype == dtype else case.as_dtype(dtype)
        for case in cases
        if case.dtype == dtype or case.name not in declared
    ]


def select(
    operations: list[str],
    *,
    dtype: str | None = None,
    mode: str | None = None,
    quick: bool = False,
    full: bool = False,
    only: str | None = None,
) -> list[tuple[Operation, Case, str]]:
    """The (operation, case, mode) triples that these filters leave, in the order the files declare them."""
    rows = []
    for operation in map(load, operations or OPERATIONS):
        for case in in_dtype(operation.cases, dtype):
            if (quick and not case.quick) or (case.full and not full):
                continue
            if only and only.lower() not in f"{operation.name} {case.name}".lower():
                continue
            modes = [one for one in MODES if one in case.modes]
            if mode is not None:  # whoever trains can also be asked for its backward alone
                modes = [mode] if mode in modes or (mode != "forward" and modes != ["forward"]) else []
            rows += [(operation, case, one) for one in modes]
    return rows
