"""The CPU core on both compilers."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OMP = "int omp_get_thread_num(void);\nint omp_get_num_threads(void);\n"  # for a clang that comes without libomp


def build():
    """setup.py as a module: what is compiled, and how."""
    spec = importlib.util.spec_from_file_location("native_build", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        spec.loader.exec_module(module)
        return module
    finally:
        os.chdir(before)


def clang():
    """A clang to call: that of the system, or of the package `ziglang`, which knows where its own headers are only when
    it is told."""
    if shutil.which("clang++"):
        return ["clang++"]
    ziglang = importlib.util.find_spec("ziglang")
    if ziglang is None:
        pytest.skip("neither clang++ nor the package ziglang is here")
    headers = (Path(ziglang.origin).parent / "lib/include", "/usr/include", "/usr/include/x86_64-linux-gnu")
    return [
        *(sys.executable, "-m", "ziglang", "clang", "-x", "c++", "--target=x86_64-linux-gnu", "-nostdinc"),
        *(f"-isystem{path}" for path in headers),
    ]


@pytest.mark.parametrize("isa", list(build().X86_FLAGS))
def test_clang_takes_every_instruction_set(isa, tmp_path):
    """Every template is instantiated, no code is made."""
    compiler, native = clang(), build()
    (tmp_path / "omp.h").write_text(OMP)
    flags = [
        "-std=c++17",
        "-fopenmp",
        *native.KERNEL_FLAGS,
        *native.X86_FLAGS[isa],
        "-Werror",
        "-idirafter",
        str(tmp_path),
    ]
    source = ROOT / "csrc/cpu/isa" / f"{isa}.cpp"
    done = subprocess.run([*compiler, *flags, "-fsyntax-only", str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
