"""Ahead-of-time table: what the shipped Triton configurations compile to, without a GPU.

The launchers themselves are called, on tensors without memory and with a driver that names the architecture, so the
table shows what a user's call would compile: arguments, specialisation and configuration alike.

    python -m benchmarks inspect [--check] [--full] [--triton DIR] [NAME ...]      (names are substrings; default SHORT)

writes the rows it compiles into benchmarks/results/aot.json, or with --check compares them with it. Another Triton than the
one that is installed, from `pip install --target DIR triton==3.6.0`, has a table of its own, aot-3.6.json. CUDA C++
kernels are listed from theirs (ptxas.py): by family, or those with a NAME in "cuda family kernel sm_90".
"""

import contextlib
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks import aot_calls, occupancy, ptxas
from benchmarks.aot_cases import SHORT, cases

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "benchmarks" / "results" / "aot.json"
INSTALLED = "3.7"  # the Triton that TABLE is of

# Counted in the machine code. HMMA, HGMMA, UTCHMMA: tensor cores of sm_80, 90, 100. LDL, STL: spills. LDGSTS, UTMALDG:
# copies that need no register. TF32 must be absent from float32 kernels under "ieee". LDG.U16, STG.U16: loads and stores of two
# bytes, one element of a half type, where a thread could move eight at once; "narrow" counts those in the main loop. "serialised":
# how often ptxas says that it waits for every single product of a warp group (its C7510 to C7519).
TENSOR_CORES = ("HGMMA", "HMMA", "UTCHMMA")
INSTRUCTIONS = (*TENSOR_CORES, "LDL", "STL", "LDGSTS", "UTMALDG")
NARROW = re.compile(r"\b(LDG|STG)\.E\.U16\b")
SERIALISED = re.compile(r"wgmma\.mma_async instructions are serialized")


class Driver:
    """What Triton asks of a driver to compile for an architecture (90 is sm_90) that is not here."""

    def __init__(self, arch: int):
        self.arch = arch

    def get_current_device(self):  # by which a kernel keeps what was compiled
        return self.arch

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.arch, 32)

    def get_active_torch_device(self):
        import torch

        return torch.device("meta")


def compile_case(name):
    """{kernel: what it compiled to} for one case; in a process of its own, where nothing is interpreted."""
    os.environ.pop("TRITON_INTERPRET", None)
    import torch
    from triton import knobs
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from pyflash.kernels import tuning

    arch, call, arguments = cases()[name]

    compiled, logs = {}, {}
    launch = JITFunction.run

    def only_compile(self, *args, grid, warmup, **kwargs):
        name = self.fn.__name__.lstrip("_")
        with contextlib.redirect_stdout(io.StringIO()) as log:
            kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        if log.getvalue():  # of a kernel that this process has compiled before there is none
            compiled[name], logs[name] = kernel, log.getvalue()
        return kernel

    def empty(*shape, dtype="float32"):
        return torch.empty(shape, dtype=getattr(torch, dtype), device="meta")

    knobs.nvidia.dump_ptxas_log = knobs.compilation.always_compile = (
        True  # a kernel from the cache comes without warnings
    )
    driver.set_active(Driver(arch))
    JITFunction.run = only_compile
    tuning.arch = lambda device: tuning.arch_of(divmod(arch, 10))
    torch.backends.cudnn.rnn.fp32_precision = "ieee"  # torch's default is TF32
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    try:
        getattr(aot_calls, call)(empty, **arguments)
    finally:
        JITFunction.run = launch
    return {kernel: _measure(binary, arch, logs[kernel]) for kernel, binary in compiled.items()}


def _measure(kernel, arch, log):
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _output(knobs.nvidia.cuobjdump.path, "-res-usage", file.name)
        code = _output(knobs.nvidia.nvdisasm.path, "-c", file.name)
    row = {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "spill_bytes": int(re.search(r"STACK:(\d+)", usage)[1]),
        "shared": kernel.metadata.shared,
        "warps": kernel.metadata.num_warps,
        "blocks": 0,
        "instructions": len(re.findall(r"/\*[0-9a-f]{4,}\*/", code)),
    }
    row["blocks"] = occupancy.blocks(arch, row["registers"], row["shared"], 32 * row["warps"])
    row |= {name: len(re.findall(rf"\b{name}\b", code)) for name in INSTRUCTIONS}
    row |= {"TF32": code.count("TF32")}
    narrow = Counter(NARROW.findall(code))
    row |= {"LDG.U16": narrow["LDG"], "STG.U16": narrow["STG"], "narrow": _narrow(code)}
    return row | {"serialised": len(SERIALISED.findall(log))}


def _narrow(code):
    """Accesses of two bytes in the main loop. Where tiles at an edge take a loop of their own, with comparisons that no wide
    access survives, the main one of those with products is the one with fewest."""
    loops = _loops(code)
    counts = [len(NARROW.findall(loop)) for loop in loops if any(re.search(rf"\b{op}\b", loop) for op in TENSOR_CORES)]
    return min(counts) if counts else sum(len(NARROW.findall(loop)) for loop in loops)


def _loops(code):
    """The innermost loops: what a jump back goes over, without another one inside."""
    lines = code.splitlines()
    labels, spans = {}, []
    for i, line in enumerate(lines):
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = i
        jump = re.search(r"\bBRA\b.*?`\((\.L_\w+)\)", line)
        if jump and jump[1] in labels and all(first < labels[jump[1]] for first, _ in spans):
            spans.append((labels[jump[1]], i))
    return ["\n".join(lines[first:last]) for first, last in spans]


