"""Every launcher of a GPU's backend once at a GPU's size: right against float64, then its time beside torch's.

    python -m tools.gpu.smoke [OPERATION ...] [--backend triton|cuda] --results FILE     the `gpu` rows of benchmarks/*.py

One line a case, and a row of JSON in FILE: `error` as a share of what is allowed (above 1 is wrong), the kernels' own
time, what a call takes the host, TFLOP/s and TB/s, and whether the call lets itself be captured in a graph. The cases run
in a process of their own. One that ends it, or keeps it for too long, becomes a row that says so, and another process goes
on with the next: an illegal access costs one case.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tools.gpu import ROOT
from tools.gpu.environment import with_site

DEVICE_ERROR = 75  # exit status: the device no longer answers
NO_CAPTURE = 76  # a capture failed, after which torch's stream and generators are not what they were
PATIENCE = {"cuda": 60.0, "interpreter": 120.0}  # seconds for a case, compilation included
TIMED_CALLS = 10
MOST_LAUNCHES = 800  # that a stream takes before the host has to wait
PAUSE = 0.05  # seconds at most that the device is kept waiting for the host
CYCLES_PER_SECOND = 2e9  # of torch.cuda._sleep


@dataclass(frozen=True)
class Work:
    operation: object  # benchmarks.operation.Operation
    case: object
    mode: str
    small: bool

    @property
    def name(self) -> str:
        return f"{self.operation.name}: {self.case.name}, {self.mode}, {self.case.dtype}"


def plan(operations: list[str], small: bool) -> list[Work]:
    from dataclasses import replace

    from benchmarks import OPERATIONS
    from benchmarks.operation import load
    from tools.gpu.steps import BY_USE

    order = [name for name in dict.fromkeys((*BY_USE, *OPERATIONS)) if not operations or name in operations]
    found = []
    for operation in map(load, order):
        cases = operation.gpu
        if small:  # one of those that shrink to the same
            shrunk = {(case.small, case.dtype): replace(case, shape=case.small) for case in cases if case.small}
            cases = tuple(shrunk.values())
        found += [Work(operation, case, mode, small) for case in cases for mode in case.modes]
    return found


# One case: right, then fast.


class Checked:
    """One operation's case in one mode: inputs, the gradients that come from outside, and both contenders.

    The same as benchmarks/check.py's Reference, but everything is made on the device and float64 may see a part only.
    """

    def __init__(self, work: Work, device: str):
        import torch

        from benchmarks.check import SEED

        self.work, self.device, self.seed = work, device, SEED
        self.dtype = getattr(torch, work.case.dtype)
        torch.manual_seed(SEED)
        with torch.device(device):
            inputs = work.operation.inputs(work.case)
        self.inputs = tuple(x.to(self.dtype) if x.is_floating_point() else x for x in inputs)
        self.douts: list[torch.Tensor] | None = None
        self.exact: list[torch.Tensor] | None = None

    def bind(self, factory: Callable, inputs=None, dtype=None):
        """A contender with its own copy of the inputs. A module has the same weights for everyone."""
        import torch

        from benchmarks.check import bind

        torch.manual_seed(self.seed)
        with torch.device(self.device):  # where a loss makes its target
            function = factory(self.work.case)
        if isinstance(function, torch.nn.Module):
            function = function.to(self.dtype)
        return bind(
            function, self.inputs if inputs is None else inputs, self.work.mode, self.device, dtype or self.dtype
        )

    def evaluate(self, bound) -> list:
        """Outputs and gradients."""
        import torch

        from benchmarks.check import outputs_of

        torch.manual_seed(self.seed)
        with torch.set_grad_enabled(self.work.mode != "forward"):
            outputs = outputs_of(bound())
            if self.work.mode == "forward":
                return list(outputs)
            if self.douts is None:
                self.douts = [torch.randn(out.shape, device=out.device).to(self.dtype) for out in outputs]
            douts = [corner(dout, out).to(out.dtype) for dout, out in zip(self.douts, outputs, strict=True)]
            return [*(out.detach() for out in outputs), *torch.autograd.grad(outputs, bound.leaves, douts)]

    def truth(self, bound) -> list:
        import torch

        from benchmarks.check import comparable

        operation, case = self.work.operation, self.work.case
        if operation.truth is not None and getattr(case.shape, "dropout", True):  # follows this contender's choices
            return self.evaluate(self.bind(lambda case: operation.truth(case, bound), dtype=torch.float64))
        if self.exact is None:
            inputs = self.inputs if operation.part is None else operation.part(case, self.inputs)
            bound = self.bind(operation.torch, inputs, torch.float64)
            with comparable(bound.function, self.work.mode):
                self.exact = self.evaluate(bound)
        return self.exact

    def error(self, ours, theirs) -> float:
        """The worst share of the allowed error, of every output and gradient: the largest one may be twice torch's own
        and a few ulp of the largest term, as in benchmarks/check.py; and since that is as much as a whole key's share where
        terms are few, the norm of all errors may be twice torch's own and an ulp of the norm of the result."""
        import torch

        from benchmarks.check import FACTOR, FLOOR_ULP, Wrong, comparable

        ulp = torch.finfo(self.dtype).eps
        errors = []
        for bound in (theirs, ours):
            with comparable(bound.function, self.work.mode):
                found, truths = self.evaluate(bound), self.truth(bound)
            if len(found) != len(truths):
                raise Wrong(f"{len(found)} results where torch has {len(truths)}")
            differences = [corner(x, truth).double() - truth for x, truth in zip(found, truths, strict=True)]
            errors.append([(largest(difference), difference.norm().item()) for difference in differences])
        term = max(map(largest, self.douts or []), default=0.0)
        shares = []
        for truth, (torchs, torchs_norm), (own, own_norm) in zip(truths, *errors, strict=True):
            shares.append(own / (FACTOR * torchs + FLOOR_ULP * ulp * max(largest(truth), term, 1.0)))
            if truth.numel() and (size := truth.norm().item()):
                shares.append(own_norm / (FACTOR * (torchs_norm + ulp * size)))
        return math.nan if any(map(math.isnan, shares)) else max(shares)


