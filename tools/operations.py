"""The table of operations in docs/operations.md, from the registry: `python tools/operations.py [--check]`."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch

import pyflash.functional
import pyflash.nn  # noqa: F401  (whose modules register themselves)
from pyflash.nn._twins import ASKS_FOR
from pyflash.ops.core.backends import OPERATIONS, ORDER, Operation
from pyflash.ops.core.dtypes import FLOATS
from pyflash.ops.core.public import STANDS_FOR
from pyflash.optim.replace import OURS

PATH = Path(__file__).resolve().parent.parent / "docs" / "operations.md"
SHORT = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16", torch.float16: "f16"}
HEAD = """# Operations

Generated from the registry by `make generate`; `python -m pyflash explain` says the same of the machine it runs on, and what
`auto` has measured there.

`all`: float32, float64, bfloat16 and float16. The first derivative of an operation is a kernel of the same backend and types. A second derivative "in kernels" is made of our operators again; one "in torch operations" differentiates the same formula
as torch does. What no kernel serves runs through torch, visibly.

"""


def types_of(operation: Operation, backend: str) -> str:
    served = operation.dtypes.get(backend, ())
    return "all" if set(served) == set(FLOATS) else " ".join(SHORT[dtype] for dtype in served) or "–"


# Operations that a public function of another name asks for.
ASKED_BY = {"attention": "scaled_dot_product_attention", "gelu_tanh": "gelu"}


def names_in(function) -> set[str]:
    """The names of a function of ours: those of what it binds, where it is a partial."""
    if isinstance(function, partial):
        return names_in(function.func).union(*(names_in(arg) for arg in function.args if callable(arg)))
    return {function.__name__}


def _name(cls: type) -> str:
    """As it is reached in torch: one that only a function makes by the function's file."""
    return cls.__module__.removeprefix("pyflash.") if cls.__name__.startswith("_") else f"nn.{cls.__name__}"


def torchs(operation: str) -> str:
    """The functions of torch's that `overrides` sends here, by their names, and the modules that ask for the operation."""
    wanted = ASKED_BY.get(operation, operation)
    functions = {function.__name__.lstrip("_") for function, ours in STANDS_FOR.items() if wanted in names_in(ours)}
    modules = {_name(cls) for cls, operations in ASKS_FOR.items() if operation in operations}
    modules |= {f"optim.{cls.__name__}" for cls, ours in OURS.items() if ours.rule == operation}
    return ", ".join(f"`{name}`" for name in sorted(functions) + sorted(modules)) or "–"


def rendered() -> str:
    backends = [name for name in ORDER if any(name in operation.dtypes for operation in OPERATIONS.values())]
    lines = [
        "| operation | stands for torch's | " + " | ".join(backends) + " | second derivative |",
        "| --- |" * 1 + " --- |" * (len(backends) + 2),
    ]
    for name, operation in sorted(OPERATIONS.items()):
        cells = [types_of(operation, backend) for backend in backends]
        lines.append("| " + " | ".join([f"`{name}`", torchs(name), *cells, operation.second_derivative]) + " |")
    return HEAD + "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail when the file is not what the registry gives"
    )
    if parser.parse_args().check:
        is_stale = not PATH.exists() or PATH.read_text() != rendered()
        print("stale docs/operations.md" if is_stale else "", end="\n" if is_stale else "")
        return int(is_stale)
    PATH.write_text(rendered())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
