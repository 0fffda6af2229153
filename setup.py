"""The native builds, each optional: without a compiler the wheel is pure Python, the build says why, and so does
`python -m pyflash info`. PYFLASH_REQUIRE_NATIVE=1: a native build that fails fails the whole.

A family of operations is a folder, csrc/cpu/<family>/kernels.cpp: it is compiled once per instruction set, in parallel, and
again only when something that it includes has changed. PYFLASH_BUILD_ISA=avx512 builds one instruction set, for a
quick edit loop; PYFLASH_NO_NATIVE=1 none.
"""

import os
import platform
import runpy
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CSRC = Path("csrc")
X86_FLAGS = {
    "generic": ["-DPF_VECTOR_BYTES=16", "-march=x86-64-v2", "-mtune=generic"],
    "avx2": ["-DPF_VECTOR_BYTES=32", "-march=x86-64-v3"],
    "avx512": ["-DPF_VECTOR_BYTES=64", "-march=x86-64-v4", "-mprefer-vector-width=512"],
    "avx512_bf16": [
        *("-DPF_VECTOR_BYTES=64", "-DPF_HAS_BF16_DOT", "-march=x86-64-v4", "-mavx512bf16", "-mprefer-vector-width=512"),
    ],
}
# -ffast-math is never used: it would set flush-to-zero for the whole process and drop NaN. The warnings that are off
# come from the compilers' own intrinsics headers and from vectors as template arguments.
KERNEL_FLAGS = [
    *(
        "-O3",
        "-g0",
        "-fvisibility=hidden",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-ffp-contract=fast",
        "-Wall",
        "-Wextra",
    ),
    *("-Wno-psabi", "-Wno-ignored-attributes", "-Wno-uninitialized", "-Wno-maybe-uninitialized"),
    "-Wno-unknown-warning-option",
]


def instruction_sets():
    """{name: flags} of those to be built."""
    isas = X86_FLAGS if platform.machine() in ("x86_64", "AMD64") else {"generic": ["-DPF_VECTOR_BYTES=16"]}
    only = os.environ.get("PYFLASH_BUILD_ISA")
    return {isa: flags for isa, flags in isas.items() if not only or isa == only}


def native_sources():
    """(folder for the object, source, flags) of all that is compiled, longest first."""
    isas = instruction_sets()
    families = sorted(
        CSRC.glob("cpu/*/kernels.cpp"), key=lambda path: -sum(f.stat().st_size for f in path.parent.iterdir())
    )
    sources = [
        (isa, path, [*KERNEL_FLAGS, f"-DPF_ISA={isa}", *flags]) for path in families for isa, flags in isas.items()
    ]
    built = [f"-DPF_HAVE_{isa.upper()}" for isa in isas]
    # Which sources the module is of, for a Python that comes to lie beside it later.
    stamp = runpy.run_path("pyflash/ops/core/contract.py")["contract"](CSRC)
    for path in (*sorted(CSRC.glob("bindings/*.cpp")), CSRC / "cpu/dispatch.cpp"):
        stamped = [f'-DPF_CONTRACT="{stamp}"'] if path.name == "module.cpp" else []
        sources.append(("", path, ["-O2", "-g0", "-fvisibility=hidden", *built, *stamped]))
    return sources


def is_current(target, command):
    """Was `target` made by this command, after everything that it includes was changed?"""
    depends = target.with_suffix(".d")  # the compiler's: "target: file file \\\n file ..."
    if not (target.exists() and depends.exists() and target.with_suffix(".command").exists()):
        return False
    read = [Path(name) for name in depends.read_text().partition(":")[2].replace("\\\n", " ").split()]
    made = target.stat().st_mtime
    return target.with_suffix(".command").read_text() == command and all(
        path.exists() and path.stat().st_mtime < made for path in read
    )


def pybind11_headers():
    """Those of the package, which [build-system] requires; in place also those that torch brings."""
    try:
        import pybind11

        return pybind11.get_include()
    except ImportError:
        return str(Path(find_spec("torch").origin).parent / "include")


FAILED = """
*** pyflash: the native CPU core was NOT built: {error}
*** pyflash works without it, on PyTorch's own kernels and slower: `python -m pyflash info`.
*** What {compiler} said is above this (under pip: only with `pip install -v`). Wanted are g++ 9 or clang 12 with OpenMP,
*** or later ones (CC and CXX choose), and the headers of Python. PYFLASH_NO_NATIVE=1 builds none and says nothing;
*** with PYFLASH_REQUIRE_NATIVE=1 this is an error.
"""


class BuildNative(build_ext):
    def say(self, message):
        """What the build is at, for `pip install -v`; not when it is asked to be quiet."""
        if self.distribution.verbose:
            print(f"pyflash native core: {message}", flush=True)

    def build_extension(self, ext):
        try:
            self.build_native(ext)
        except Exception as error:
            # An optional extension's failure is a warning that -q and pip swallow; and a module of older sources would
            # answer in its place.
            stale = [Path(self.get_ext_fullpath(ext.name)), Path("pyflash", Path(self.get_ext_filename(ext.name)).name)]
            for module in stale[: 1 + self.was_inplace]:
                module.unlink(missing_ok=True)
            print(
                FAILED.format(error=error, compiler=" ".join(self.compiler.compiler_so[:1])),
                file=sys.stderr,
                flush=True,
            )
            raise

    def run(self):
        self.was_inplace = bool(self.inplace)  # setuptools clears it while it builds
        super().run()

    def build_native(self, ext):
        self.include_dirs.append(pybind11_headers())
        sources = native_sources()

        def compile_one(folder, source, flags):
            directory = Path(self.build_temp, folder)
            target = directory / source.with_suffix(".o")
            command = str([self.compiler.compiler_so, self.include_dirs, flags])
            if not is_current(target, command):
                self.compiler.compile(
                    [str(source)], output_dir=str(directory), include_dirs=self.include_dirs,
                    extra_postargs=["-std=c++17", "-fopenmp", "-fPIC", "-MMD", *flags],
                )  # fmt: skip
                target.with_suffix(".command").write_text(command)
            return str(target)

        processors = len(os.sched_getaffinity(0))
        self.say(f"{len(sources)} sources, {processors} at a time; all together take minutes of a processor")
        start, objects = time.monotonic(), {}
        with ThreadPoolExecutor(processors) as pool:
            waiting = {pool.submit(compile_one, *item): item for item in sources}
            for done in as_completed(waiting):
                if done.exception() is not None:
                    pool.shutdown(cancel_futures=True)
                folder, source, _ = waiting[done]
                objects[folder, source] = done.result()
                seconds = time.monotonic() - start
                self.say(f"{len(objects)} of {len(sources)} compiled after {seconds:.0f} s: {source} {folder}")
        objects = [objects[folder, source] for folder, source, _ in sources]
        self.compiler.link_shared_object(
            objects, self.get_ext_fullpath(ext.name), extra_postargs=["-fopenmp"], target_lang="c++"
        )


if sys.platform == "linux" and os.environ.get("PYFLASH_NO_NATIVE", "0") != "1":
    is_optional = os.environ.get("PYFLASH_REQUIRE_NATIVE", "0") != "1"
    native = [Extension("pyflash._cpu", sorted({str(path) for _, path, _ in native_sources()}), optional=is_optional)]
else:
    native = []
if __name__ == "__main__":  # tests read the flags from here
    setup(ext_modules=native, cmdclass={"build_ext": BuildNative})
