"""The native builds, each optional: without a compiler the wheel is pure Python, the build says why, and so does
`python -m pyflash info`. PYFLASH_REQUIRE_NATIVE=1: a native build that fails fails the whole.

A family of operations is a folder, csrc/cpu/<family>, whose sources are compiled once per instruction set, in parallel, and
again only when something that they include has changed. PYFLASH_BUILD_ISA=avx512 builds one instruction set, for a
quick edit loop; PYFLASH_NO_NATIVE=1 none.

csrc/cuda/<family>/*.cu become two modules of one source: pyflash._cuda by nvcc, and by the C++ compiler its twin
pyflash._cuda_host, which runs the kernels on the CPU, for tests (docs/cuda-on-host.md). PYFLASH_CUDA_ARCHS says which:
numbers of architectures ("90", "80 90"), "all", "host", "none". A wheel holds all architectures, where there is an nvcc; a
build in place, which is a developer's, the twin. PYFLASH_CUDA_SANITIZE=address or thread makes the twin alone, watched by that
sanitizer, for `make sanitize`.
"""

import os
import platform
import runpy
import shutil
import subprocess
import sys
import sysconfig
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


def contract(module):
    """What pyflash/ops/core/contract.py will compare a module of these sources with."""
    found = runpy.run_path("pyflash/ops/core/contract.py")
    return found["contract"](CSRC, found[module])


def native_sources():
    """(folder for the object, source, flags) of all that is compiled, longest first."""
    isas = instruction_sets()
    families = sorted(CSRC.glob("cpu/*/*.cpp"), key=lambda path: -sum(f.stat().st_size for f in path.parent.iterdir()))
    sources = [
        (isa, path, [*KERNEL_FLAGS, f"-DPF_ISA={isa}", *flags]) for path in families for isa, flags in isas.items()
    ]
    built = [f"-DPF_HAVE_{isa.upper()}" for isa in isas]
    # Which sources the module is of, for a Python that comes to lie beside it later.
    stamp = contract("CPU")
    for path in (*sorted(CSRC.glob("bindings/*.cpp")), CSRC / "cpu/dispatch.cpp"):
        stamped = [f'-DPF_CONTRACT="{stamp}"'] if path.name == "module.cpp" else []
        sources.append(("", path, ["-O2", "-g0", "-fvisibility=hidden", *built, *stamped]))
    return sources


# Each has machine code of its own; the newest of a build is there as PTX, too, for what comes after it.
CUDA_ARCHS = ("80", "86", "89", "90", "100", "120")
HOST_FLAGS = ["-O1", "-g0", "-fvisibility=hidden", "-Wall", "-Wextra", "-DPF_CUDA_HOST"]
# Shared memory and what a kernel leaves uninitialised are NaN; a sum is no product's other half.
HOST_KERNEL_FLAGS = ["-ftrivial-auto-var-init=pattern", "-ffp-contract=off", "-fno-strict-aliasing"]
# Seconds of nvcc for a file of each (docs/cuda-on-host.md): the longest first, so that two processors end together.
NVCC_SECONDS = {
    "conv": 31,
    "recurrent": 26,
    "attention": 23,
    "pointwise": 14,
    "softmax": 12,
    "norm": 8,
    "gan": 7,
    "core": 2,
}
# What watches kernels on the host: flags of theirs and of the link, and flags of the host's own files. What these do is no
# race; and a finding of undefined behaviour is an end, too, and not a line among others.
UNDEFINED = ["-fsanitize=undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=undefined"]
SANITIZERS = {
    "address": (["-fsanitize=address", *UNDEFINED], ["-fsanitize=address", *UNDEFINED]),
    "thread": (["-fsanitize=thread"], []),
}


