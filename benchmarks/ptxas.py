"""What `inspect` says of CUDA C++ kernels: the committed table of tools/cuda_kernels.py, which nvcc alone makes anew."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

TABLE = Path(__file__).resolve().parent / "results" / "ptxas.json"


def lines(names: Iterable[str] = ()) -> Iterator[str]:
    """A line for each kernel with one of these in "cuda family kernel sm_90"; without names one for each family."""
    table = json.loads(TABLE.read_text())
    columns, names = table["columns"], tuple(names)
    for arch, families in table["kernels"].items():
        for family, kernels in families.items():
            if not names:
                most = (max(column) for column in zip(*kernels.values()))
                said = " ".join(f"{name}<={value}" for name, value in zip(columns, most))
                yield f"cuda {family} {arch}: {len(kernels)} kernels {said}"
            for kernel, row in kernels.items():
                title = f"cuda {family} {kernel} {arch}"
                if any(name in title for name in names):
                    yield f"{title} " + " ".join(f"{name}={value}" for name, value in zip(columns, row))
