"""The backends: which is wished for, what each can do here, and the record of what was taken."""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from pyflash.ops.core import contract

ORDER = ("triton", "cuda", "cpu")  # what `auto` tries on a tensor's device, best first; then torch
NAMES = ("auto", *ORDER, "torch")


class FallbackWarning(UserWarning):
    """`auto` gave a call to PyTorch because no kernel of ours serves it. Once per operation and reason."""


class _State:
    wish = os.environ.get("PYFLASH_BACKEND", "auto")
    strict = os.environ.get("PYFLASH_STRICT", "0") == "1"
    twice = False  # inside differentiated_twice


_state = _State()
if _state.wish not in NAMES:
    raise ImportError(f"PYFLASH_BACKEND is {_state.wish!r}, expected one of {', '.join(NAMES)}")

counts: Counter[tuple[str, str, str]] = Counter()  # (operation, backend, reason) -> calls
_warned: set[tuple[str, str]] = set()


def call_counts(*, reset: bool = False) -> Counter[tuple[str, str, str]]:
    """How often this process has called each operation: (operation, backend, reason) -> calls. A copy; the reason says
    why a call went to torch. Calls of a compiled graph are not counted.

    Args:
        reset: start again from zero, after this answer.
    """
    found = counts.copy()
    if reset:
        counts.clear()
    return found


class use_backend:
    """Calls of pyflash take this backend, for the whole process: inside a `with` block, or, without one, from here on
    (as torch.set_grad_enabled does it).

    Args:
        name: "cpu", "triton", "cuda" or "torch"; such a choice runs or raises. "auto" falls back to PyTorch.
    Raises:
        ValueError: no such backend.
    """

    def __init__(self, name: str):
        if name not in NAMES:
            raise ValueError(f"pyflash.use_backend: name is {name!r}, expected one of {', '.join(NAMES)}")
        self.name = name
        self.outer = _state.wish
        self.is_fresh = True  # made, and not yet entered
        _state.wish = name

    def __enter__(self) -> use_backend:
        if not self.is_fresh:
            self.outer = _state.wish
        self.is_fresh = False
        _state.wish = self.name
        return self

    def __exit__(self, *_):
        _state.wish = self.outer


class differentiated_twice:
    """What is called inside has its gradient differentiated: a penalty's critic. torch's second derivative of a convolution, or
    of an activation that is flat but for steps, has zeros for a gradient by its input, and they run back through the whole
    network, as dear as any others; ours has none there."""

    def __enter__(self) -> None:
        self.outer, _state.twice = _state.twice, True

    def __exit__(self, *_):
        _state.twice = self.outer


# Triton's interpreter, on CPU tensors, is chosen for the process when a kernel module is imported.
INTERPRETING = os.environ.get("TRITON_INTERPRET", "0") == "1"

# The CUDA C++ kernels on CPU tensors, thread by thread (csrc/cuda/host): for tests.
CUDA_ON_HOST = os.environ.get("PYFLASH_CUDA_HOST", "0") == "1"

# Device types whose tensors a backend takes.
DEVICES = {
    "cuda": ("cpu",) if CUDA_ON_HOST else ("cuda",),
    "triton": ("cuda", "cpu") if INTERPRETING else ("cuda",),
    "cpu": ("cpu",),
}


def _forget(module) -> None:
    """From here on an import of it fails, as if it had not been built."""
    modules: dict = sys.modules
    modules[module.__name__] = None
    package, _, name = module.__name__.rpartition(".")
    delattr(modules[package], name)


def _why_missing(backend: str) -> str:
    if backend == "cpu":
        try:
            from pyflash import _cpu
        except ImportError as error:
            if "PYFLASH_CPU_ISA" in str(error):
                raise
            return f"the native module is not built ({error}); install g++ and reinstall pyflash"
        if not contract.is_kept_by(_cpu):
            _forget(_cpu)
            return "the native module was built from other sources than these (csrc/common, csrc/bindings); make build"
    elif backend == "triton":
        if find_spec("triton") is None:
            return "triton is not installed; pip install triton"
        if torch.version.cuda is None and not INTERPRETING:
            return "this build of torch has no CUDA; TRITON_INTERPRET=1 runs the kernels on CPU tensors, slowly"
    elif backend == "cuda":
        return _why_no_cuda()
    return ""


def cuda_module() -> Any:
    """The native module of the CUDA C++ kernels, or its twin on the host. Raises ImportError."""
    return import_module("pyflash._cuda_host" if CUDA_ON_HOST else "pyflash._cuda")


def _why_no_cuda() -> str:
    name = "pyflash._cuda_host" if CUDA_ON_HOST else "pyflash._cuda"
    try:
        module = cuda_module()
    except ImportError as error:
        way = "make build" if CUDA_ON_HOST else "in a checkout, PYFLASH_CUDA_ARCHS=all make build, where there is nvcc"
        return f"the module {name} is not built ({error}); {way}"
    if not contract.is_kept_by(module, contract.CUDA):
        _forget(module)
        return f"{name} was built from other sources than these (csrc/common, csrc/bindings); make build"
    if torch.version.cuda is None and not CUDA_ON_HOST:
        return "this build of torch has no CUDA; PYFLASH_CUDA_HOST=1 runs the kernels on CPU tensors, for tests"
    return ""


