"""python -m tools.gpu: the parts of `make gpu`, one after another, in the time given."""

from __future__ import annotations

import argparse
import datetime
import shutil
import signal
import sys
import time
from pathlib import Path

from tools.gpu import steps, summary
from tools.gpu.environment import prepare, results_folder


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="make gpu", description=__doc__)
    options.add_argument("--part", choices=steps.PARTS, help="default: smoke, tests, bench and tune")
    options.add_argument("--op", default="", help="operations, separated by blanks; in tests any part of a test's name")
    options.add_argument("--time", type=float, default=3000, help="seconds, builds included (3000)")
    options.add_argument("--device", choices=("cuda", "interpreter"), default="cuda")
    options.add_argument("--tune", action="store_true", help="the same as --part tune")
    options.add_argument(
        "--workers", type=int, help="tests side by side, 0 for none; default the processors, at most 16"
    )
    options.add_argument(
        "--results",
        type=Path,
        help="folder for everything, a copy of the tuned table too; default benchmarks/results/<gpu>",
    )
    return options


def stop(number, frame):
    raise steps.Stopped


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    begin = time.monotonic()
    signal.signal(signal.SIGTERM, stop)
    try:
        here = prepare(options.device)
    except RuntimeError as error:
        print(f"make gpu: {error}", file=sys.stderr)
        return 2
    here.workers = here.workers if options.workers is None else options.workers
    parts = ["tune"] if options.tune else [options.part] if options.part else list(steps.PARTS[:4])
    results = (options.results or results_folder(here)).resolve()
    results.mkdir(parents=True, exist_ok=True)
    stamp = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    record = results / f"{stamp}-tests.jsonl"
    work = steps.plan(here, parts, options.op.split(), results, stamp)
    table = steps.tuned_table(here, results)

    def report() -> str:
        if options.results and table.exists() and table.parent != results:
            shutil.copy(table, results)
        return summary.write(here, work, results, stamp, record, table)

    report()
    stopped = False
    try:
        for step in work:
            left = options.time - (time.monotonic() - begin)
            if left < 5:
                break
            print(f"\n== {step.part}: {step.name}, {left:.0f} s left", flush=True)
            steps.run(step, here, min(left, step.share * options.time if len(work) > 1 else left), record)
            report()
    except (steps.Stopped, KeyboardInterrupt):
        stopped = True
    print("\n" + report() + f"\n{results / stamp}.md")
    return 143 if stopped else int(any(step.status == "failed" for step in work))


if __name__ == "__main__":
    sys.exit(main())
