"""The kernel benchmarks: `python -m benchmarks list`, `python -m benchmarks run attention linear`.

Each operation is one file declaring an `Operation` (operation.py): its cases, torch's way, ours, and what a call
costs in FLOPs and bytes. The harness checks every provider against float64 before it times it.
"""

import os
import sys
from pathlib import Path

# Two OpenMP threads left unbound were seen on one core for seconds after an idle phase, which halves every figure.
# The runtime reads this once, when torch loads it; too late to matter if torch is already there, as in the tests.
if "torch" not in sys.modules:
    os.environ.setdefault("OMP_PROC_BIND", "true")

# Each file below operations/ is one, by its name, but for what files share: _*.py.
FOLDER = Path(__file__).parent / "operations"
FILES = {path.stem: path for path in sorted(FOLDER.rglob("[!_]*.py"))}
OPERATIONS = tuple(FILES)
# The name of a folder stands for all that is in it, whether one of them is called so or not.
FAMILIES = {
    folder.name: tuple(name for name, path in FILES.items() if path.parent == folder)
    for folder in sorted({path.parent for path in FILES.values()} - {FOLDER})
}