def nvcc():
    """The path of CUDA's compiler: in CUDA_HOME, on PATH, or of the wheels nvidia-cuda-nvcc; or None."""
    wheels = Path(sysconfig.get_path("purelib"), "nvidia")
    places = [Path(os.environ[name], "bin") for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    found = [shutil.which("nvcc", path=str(place)) for place in places] + [shutil.which("nvcc")]
    found += [shutil.which("nvcc", path=str(place)) for place in sorted(wheels.glob("*/bin"), reverse=True)]
    return next(filter(None, found), None)


def wanted_of_cuda(in_place):
    """(architectures as they were asked for, is the twin wanted, was anything asked for)"""
    asked = os.environ.get("PYFLASH_CUDA_ARCHS", "").replace(",", " ").replace(";", " ").split()
    words = asked or (["host"] if in_place else ["all"])
    archs = [word.removeprefix("sm_") for word in words if word not in ("host", "none")]
    if unknown := [arch for arch in archs if arch != "all" and not arch.isdecimal()]:
        raise ValueError(f"PYFLASH_CUDA_ARCHS: {' '.join(unknown)}; expected numbers as 90, or all, host or none")
    return archs, "host" in words, bool(asked)


def cuda_architectures(compiler, asked):
    """Those of `asked` that this nvcc compiles for; of "all" it may lack the newest, or no longer have the oldest."""
    said = subprocess.run([compiler, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    known = {word.removeprefix("sm_") for word in said.split()}
    if "all" in asked:
        return [arch for arch in CUDA_ARCHS if arch in known]
    if lacking := [arch for arch in asked if arch not in known]:
        raise ValueError(f"{compiler} does not compile for {' '.join(lacking)}")
    return sorted(asked, key=int)


def code_for(archs):
    """nvcc's flags for machine code of these architectures. Those of a generation are assembled from one PTX: no kernel asks
    which one it is, and the compiler before the assembler takes half of the time."""
    generations = {}
    for arch in archs:
        generations.setdefault(f"{arch[:-1]}0", []).append(f"sm_{arch}")
    return [f"-gencode=arch=compute_{of},code=[{','.join(codes)}]" for of, codes in generations.items()]


def sanitizer():
    """(flags of kernels, flags of all else) of the one that was asked for."""
    name = os.environ.get("PYFLASH_CUDA_SANITIZE")
    if name and name not in SANITIZERS:
        raise ValueError(f"PYFLASH_CUDA_SANITIZE: {name}; expected {' or '.join(SANITIZERS)}")
    return [["-g1", "-fno-omit-frame-pointer", *flags] for flags in SANITIZERS[name]] if name else ([], [])


def cuda_sources(archs=()):
    """(folder for the object, source, flags) of pyflash._cuda, for architectures, or of its twin."""
    name = "cuda" if archs else "cuda_host"
    of_kernels, of_rest = sanitizer()
    kernels, binding = HOST_FLAGS + HOST_KERNEL_FLAGS + of_kernels, HOST_FLAGS + of_rest
    if archs:
        # -O is the host's half, which launches: at -O3 a sixth of all the time. Code for GPUs is at -O3 whatever it says.
        kernels = ["-O1", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-Xptxas", "-warn-spills", "--threads", "0"]
        kernels += [*code_for(archs), f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}"]
        binding = ["-O2", "-g0", "-fvisibility=hidden"]
    sources = []  # first what fails soon
    for path in sorted(CSRC.glob("bindings/cuda/*.cpp")):
        stamped = [f'-DPF_CONTRACT="{contract("CUDA")}"', f'-DPF_ARCHS="{" ".join(archs)}"']
        sources.append(
            (name, path, [*binding, f'-DPF_MODULE="_{name}"', *(stamped if path.name == "module.cpp" else [])])
        )
    files = sorted(CSRC.glob("cuda/*/*.cu"), key=lambda path: (-NVCC_SECONDS.get(path.parent.name, 60), path))
    sources += [(name, path, kernels) for path in files]
    if not archs:
        sources += [(name, path, ["-O2", *binding]) for path in sorted(CSRC.glob("cuda/host/*.cpp"))]
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


FAILED_CUDA = """
*** pyflash: {name} was NOT built: {error}
*** pyflash works without it: on GPUs through Triton. PYFLASH_CUDA_ARCHS=none builds none of CUDA C++ and says nothing; with
*** PYFLASH_REQUIRE_NATIVE=1 this is an error. Wanted is nvcc 12 or later (CUDA_HOME, PATH, or the wheels nvidia-cuda-nvcc).
"""
FAILED_HOST = """
*** pyflash: {name}, CUDA C++ kernels on the CPU for tests, was NOT built: {error}
*** Wanted is g++ 12 or clang 16, or later. PYFLASH_CUDA_ARCHS=none builds none and says nothing.
"""
WITHOUT_NVCC = "there is no nvcc"


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
            text = {"pyflash._cuda": FAILED_CUDA, "pyflash._cuda_host": FAILED_HOST}.get(ext.name, FAILED)
            compiler = " ".join(self.compiler.compiler_so[:1])
            print(text.format(name=ext.name, error=error, compiler=compiler), file=sys.stderr, flush=True)
            raise

    def run(self):
        self.was_inplace = bool(self.inplace)  # setuptools clears it while it builds
        archs, is_twin_wanted, is_asked = wanted_of_cuda(self.was_inplace)
        wanted = {"pyflash._cpu": True, "pyflash._cuda": bool(archs), "pyflash._cuda_host": is_twin_wanted}
        if sanitizer()[0]:
            archs, wanted = [], {"pyflash._cpu": False, "pyflash._cuda": False, "pyflash._cuda_host": True}
        if archs and not is_asked and nvcc() is None:  # as on most machines
            self.say(f"no CUDA C++ kernels, {WITHOUT_NVCC}")
            wanted["pyflash._cuda"] = False
        self.extensions = [ext for ext in self.extensions if wanted[ext.name]]
        super().run()

    def build_native(self, ext):
        self.include_dirs.append(pybind11_headers())
        if ext.name == "pyflash._cpu":
            self.build_module(ext, native_sources(), ["-fopenmp"])
        elif ext.name == "pyflash._cuda_host":
            self.build_module(ext, cuda_sources(), [], linked=sanitizer()[0])
        else:
            compiler = nvcc()
            if compiler is None:
                raise FileNotFoundError(WITHOUT_NVCC)
            archs = cuda_architectures(compiler, wanted_of_cuda(self.was_inplace)[0])
            self.build_module(ext, cuda_sources(archs), [], compiler)

    def build_module(self, ext, sources, openmp, nvcc=None, linked=()):
        """Compiles what has changed, side by side, and links it."""
        languages = list(getattr(self.compiler, "compiler_so_cxx", None) or self.compiler.compiler_so)
        of_kernels = [nvcc] if nvcc else [*languages, "-x", "c++", "-fPIC"]

        def compile_one(folder, source, flags):
            directory = Path(self.build_temp, folder)
            target = directory / source.with_suffix(".o")
            program = of_kernels if source.suffix == ".cu" else self.compiler.compiler_so
            command = str([program, self.include_dirs, flags])
            if not is_current(target, command):
                if source.suffix == ".cu":
                    target.parent.mkdir(parents=True, exist_ok=True)
                    depends = ["-MMD", "-MF", str(target.with_suffix(".d"))]
                    self.spawn([*program, "-std=c++17", *flags, *depends, "-c", str(source), "-o", str(target)])
                else:
                    self.compiler.compile(
                        [str(source)], output_dir=str(directory), include_dirs=self.include_dirs,
                        extra_postargs=["-std=c++17", *openmp, "-fPIC", "-MMD", *flags],
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
        target = self.get_ext_fullpath(ext.name)
        if nvcc:  # which knows where its runtime is; a static one, so that the module loads where there is no CUDA
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            self.spawn([nvcc, "-shared", "-cudart", "static", "-o", target, *objects])
        else:
            self.compiler.link_shared_object(objects, target, extra_postargs=[*openmp, *linked], target_lang="c++")


if sys.platform == "linux" and os.environ.get("PYFLASH_NO_NATIVE", "0") != "1":
    is_optional = os.environ.get("PYFLASH_REQUIRE_NATIVE", "0") != "1"
    native = [
        Extension(f"pyflash.{name}", sorted({str(path) for _, path, _ in sources}), optional=is_optional)
        for name, sources in (
            ("_cpu", native_sources()),
            ("_cuda", cuda_sources(CUDA_ARCHS)),
            ("_cuda_host", cuda_sources()),
        )
    ]
else:
    native = []
if __name__ == "__main__":  # tests read the flags from here
    setup(ext_modules=native, cmdclass={"build_ext": BuildNative})
