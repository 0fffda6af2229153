"""models -> nn -> ops -> {kernels, csrc}; replace and cli on top; activations a leaf. And what an import may cost."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pyflash

pytestmark = pytest.mark.host

ROOT = Path(pyflash.__file__).parent
MAY_IMPORT = {  # package or module: what of pyflash it may import
    "kernels": {"kernels"},
    "activations": set(),
    "losses": set(),
    "auto": {"auto", "activations", "_cpu"},
    "ops": {"ops", "auto", "activations", "losses", "kernels", "_cpu", "_cuda", "_cuda_host"},
    "functional": {"ops"},
    "nn": {"nn", "functional", "ops", "activations"},
    "overrides": {"functional", "nn", "ops"},
    "optim": {"optim", "ops"},
    "models": {"models", "nn", "functional", "show"},
    "show": set(),
    "diagnostics": {"diagnostics", "ops", "show"},
    "_observe": {"nn", "ops"},
    "_calls": set(),
    "_fastest": {"_calls", "_observe", "nn", "ops", "auto", "show"},
    "replace": {"nn", "ops", "_observe", "_fastest"},
    "integrations": {"integrations", "functional", "nn", "ops", "activations"},
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


FAMILIES = {  # in ops and kernels: the other families that one may import from, for matrix products and what is fused to them
    "embedding": set(),
    "gan": {"conv", "linear", "pointwise"},  # a modulated convolution is made of them, and bias_act follows it
    "pointwise": set(),
    "norm": {"pointwise"},
    "linear": {"pointwise"},
    "loss": {"linear"},  # whose results linear_cross_entropy is of
    "attention": {"linear", "pointwise"},
    "conv": {"linear", "pointwise"},
    "optim": set(),
    "pool": set(),
    "recurrent": {"linear", "pointwise"},
    "resample": {"pool"},  # interpolation by area is adaptive average pooling
    "softmax": set(),
    "statistics": set(),
}


@pytest.mark.parametrize("layer", ["ops", "kernels"])
def test_families_meet_in_core_only(layer):
    folder = ROOT.parent / "kernels" if layer == "kernels" else ROOT / "ops"
    names = {path.name for path in folder.iterdir() if path.is_dir() and list(path.glob("*.py"))} - {"core"}
    assert names <= FAMILIES.keys()
    wrong = []
    for path in folder.rglob("*.py"):
        family = path.relative_to(folder).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            parts = [module] if module else [a.name for a in node.names] if isinstance(node, ast.Import) else []
            parts += [f"{module}.{a.name}" for a in node.names] if module == f"pyflash.{layer}" else []
            for part in parts:
                other = part.removeprefix(f"pyflash.{layer}.").split(".")[0]
                if part.startswith(f"pyflash.{layer}.") and other in FAMILIES.keys() - {family}:
                    if family == "core" or other not in FAMILIES.get(family, FAMILIES.keys()):
                        wrong.append(f"{path}:{node.lineno}: {part}")
    assert not wrong, "\n".join(wrong)


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_importing_pyflash_brings_nothing_heavy_and_starts_no_device():
    """What it takes is a row of the benchmarks, not of a test: a busy machine takes longer."""
    code = """
import sys, torch
before = set(sys.modules)
import pyflash
print(torch.cuda.is_initialized(), *(set(sys.modules) - before))
"""
    started, *modules = run_python(code).split()
    assert started == "False"
    packages = {name.partition(".")[0] for name in modules} - sys.stdlib_module_names
    assert packages <= {"pyflash", "torch"}
    heavy = ("torch._dynamo", "torch._inductor", "torch.onnx", "torch.testing", "torch.utils.flop_counter")
    assert not [name for name in modules if name.startswith(heavy)]
