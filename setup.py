"""The native builds, each optional: without a compiler the wheel is pure Python, the build says why, and so does
`python -m pyflash info`. PYFLASH_REQUIRE_NATIVE=1: a native build that fails fails the whole.

The CPU core is one source compiled once per instruction set (csrc/cpu/isa/<isa>.cpp), in parallel, and again only when
something it reads changed. PYFLASH_BUILD_ISA=avx512 builds one instruction set (with generic), for a quick edit loop; PYFLASH_NO_NATIVE=1 none.
"""

import os
import platform
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CSRC = Path("csrc")
X86_FLAGS = {
    "generic": ["-march=x86-64-v2", "-mtune=generic"],
    "avx2": ["-march=x86-64-v3"],
    "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"],
    "avx512_bf16": ["-march=x86-64-v4", "-mavx512bf16", "-mprefer-vector-width=512"],
}
# -ffast-math is never used: it would set flush-to-zero for the whole process and drop NaN. The warnings that are off
# come from the compilers' own intrinsics headers and from vectors as template arguments.
KERNEL_FLAGS = ["-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-Wall", "-Wextra"]
KERNEL_FLAGS += [
    "-Wno-psabi",
    "-Wno-ignored-attributes",
    "-Wno-uninitialized",
    "-Wno-maybe-uninitialized",
    "-Wno-unknown-warning-option",
]


def native_sources():
    """{source: flags} of the CPU core; setuptools' own list would compile everything with the same flags."""
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    isas = X86_FLAGS if is_x86 else {"generic": []}
    sources = {CSRC / "cpu/isa" / f"{isa}.cpp": KERNEL_FLAGS + flags for isa, flags in isas.items()}
    only = os.environ.get("PYFLASH_BUILD_ISA")
    if only:
        sources = {path: flags for path, flags in sources.items() if path.stem in (only, "generic")}
    chosen = [f"-DPF_HAVE_{path.stem.upper()}" for path in sources]
    sources[CSRC / "cpu/dispatch.cpp"] = ["-O2", "-g0", *chosen]
    sources.update({path: ["-O2", "-g0", "-fvisibility=hidden"] for path in sorted(CSRC.glob("bindings/*.cpp"))})
    return sources


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
        headers = [path for path in CSRC.rglob("*") if path.suffix in (".h", ".inc")]
        newest_header = max(path.stat().st_mtime for path in headers)
        sources = native_sources()

        def compile_one(item):
            source, flags = item
            directory = Path(self.build_temp)
            target = directory / source.with_suffix(".o")
            command = target.with_suffix(".flags")
            newest = max(newest_header, source.stat().st_mtime, Path("setup.py").stat().st_mtime)
            if (
                target.exists()
                and target.stat().st_mtime > newest
                and command.exists()
                and command.read_text() == str(flags)
            ):
                return str(target)
            self.compiler.compile(
                [str(source)], output_dir=str(directory), include_dirs=self.include_dirs,
                extra_postargs=["-std=c++17", "-fopenmp", "-fPIC", *flags],
            )  # fmt: skip
            command.write_text(str(flags))
            return str(target)

        # Longest first: the instruction sets before dispatch and bindings.
        processors = len(os.sched_getaffinity(0))
        self.say(f"{len(sources)} sources, {processors} at a time; an instruction set takes minutes of a processor")
        start, objects = time.monotonic(), {}
        with ThreadPoolExecutor(processors) as pool:
            waiting = {pool.submit(compile_one, item): item[0] for item in sources.items()}
            for done in as_completed(waiting):
                if done.exception() is not None:
                    pool.shutdown(cancel_futures=True)
                objects[waiting[done]] = done.result()
                seconds = time.monotonic() - start
                self.say(f"{len(objects)} of {len(sources)} compiled after {seconds:.0f} s: {waiting[done]}")
        objects = [objects[source] for source in sources]
        self.compiler.link_shared_object(
            objects, self.get_ext_fullpath(ext.name), extra_postargs=["-fopenmp"], target_lang="c++"
        )


if sys.platform == "linux" and os.environ.get("PYFLASH_NO_NATIVE", "0") != "1":
    is_optional = os.environ.get("PYFLASH_REQUIRE_NATIVE", "0") != "1"
    native = [Extension("pyflash._cpu", [str(path) for path in native_sources()], optional=is_optional)]
else:
    native = []
if __name__ == "__main__":  # tests read the flags from here
    setup(ext_modules=native, cmdclass={"build_ext": BuildNative})
