"""Tests of the CUDA C++ kernels, on the host, under a sanitizer: `python -m tools.sanitize address`, or thread, and what pytest
shall take ("tests/conv", "-k float16", "-n 4"; without any, all tests of the backend cuda).

The twin pyflash._cuda_host is compiled for it into build/sanitize/<lane>. Its runtime must be in a process before anything else is:
Python is started with it, and imports that twin instead of the one of the checkout, which stays as it is. Each finding
ends the process of the test that caused it, which pytest-xdist names, and is printed at the end."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Lane(NamedTuple):
    libraries: tuple[str, ...]  # of the compiler, in this order
    options: dict[str, str]  # of their own variables
    prefix: tuple[str, ...] = ()


# Of Python and torch nothing is compiled for a sanitizer; leaks are theirs to answer for.
LANES = {
    "address": Lane(
        ("libasan.so", "libubsan.so", "libstdc++.so"),
        {"ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0", "UBSAN_OPTIONS": "print_stacktrace=1"},
    ),
    # The addresses of shared arrays come again; and its shadow wants addresses that are not random.
    "thread": Lane(("libtsan.so",), {"TSAN_OPTIONS": "suppress_equal_addresses=0"}, ("setarch", "-R")),
}


def environment(lane: Lane, **options: str) -> dict[str, str]:
    """Variables of a process that loads something compiled for this sanitizer, with more options for it."""

    def path(library):
        asked = subprocess.run(["g++", f"-print-file-name={library}"], capture_output=True, text=True, check=True)
        return asked.stdout.strip()

    more = "".join(f":{name}={value}" for name, value in options.items())
    return {"LD_PRELOAD": " ".join(map(path, lane.libraries))} | {
        name: value + more for name, value in lane.options.items()
    }


# ---- in the process of the tests, which takes this file for a plugin of pytest

MODULE = "PYFLASH_SANITIZED_MODULE"


class _Twin:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return (
            importlib.util.spec_from_file_location(name, os.environ[MODULE]) if name == "pyflash._cuda_host" else None
        )


def pytest_load_initial_conftests():
    sys.meta_path.insert(0, _Twin)  # type: ignore[arg-type]


# ---- in that which starts them


def build(name: str) -> Path:
    """The twin for this lane; what has not changed is not compiled again."""
    folder = ROOT / "build" / "sanitize" / name
    command = [sys.executable, "setup.py", "-q", "build_ext", f"--build-lib={folder}", f"--build-temp={folder}"]
    variables = {"PYFLASH_CUDA_SANITIZE": name, "PYFLASH_CUDA_ARCHS": "host", "PYFLASH_REQUIRE_NATIVE": "1"}
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | variables)
    return next((folder / "pyflash").glob("_cuda_host*.so"))


def run(name: str, arguments: list[str]) -> int:
    lane, module = LANES[name], build(name)
    reports = module.parents[1] / "reports"
    reports.mkdir(exist_ok=True)
    for old in reports.iterdir():
        old.unlink()
    # One order of threads: none of these depends on it. It copies eagerly, so that a stage written too soon is a race.
    variables = environment(lane, log_path=str(reports / "of"), halt_on_error="1") | {
        MODULE: str(module),
        "PYFLASH_CUDA_HOST": "1",
        "PYFLASH_TEST_ISA": "best",
        "OMP_NUM_THREADS": "1",
    }
    chosen = arguments if any("tests" in word for word in arguments) else ["tests", *arguments]
    command = [
        *lane.prefix,
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tools.sanitize",
        "-n",
        "auto",
        "-m",
        "cuda",
        *chosen,
    ]
    status = subprocess.run(command, cwd=ROOT, env=os.environ | variables).returncode
    found = [path.read_text(errors="replace") for path in sorted(reports.iterdir())]
    for text in found:
        print(re.sub(r"^\s+#\d+ .*(?:/python|/libpython|/libtorch).*\n", "", text, flags=re.MULTILINE))
    print(f"sanitize {name}: {len(found)} findings")
    return status or int(bool(found))


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in LANES:
        raise SystemExit(__doc__)
    raise SystemExit(run(sys.argv[1], sys.argv[2:]))
