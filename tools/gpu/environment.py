"""What the machine has, used as it is: nothing is installed, what is missing is left out and said."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from tools.gpu import BUILD, ROOT

# module -> what is left out without it
OPTIONAL = {
    "pytest": "all tests",
    "xdist": "tests side by side",
    "hypothesis": "tests that draw their cases",
    "expecttest": "torch's operation database",
    "rich": "the progress bar",
    "matplotlib": "pictures",
}

# Found before anything else is imported, in this process and those it starts: kernels/ is pyflash.kernels here, as an
# installation would have it. Another sitecustomize further down the path still runs.
SITE = '''"""Written by tools/gpu: kernels/ is imported as pyflash.kernels."""
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

KERNELS = Path({kernels!r})


class Kernels:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "pyflash.kernels":
            return spec_from_file_location(name, KERNELS / "__init__.py", submodule_search_locations=[str(KERNELS)])


sys.meta_path.insert(0, Kernels)
here = str(Path(__file__).parent)
other = PathFinder.find_spec("sitecustomize", [entry for entry in sys.path if entry != here])
if other is not None and other.loader is not None:
    other.loader.exec_module(module_from_spec(other))
'''


# What `make gpu-cache` compiled elsewhere, and where it is found: the same absolute path on both machines, since Triton's
# group files hold such paths.
ARCHIVE = BUILD / "triton-cache.tar.xz"
CACHE = Path("/tmp/pyflash-triton-cache")


@dataclass
class Environment:
    """How the parts are started.

    Args:
        device: "cuda", or "interpreter" to run the same without one.
        gpu: its name; "interpreter" without one.
        left_out: one line a thing.
    """

    device: str
    gpu: str = "interpreter"
    arch: str = "interpreter"
    capability: int = 0  # of compute, without its dot
    facts: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    workers: int = min(16, os.cpu_count() or 1)  # that tests run side by side

    def has(self, module: str) -> bool:
        return find_spec(module) is not None

    def run(self, *command: str, **settings) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, *command], cwd=ROOT, env=self.variables, text=True, **settings)


PROBE = """
import json, platform, torch, triton
cuda = torch.cuda.is_available()
print(json.dumps(dict(
    gpu=torch.cuda.get_device_name() if cuda else "", capability=torch.cuda.get_device_capability() if cuda else (),
    memory=torch.cuda.get_device_properties(0).total_memory if cuda else 0,
    torch=torch.__version__, cuda=str(torch.version.cuda), triton=triton.__version__, python=platform.python_version(),
)))
"""


def prepare(device: str) -> Environment:
    """Raises RuntimeError, in one line, where nothing can be done here."""
    here = Environment(device)
    here.variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    here.variables = with_site(here.variables) | {"PYTHONUNBUFFERED": "1"}
    if device == "interpreter":
        here.variables["TRITON_INTERPRET"] = "1"
    probe = here.run("-c", PROBE, capture_output=True)
    if probe.returncode:
        raise RuntimeError(f"{sys.executable} cannot import torch and triton: {probe.stderr.strip().splitlines()[-1]}")
    facts = json.loads(probe.stdout.splitlines()[-1])
    if device == "cuda":
        if not facts["gpu"]:
            raise RuntimeError("torch sees no CUDA device; DEVICE=interpreter runs the same steps without one")
        here.gpu, here.arch = facts["gpu"], arch(here, facts["capability"])
        here.capability = int("".join(map(str, facts["capability"])))
        here.variables.setdefault("TRITON_CACHE_DIR", str(CACHE))
        unpack(ARCHIVE, CACHE)
        facts["driver"] = driver()
    here.facts = {name: str(value) for name, value in facts.items() if name not in ("gpu", "capability")}
    here.left_out = [f"{what} ({module} is not installed)" for module, what in OPTIONAL.items() if not here.has(module)]
    why = build(here)
    if why:
        here.left_out.append(f"the native module ({why})")
    return here


def arch(here: Environment, capability) -> str:
    code = f"from pyflash.kernels import tuning; print(tuning.arch_of({tuple(capability)}))"
    return here.run("-c", code, capture_output=True, check=True).stdout.strip()


def driver() -> str:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.split("\n")[0].strip()
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"


def unpack(archive: Path, cache: Path) -> None:
    """Kernels compiled elsewhere. Of another Triton, Python or source none of them is found, and nothing breaks."""
    if archive.exists() and not cache.exists():
        with tarfile.open(archive) as content:
            content.extractall("/", filter="data")


def with_site(variables: Mapping[str, str]) -> dict[str, str]:
    """The same, and kernels/ is found as pyflash.kernels."""
    path = [write_site(), *filter(None, variables.get("PYTHONPATH", "").split(os.pathsep))]
    return {**variables, "PYTHONPATH": os.pathsep.join(dict.fromkeys(path))}


def write_site() -> str:
    """The folder that goes on PYTHONPATH."""
    folder = BUILD / "site"
    folder.mkdir(parents=True, exist_ok=True)
    text = SITE.format(kernels=str(ROOT / "kernels"))
    file = folder / "sitecustomize.py"
    if not file.exists() or file.read_text() != text:
        unfinished = file.with_suffix(f".{os.getpid()}")
        unfinished.write_text(text)
        unfinished.replace(file)
    return str(folder)


def build(here: Environment) -> str:
    """Builds the native module in place where it is not current; why there is none, or ""."""
    if is_current():
        return ""
    if os.environ.get("PYFLASH_NO_NATIVE", "0") == "1":
        return "PYFLASH_NO_NATIVE=1"
    importlib.invalidate_caches()
    if not here.has("setuptools"):
        return "setuptools is not installed"
    if shutil.which("g++") is None and shutil.which("c++") is None:
        return "there is no C++ compiler"
    print("building the native module", flush=True)
    log = BUILD / "build.log"
    with log.open("w") as output:
        if here.device == "cuda" and shutil.which("nvcc"):
            here.variables.setdefault("PYFLASH_CUDA_ARCHS", f"host {here.capability}")
        done = here.run("setup.py", "-q", "build_ext", "--inplace", stdout=output, stderr=subprocess.STDOUT)
    check = here.run("-c", "import pyflash._cpu", capture_output=True)
    if done.returncode or check.returncode:
        return f"it did not build, see {log.relative_to(ROOT)}"
    return ""


def is_current() -> bool:
    """Is there a module for this Python, newer than everything it is built from?"""
    from importlib.machinery import EXTENSION_SUFFIXES

    modules = [path for suffix in EXTENSION_SUFFIXES if (path := ROOT / "pyflash" / f"_cpu{suffix}").exists()]
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()] + [ROOT / "setup.py"]
    return bool(modules) and modules[0].stat().st_mtime >= max(path.stat().st_mtime for path in sources)


def results_folder(here: Environment) -> Path:
    """benchmarks/results/<gpu>; results without a GPU are nobody's and stay in build/."""
    if here.device == "interpreter":
        return BUILD / "results"
    name = "-".join(here.gpu.lower().replace("/", " ").split())
    return ROOT / "benchmarks" / "results" / name
