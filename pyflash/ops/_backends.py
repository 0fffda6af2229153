"""Which backend serves a call: the wish, what each backend can do here, and the record of what was chosen.

A public function asks `choose` once. The answer is either the wish that goes into the operation ("auto" or a name, so a
compiled or exported graph carries it) or None: torch's own function is called, and the reason is counted for `explain`.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.autograd import forward_ad

from pyflash.auto.tables import place
from pyflash.ops._checks import device_type

ORDER = ("cuda", "triton", "cpu")  # what `auto` tries on a tensor's device, best first; then torch
NAMES = ("auto", *ORDER, "torch")


class FallbackWarning(UserWarning):
    """`auto` gave a call to PyTorch because no kernel of ours serves it. Once per operation and reason."""


class _State:
    wish = os.environ.get("PYFLASH_BACKEND", "auto")
    strict = os.environ.get("PYFLASH_STRICT", "0") == "1"


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

    def __enter__(self):
        if not self.is_fresh:
            self.outer = _state.wish
        self.is_fresh = False
        _state.wish = self.name
        return self

    def __exit__(self, *_):
        _state.wish = self.outer


# Triton's interpreter, on CPU tensors, is chosen for the process when a kernel module is imported.
INTERPRETING = os.environ.get("TRITON_INTERPRET", "0") == "1"

# Device types whose tensors a backend takes.
DEVICES = {
    "cuda": ("cuda",),
    "triton": ("cuda", "cpu") if INTERPRETING else ("cuda",),
    "cpu": ("cpu",),
}


def _why_missing(backend: str) -> str:
    if backend == "cpu":
        try:
            import pyflash._cpu  # noqa: F401
        except ImportError as error:
            if "PYFLASH_CPU_ISA" in str(error):
                raise
            return f"the native module is not built ({error}); install g++ and reinstall pyflash"
    elif backend == "triton":
        if find_spec("triton") is None:
            return "triton is not installed; pip install triton"
        if torch.version.cuda is None and not INTERPRETING:
            return "this build of torch has no CUDA; TRITON_INTERPRET=1 runs the kernels on CPU tensors, slowly"
    elif backend == "cuda":
        return "no CUDA C++ kernel is in this release"
    return ""


# Why a backend does not exist on this machine; empty when it does. Found out without initialising CUDA.
MISSING = {name: _why_missing(name) for name in ORDER}


@dataclass(frozen=True)
class Operation:
    """What a public operation can be given, as `choose` and `explain` read it.

    Args:
        name: as in `pyflash.functional`.
        dtypes: backend -> dtypes it serves; a backend that is not named has no kernel.
        rules: for `auto`, from pyflash/auto: (backend, size, dtype) -> reason to prefer torch, or "".
        sizes: what `rules` takes as the size, in words.
        notes: backend -> which of its calls it does not take, for `explain`.
    """

    name: str
    dtypes: dict[str, tuple[torch.dtype, ...]]
    rules: object = None
    sizes: str = "elements"
    notes: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        OPERATIONS[self.name] = self

    def unserved(self, backend: str, device: str, dtype: torch.dtype) -> str:
        """Why `backend` cannot take this call; empty when it can."""
        if backend not in self.dtypes:
            return f"{backend} has no {self.name} kernel"
        if MISSING[backend]:
            return MISSING[backend]
        if device not in DEVICES[backend]:
            return f"{backend} takes {' or '.join(DEVICES[backend])} tensors, not {device}"
        if dtype not in self.dtypes[backend]:
            return f"{backend} does not serve {str(dtype).removeprefix('torch.')}"
        return ""


OPERATIONS: dict[str, Operation] = {}


def is_jit_tracing() -> bool:
    """torch.jit.trace records torch's operators, and would take what a kernel of ours writes for uninitialised memory."""
    return torch._C._get_tracing_state() is not None


def tracing_derivatives(tensors) -> bool:
    """torch.func transforms and forward-mode duals see torch operations, which have every rule."""
    return torch._C._are_functorch_transforms_active() or (
        forward_ad._current_level >= 0
        and any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)
    )


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


_LIBRARIES = tuple(str(Path(file).parent) + os.sep for file in (torch.__file__, Path(__file__).parent))


