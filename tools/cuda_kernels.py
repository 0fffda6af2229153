"""What ptxas makes of the CUDA C++ kernels, no GPU needed: `python tools/cuda_kernels.py [--arch 80 90 100] [--family conv ...]`
compiles csrc/cuda/<family>/*.cu and writes registers, shared memory, spills and threads of each kernel into
benchmarks/results/ptxas.json, which a test compares with what is compiled there. What is not compiled anew stays."""

from __future__ import annotations

import argparse
import json
import os
import re
import runpy
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "benchmarks" / "results" / "ptxas.json"
ARCHS = ("80", "86", "89", "90", "100", "120")
INSTRUCTIONS = ("HMMA", "LDSM", "LDGSTS")  # of tensor cores, ldmatrix, cp.async
# Registers of a thread; static shared memory of a block and spills of a thread, in bytes; threads of a block, and how many
# blocks a multiprocessor shall hold (its launch bounds); 1: the launch gives it more shared memory.
COLUMNS = ("registers", "shared", "spilled", "threads", "promised", "is_dynamic")
OF_KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)
# In PTX an entry is followed by its bounds, and then by what it is made of.
ENTRY = re.compile(
    r"^(?:\.\w+ )*\.entry (?P<name>\w+)\(.*?\)\s*(?P<bounds>[^{]*)\{(?P<body>.*?)^\}", re.DOTALL | re.MULTILINE
)


def compiler() -> str | None:
    return runpy.run_path(str(ROOT / "setup.py"), run_name="build")["nvcc"]()


def version(nvcc: str) -> str:
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"V([\d.]+)", said)[1]


def kernel_of(signature: str) -> str:
    """The class of "void pf::cuda::run<pf::cuda::norm::(anonymous namespace)::Forward<f16, ...>, ...>(...)"."""
    inside, depth = signature.partition("run<")[2], 0
    for end, letter in enumerate(inside):
        depth += {"<": 1, ">": -1}.get(letter, 0)
        if depth < 0 or (depth == 0 and letter == ","):
            return re.sub(r"pf::cuda::(\w+::)?|\(anonymous namespace\)::", "", inside[:end].strip())
    raise ValueError(f"no kernel of csrc/cuda/facade.h: {signature}")


def bounds(ptx: str) -> dict[str, tuple[int, int, int]]:
    """{entry: threads, promised, is_dynamic} of PTX."""
    outer = re.findall(r"^\.extern \.shared .*? (\w+)\[\];", ptx, re.MULTILINE)

    def directive(name, of):
        found = re.search(rf"\.{name} (\d+)", of)
        return int(found[1]) if found else 1

    return {
        m["name"]: (
            directive("maxntid", m["bounds"]),
            directive("minnctapersm", m["bounds"]),
            int(any(re.search(rf"\b{name}\b", m["body"]) for name in outer)),
        )
        for m in ENTRY.finditer(ptx)
    }


def compiled(nvcc: str, source: Path, arch: str) -> dict[str, list[int]]:
    """{kernel: its COLUMNS} of a file."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["-std=c++17", "-O3", "-Xptxas", "-v,-warn-spills", f"-gencode=arch=compute_{arch},code=sm_{arch}"]
        flags += ["--keep", "--keep-dir", folder]
        done = subprocess.run(
            [nvcc, *flags, "-c", str(source), "-o", str(Path(folder, "kernels.o"))], capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{source}: {done.stderr}")
        launched = bounds("".join(path.read_text() for path in Path(folder).glob("*.ptx")))
    found = list(OF_KERNEL.finditer(done.stdout + done.stderr))
    names = subprocess.run(
        ["c++filt"], input="\n".join(m["name"] for m in found), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    rows = {}
    for name, match in zip(names, found, strict=True):
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        spilled = int(match["stores"]) + int(match["loads"])
        row = int(match["registers"]), int(shared[1]) if shared else 0, spilled
        rows[kernel_of(name)] = [*row, *launched[match["name"]]]
    return dict(sorted(rows.items()))


def disassembler() -> str | None:
    """CUDA's, or that which Triton brings."""
    if (found := shutil.which("nvdisasm")) is None and (triton := find_spec("triton")) is not None:
        brought = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
        found = str(brought) if brought.exists() else None
    return found


def instructions(nvcc: str, source: Path, arch: str) -> dict[str, dict[str, int]]:
    """{kernel: how often each of INSTRUCTIONS stands in its machine code} of a file."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = str(Path(folder, "kernels.cubin"))
        flags = ["-std=c++17", "-O3", f"-arch=sm_{arch}", "-cubin"]
        subprocess.run([nvcc, *flags, str(source), "-o", cubin], check=True, capture_output=True)
        code = subprocess.run([disassembler(), "-c", cubin], check=True, capture_output=True, text=True).stdout
    _, *parts = re.split(r"^\s*\.section\s+\.text\.(\w+).*$", code, flags=re.MULTILINE)
    names = subprocess.run(
        ["c++filt"], input="\n".join(parts[::2]), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return {
        kernel_of(name): {word: len(re.findall(rf"\b{word}\b", text)) for word in INSTRUCTIONS}
        for name, text in zip(names, parts[1::2], strict=True)
        if "run<" in name
    }


def sources(families=()) -> list[Path]:
    """Of these families, or of all; core has no kernels."""
    found = [path for path in sorted(ROOT.glob("csrc/cuda/*/*.cu")) if path.parent.name != "core"]
    return [path for path in found if not families or path.parent.name in families]


def table(nvcc: str, archs, families=()) -> dict:
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = {(a, path): pool.submit(compiled, nvcc, path, a) for a in archs for path in sources(families)}
    rows: dict = {f"sm_{a}": {} for a in archs}
    for a in archs:
        for path in sources(families):
            rows[f"sm_{a}"].setdefault(path.parent.name, {}).update(found[a, path].result())
    return {"nvcc": version(nvcc), "columns": list(COLUMNS), "kernels": rows}


def rendered(content: dict) -> str:
    """JSON with a line for each kernel."""
    text = json.dumps(content, indent=1)
    return re.sub(r"\[[\s\d,]+\]", lambda row: "[" + ", ".join(re.findall(r"\d+", row[0])) + "]", text) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", nargs="*", default=ARCHS)
    parser.add_argument("--family", nargs="*", default=())
    options, nvcc = parser.parse_args(), compiler()
    if nvcc is None:
        parser.error("there is no nvcc")
    content = table(nvcc, options.arch, options.family)
    whole = json.loads(TABLE.read_text()) if TABLE.exists() else content
    if whole["nvcc"] != content["nvcc"] and (options.family or set(whole["kernels"]) - set(content["kernels"])):
        parser.error(f"the table is nvcc {whole['nvcc']}'s, this is {content['nvcc']}: compile all of it")
    for arch, found in content["kernels"].items():
        whole["kernels"][arch] = dict(sorted((whole["kernels"].get(arch, {}) | found).items()))
    TABLE.write_text(rendered(whole | {"nvcc": content["nvcc"]}))
    for arch, families in content["kernels"].items():
        for family, kernels in families.items():
            most = [max(row[column] for row in kernels.values()) for column in range(len(COLUMNS))]
            print(f"{arch} {family}: {len(kernels)} kernels, at most {most[0]} registers, {most[1]} bytes shared")
            print("".join(f"  {name} spills\n" for name, row in kernels.items() if row[2]), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
