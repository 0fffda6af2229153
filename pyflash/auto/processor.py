"""Where a call runs: the family of processors, its instruction set, and how many threads."""

from __future__ import annotations

import platform
from functools import lru_cache
from typing import NamedTuple

import torch

AMX_MODELS = (0x8F, 0xCF, 0xAD, 0xAE)  # Sapphire, Emerald and Granite Rapids: the same cores to a kernel, and AMX
ZEN_4_MODELS = (*range(0x10, 0x20), *range(0x60, 0x80), *range(0xA0, 0xB0))
FAMILIES = ("zen4", "zen5", "amx", "avx2", "other")  # of CPUs; a GPU's is sm and its compute capability
MEASURED_BY_HAND = ("zen4", "zen5")  # of whose first the thresholds of the rules are, where a table says nothing
AVX512 = ("avx512", "avx512_bf16")


def family_of(maker: str, family: int, model: int, isa: str) -> str:
    """Of a CPU with CPUID's numbers, in the instruction set that our kernels take."""
    if isa == "avx2":
        return "avx2"
    if isa in AVX512:
        if maker == "amd" and family == 26:
            return "zen5"
        if maker == "amd" and family == 25 and model in ZEN_4_MODELS:
            return "zen4"
        if maker == "intel" and family == 6 and model in AMX_MODELS:
            return "amx"
    return "other"


def name() -> str:
    """The processor's own, in words."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


class Place(NamedTuple):
    """Where a call runs."""

    family: str
    isa: str = ""  # of the native module; empty on a GPU
    threads: str = ""  # "one" or "several"; empty on a GPU
    kernels: str = ""  # whose, on a GPU: "triton" or "cuda"; empty on a CPU

    @property
    def is_gpu(self) -> bool:
        return not self.threads


@lru_cache(maxsize=1)
def _native():  # an import that is done already still takes 0.3 us
    from pyflash import _cpu

    return _cpu


@lru_cache(maxsize=8)
def _cpu_family(isa: str) -> str:
    maker, family, model = _native().processor()
    return family_of(maker, family, model, isa)


@lru_cache(maxsize=1)
def _gpu_family() -> str:
    if not torch.cuda.is_available():
        return "other"
    major, minor = torch.cuda.get_device_capability()
    return f"sm{major}{minor}"


def family(backend: str) -> str:
    return _cpu_family(isa()) if backend == "cpu" else _gpu_family()


def isa() -> str:
    return _native().isa()


def threads() -> str:
    return "one" if torch.get_num_threads() == 1 else "several"


def place(backend: str) -> Place:
    return Place(family(backend), isa(), threads()) if backend == "cpu" else Place(family(backend), kernels=backend)