# Why a backend does not exist on this machine; empty when it does. Found out without initialising CUDA.
MISSING = {name: _why_missing(name) for name in ORDER}


def why_not(backend: str, device: str) -> str:
    """Why `backend` does not serve tensors on `device`, whatever the operation; empty when it does."""
    if MISSING[backend]:
        return MISSING[backend]
    if device not in DEVICES[backend]:
        return f"{backend} takes {' or '.join(DEVICES[backend])} tensors, not {device}"
    if backend == "cuda" and device == "cuda":
        return _why_no_device()
    return ""


_device_answers: dict[str, str] = {}


def _why_no_device() -> str:
    """Asked when there are CUDA tensors, and once: what the module holds code for, the driver takes and the GPUs are."""
    if "" not in _device_answers:
        (driver, runtime), archs = cuda_module().versions(), cuda_module().ARCHS
        capabilities = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
        _device_answers[""] = unfit(archs, driver, runtime, capabilities)
    return _device_answers[""]


_why_no_device._dynamo_marked_constant = True  # type: ignore[attr-defined]  # torch.compile asks it, and does not read it


def unfit(archs: str, driver: int, runtime: int, capabilities) -> str:
    """Why a module with machine code for `archs` ("80 90"; PTX of the last) cannot run on GPUs of these compute capabilities;
    empty when it can.

    driver, runtime: the versions of CUDA that the driver takes and that the module was built with, 13000 for 13.0.
    """
    if not driver:
        return "cuda: there is no NVIDIA driver"
    if driver // 1000 < runtime // 1000:  # within a major version an older driver runs what a newer CUDA made
        return (
            f"cuda: the driver takes CUDA {driver // 1000}.{driver % 1000 // 10}, and pyflash._cuda was built with"
            f" {runtime // 1000}.{runtime % 1000 // 10}; a newer driver, or an older nvcc"
        )
    codes = [(int(arch[:-1]), int(arch[-1])) for arch in archs.split()]
    if not capabilities:
        return "cuda: there is no GPU"
    for major, minor in capabilities:
        has_code = any(major == of[0] and minor >= of[1] for of in codes)
        takes_ptx = (major, minor) >= codes[-1] and driver >= runtime  # the driver compiles what it knows
        if not (has_code or takes_ptx):
            return (
                f"cuda: pyflash._cuda was built for sm_{', sm_'.join(archs.split())}; a GPU here is sm_{major}{minor}"
            )
    return ""


IN_KERNELS, IN_TORCH = "in kernels", "in torch operations"


@dataclass(frozen=True)
class Operation:
    """What a public operation can be given, as `choose` and `explain` read it.

    Args:
        name: as in `pyflash.functional`.
        dtypes: backend -> dtypes it serves; a backend that is not named has no kernel.
        rules: for `auto`, from pyflash/auto: (backend, size, dtype) -> reason to prefer torch, or "".
        sizes: what `rules` takes as the size, in words.
        notes: backend -> which of its calls it does not take, for `explain`.
        second_derivative: what it is made of, for the table of operations.
    """

    name: str
    dtypes: dict[str, tuple[torch.dtype, ...]]
    rules: Any = None
    sizes: str = "elements"
    notes: dict[str, str] = field(default_factory=dict)
    second_derivative: str = IN_TORCH

    def __post_init__(self):
        OPERATIONS[self.name] = self

    def unserved(self, backend: str, device: str, dtype: torch.dtype) -> str:
        """Why `backend` cannot take this call; empty when it can."""
        if backend not in self.dtypes:
            return f"{backend} has no {self.name} kernel"
        if reason := why_not(backend, device):
            return reason
        if dtype not in self.dtypes[backend]:
            return f"{backend} does not serve {str(dtype).removeprefix('torch.')}"
        return ""


OPERATIONS: dict[str, Operation] = {}


def record(operation: str, backend: str, reason: str = "") -> None:
    if not torch.compiler.is_compiling():
        counts[operation, backend, reason] += 1


def fall_back(operation: str, reason: str) -> None:
    """`auto` has no kernel for this call: count it, and say so once; an error under PYFLASH_STRICT=1."""
    if torch.compiler.is_compiling():
        return
    counts[operation, "torch", reason] += 1
    if _state.strict:
        raise NotImplementedError(f"pyflash.{operation}: {reason} (PYFLASH_STRICT=1 forbids the fallback to PyTorch)")
    if (operation, reason) not in _warned:
        _warned.add((operation, reason))
        message = f"pyflash.{operation} runs through PyTorch: {reason}"
        warnings.warn(message, FallbackWarning, stacklevel=_levels_to_the_caller())


_LIBRARIES = tuple(str(folder) + os.sep for folder in (Path(torch.__file__).parent, Path(__file__).parents[2]))


def _levels_to_the_caller() -> int:
    """How many frames lie between the warning and the code that is neither ours nor torch's."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        frame, level = frame.f_back, level + 1
    return level
