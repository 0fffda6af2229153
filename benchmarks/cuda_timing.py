"""Time on a CUDA device: events around replays of a graph, with inputs that the L2 cache has forgotten.

A call that can be captured is replayed, so launches cost what they cost a compiled program. A forward of plain
functions is captured several times over, on copies of its inputs that together are larger than the cache; of anything
else one call is captured, and the cache is overwritten before each replay. What cannot be captured is launched after
a pause long enough for the host to get ahead.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import time
from collections.abc import Callable

import torch

from benchmarks.check import Bound

FORGET = 2  # times the L2 cache that must pass before a line is taken for forgotten
MOST_COPIES = 64
MOST_PAUSE = 0.1  # seconds
CYCLES_PER_SECOND = 2e9  # of the clock that torch.cuda._sleep counts; too high only means a longer pause


def cache_bytes() -> int:
    return torch.cuda.get_device_properties().L2_cache_size


@functools.cache
def cache() -> torch.Tensor:
    """Overwriting it leaves nothing else in the L2 cache."""
    return torch.empty(FORGET * cache_bytes(), dtype=torch.int8, device="cuda")


def rotation(bound: Bound, past: int) -> list[Bound]:
    """The same call on copies of its inputs that together are larger than `past` bytes; the call itself first."""
    size = sum(tensor.untyped_storage().nbytes() for tensor in bound.inputs)
    count = min(MOST_COPIES, 1 + past // max(1, size))  # inputs alone: outputs come on top
    copies = [dataclasses.replace(bound, inputs=tuple(map(clone, bound.inputs)), leaves=[]) for _ in range(count - 1)]
    return [bound, *copies]


def clone(tensor: torch.Tensor) -> torch.Tensor:
    """A copy with the same strides."""
    copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    return copy.copy_(tensor.detach())


class Timer:
    """One contender's call, captured where that is possible."""

    def __init__(self, call: Callable[[], object]):
        self.calls = [call]
        if isinstance(call, Bound) and call.mode == "forward" and not isinstance(call.function, torch.nn.Module):
            self.calls = rotation(call, FORGET * cache_bytes())
        self.graph = capture(self.calls)
        self.cache = None  # what overwrites the cache, where nothing rotates
        if len(self.calls) == 1:
            self.cache = cache()
        self.host_seconds = 0.0

    def launch(self) -> None:
        if self.graph is not None:
            self.graph.replay()
            return
        start = time.perf_counter()
        for call in self.calls:
            call()
        self.host_seconds = time.perf_counter() - start

    def seconds(self, repeats: int) -> float:
        """The time of one call."""
        launches = max(1, -(-repeats // len(self.calls)))
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(launches)]
        pause = min(MOST_PAUSE, 1.5 * launches * self.host_seconds) + 2e-4
        torch.cuda._sleep(int(pause * CYCLES_PER_SECOND))
        for start, end in pairs:
            if self.cache is not None:
                self.cache.zero_()
            start.record()
            self.launch()
            end.record()
        pairs[-1][1].synchronize()
        return sum(start.elapsed_time(end) for start, end in pairs) * 1e-3 / (launches * len(self.calls))


@functools.cache
def side_stream():
    """Where everything is captured."""
    return torch.cuda.Stream()


@contextlib.contextmanager
def captured_stream():
    """What runs inside goes where calls are captured: a backward is launched on its forward's stream, and a capture
    refuses work on any stream but its own."""
    side = side_stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        yield
    torch.cuda.current_stream().wait_stream(side)


def capture(calls: list[Callable[[], object]]):
    """A graph of these calls, one after another; None where something in them does not let itself be captured."""
    before = torch.cuda.current_stream()
    with captured_stream():  # what is compiled or allocated on first use must be so before
        for _ in range(2):
            for call in calls:
                call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=side_stream()):
            for call in calls:
                call()
        graph.replay()
        torch.cuda.synchronize()
    except Exception:  # whatever refused, the call itself has just run twice
        torch.cuda.set_stream(before)
        torch.cuda.synchronize()
        end_capture()
        return None
    return graph


def end_capture() -> None:
    """A capture that failed leaves torch's generator capturing, and all later dropout fails, until one succeeds."""
    memory = torch.empty(1, device="cuda")
    with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=side_stream()):
        memory.zero_()


def seconds(call: Callable[[], object], repeats: int) -> float:
    """The time of one call on the current device. Graphs and copies are made the first time, and live as long as the call."""
    if not hasattr(call, "cuda_timer"):
        gc.collect()  # call and timer hold each other: this frees the memory of cases that are over
        call.cuda_timer = Timer(call)
    return call.cuda_timer.seconds(repeats)
