"""Measures the candidates of kernels/candidates.py and writes the winners: python -m tools.gpu.tune TABLE [OPERATION ...].

A key is timed only after its results were compared with those of the row written by hand, and the table is written
after each key, so a search that is stopped goes on where it was. A candidate that takes more than the device has is
skipped; one that takes the process down with it is noted before it is tried, and not tried again.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import triton

from pyflash.kernels import candidates, tuning
from tools.gpu import BUILD, ROOT
from tools.gpu.workloads import INTERPRETED, KEYS, Key, poison

GAIN = 1.02  # a winner is at least this much faster than the row by hand: less is not worth a row
FINALISTS = 3
# The share of the largest element, by size of an element: another tile adds in another order; a half result rounds that away.
ALLOWED_ULP = {2: 3, 4: 16}
AGAIN = 75  # exit status: the device refuses this process, start another
MOST_RESTARTS = 5


class Wrong(Exception):
    """A candidate gives another result than the row by hand."""


def sources() -> str:
    """A hash of the kernels: a table of other sources is measured again."""
    every = sorted((ROOT / "kernels").rglob("*.py"))
    files = [path for path in every if path.name not in ("tuning.py", "candidates.py")]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:16]


def read(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def write(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(json.dumps(value, indent=1) + "\n")
    unfinished.replace(path)


def error_of(outputs: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The largest difference, as a share of what is allowed."""
    worst = 0.0
    for output, right in zip(outputs, expected, strict=True):
        ulp = torch.finfo(output.dtype).eps * right.double().abs().max().item()
        difference = (output.double() - right.double()).abs().max().item()
        if difference != difference:
            return float("inf")
        allowed = ulp * ALLOWED_ULP[output.dtype.itemsize]
        worst = max(worst, difference / allowed if allowed else difference)
    return worst


def seconds(call, least: float = 2e-3) -> float:
    """One sample of a call: at least `least` seconds of it."""
    if INTERPRETED:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    from benchmarks import cuda_timing

    once = cuda_timing.seconds(call, 1)
    return cuda_timing.seconds(call, max(1, int(least / once)))


def compile_all(name: str, configs: list[dict], call) -> None:
    """Into Triton's cache, side by side. What does not compile says so when it is tried."""
    try:
        from triton.runtime._async_compile import AsyncCompileMode
        from triton.runtime.jit import JITFunction
    except ImportError:
        return
    launch = JITFunction.run

    def only_compile(self, *args, grid, warmup, **kwargs):
        return launch(self, *args, grid=grid, warmup=True, **kwargs)

    JITFunction.run = only_compile
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool, AsyncCompileMode(pool, ignore_errors=True):
            for config in configs:
                tuning.TRIAL[name] = config
                call()
    except Exception as failure:
        print(f"  not compiled ahead: {type(failure).__name__}: {failure}", flush=True)
    finally:
        JITFunction.run = launch
        tuning.TRIAL.clear()


class Trials:
    """The candidates of one key, each with its own call: a captured graph keeps the configuration it was captured with."""

    def __init__(self, key: Key, arch: str):
        self.key = key
        self.call, self.outputs = key.make(INTERPRETED)
        self.by_hand = tuning.TUNABLE[key.name].rows(arch, *key.shape)
        self.expected: list[torch.Tensor] = []
        self.calls: dict[str, object] = {}

    def prepare(self, config: dict) -> None:
        """Runs it once and compares. Raises Wrong, or what the launch raises."""
        poison(self.outputs)
        tuning.TRIAL[self.key.name] = config
        try:
            self.call()
            if not INTERPRETED:
                torch.cuda.synchronize()
        finally:
            tuning.TRIAL.clear()
        if config == self.by_hand:
            self.expected = [output.clone() for output in self.outputs]
        error = error_of(self.outputs, self.expected)
        if not error <= 1:
            raise Wrong(f"{error:.3g} times as far from the row by hand as is allowed")
        self.calls[str(config)] = lambda: self.call()

    def time(self, config: dict) -> float:
        tuning.TRIAL[self.key.name] = config
        try:
            return seconds(self.calls[str(config)])
        finally:
            tuning.TRIAL.clear()


def is_broken() -> bool:
    """Does the device still answer this process? After an illegal access it does not."""
    if INTERPRETED:
        return False
    try:
        torch.zeros(1, device="cuda").item()
        torch.cuda.synchronize()
    except Exception:
        return True
    return False