def _output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def source_hash():
    """Of everything the table depends on besides triton and its ptxas."""
    files = [*sorted((ROOT / "kernels").rglob("*.py")), Path(__file__)]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def worse(old, new):
    """What a row has lost against another, in words; empty when nothing. More registers matter where blocks are lost."""
    found = []
    if new["spill_bytes"] > old["spill_bytes"]:
        found.append(f"spills {new['spill_bytes']} bytes, {old['spill_bytes']} before")
    if new["blocks"] < old["blocks"]:
        found.append(f"{new['blocks']} blocks a multiprocessor, {old['blocks']} before ({new['registers']} registers)")
    if any(old[name] for name in TENSOR_CORES) and not any(new[name] for name in TENSOR_CORES):
        found.append("no tensor-core instruction left")
    if new["TF32"] and not old["TF32"]:
        found.append("TF32 in a product that was exact")
    for name, what in (
        ("narrow", "accesses of two bytes in its main loop"),
        ("serialised", "products of a warp group serialised"),
    ):
        if new.get(name, 0) > old.get(name, new.get(name, 0)):
            found.append(f"{new[name]} {what}, {old[name]} before")
    return found


def compile_cases(names, jobs=2):
    """{case/kernel: row}, with a line of progress for each case."""
    table = {}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for done, (name, rows) in enumerate(zip(names, pool.map(compile_case, names), strict=True), 1):
            table |= {f"{name}/{kernel}": row for kernel, row in rows.items()}
            print(f"[{done}/{len(names)}] {name}", file=sys.stderr, flush=True)
    return table


def run_with(options):
    """The same in another process, which finds that Triton before the installed one."""
    words = ["--check"] * options.check + ["--full"] * options.full + ["--jobs", str(options.jobs), *options.names]
    path = os.pathsep.join([str(options.triton.resolve()), os.environ.get("PYTHONPATH", "")])
    environ = os.environ | {"PYTHONPATH": path}
    return subprocess.run([sys.executable, "-m", "benchmarks", "inspect", *words], cwd=ROOT, env=environ).returncode


def add_arguments(parser):
    parser.add_argument("names", nargs="*", help="compile only cases with one of these in their name")
    parser.add_argument("--check", action="store_true", help="compare with the committed table; exit 1 if it differs")
    parser.add_argument("--full", action="store_true", help="compile all cases, which takes several minutes")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--triton", type=Path, help="folder with another Triton, which has a table of its own")


def table_of(version):
    """The file for a Triton: one for the installed minor version, one for each other that was asked for."""
    minor = ".".join(version.split(".")[:2])
    return TABLE if minor == INSTALLED else TABLE.with_name(f"aot-{minor}.json")


def run(options):
    if options.triton is not None:
        if not (options.triton / "triton").is_dir():
            print(f"benchmarks: --triton is {options.triton}, which holds no folder triton", file=sys.stderr)
            return 2
        return run_with(options)
    try:
        import triton
    except ImportError:
        print("benchmarks: inspect needs triton, which is not installed", file=sys.stderr)
        return 2
    of_cuda = list(ptxas.lines(options.names))
    if options.names and of_cuda and not any(part in name for name in cases() for part in options.names):
        print("\n".join(of_cuda))  # of CUDA C++ alone
        return 0
    if options.jobs < 1:
        print(f"benchmarks: --jobs is {options.jobs}, and at least 1 is needed", file=sys.stderr)
        return 2
    names = list(cases()) if options.names or options.full else list(SHORT)
    if options.names:
        names = [name for name in names if any(part in name for part in options.names)]
    if not names:
        print(f"benchmarks: no case is called so; there are {', '.join(cases())}", file=sys.stderr)
        return 2
    rows = compile_cases(names, options.jobs)
    path = table_of(triton.__version__)
    committed = json.loads(path.read_text()) if path.exists() else {"triton": triton.__version__, "rows": {}}
    if options.check:
        if committed["triton"] != triton.__version__:
            print(f"the table is of triton {committed['triton']}, this is {triton.__version__}: nothing to compare")
            return 0
        changed = {name: row for name, row in rows.items() if committed["rows"].get(name) != row}
        for name, row in changed.items():
            print(f"{name}\n  committed {committed['rows'].get(name)}\n  compiled  {row}")
        return int(bool(changed))
    is_whole = options.full and not options.names
    merged = rows if is_whole else committed["rows"] | rows
    # Where only a part is written anew, the other rows may still be older kernels': the tests then compile what matters again.
    sources = source_hash() if is_whole else committed.get("sources", "")
    table = {"triton": triton.__version__, "sources": sources, "rows": dict(sorted(merged.items()))}
    lines = json.dumps(table, indent=1)
    path.write_text(
        re.sub(r"\{\n\s+(\"registers[^}]*?)\n\s+\}", lambda m: "{" + " ".join(m[1].split()) + "}", lines) + "\n"
    )
    for name, row in rows.items():
        print(name, " ".join(f"{key}={value}" for key, value in row.items()))
    for name, row in rows.items():
        before = committed["rows"].get(name, {})
        for loss in worse(before, row) if "blocks" in before else ():
            print(f"worse: {name}: {loss}")
    print("\n".join(of_cuda))
    return 0
