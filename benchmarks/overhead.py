"""What a call costs besides its kernels, and what it keeps: the host's time, and the bytes saved for a backward."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from statistics import median

import torch

from benchmarks.check import Bound


def host_seconds(call: Callable[[], object], device: str, calls: int) -> float:
    """On a GPU, how long one call takes to return. On a CPU, the part of it that is not inside our native core: Python,
    checks, allocation, autograd; of no use where torch computes, whose kernels cannot be told from its dispatcher.
    The median of a few calls: so few that a GPU's queue does not fill."""
    if device != "cpu":
        return median(returning_seconds(call) for _ in range(calls))
    with timed_core() as inside:
        return median(outside_seconds(call, inside) for _ in range(calls))


def returning_seconds(call: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def outside_seconds(call: Callable[[], object], inside: list[int]) -> float:
    inside.clear()
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start - sum(inside)) * 1e-9


@contextlib.contextmanager
def timed_core() -> Iterator[list[int]]:
    """Nanoseconds of every call into the native core, as they come; noting one costs about 0.2 us."""
    from pyflash import _cpu

    inside: list[int] = []

    def timed(function: Callable) -> Callable:
        def call(*arguments, **options):
            start = time.perf_counter_ns()
            try:
                return function(*arguments, **options)
            finally:
                inside.append(time.perf_counter_ns() - start)

        return call

    functions = {name: value for name, value in vars(_cpu).items() if callable(value) and not isinstance(value, type)}
    try:
        for name, function in functions.items():
            setattr(_cpu, name, timed(function))
        yield inside
    finally:
        for name, function in functions.items():
            setattr(_cpu, name, function)


def saved_bytes(bound: Bound) -> int:
    """What one forward keeps for its backward, inputs and parameters left out: they are there anyway.

    Storages are counted once, and whole: a view keeps all of what it looks at.
    """
    kept: dict[object, int] = {}
    alive = []  # an address is not used again while we count

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        place, size = storage(tensor)
        kept[place] = size
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = bound()
    for tensor in (*bound.inputs, *bound.leaves):
        kept.pop(storage(tensor)[0], None)
    del outputs
    return sum(kept.values())


def storage(tensor: torch.Tensor) -> tuple[object, int]:
    try:
        whole = tensor.untyped_storage()
        return whole.data_ptr(), whole.nbytes()
    except (RuntimeError, NotImplementedError):  # oneDNN's own layouts have no storage
        return id(tensor), tensor.numel() * tensor.element_size()
