"""What `inspect` says of CUDA C++ kernels: the committed table of tools/cuda_kernels.py, which nvcc alone makes anew, and how
many blocks a multiprocessor holds at once by it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks import occupancy

TABLE = Path(__file__).resolve().parent / "results" / "ptxas.json"


class Kernel(NamedTuple):
    """A row of the table, of an architecture; its columns are those of tools/cuda_kernels.py."""

    arch: int
    registers: int
    shared: int
    spilled: int
    threads: int
    promised: int
    is_dynamic: int

    @property
    def blocks(self) -> int:
        """That a multiprocessor holds; at most, where the launch asks for more shared memory (`is_dynamic`)."""
        return occupancy.blocks(self.arch, self.registers, self.shared, self.threads)

    @property
    def share(self) -> float:
        return occupancy.share(self.arch, self.registers, self.shared, self.threads)

    def __str__(self) -> str:
        most = "<=" if self.is_dynamic else "="
        return (
            f"registers={self.registers} shared={self.shared}{'+' * self.is_dynamic} spilled={self.spilled}"
            f" threads={self.threads} blocks{most}{self.blocks} occupancy{most}{self.share:.0%}"
        )


def kernels() -> Iterator[tuple[str, str, dict[str, Kernel]]]:
    """("sm_90", family, {name: kernel}), one after another."""
    for arch, families in json.loads(TABLE.read_text())["kernels"].items():
        for family, rows in families.items():
            yield arch, family, {name: Kernel(int(arch.removeprefix("sm_")), *row) for name, row in rows.items()}


def lines(names: Iterable[str] = ()) -> Iterator[str]:
    """A line for each kernel with one of these in "cuda family kernel sm_90"; without names one for each family."""
    names = tuple(names)
    for arch, family, found in kernels():
        if not names:
            most = " ".join(
                f"{c}<={max(getattr(k, c) for k in found.values())}" for c in ("registers", "shared", "spilled")
            )
            known = [kernel.share for kernel in found.values() if not kernel.is_dynamic]
            more = f", of {len(found) - len(known)} by what the launch asks for" if len(known) < len(found) else ""
            yield f"cuda {family} {arch}: {len(found)} kernels {most} occupancy>={min(known):.0%}{more}"
        for name, kernel in found.items():
            title = f"cuda {family} {name} {arch}"
            if any(part in title for part in names):
                yield f"{title} {kernel}"