def _levels_to_the_caller() -> int:
    """How many frames lie between the warning and the code that is neither ours nor torch's."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        frame, level = frame.f_back, level + 1
    return level


UNASKED: dict = {}  # of a call that no rule was asked about


class Refused(dict):
    """What `auto` said of calls that were alike in what is cheap to read: shapes, dtype, is_cpu. A look into it is all that
    a call of torch's costs.

    A value is what is counted for a call of torch's; None where the call is ours; or where it depends, a dictionary of
    these by (are gradients needed, is there one thread). Only for exact tensors, eagerly, where the wish is "auto".
    """

    LIMIT = 4096  # sizes of a process; sequences have many lengths

    def __init__(self, operation: Operation, size_of):
        """size_of: (are gradients needed, *tensors) -> what the rule takes as the size; None where they do not fit."""
        self.operation, self.size_of = operation, size_of
        _all_refused.append(self)

    def look(self, key, *tensors) -> tuple[str, str, str] | None:
        """What is counted, or None, of a call whose key has no value or a dictionary."""
        found = self.get(key)
        if found is None:
            if len(self) >= self.LIMIT:
                self.clear()
            found = self[key] = self._ask(*tensors)
        if type(found) is not dict:
            return found
        training = False
        if torch.is_grad_enabled():
            for t in tensors:
                if t is not None and t.requires_grad:
                    training = True
                    break
        return found[training, torch.get_num_threads() == 1]

    def _ask(self, *tensors):
        x = tensors[0]
        backend = "cpu" if x.is_cpu else "triton" if x.is_cuda else ""
        if not backend or self.size_of(False, *tensors) is None:
            return None
        if self.operation.unserved(backend, device_type(x), x.dtype):
            return None
        here, found = place(backend), {}
        for training in (False, True):
            for threads in ("one", "several"):
                where = here if here.is_gpu else here._replace(threads=threads)
                reason = self.operation.rules.decide(where, self.size_of(training, *tensors), x.dtype)
                found[training, threads == "one"] = (self.operation.name, "torch", reason) if reason else None
        return found if len(set(found.values())) > 1 else found[False, True]


_all_refused: list[Refused] = []


def forget_refused() -> None:
    """After a change of what the rules read: the instruction set, a table."""
    for refused in _all_refused:
        refused.clear()


def _subclass_of(tensors) -> str:
    """ ", not DTensor": the class that makes these no tensors for a kernel, for the reason given."""
    kinds = {type(t).__name__ for t in tensors if isinstance(t, torch.Tensor)} - {"Tensor", "Parameter"}
    return f", not {' or '.join(sorted(kinds))}" if kinds else ""


def choose(operation: Operation, x: torch.Tensor, tensors=(), size: int | None = None, refused: str = "") -> str | None:
    """The wish to pass to the operation, or None: call torch's own function.

    Args:
        operation: whose kernels are asked for.
        x: the tensor whose device and dtype decide.
        tensors: the other tensors of the call.
        size: what the `auto` rules compare; default the number of elements of `x`.
        refused: why no kernel of ours takes these arguments at all, when that is so.
    Raises:
        NotImplementedError: a backend asked for by name cannot serve the call.
    """
    wish = _state.wish
    if refused:
        refused += _subclass_of((x, *tensors))
    if wish == "torch":
        record(operation.name, "torch", "asked for")
        return None
    if tracing_derivatives((x, *tensors)):
        record(operation.name, "torch", "torch.func transform or forward-mode derivative")
        return None
    if is_jit_tracing():
        record(operation.name, "torch", "torch.jit.trace")
        return None
    if torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export():
        return None  # ONNX has no operators of ours
    device = device_type(x)
    if wish != "auto":
        reason = refused or operation.unserved(wish, device, x.dtype)
        if reason:
            raise NotImplementedError(f'pyflash.{operation.name}: {reason}; use_backend("torch") serves it')
        record(operation.name, wish)
        return wish
    reason = refused
    for backend in ORDER:
        if backend not in operation.dtypes or device not in DEVICES[backend] or (device == "cpu" and backend != "cpu"):
            continue
        reason = refused or operation.unserved(backend, device, x.dtype)
        if reason:
            continue
        # An exported program serves sizes that are not known yet: a threshold would refuse those on its other side.
        if operation.rules is not None and not torch.compiler.is_exporting():
            preferred = operation.rules(backend, x.numel() if size is None else size, x.dtype)
            if preferred:
                record(operation.name, "torch", preferred)
                return None
        record(operation.name, backend)
        return "auto"
    fall_back(operation.name, reason or f"no kernel for {device} tensors")
    return None
