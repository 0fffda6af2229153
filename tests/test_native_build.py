"""The CPU core on both compilers."""

import importlib.util
import os
import re
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
        f"-DPF_ISA={isa}",
        *native.X86_FLAGS[isa],
        "-Werror",
        "-idirafter",
        str(tmp_path),
    ]
    source = tmp_path / "all.cpp"
    source.write_text("".join(f'#include "{path}"\n' for path in sorted(ROOT.glob("csrc/cpu/*/kernels.cpp"))))
    done = subprocess.run([*compiler, *flags, "-fsyntax-only", str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_object_is_made_again_when_what_it_includes_changed(tmp_path):
    """By the compiler's own list: a header of one family concerns the objects of no other."""
    is_current = build().is_current
    source, header, target = tmp_path / "kernels.cpp", tmp_path / "tile.h", tmp_path / "kernels.o"
    for path in (source, header, target):
        path.write_text("")
    target.with_suffix(".d").write_text(f"{target}: {source} \\\n {header}\n")
    target.with_suffix(".command").write_text("g++ -O3")
    for path in (source, header):
        os.utime(path, (1, 1))
    assert is_current(target, "g++ -O3")
    assert not is_current(target, "g++ -O2")
    os.utime(header)
    os.utime(target, (2, 2))
    assert not is_current(target, "g++ -O3")
    header.unlink()
    assert not is_current(target, "g++ -O3")
    target.with_suffix(".d").unlink()
    assert not is_current(target, "g++ -O3")


def test_families_include_what_lies_below_them():
    """simd <- core <- gemm <- the families, which use each other only for products and for epilogues."""
    shared = {"simd": set(), "core": {"simd"}, "gemm": {"simd", "core"}}
    for path in sorted(ROOT.glob("csrc/cpu/*/*")):
        family = path.parent.name
        may = shared.get(family, {"simd", "core", "gemm", "linear", "pointwise"}) | {family, "common"}
        for name in re.findall(r'^#include "(.*)"', path.read_text(), re.MULTILINE):
            included = (path.parent / name).resolve()
            assert included.is_file(), f"{path} includes {name}"
            assert included.parent.name in may, f"{path} includes {name}"
