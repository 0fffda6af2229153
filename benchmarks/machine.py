"""What this machine is, and the peaks it reaches in this run: limits.py makes of them what a row can be at best."""

from __future__ import annotations

import datetime
import os
import subprocess
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

import pyflash
from pyflash import functional
from pyflash.auto import processor
from pyflash.cli import explain
from pyflash.ops.core import backends

FAMILIES = {"zen4": "Zen 4", "zen5": "Zen 5", "amx": "Xeon with AMX"}  # as pyflash/auto/tables.py calls them
CACHED = (1 << 20, 4 << 20, 16 << 20, 32 << 20)  # bytes read and written by the copies that may stay in the caches


@dataclass(frozen=True)
class Machine:
    """The fingerprint that every row carries.

    Args:
        family: what pyflash/auto/tables.py calls the processor; empty in files that are older than this field.
        peak_flops: FLOP/s by dtype.
        bandwidth: bytes/s of a copy in memory.
        copies: the same in the caches, by the bytes moved; empty where it was not measured.
        exps: values of exp a second; 0 where it was not measured.
    """

    device: str
    cpu: str
    isa: str
    threads: int
    python: str
    torch: str
    pyflash: str
    commit: str
    date: str
    clean_samples: str
    peak_flops: dict[str, float]
    bandwidth: float
    triton: str = ""
    driver: str = ""
    family: str = ""
    copies: dict[str, float] = field(default_factory=dict)
    exps: float = 0.0

    @property
    def label(self) -> str:
        """What this machine is called in titles and file names: rows of two labels are not comparable."""
        return self.device if self.device != "cpu" else f"{self.cpu}, {self.isa}, {self.threads} threads"

    @property
    def title(self) -> str:
        """The label with the processor's generation, where the maker's name leaves it out."""
        name = self.generation
        return self.label.replace(self.cpu, f"{self.cpu} ({name})", 1) if name and name not in self.cpu else self.label

    @property
    def generation(self) -> str:
        return FAMILIES.get(self.family, "")

    @property
    def peaks(self) -> str:
        """The measured peaks, in words."""
        words = [f"{dtype} {value * 1e-9:.0f} GFLOP/s" for dtype, value in self.peak_flops.items()]
        words.append(f"copy {self.bandwidth * 1e-9:.0f} GB/s")
        words += [f"of {int(size) >> 20} MB {rate * 1e-9:.0f} GB/s" for size, rate in self.copies.items()]
        return ", ".join(words + [f"exp {self.exps * 1e-9:.2g} G/s"] * (self.exps > 0))

    def to_json(self) -> dict:
        return asdict(self)


def describe(device: str, dtypes: set[str]) -> Machine:
    """This machine. Measuring its peaks takes about a second, which is also the warm-up of the whole run."""
    facts = explain.info()
    settle_allocator()
    return Machine(
        device=device if device == "cpu" else facts["cuda device"],
        cpu=facts["cpu"],
        isa=facts.get("instruction set", "generic"),
        threads=facts["threads"],
        python=facts["python"],
        torch=facts["torch"],
        pyflash=facts["pyflash"],
        commit=commit(),
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        clean_samples="run-queue delay" if Path("/proc/self/task").exists() else "not known here",
        peak_flops={dtype: peak_flops(device, dtype) for dtype in sorted(dtypes)},
        bandwidth=copy_bandwidth(device),
        triton=str(facts.get("triton") or ""),
        driver=driver(device),
        family=family(device),
        copies={str(size): copy_bandwidth(device, size) for size in CACHED} if device == "cpu" else {},
        exps=exp_peak() if device == "cpu" else 0.0,  # of a GPU torch's exp would measure memory
    )


def settle_allocator() -> None:
    """Brings glibc to where a process that has worked for a while is: it keeps what is freed.

    Until a block of nearly 32 MB was freed once, smaller ones are given back to the system, and whether an output's
    pages are then faulted in again at every call depends on what else lies in the heap: a factor of 2 from run to run.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


def driver(device: str) -> str:
    """NVIDIA's driver version; empty on a CPU or where nvidia-smi is absent."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return (
            subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
            if device != "cpu"
            else ""
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""


def best_seconds(call, seconds: float) -> float:
    """The fastest of the calls that fit into `seconds`: a peak is a best, not a median."""
    synchronize = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        call()
        synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def peak_flops(device: str, dtype: str) -> float:
    """The larger of a big matrix product and, on the CPU, our register-only loop of the same arithmetic."""
    n = 2048 if device == "cpu" else 8192
    a = torch.randn(n, n, device=device).to(getattr(torch, dtype))
    out = torch.empty_like(a)
    product = 2 * n**3 / best_seconds(lambda: torch.mm(a, a, out=out), 0.6)
    return max(product, fma_peak(dtype) if device == "cpu" and dtype in ("float32", "bfloat16") else 0.0)


def fma_peak(dtype: str) -> float:
    """FLOP/s of all threads in our loop of multiply-adds, which touches no memory; 0 without the native module.

    Of bfloat16 the dot product, where the instruction set in use has one, else float32's.
    """
    try:
        from pyflash import _cpu
        from pyflash.ops.core.native import DTYPES
    except ImportError:
        return 0.0
    problem, threads = (1_000_000, DTYPES[getattr(torch, dtype)]), torch.get_num_threads()
    flops = _cpu.fma_peak(problem, threads)
    return flops / best_seconds(lambda: _cpu.fma_peak(problem, threads), 0.3)


def exp_peak() -> float:
    """Values of exp a second, in cache: the larger of torch's and those inside our sigmoid."""
    x = torch.linspace(-4, 4, 1 << 17)
    out = torch.empty_like(x)
    seconds = best_seconds(lambda: torch.exp(x, out=out), 0.2)
    if not backends.MISSING["cpu"]:
        with torch.no_grad(), pyflash.use_backend("cpu"):
            seconds = min(seconds, best_seconds(lambda: functional.sigmoid(x), 0.2))
    return x.numel() / seconds


def family(device: str) -> str:
    try:
        return processor.family("cpu" if device == "cpu" else "triton")
    except ImportError:  # without the native module nothing tells processors apart
        return "other"


def copy_bandwidth(device: str, moved: int | None = None) -> float:
    """Bytes read and written per second by a copy that moves so many; by default one too large for the caches."""
    if moved is not None:
        count = moved // 8
    elif device == "cpu":
        count = max(64 << 20, min(2 * last_level_cache(), available_memory() // 8)) // 4
    else:
        count = 1 << 28  # 1 GB, far past any L2
    source = torch.ones(count, device=device)
    target = torch.zeros_like(source)
    return 2 * 4 * count / best_seconds(lambda: target.copy_(source), 0.4)


def last_level_cache() -> int:
    """Bytes. A virtual machine may show all of the host's."""
    try:
        text = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"))[-1].joinpath("size").read_text()
        return int(text.strip().rstrip("K")) << 10
    except (OSError, IndexError, ValueError):
        return 64 << 20


def available_memory() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 2 << 30


def commit() -> str:
    """The short hash of this checkout, marked where the tree differs from it."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"
