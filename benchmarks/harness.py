"""Measurement: providers interleaved in one run, medians of the samples that nothing disturbed.

Fewer than five clean samples is noise: printed, and never a win or a loss.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import median

import torch

from benchmarks.check import SEED, Bound, Reference, Wrong, cotangents, outputs_of, second_derivatives
from benchmarks.cuda_timing import captured_stream
from benchmarks.limits import set_limit
from benchmarks.machine import Machine
from benchmarks.operation import Case, Operation, Provider
from benchmarks.overhead import host_seconds, saved_bytes
from benchmarks.rows import Row
from benchmarks.sampling import SAMPLERS, Sample, first_seconds, median_interval, paired_ratios, quartiles
from pyflash.cli._memory import Memory
from pyflash.ops.core import backends

MIN_CLEAN = 5
MOVING = 4  # rounds after which a CPU's tensors are put elsewhere: what their places are worth is noise of a row, too
LAST_ROUNDS = 8  # of calls so long that five rounds take all of the time: three of them may be disturbed
LONG = 0.03  # seconds: such a call warms its own caches, and one more of it would cost too much
SAMPLE_SECONDS = 2e-3  # short calls are grouped up to this, so that the clock and the filter have something to see
FEW_SECONDS = 0.03  # for each of the things that are measured once: as many calls as fit, seven at most


@dataclass(frozen=True)
class Effort:
    """How long a row is sampled: until every provider has `clean` rounds that count, or `seconds` are over; for a
    provider that has not even five of them by then, until `patience` seconds are."""

    clean: int
    seconds: float
    patience: float = 0.0
    rounds: int = 200


# For most rows 25 rounds are over in a fraction of a second; 11 left intervals half as wide again, and half the places.
FULL = Effort(clean=25, seconds=8.0, patience=12.0)
QUICK = Effort(clean=25, seconds=1.2, patience=2.0)


# Contenders.


@dataclass
class Contender:
    """A provider that gave the right result, ready to be timed."""

    provider: Provider
    call: Callable[[], object]
    mode: str
    errors: tuple[float, float]
    served: str = ""
    first_call: float = 0.0
    peak_bytes: int | None = None
    saved_bytes: int | None = None
    host_seconds: float | None = None
    seconds: float = 0.0  # of one call, roughly
    repeats: int = 1
    move: Callable[[], Callable[[], object]] | None = None  # puts its tensors elsewhere; returns the call on them

    @contextlib.contextmanager
    def scope(self):
        with self.provider.scope(), torch.set_grad_enabled(self.mode != "forward"):
            yield


def on_a_gpu(bound: Bound) -> bool:
    return any(tensor.is_cuda for tensor in bound.inputs)


def timed_call(bound: Bound, mode: str, case: Case) -> Callable[[], object]:
    """The function that one sample repeats."""
    if mode == "forward":
        return bound
    if mode == "backward":
        with captured_stream() if on_a_gpu(bound) else contextlib.nullcontext():
            outputs = outputs_of(bound())
        douts = cotangents(outputs)
        return lambda: torch.autograd.grad(outputs, bound.leaves, douts, retain_graph=True)
    douts = cotangents(outputs_of(bound()))
    if mode == "double-backward":
        return lambda: second_derivatives(outputs_of(bound()), bound.leaves, douts)
    if not case.optimizer:
        return lambda: torch.autograd.grad(outputs_of(bound()), bound.leaves, douts)
    optimizer = torch.optim.AdamW(bound.leaves, lr=1e-6)

    def step():
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(outputs_of(bound()), douts)
        optimizer.step()

    return step


def prepare(provider: Provider, reference: Reference) -> Contender:
    """Builds, checks, and makes the first calls. Raises Wrong rather than let a wrong result be timed."""
    operation, case, mode = reference.operation, reference.case, reference.mode
    before = backends.counts.copy()
    with provider.scope():
        bound = reference.bind(reference.build(lambda case: provider.build(operation, case)))
        sampler = SAMPLERS[reference.device]
        with torch.set_grad_enabled(mode != "forward"):
            first_call = first_seconds(bound, reference.device)
        errors = reference.check(bound)
        torch.manual_seed(SEED)
        with torch.set_grad_enabled(mode != "forward"):
            contender = Contender(provider, timed_call(bound, mode, case), mode, errors, first_call=first_call)
            contender.peak_bytes = Memory(reference.device).added_by(contender.call)
            contender.seconds = sampler(contender.call, 1).seconds
            calls = max(1, min(7, int(FEW_SECONDS / contender.seconds)))
            if contender.seconds < LONG:
                contender.seconds = min(sampler(contender.call, 1).seconds for _ in range(calls))
            if mode == "training":
                contender.saved_bytes = saved_bytes(bound)
            contender.served = ", ".join(sorted({backend for _, backend, _ in backends.counts - before}))
            only_ours = contender.served == "cpu" and mode != "double-backward" and not case.optimizer
            if reference.device != "cpu" or only_ours:
                contender.host_seconds = host_seconds(contender.call, reference.device, calls)
    contender.repeats = max(1, math.ceil(SAMPLE_SECONDS / contender.seconds))

    def move():
        bound.move()
        return contender.call if case.optimizer else timed_call(bound, mode, case)

    contender.move = move if reference.device == "cpu" else None
    return contender


def measure(contenders: list[Contender], sampler: Callable, effort: Effort) -> dict[str, list[Sample]]:
    """Rounds of one sample each, the order turned round every time, until there are enough clean ones."""
    samples = {contender.provider.name: [] for contender in contenders}
    start = time.perf_counter()
    for turn in range(effort.rounds):
        if turn and turn % MOVING == 0:
            for contender in contenders:
                if contender.move is not None:
                    with contender.scope():
                        contender.call = contender.move()
        for contender in contenders[:: -1 if turn % 2 else 1]:
            with contender.scope():
                if contender.seconds < LONG:
                    contender.call()  # brings its own data back into the caches
                samples[contender.provider.name].append(sampler(contender.call, contender.repeats))
        clean = min((usable(samples, name) for name in samples), default=effort.clean)
        limit = effort.seconds if clean >= MIN_CLEAN else max(effort.seconds, effort.patience)
        over = time.perf_counter() - start > limit and (clean >= MIN_CLEAN or turn + 1 >= LAST_ROUNDS)
        if turn + 1 >= MIN_CLEAN and (clean >= effort.clean or over):
            break
    return samples


def usable(samples: dict[str, list[Sample]], name: str) -> int:
    """Rounds that give a ratio: this provider was undisturbed in them, and so was torch."""
    return len(paired_ratios(samples.get("torch", samples[name]), samples[name]))


# Rows.


def fill_times(row: Row, samples: list[Sample]) -> None:
    """Median and quartiles of the clean samples; of all of them, marked noisy, when too few are clean."""
    clean = [sample.seconds for sample in samples if sample.clean]
    row.clean, row.samples = len(clean), len(samples)
    if len(clean) < MIN_CLEAN:
        row.status, row.note = "noisy", f"{len(clean)} of {len(samples)} samples clean"
        clean = [sample.seconds for sample in samples]
    row.q25, row.median, row.q75 = quartiles(clean)


def fill_ratios(rows: list[Row], samples: dict[str, list[Sample]]) -> None:
    """Against torch in the same run. A noisy row, or a noisy torch, has no ratio: it neither wins nor loses."""
    baseline = next((row for row in rows if row.provider == "torch" and row.status == "ok"), None)
    for row in rows:
        if baseline is None or row.status != "ok":
            continue
        row.torch_median = baseline.median
        ratios = paired_ratios(samples["torch"], samples[row.provider])
        if len(ratios) >= MIN_CLEAN:
            row.ratio, (row.ratio_low, row.ratio_high) = median(ratios), median_interval(ratios)
        else:  # clean in different rounds
            row.ratio = baseline.median / row.median


def explain_failure(failure: Exception) -> tuple[str, str]:
    """(status, note) of a provider that cannot be timed: what one would want to read in the table."""
    note = str(failure).strip().split("\n")[0] or type(failure).__name__
    if isinstance(failure, Wrong):
        return "wrong", note
    if isinstance(failure, torch.OutOfMemoryError | MemoryError):
        return "out of memory", note
    if isinstance(failure, ImportError | AttributeError | NotImplementedError):
        return "unsupported", note
    return "error", f"{type(failure).__name__}: {note}"


def fail(rows: Iterable[Row], failure: Exception) -> None:
    for row in rows:
        row.status, row.note = explain_failure(failure)


def run_case(
    operation: Operation,
    case: Case,
    mode: str,
    providers: Iterable[Provider],
    machine: Machine,
    *,
    device: str = "cpu",
    effort: Effort = FULL,
) -> list[Row]:
    """One row per provider; whatever goes wrong becomes a row, never an exception."""
    rows = {
        provider.name: Row(operation.name, case.name, mode, case.dtype, provider.name, case.model)
        for provider in providers
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            reference = Reference(operation, case, mode, device)
        except Exception as failure:  # without a truth nothing is timed
            fail(rows.values(), failure)
            return list(rows.values())
        contenders = []
        for provider in providers:
            try:
                contenders.append(prepare(provider, reference))
            except Exception as failure:
                fail([rows[provider.name]], failure)
        try:
            samples = measure(contenders, SAMPLERS[device], effort)
        except Exception as failure:
            fail([rows[contender.provider.name] for contender in contenders], failure)
            return list(rows.values())
    for contender in contenders:
        row = rows[contender.provider.name]
        row.max_error, row.allowed_error = contender.errors
        row.calls_per_sample, row.served = contender.repeats, contender.served
        row.first_call, row.host_seconds = contender.first_call, contender.host_seconds
        row.peak_bytes, row.saved_bytes = contender.peak_bytes, contender.saved_bytes
        fill_times(row, samples[row.provider])
        set_limit(row, operation.work(case, mode), machine)
    fill_ratios(list(rows.values()), samples)
    return list(rows.values())