def search(key: Key, arch: str, state: dict, state_path: Path) -> dict | None:
    """The row of the table for this key. Raises SystemExit(AGAIN) when a candidate broke the device for this process."""
    trials = Trials(key, arch)
    bad = state.setdefault("bad", {}).setdefault(key.text, {})
    configs = [trials.by_hand]
    for config in candidates.of(key.name, *key.shape):
        if config != trials.by_hand and str(config) not in bad:
            configs.append(config)
    configs = configs[: 3 if INTERPRETED else None]
    if not INTERPRETED:
        compile_all(key.name, configs, trials.call)
    quick, skipped = {}, 0
    for config in configs:
        state["trying"] = [key.text, str(config)]
        write(state_path, state)
        try:
            trials.prepare(config)
            quick[str(config)] = min(trials.time(config) for _ in range(2)), config
        except Exception as failure:
            if config == trials.by_hand:
                print(f"  the row by hand fails: {type(failure).__name__}: {failure}", flush=True)
                state.pop("trying", None)
                return None
            skipped += 1
            bad[str(config)] = f"{type(failure).__name__}: {failure}".splitlines()[0][:200]
            state.pop("trying", None)
            write(state_path, state)
            if is_broken():
                raise SystemExit(AGAIN) from None
    state.pop("trying", None)
    write(state_path, state)
    ranked = [config for _, config in sorted(quick.values(), key=lambda pair: pair[0])]
    final = ranked[:FINALISTS] + [trials.by_hand] * (trials.by_hand not in ranked[:FINALISTS])
    samples = {str(config): [] for config in final}
    for turn in range(1 if INTERPRETED else 9):  # interleaved, the order turned round every time
        for config in final[:: -1 if turn % 2 else 1]:
            samples[str(config)].append(trials.time(config))
    medians = {text: statistics.median(taken) for text, taken in samples.items()}
    before = medians[str(trials.by_hand)]
    winner = min(final, key=lambda config: medians[str(config)])
    if before < GAIN * medians[str(winner)]:
        winner = trials.by_hand
    return {
        "config": winner,
        "microseconds": round(medians[str(winner)] * 1e6, 3),
        "before": {"config": trials.by_hand, "microseconds": round(before * 1e6, 3)},
        "tried": len(quick),
        "skipped": skipped,
        "sources": sources(),
    }


def header() -> dict:
    return {
        "device": "interpreter" if INTERPRETED else torch.cuda.get_device_name(),
        "triton": triton.__version__,
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }


def work(path: Path, operations: list[str], most: int | None) -> int:
    arch = tuning.arch(torch.device("cpu" if INTERPRETED else "cuda"))
    # The state of a search is this machine's; only what won is for everyone.
    state_path = BUILD / f"tune-{path.stem}.json"
    state = read(state_path)
    if "trying" in state:
        key, config = state.pop("trying")
        state.setdefault("bad", {}).setdefault(key, {})[config] = "ended the process"
    table = read(path)
    done = table.get("keys", {})
    wanted = [key for key in KEYS if not operations or any(name in key.names for name in operations)]
    for count, key in enumerate(wanted[:most], 1):
        if done.get(key.text, {}).get("sources") == sources():
            print(f"[{count}/{len(wanted)}] {key.text}: measured already", flush=True)
            continue
        row = search(key, arch, state, state_path)
        if row is not None:
            done[key.text] = row
            write(path, header() | {"keys": done})
            gain = row["before"]["microseconds"] / row["microseconds"]
            print(
                f"[{count}/{len(wanted)}] {key.text}: {row['microseconds']:.4g} us, {gain:.2f}x the row by hand,"
                f" {row['tried']} tried, {row['skipped']} skipped: {row['config']}",
                flush=True,
            )
        if not INTERPRETED:
            torch.cuda.empty_cache()
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu.tune", description=__doc__.split("\n")[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("operations", nargs="*")
    parser.add_argument("--keys", type=int, help="only the first ones")
    parser.add_argument("--here", action="store_true", help="in this process, which a candidate may take down")
    options = parser.parse_args(arguments)
    if options.here:
        return work(options.table, options.operations, options.keys)
    command = [sys.executable, "-m", "tools.gpu.tune", *(sys.argv[1:] if arguments is None else arguments), "--here"]
    for _ in range(MOST_RESTARTS):
        code = subprocess.run(command, cwd=ROOT).returncode
        if code != AGAIN and code >= 0:
            return code
        print("the device refused the process after a candidate; another one goes on", flush=True)
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
