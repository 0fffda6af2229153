"""models -> nn -> ops -> {kernels, csrc}; replace and cli on top; activations a leaf. And what an import may cost."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pyflash

ROOT = Path(pyflash.__file__).parent
MAY_IMPORT = {  # package or module: what of pyflash it may import
    "kernels": {"kernels"},
    "activations": set(),
    "auto": {"auto", "_cpu"},
    "ops": {"ops", "auto", "activations", "kernels", "_cpu"},
    "functional": {"ops"},
    "nn": {"nn", "functional", "ops"},
    "overrides": {"functional"},
    "models": {"models", "nn", "functional"},
    "replace": {"nn", "ops"},
}


def imports(path: Path):
    """(line, part of pyflash) of every import of a file, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "pyflash":
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pyflash."):
            yield node.lineno, node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, a.name.split(".")[1]) for a in node.names if a.name.startswith("pyflash."))
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}:{node.lineno}: relative import"


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_nothing_imports_upward(part):
    folder = ROOT.parent / "kernels" if part == "kernels" else ROOT / part
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [p for p in [folder.with_suffix(".py")] if p.exists()]
    wrong = [f"{f}:{line}: {what}" for f in files for line, what in imports(f) if what not in MAY_IMPORT[part]]
    assert not wrong, "\n".join(wrong)


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_importing_pyflash_loads_no_triton_and_starts_no_device():
    code = "import sys, torch; import pyflash; print('triton' in sys.modules, torch.cuda.is_initialized())"
    assert run_python(code).split() == ["False", "False"]


def test_importing_pyflash_is_quick():
    """Under 100 ms of processor time after torch, the best of three."""
    code = "import time, torch; t = time.process_time(); import pyflash; print(time.process_time() - t)"
    assert min(float(run_python(code)) for _ in range(3)) < 0.1
