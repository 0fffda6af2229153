"""Nsight Compute on one kernel, and of its pages the few lines that matter: python -m tools.gpu.profile OPERATION."""

from __future__ import annotations

import argparse
import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tools.gpu import BUILD, ROOT

SECTIONS = (
    "SpeedOfLight",
    "ComputeWorkloadAnalysis",
    "MemoryWorkloadAnalysis",
    "Occupancy",
    "WarpStateStats",
    "LaunchStats",
)
# What is printed -> the names it has had; the first that is there counts. Names differ from chip to chip.
LINES = {
    "share of the tensor cores' peak": (r"sm__(inst_executed_)?pipe_tensor.*\.avg\.pct_of_peak_sustained_active",),
    "share of the multiprocessors' peak": (r"sm__throughput\.avg\.pct_of_peak_sustained_elapsed",),
    "share of the memory's bandwidth": (
        r"dram__throughput\.avg\.pct_of_peak_sustained_elapsed",
        r"gpu__dram_throughput\.avg\.pct_of_peak_sustained_elapsed",
    ),
    "share of the L2 cache's bandwidth": (r"lts__t(_sectors|hroughput).*\.avg\.pct_of_peak_sustained_elapsed",),
    "achieved occupancy": (r"sm__warps_active\.avg\.pct_of_peak_sustained_active",),
    "theoretical occupancy": (r"sm__maximum_warps_per_active_cycle_pct",),
    "registers a thread": (r"launch__registers_per_thread",),
    "time": (r"gpu__time_duration\.(sum|avg)",),
}
STALL = re.compile(
    r"smsp__average_warps?_(?:latency_)?issue_stalled_(\w+?)(?:_not_issued)?_?(?:per_issue_active)?\.(?:ratio|pct)$"
)
MOST_STALLS = 4


def find() -> str | None:
    """ncu on the path, or where its installer puts it."""
    places = [
        *Path("/usr/local/cuda/bin").glob("ncu"),
        *sorted(Path("/opt/nvidia/nsight-compute").glob("*/ncu"), reverse=True),
    ]
    return shutil.which("ncu") or next(map(str, places), None)


def explain(output: str) -> str:
    """Why there is nothing to print, in one line."""
    if "ERR_NVGPUCTRPERM" in output:
        return (
            "the driver lets only root read the counters: run as root, or have the administrator set"
            " NVreg_RestrictProfilingToAdminUsers=0"
        )
    if "LibraryNotLoaded" in output:
        return "the profiler's libraries do not load here: the counters are out of reach, in a sandbox for instance"
    if "No kernels were profiled" in output:
        return "no kernel of that name was launched"
    last = [line for line in output.strip().splitlines() if line.strip()]
    return last[-1] if last else "ncu said nothing"


def read(output: str) -> tuple[dict[str, str], dict[str, str]]:
    """(metric -> value, metric -> unit) of the one kernel on ncu's raw page; empty where there is none."""
    lines = [line for line in output.splitlines() if line.startswith('"')]
    rows = list(csv.reader(lines))
    if len(rows) < 3:
        return {}, {}
    return dict(zip(rows[0], rows[2], strict=False)), dict(zip(rows[0], rows[1], strict=False))


def number(text: str) -> float:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return 0.0


def lines_that_matter(values: dict[str, str], units: dict[str, str]) -> list[str]:
    lines = [values.get("Kernel Name", "")]
    for what, patterns in LINES.items():
        found = [name for pattern in patterns for name in values if re.fullmatch(pattern, name)]
        if found:
            name = max(found, key=lambda name: number(values[name]))  # of several pipes the busiest
            lines.append(f"  {what:<36} {number(values[name]):.4g} {units[name]}")
    stalls = {match[1]: number(values[name]) for name in values if (match := STALL.fullmatch(name))}
    total = sum(stalls.values())
    for reason, share in sorted(stalls.items(), key=lambda pair: -pair[1])[:MOST_STALLS]:
        if total:
            lines.append(f"  {'stalled: ' + reason.replace('_', ' '):<36} {share / total:.0%}")
    return lines


def launch(operation: str) -> int:
    """What ncu looks at: the first key of the operation, three times."""
    from tools.gpu.workloads import INTERPRETED, KEYS

    key = next(key for key in KEYS if operation in key.names)
    call, _ = key.make(INTERPRETED)
    for _ in range(3):
        call()
    print(key.text)
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make gpu PART=profile", description=__doc__)
    parser.add_argument("operations", nargs="*", default=["attention"])
    parser.add_argument("--launch", action="store_true", help="only run the kernel")
    options = parser.parse_args(arguments)
    from tools.gpu.workloads import INTERPRETED, KEYS

    known = list(dict.fromkeys(name for key in KEYS for name in key.names))
    for operation in options.operations:
        if operation not in known:
            print(f"profile: unknown operation {operation!r}; there are {', '.join(known)}", file=sys.stderr)
            return 2
        if options.launch:
            launch(operation)
            continue
        ncu = find()
        if INTERPRETED or ncu is None:
            launch(operation)
            print("profile: the interpreter has no counters" if INTERPRETED else "profile: ncu is not installed")
            return 0 if INTERPRETED else 1
        if profile(ncu, operation):
            return 1
    return 0


def profile(ncu: str, operation: str) -> int:
    from tools.gpu.workloads import KEYS

    key = next(key for key in KEYS if operation in key.names)
    kernel = {"row_block": "layer_norm", "attention_decode": "decode_split"}.get(key.name, key.name)
    command = [ncu, "--csv", "--page", "raw", "--clock-control", "none", "--kernel-name", f"regex:{kernel}"]
    command += [
        "--launch-skip",
        "2",
        "--launch-count",
        "1",
        *(part for name in SECTIONS for part in ("--section", name)),
    ]
    command += [sys.executable, "-m", "tools.gpu.profile", operation, "--launch"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    log = BUILD / f"ncu-{operation}.csv"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(done.stdout + done.stderr)
    values, units = read(done.stdout)
    if not values:
        print(f"profile: {explain(done.stdout + done.stderr)} (all of it in {log.relative_to(ROOT)})")
        return 1
    print("\n".join([key.text, *lines_that_matter(values, units), f"  all of it: {log.relative_to(ROOT)}"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
