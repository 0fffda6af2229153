"""What is captured, rotated and forgotten, with a device that only keeps a diary."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from benchmarks import cuda_timing
from benchmarks.check import Bound

CACHE = 1 << 20


class Diary:
    """Stands in for torch.cuda: every call is noted, an event is the number of notes before it."""

    def __init__(self, captures=True):
        self.notes, self.captures, self.recorded = [], captures, []
        diary = self

        class Graph:
            def replay(self):
                diary.notes.append("replay")

        class Event:
            def __init__(self, enable_timing):
                self.place = None

            def record(self):
                self.place = len(diary.notes)

            def synchronize(self):
                pass

            def elapsed_time(self, end):
                diary.recorded.append(diary.notes[self.place : end.place])
                return 8.0  # milliseconds

        self.CUDAGraph, self.Event = Graph, Event
        self.Stream = self.current_stream = lambda: SimpleNamespace(wait_stream=lambda other: None)

    @contextlib.contextmanager
    def graph(self, graph):
        self.notes.append("capture")
        yield
        if not self.captures:
            raise RuntimeError("operation not permitted when stream is capturing")

    stream = staticmethod(lambda stream: contextlib.nullcontext())

    def synchronize(self):
        pass

    def _sleep(self, cycles):
        self.notes.append("pause")


@pytest.fixture(params=[True, False], ids=["captured", "not captured"])
def diary(request, monkeypatch):
    diary = Diary(request.param)
    monkeypatch.setattr(torch, "cuda", diary)
    monkeypatch.setattr(cuda_timing, "cache_bytes", lambda: CACHE)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, device=None, **rest: empty(*size, **rest))
    cuda_timing.cache.cache_clear()
    yield diary
    cuda_timing.cache.cache_clear()


def test_a_forward_rotates_its_inputs(diary):
    x = torch.randn(64, 1024).t()  # a quarter of the cache
    seen = []
    bound = Bound(lambda x: seen.append((x.data_ptr(), x.stride())), (x,), "forward")
    assert cuda_timing.seconds(bound, 18) == pytest.approx(8e-3 / 9)
    assert len({pointer for pointer, _ in seen}) == 9  # twice the cache, and the call's own
    assert {stride for _, stride in seen} == {x.stride()}
    assert diary.recorded == 2 * [["replay"] if diary.captures else []]


def test_anything_else_finds_the_cache_overwritten(diary):
    calls = []

    def step():
        calls.append(1)

    assert cuda_timing.seconds(step, 3) == pytest.approx(8e-3)
    assert len(diary.recorded) == 3 and step.cuda_timer.cache.numel() == 2 * CACHE
    assert len(calls) == (3 if diary.captures else 6)  # two to warm up, one captured


def test_a_call_is_captured_once(diary):
    def step():
        pass

    cuda_timing.seconds(step, 1)
    cuda_timing.seconds(step, 1)
    assert diary.notes.count("capture") == 1
