"""What an hour is spent on, most important first, and how one step is run within its time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tools.gpu import ROOT
from tools.gpu.environment import Environment

PARTS = ("tests", "bench", "tune", "profile")
NOTHING_COLLECTED = 5
# Benchmarks with the largest use first; those that are not named here follow.
BY_USE = ("attention", "linear", "layer_norm", "transformer")


@dataclass
class Step:
    """Args:
    share: the most of the whole time it may take.
    status: "not reached", "done", "failed", "out of time", "stopped".
    """

    name: str
    part: str
    command: list[str]
    share: float = 1.0
    status: str = "not reached"
    seconds: float = 0.0


def plan(here: Environment, parts: list[str], operations: list[str], results: Path, stamp: str) -> list[Step]:
    every = {"tests": tests, "bench": bench, "tune": tune, "profile": profile}
    steps = {part: every[part](here, operations, results, stamp) for part in parts}
    ordered = steps.get("tests", [])[:3] + steps.get("bench", [])[:1] + steps.get("tune", [])
    ordered += steps.get("bench", [])[1:] + steps.get("profile", []) + steps.get("tests", [])[3:]
    return ordered


def selection(*expressions: str) -> list[str]:
    chosen = " and ".join(f"({expression})" for expression in expressions if expression)
    return ["-k", chosen] if chosen else []


def tests(here: Environment, operations: list[str], results: Path, stamp: str) -> list[Step]:
    """The kernels' own tests, the operations on the device, sizes past 2^31 elements, then what needs no GPU."""
    if not here.has("pytest"):
        return []
    kernels = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/test_triton_*.py"))
    pytest = ["-m", "pytest", "-p", "tools.gpu.record", "-W", "ignore::RuntimeWarning"]
    pytest += ["--continue-on-collection-errors", "-p", "no:cacheprovider"]
    if here.has("xdist"):
        pytest += ["-n", str(here.workers)]
    wanted = " or ".join(operations)
    ignored = [f"--ignore={path}" for path in (*kernels, "tests/test_large.py")]
    return [
        Step("kernels", "tests", [*pytest, *kernels, *selection(wanted)], 0.35),
        Step("operations on the device", "tests", [*pytest, *ignored, *selection("triton", wanted)], 0.25),
        Step(
            "past 2^31 elements",
            "tests",
            [*pytest, "-n0"] * here.has("xdist")
            + [*pytest] * (not here.has("xdist"))
            + ["tests/test_large.py", *selection(wanted)],
            0.1,
        ),
        Step("everything else", "tests", [*pytest, *ignored, *selection("not triton", wanted)]),
    ]


def bench(here: Environment, operations: list[str], results: Path, stamp: str) -> list[Step]:
    from benchmarks import OPERATIONS

    known = [name for name in (*BY_USE, *OPERATIONS) if name in OPERATIONS]
    names = [name for name in dict.fromkeys(known) if not operations or name in operations]
    if not names:
        return []

    def step(what: str, file: str, *options: str, share: float = 1.0):
        files = ["--json", str(results / f"{stamp}-{file}.json"), "--png", str(results / f"{stamp}-{file}.png")]
        return Step(what, "bench", ["-m", "benchmarks", "run", *names, *options, *files], share)

    if here.device == "interpreter":  # times mean nothing here: that the command runs is what is shown
        names = ["activation"]
        return [step("one small benchmark on the CPU", "quick", "--quick", "--mode", "forward", "--only", "sigmoid")]
    cuda = ["--device", "cuda"]
    return [
        step("quick, bfloat16", "quick", *cuda, "--quick", "--dtype", "bfloat16", share=0.2),
        step("all cases, bfloat16", "bfloat16", *cuda, "--dtype", "bfloat16", share=0.5),
        step("all cases in their own types", "all", *cuda),
    ]


def tuned_table(here: Environment, results: Path) -> Path:
    """For everyone with this architecture; what the interpreter "measures" is for nobody."""
    return results / "tuned.json" if here.device == "interpreter" else ROOT / "kernels" / "tuned" / f"{here.arch}.json"


def tune(here: Environment, operations: list[str], results: Path, stamp: str) -> list[Step]:
    command = ["-m", "tools.gpu.tune", str(tuned_table(here, results)), *operations]
    return [Step("tuning", "tune", command + ["--keys", "1"] * (here.device == "interpreter"), 0.4)]


def profile(here: Environment, operations: list[str], results: Path, stamp: str) -> list[Step]:
    return [Step("profile", "profile", ["-m", "tools.gpu.profile", *(operations or ["attention"])])]


class Stopped(Exception):
    """Someone asked this process to end."""


def run(step: Step, here: Environment, limit: float, record: Path) -> None:
    """One step, for at most `limit` seconds; asked to end first by an interrupt, on which every part saves what it has."""
    variables = here.variables | {"PYFLASH_RECORD": str(record), "PYFLASH_SECONDS": str(limit)}
    if step.part == "tests":
        variables["OMP_NUM_THREADS"] = "1"
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, *step.command], cwd=ROOT, env=variables, start_new_session=True)
    try:
        code = process.wait(limit)
        step.status = "done" if code in (0, NOTHING_COLLECTED) else "failed"
    except subprocess.TimeoutExpired:
        step.status = "out of time"
    except (Stopped, KeyboardInterrupt):
        step.status = "stopped"
        raise
    finally:
        step.seconds = time.monotonic() - start
        end(process)


def end(process: subprocess.Popen) -> None:
    """Interrupt, terminate, kill: the process and what it started."""
    for number, patience in ((signal.SIGINT, 10), (signal.SIGTERM, 3), (signal.SIGKILL, 3)):
        if process.poll() is not None:
            return
        try:
            os.killpg(process.pid, number)
            process.wait(patience)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
