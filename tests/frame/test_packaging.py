"""What setuptools makes of the tree: the source distribution and the wheel."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import zipfile
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def source(tmp_path):
    """A copy of the repository: setuptools writes into the tree that it builds from."""
    ignored = shutil.ignore_patterns(".git", ".venv*", "build", "*.so", "*.egg-info", "__pycache__")
    return shutil.copytree(ROOT, tmp_path / "source", ignore=ignored)


def skip_without(*packages):
    for needed in packages:
        # Not importlib.util.find_spec: setuptools sees a search for pip and from then on leaves distutils to Python, which
        # its own import in this process does not survive. torch.compile is one to import it.
        if PathFinder.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")


def test_the_source_distribution_holds_what_a_build_reads(source, tmp_path):
    """A missing header would be no error: the native module is optional, and its absence silent."""
    skip_without("setuptools")
    command = [sys.executable, "setup.py", "-q", "sdist", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        held = {name.partition("/")[2] for name in files.getnames()}
    read = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    assert read and not read - held
    tables = {str(path.relative_to(ROOT)) for path in (ROOT / "pyflash/auto/tables").glob("*.json")}
    assert not tables - held


def planned(target, tmp_path) -> str:
    """What make would run, in a checkout where nothing is installed."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    command = ["make", "-n", f"VENV={tmp_path / 'venv'}", target]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.replace(str(tmp_path), "")


def test_the_demo_installs_and_builds_only_what_it_needs(tmp_path):
    demo, tests = planned("demo", tmp_path), planned("test", tmp_path)
    unneeded = ("pytest", "hypothesis", "ruff", "clang-format", "rich", " triton")
    assert not [word for word in unneeded if word in demo] and all(word in tests for word in unneeded)
    assert "torch" in demo and "-m pyflash demo" in demo
    assert "PYFLASH_BUILD_ISA= " in tests  # every instruction set; of the demo this processor's
    if "avx2" in Path("/proc/cpuinfo").read_text().split():
        assert "PYFLASH_BUILD_ISA=avx" in demo
    assert list(tmp_path.iterdir()) == []  # and that was only asked, not done


def test_a_build_says_how_far_it_is(source, tmp_path):
    """It takes minutes. Here the compiler is one that does nothing."""
    skip_without("setuptools", "pybind11")
    nothing = {**dict.fromkeys(("CC", "CXX", "LDSHARED", "LDCXXSHARED"), "true"), "PYFLASH_CUDA_ARCHS": "none"}
    for quiet in ((), ("-q",)):
        command = [sys.executable, "setup.py", *quiet, "build_ext", "--build-lib", str(tmp_path), "--build-temp"]
        done = subprocess.run(
            [*command, str(tmp_path / "".join(quiet))], cwd=source, env={**os.environ, **nothing}, capture_output=True,
            text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        lines = [line for line in done.stdout.splitlines() if line.startswith("pyflash native core: ")]
        if quiet:
            assert not lines
        else:
            count = int(lines[0].split()[3])
            assert count > 4 and f" {count} of {count} compiled after " in lines[-1] and len(lines) == count + 1


def test_every_folder_is_a_package_of_the_wheel():
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = set()
    for package, folder in project["package-dir"].items():
        for file in (ROOT / folder).rglob("*.py"):
            folders.add(".".join((package, *file.parent.relative_to(ROOT / folder).parts)))
    assert folders == set(project["packages"])


def test_a_build_that_fails_says_so(source, tmp_path):
    """And how to see why, however quiet it was asked to be; nothing of an earlier build answers in its place."""
    skip_without("setuptools", "pybind11")
    stale = source / "pyflash" / f"_cpu{sysconfig.get_config_var('EXT_SUFFIX')}"
    fails = dict.fromkeys(("CC", "CXX"), "false")
    for required in ("0", "1"):
        stale.write_text("")
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--build-temp", str(tmp_path)]
        environ = {**os.environ, **fails, "PYFLASH_REQUIRE_NATIVE": required}
        done = subprocess.run(command, cwd=source, env=environ, capture_output=True, text=True)
        assert (done.returncode != 0) == (required == "1")
        assert "NOT built: " in done.stderr and "pip install -v" in done.stderr
        assert not stale.exists()


@pytest.mark.parametrize("target, mark", [("build", ".built"), ("venv/.built-one", ".built-one")], ids=["all", "one"])
def test_make_takes_a_build_that_failed_for_none(target, mark, source):
    """It is tried again by the next target, and says again what is missing; also beside another Python's module."""
    skip_without("setuptools", "pybind11")
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    python = source / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    for there in (".venv", ".torch", ".ready"):
        (source / "venv" / there).touch()
    (source / "pyflash/_cpu.cpython-30.so").touch()
    environ = {**os.environ, "CC": "false", "CXX": "false", "PYFLASH_REQUIRE_NATIVE": "0"}
    for _ in range(2):
        done = subprocess.run(["make", target, "VENV=venv"], cwd=source, env=environ, capture_output=True, text=True)
        assert done.returncode == 0 and "NOT built: " in done.stderr, done.stderr
        assert not (source / "venv" / mark).exists()
    module = f"pyflash/_cpu{sysconfig.get_config_var('EXT_SUFFIX')}"
    (source / "setup.py").write_text(f"open({module!r}, 'w').close()")
    subprocess.run(["make", target, "VENV=venv"], cwd=source, check=True, capture_output=True)
    assert (source / "venv" / mark).exists()


@pytest.mark.slow
def test_a_wheel_without_a_compiler_is_pure_python(source, tmp_path):
    skip_without("pip", "setuptools", "wheel", "pybind11")
    start = time.time()
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", str(tmp_path), str(source)],
        env={**os.environ, "CXX": "/bin/false", "CC": "/bin/false"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert time.time() - start < 120
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "pyflash/kernels/pointwise/activations.py" in names
    assert not any(name.endswith(".so") for name in names)
    tables = {f"pyflash/auto/tables/{path.name}" for path in (ROOT / "pyflash/auto/tables").glob("*.json")}
    assert not tables - set(names)