def corner(x, like):
    """The part of x that `like`, computed from a part of the inputs, is about."""
    return x[tuple(slice(size) for size in like.shape)] if x.shape != like.shape else x


def largest(x) -> float:
    return x.abs().max().item() if x.numel() else 0.0


def timed_call(bound, mode: str, douts) -> Callable[[], object]:
    import torch

    from benchmarks.check import outputs_of

    if mode == "forward":
        return bound
    if mode == "backward":
        with torch.enable_grad():
            outputs = outputs_of(bound())
        return lambda: torch.autograd.grad(outputs, bound.leaves, douts, retain_graph=True)
    return lambda: torch.autograd.grad(outputs_of(bound()), bound.leaves, douts)


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    """(of the kernels, of the host) for one call: events after a pause, in which the host gets ahead, and on inputs that
    the L2 cache has forgotten; then the time until a call returns. Medians."""
    import torch

    from benchmarks.cuda_timing import cache
    from benchmarks.overhead import host_seconds

    for _ in range(2):
        cache().zero_()  # whose memory is taken before it is timed
        call()
    host = host_seconds(call, "cuda", TIMED_CALLS)
    calls = max(3, min(TIMED_CALLS, int(PAUSE / (1.5 * host))))
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(calls)]
    torch.cuda._sleep(int((1.5 * calls * host + 2e-4) * CYCLES_PER_SECOND))
    for start, end in pairs:
        cache().zero_()
        start.record()
        call()
        end.record()
    pairs[-1][1].synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in pairs) * 1e-3, host


def measure(work: Work, device: str, backend: str = "triton") -> dict:
    """The row of one case."""
    import torch

    import pyflash

    checked, mode = Checked(work, device), work.mode
    torch_bound = checked.bind(work.operation.torch)
    with pyflash.use_backend(backend):
        own = checked.bind(work.operation.pyflash)
        start = time.perf_counter()
        checked.evaluate(own)
        synchronize(device)
        row = {"case": work.name, "first_s": time.perf_counter() - start, "error": checked.error(own, torch_bound)}
        if device != "cuda" or work.small:
            return row
        with torch.set_grad_enabled(mode != "forward"):  # of every call, whatever its result says of gradients
            ours, host = seconds(timed_call(own, mode, checked.douts))
            theirs, torch_host = seconds(timed_call(torch_bound, mode, checked.douts))
    row |= {"us": ours * 1e6, "torch_us": theirs * 1e6, "x": theirs / ours}
    row |= {"host_us": host * 1e6, "torch_host_us": torch_host * 1e6}
    flops, bytes_ = work.operation.flops(work.case, mode), work.operation.bytes(work.case, mode)
    if flops:
        row |= {"TFLOPs": flops / ours * 1e-12, "torch_TFLOPs": flops / theirs * 1e-12}
    else:
        row |= {"TBs": bytes_ / ours * 1e-12, "torch_TBs": bytes_ / theirs * 1e-12}
    return row


def captures(work: Work, backend: str) -> dict:
    """Whether a forward lets itself be captured, and its replay gives what the call gave."""
    import torch

    import pyflash
    from benchmarks.check import outputs_of

    bound = Checked(work, "cuda").bind(work.operation.pyflash)
    row = {"case": f"{work.name}, in a graph"}
    with pyflash.use_backend(backend), torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            expected = outputs_of(bound())
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = outputs_of(bound())
        graph.replay()
        torch.cuda.synchronize()
    random = any(name in work.name for name in ("dropout", "rrelu"))
    row["captured"] = all(x.isfinite().all().item() if random else torch.equal(x, y) for x, y in zip(found, expected))
    return row


