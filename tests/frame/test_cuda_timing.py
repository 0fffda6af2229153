"""What is captured, rotated and forgotten, with a device that only keeps a diary."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from benchmarks import cuda_timing, harness
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
        self.Stream = lambda: SimpleNamespace(wait_stream=lambda other: None)
        self.default = self.current = self.Stream()
        self.is_capturing = False  # as torch's generator sees it

    @contextlib.contextmanager
    def graph(self, graph, stream):
        """A failure leaves the stream and the generator as torch 2.11 does; any later success ends that."""
        if not self.is_capturing:
            self.notes.append("capture")
        before, self.current = self.current, stream
        yield
        if not (self.captures or self.is_capturing):
            self.is_capturing = True
            raise RuntimeError("operation not permitted when stream is capturing")
        self.current, self.is_capturing = before, False

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    def current_stream(self):
        return self.current

    def set_stream(self, stream):
        self.current = stream

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
    for made_once in (cuda_timing.cache, cuda_timing.side_stream):
        made_once.cache_clear()
    yield diary
    for made_once in (cuda_timing.cache, cuda_timing.side_stream):
        made_once.cache_clear()


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


def test_a_failed_capture_leaves_nothing_behind(diary):
    """The next row's dropout asks the generator, and its calls go to the current stream."""
    cuda_timing.seconds(lambda: None, 1)
    assert diary.current is diary.default and not diary.is_capturing


def test_a_backward_is_captured_on_the_stream_of_its_forward(diary, monkeypatch):
    streams = []

    class Identity(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.stream = diary.current
            return x.clone()

        @staticmethod
        def backward(ctx, dy):
            streams.append((ctx.stream, diary.current))
            return dy

    monkeypatch.setattr(harness, "on_a_gpu", lambda bound: True)
    x = torch.randn(3, requires_grad=True)
    call = harness.timed_call(Bound(Identity.apply, (x,), "backward", leaves=[x]), "backward", None)
    cuda_timing.seconds(call, 1)
    # warmed up twice and captured, there; measured on the default stream where it was not captured
    assert streams[:3] == 3 * [(cuda_timing.side_stream(),) * 2]
    assert diary.current is diary.default
