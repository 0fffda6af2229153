"""Measurement: providers interleaved in one run, medians of the samples that nothing disturbed.

On a CPU a sample is clean when no thread of ours waited for a processor during it, which the kernel counts for us.
Fewer than five clean samples is noise: printed, and never a win or a loss.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from benchmarks import cuda_timing
from benchmarks.check import SEED, Bound, Reference, Wrong, cotangents, outputs_of
from benchmarks.machine import Machine
from benchmarks.operation import Case, Operation, Provider
from pyflash.ops import _backends

MIN_CLEAN = 5
LONG = 0.1  # seconds: such a call warms its own caches, and one more of it would cost too much
SAMPLE_SECONDS = 2e-3  # short calls are grouped up to this, so that the clock and the filter have something to see


@dataclass(frozen=True)
class Effort:
    """How long a row may take: until every provider has `clean` clean samples, or `seconds` are over."""

    clean: int
    seconds: float
    rounds: int = 200


FULL = Effort(clean=11, seconds=12.0)
QUICK = Effort(clean=5, seconds=3.0)


@dataclass(frozen=True)
class Sample:
    seconds: float  # of one call
    clean: bool


@dataclass
class Row:
    """One provider on one case: what the table, the JSON and the pictures are made from. Times in seconds."""

    operation: str
    case: str
    mode: str
    dtype: str
    provider: str
    model: str = ""
    status: str = "ok"  # ok, noisy, wrong, unsupported, out of memory, error
    note: str = ""
    served: str = ""  # the backends that pyflash's calls took, torch among them where `auto` preferred it
    median: float | None = None
    q25: float | None = None
    q75: float | None = None
    clean: int = 0
    samples: int = 0
    calls_per_sample: int = 0
    flops_per_s: float | None = None
    bytes_per_s: float | None = None
    share: float | None = None  # of what this machine's measured peaks allow
    ratio: float | None = None  # torch's median over this one
    floor: float | None = None  # the least ratio asked for
    extra_us: float | None = None  # the most microseconds it may add to torch's time
    torch_median: float | None = None
    max_error: float | None = None
    allowed_error: float | None = None

    @property
    def reached(self) -> bool | None:
        """Whether what is asked was measured; None where nothing is asked or nothing was measured."""
        if self.status != "ok" or self.ratio is None:
            return None
        if self.floor is not None:
            return self.ratio >= self.floor
        if self.extra_us is not None:
            return (self.median - self.torch_median) * 1e6 <= self.extra_us
        return None


# Clean samples.


def run_queue_delay() -> dict[str, int]:
    """Nanoseconds that each of our threads has waited, ready to run, for a processor. Empty where unknown."""
    delays = {}
    try:
        threads = os.listdir("/proc/self/task")
    except OSError:
        return delays
    for thread in threads:
        with contextlib.suppress(OSError, IndexError, ValueError):  # a thread may end while we look
            delays[thread] = int(Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[1])
    return delays


def waited_ns(before: dict[str, int], after: dict[str, int]) -> int:
    return sum(max(0, delay - before.get(thread, 0)) for thread, delay in after.items())


def is_clean(wall_ns: int, waiting_ns: int) -> bool:
    return waiting_ns <= 0.02 * wall_ns + 3000


def sample_cpu(call: Callable[[], object], repeats: int) -> Sample:
    before = run_queue_delay()
    start = time.perf_counter_ns()
    for _ in range(repeats):
        call()
    wall = time.perf_counter_ns() - start
    return Sample(wall / repeats * 1e-9, is_clean(wall, waited_ns(before, run_queue_delay())))


SAMPLERS = {"cpu": sample_cpu, "cuda": lambda call, repeats: Sample(cuda_timing.seconds(call, repeats), True)}


# Contenders.


@dataclass
class Contender:
    """A provider that gave the right result, ready to be timed."""

    provider: Provider
    call: Callable[[], object]
    mode: str
    errors: tuple[float, float]
    served: str = ""
    seconds: float = 0.0  # of one call, roughly
    repeats: int = 1

    @contextlib.contextmanager
    def scope(self):
        with self.provider.scope(), torch.set_grad_enabled(self.mode != "forward"):
            yield


def timed_call(bound: Bound, mode: str, case: Case) -> Callable[[], object]:
    """The function that one sample repeats."""
    if mode == "forward":
        return bound
    if mode == "backward":
        outputs = outputs_of(bound())
        douts = cotangents(outputs)
        return lambda: torch.autograd.grad(outputs, bound.leaves, douts, retain_graph=True)
    douts = cotangents(outputs_of(bound()))
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
    before = _backends.counts.copy()
    with provider.scope():
        bound = reference.bind(reference.build(lambda case: provider.build(operation, case)))
        errors = reference.check(bound)
        torch.manual_seed(SEED)
        with torch.set_grad_enabled(mode != "forward"):
            contender = Contender(provider, timed_call(bound, mode, case), mode, errors)
            contender.call()
            sampler = SAMPLERS[reference.device]
            contender.seconds = sampler(contender.call, 1).seconds
            if contender.seconds < LONG:
                contender.seconds = min(sampler(contender.call, 1).seconds for _ in range(5))
    contender.served = ", ".join(sorted({backend for _, backend, _ in _backends.counts - before}))
    contender.repeats = max(1, math.ceil(SAMPLE_SECONDS / contender.seconds))
    return contender


def measure(contenders: list[Contender], sampler: Callable, effort: Effort) -> dict[str, list[Sample]]:
    """Rounds of one sample each, the order turned round every time, until there are enough clean ones."""
    samples = {contender.provider.name: [] for contender in contenders}
    end = time.perf_counter() + effort.seconds
    for turn in range(effort.rounds):
        for contender in contenders[:: -1 if turn % 2 else 1]:
            with contender.scope():
                if contender.seconds < LONG:
                    contender.call()  # brings its own data back into the caches
                samples[contender.provider.name].append(sampler(contender.call, contender.repeats))
        enough = all(sum(sample.clean for sample in taken) >= effort.clean for taken in samples.values())
        if turn + 1 >= MIN_CLEAN and (enough or time.perf_counter() > end):
            break
    return samples


# Rows.


def fill_times(row: Row, samples: list[Sample]) -> None:
    """Median and quartiles of the clean samples; of all of them, marked noisy, when too few are clean."""
    clean = [sample.seconds for sample in samples if sample.clean]
    row.clean, row.samples = len(clean), len(samples)
    if len(clean) < MIN_CLEAN:
        row.status, row.note = "noisy", f"{len(clean)} of {len(samples)} samples clean"
        clean = [sample.seconds for sample in samples]
    row.q25, row.median, row.q75 = statistics.quantiles(clean, n=4, method="inclusive")


def fill_rates(row: Row, operation: Operation, case: Case, machine: Machine) -> None:
    flops, bytes_ = operation.flops(case, row.mode), operation.bytes(case, row.mode)
    row.flops_per_s, row.bytes_per_s = flops / row.median, bytes_ / row.median
    row.share = machine.roof_seconds(flops, bytes_, case.dtype) / row.median or None


def fill_ratios(rows: list[Row]) -> None:
    """Against torch in the same run. A noisy row, or a noisy torch, has no ratio: it neither wins nor loses."""
    baseline = next((row for row in rows if row.provider == "torch" and row.status == "ok"), None)
    for row in rows:
        if baseline is not None and row.status == "ok":
            row.ratio, row.torch_median = baseline.median / row.median, baseline.median


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
        fill_times(row, samples[row.provider])
        fill_rates(row, operation, case, machine)
        if contender.provider.function == "pyflash" and machine.has_isa(case.isa):
            row.floor, row.extra_us = case.floors.get(mode), case.extra_us.get(row.provider)
    fill_ratios(list(rows.values()))
    return list(rows.values())


# JSON: a list of rows, each with the machine it was measured on.


def save(path: Path, rows: list[Row], machine: Machine) -> None:
    """Written whole after every case, then renamed: an interrupted run keeps its finished rows."""
    text = json.dumps([asdict(row) | {"machine": machine.to_json()} for row in rows], indent=1)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text + "\n")
    unfinished.replace(path)


def read(path: Path) -> tuple[list[Row], list[Machine]]:
    """Raises ValueError, in one line, on anything that save() did not write."""
    known = {field.name for field in fields(Row)}
    try:
        loaded = json.loads(path.read_text())
        machines = [Machine(**row.pop("machine")) for row in loaded]
        return [Row(**{key: row[key] for key in row if key in known}) for row in loaded], machines
    except (OSError, TypeError, KeyError, AttributeError, ValueError) as failure:
        raise ValueError(f"{path}: not a benchmark result ({failure})") from None