def synchronize(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


# The process that runs them.


def describe(row: dict) -> str:
    text = "  ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
    )
    return text.removeprefix("case ") + ("" if is_right(row) else "  <<< WRONG")


def is_right(row: dict) -> bool:
    return "failed" not in row and row.get("error", 0.0) <= 1 and row.get("captured", True)


def work_through(options: argparse.Namespace) -> int:
    """In the worker: every case that has no row yet."""
    import gc

    import torch

    from tools.gpu.sticky import answers

    device = "cpu" if options.device == "interpreter" else "cuda"
    torch.backends.cudnn.allow_tf32 = False  # float32 against float32
    done = {row["case"] for row in read(options.results)}
    everything = [
        (work.name, lambda work=work: measure(work, device, options.backend))
        for work in plan(options.operations, options.small)
    ]
    if device == "cuda" and not options.small:
        first: dict[str, Work] = {}
        for work in plan(options.operations, options.small):
            if work.mode == "forward":
                first.setdefault(f"{work.operation.name}{getattr(work.case.shape, 'kind', '')}", work)
        everything += [
            (f"{work.name}, in a graph", lambda work=work: captures(work, options.backend)) for work in first.values()
        ]
    for name, run in everything:
        if name in done:
            continue
        trying(options.results).write_text(name)
        try:
            row = run()
        except Exception as failure:
            row = {"case": name, "failed": f"{type(failure).__name__}: {' '.join(str(failure).split())}"[:400]}
        note(options.results, row)
        if "failed" in row and device == "cuda":
            if not answers():
                print(f"the device no longer answers after {name}", flush=True)
                os._exit(DEVICE_ERROR)
            if name.endswith("in a graph"):
                os._exit(NO_CAPTURE)
        gc.collect()
    trying(options.results).unlink(missing_ok=True)
    return 0


def trying(results: Path) -> Path:
    """The file that names the case at work."""
    return results.with_suffix(".trying")


def read(results: Path) -> list[dict]:
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def note(results: Path, row: dict) -> None:
    row = {key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()}
    with results.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(describe(row), flush=True)


# The process that watches over it.


def command(options: argparse.Namespace) -> list[str]:
    words = ["--results", str(options.results), "--device", options.device, "--backend", options.backend]
    words += [*["--small"] * options.small, "--worker"]
    return [sys.executable, "-m", "tools.gpu.smoke", *options.operations, *words]


def supervise(options: argparse.Namespace) -> int:
    """Starts workers until every case has a row."""
    options.results.parent.mkdir(parents=True, exist_ok=True)
    variables = with_site(os.environ) | ({"TRITON_INTERPRET": "1"} if options.device == "interpreter" else {})
    current = trying(options.results)
    while True:
        current.unlink(missing_ok=True)
        worker = subprocess.Popen(command(options), cwd=ROOT, env=variables)
        why = watch(worker, current, PATIENCE[options.device])
        if worker.returncode == 0:
            break
        if not current.exists():
            print(f"smoke: the cases' process ended with {worker.returncode} before any of them", file=sys.stderr)
            return 1
        name = current.read_text()
        if name not in {row["case"] for row in read(options.results)}:
            note(options.results, {"case": name, "failed": why or f"the process ended with {worker.returncode}"})
    rows = read(options.results)
    wrong = [row["case"] for row in rows if not is_right(row)]
    print(f"{len(rows)} cases, {len(wrong)} not right{': ' if wrong else ''}{'; '.join(wrong)}", flush=True)
    return int(bool(wrong))


def watch(worker: subprocess.Popen, current: Path, patience: float) -> str:
    """Waits for the worker; ends it, and says why, where one case takes longer than it may."""
    since, name = time.monotonic(), ""
    try:
        while worker.poll() is None:
            time.sleep(0.1)
            with contextlib.suppress(OSError):
                if (now := current.read_text()) != name:
                    since, name = time.monotonic(), now
            if time.monotonic() - since > patience:
                return f"took more than {patience:.0f} s"
        return ""
    finally:
        if worker.poll() is None:
            worker.kill()
        worker.wait()


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m tools.gpu.smoke", description=__doc__.split("\n")[0])
    options.add_argument("operations", nargs="*", help="default: all of them")
    options.add_argument("--results", type=Path, default=Path("smoke.jsonl"), help="a file that rows are added to")
    options.add_argument("--device", choices=("cuda", "interpreter"), default="cuda")
    options.add_argument("--backend", choices=("triton", "cuda"), default="triton")
    options.add_argument(
        "--small", action="store_true", help="the interpreter's sizes, no times: for compute-sanitizer"
    )
    options.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return options


def main() -> int:
    options = parser().parse_args()
    options.results = options.results.resolve()
    options.small = options.small or options.device == "interpreter"
    return work_through(options) if options.worker else supervise(options)


if __name__ == "__main__":
    sys.exit(main())
