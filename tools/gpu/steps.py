"""What an hour is spent on, most important first, and how one step is run within its time."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tools.gpu import BUILD, ROOT
from tools.gpu.environment import Environment

PARTS = ("smoke", "tests", "bench", "tune", "profile")
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
    around: list[str] = field(default_factory=list)  # what runs the command


def plan(here: Environment, parts: list[str], operations: list[str], results: Path, stamp: str) -> list[Step]:
    every = {"smoke": smoke, "tests": tests, "bench": bench, "tune": tune, "profile": profile}
    steps = {part: every[part](here, operations, results, stamp) for part in parts}
    first, checked = steps.get("smoke", []), steps.get("tests", [])
    ordered = first[:2] + checked[:1] + first[2:] + checked[1:2] + steps.get("bench", [])[:1] + steps.get("tune", [])
    return ordered + steps.get("bench", [])[1:] + steps.get("profile", []) + checked[2:]


def smoke(here: Environment, operations: list[str], results: Path, stamp: str) -> list[Step]:
    """Every launcher at a real size, its kernels compiled before, side by side; small sizes under NVIDIA's sanitizer."""
    from benchmarks import OPERATIONS

    names = [name for name in operations if name in OPERATIONS]
    if operations and not names:
        return []

    def command(file: Path, *words: str) -> list[str]:
        return ["-m", "tools.gpu.smoke", *words, "--results", str(file), "--device", here.device]

    launchers = Step("every launcher once", "smoke", command(results / f"{stamp}-smoke.jsonl", *names), 0.35)
    if here.device == "interpreter":
        return [launchers]
    jobs = ["--arch", str(here.capability), "--jobs", str(max(1, here.workers))]
    steps = [Step("kernels not in the cache", "smoke", ["-m", "tools.gpu.compile", *jobs], 0.2), launchers]
    for tool in ("memcheck", "racecheck") if shutil.which("compute-sanitizer") else ():
        small = command(BUILD / f"{stamp}-{tool}.jsonl", "rnn", "linear", "--small", "--worker")
        around = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1"]
        steps.append(Step(f"compute-sanitizer, {tool}", "smoke", small, 0.12, around=around))
    return steps


def tests(here: Environment, operations: list[str], results: Path, stamp: str) -> list[Step]:
    """Everything that is called after Triton, on the device; sizes past 2^31 elements; then what needs no GPU."""
    if not here.has("pytest"):
        return []
    pytest = ["-m", "pytest", "-p", "tools.gpu.record", "-W", "ignore::RuntimeWarning"]
    pytest += ["--continue-on-collection-errors", "-p", "no:cacheprovider"]
    alone = []
    if here.has("xdist"):
        pytest += ["-n", str(here.workers), "--max-worker-restart", "64", "-p", "tools.gpu.sticky"]
        alone = ["-n", "0"]  # side by side they would not fit
    wanted = ["-k", " or ".join(operations)] if operations else []
    return [
        Step("kernels", "tests", [*pytest, "-m", "triton and not large", *wanted], 0.4),
        Step("past 2^31 elements", "tests", [*pytest, *alone, "-m", "large", *wanted], 0.1),
        Step("everything else", "tests", [*pytest, "-m", "not triton and not large and not host", *wanted]),
    ]


def bench(here: Environment, operations: list[str], results: Path, stamp: str) -> list[Step]:
    from benchmarks import OPERATIONS

    known = [name for name in (*BY_USE, *OPERATIONS) if name in OPERATIONS]
    names = [name for name in dict.fromkeys(known) if not operations or name in operations]
    if not names:
        return []

    def step(what: str, file: str, *options: str, share: float = 1.0):
        files = ["--json", str(results / f"{stamp}-{file}.json")]  # `python -m benchmarks plot` draws it
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
    command = [*step.around, sys.executable, *step.command]
    process = subprocess.Popen(command, cwd=ROOT, env=variables, start_new_session=True)
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
