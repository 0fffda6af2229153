"""python -m benchmarks list | run: parse, call, print."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from benchmarks import OPERATIONS, harness, machine, plot, table
from benchmarks.operation import DTYPES, MODES, PROVIDERS, Provider, load, select
from pyflash.cli._progress import Progress


class UserError(Exception):
    """One line that says what exists; exit status 2."""


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="operations, cases and providers")
    run = commands.add_parser("run", help="check, then time")
    run.add_argument("operations", nargs="*", help=f"any of {', '.join(OPERATIONS)}; default all")
    run.add_argument("--device", default="cpu", help="cpu or cuda")
    run.add_argument("--dtype", choices=DTYPES, help="all cases in this dtype; default each in its own")
    run.add_argument("--mode", choices=MODES, help="only this mode")
    run.add_argument("--only", metavar="SUBSTRING", help="only cases whose operation and name contain this")
    run.add_argument("--quick", action="store_true", help="fewer cases, fewer samples")
    run.add_argument("--provider", action="append", help="may be repeated; torch is always there to compare with")
    run.add_argument("--compile", action="store_true", help="also torch.compile, which takes seconds a case to compile")
    run.add_argument("--json", type=Path, metavar="FILE", help="rows, written after every case")
    run.add_argument("--png", type=Path, metavar="FILE", help="bars of the ratios to torch")
    return top


def known(what: str, name: str, existing) -> str:
    if name not in existing:
        raise UserError(f"unknown {what} {name!r}; there are {', '.join(existing)}")
    return name


def chosen_providers(options) -> list[Provider]:
    """Torch first. Every provider of the device but torch.compile, unless some were named."""
    here = [provider for provider in PROVIDERS.values() if options.device in provider.devices]
    names = options.provider or [p.name for p in here if not p.compiled or options.compile]
    for name in names:
        known("provider", name, [provider.name for provider in here])
    return [provider for provider in here if provider.name in (*names, "torch")]


def list_cases() -> None:
    for name in OPERATIONS:
        print(name)
        for case in load(name).cases:
            modes = [mode if floor is None else f"{mode} (asked {floor:.3g}x)" for mode, floor in case.floors.items()]
            origin = f"  [{case.model}]" if case.model else ""
            print(f"  {case.name:<34} {case.dtype:<9} {', '.join(modes)}{origin}{'  quick' if case.quick else ''}")
    print("providers:", ", ".join(PROVIDERS))


def run(options) -> int:
    for name in options.operations:
        known("operation", name, OPERATIONS)
    known("device", options.device, ["cpu"] + ["cuda"] * torch.cuda.is_available())
    providers = chosen_providers(options)
    work = select(options.operations, dtype=options.dtype, mode=options.mode, quick=options.quick, only=options.only)
    if not work:
        raise UserError("no case is left by these filters; `python -m benchmarks list` shows all")
    here = machine.describe(options.device, {case.dtype for _, case, _ in work})
    effort = harness.QUICK if options.quick else harness.FULL
    print(table.machine_lines(here), table.HEADER, sep="\n\n", flush=True)
    rows: list[harness.Row] = []
    interrupted = False
    try:
        with Progress("benchmarks", len(work)) as progress:
            for operation, case, mode in work:
                if not rows or rows[-1].operation != operation.name:
                    progress.print(operation.name)
                progress.note(f"{operation.name}: {case.name}, {mode}")
                rows += harness.run_case(operation, case, mode, providers, here, device=options.device, effort=effort)
                if options.json:
                    harness.save(options.json, rows, here)
                progress.print(table.block(rows[-len(providers) :]))
                progress.advance()
    except KeyboardInterrupt:
        interrupted = True
        print("interrupted; finished rows are kept", file=sys.stderr)
    print("\n" + table.summary(rows))
    if options.png and rows:
        draw(rows, here, options.png)
    return 130 if interrupted else 1 if any(row.status in ("wrong", "error") for row in rows) else 0


def draw(rows: list[harness.Row], here: machine.Machine, path: Path) -> None:
    try:
        drawn = plot.plot(rows, path, f"{here.cpu}, {here.isa}, {here.threads} threads, torch {here.torch}")
    except ImportError:
        print("no picture: matplotlib is not installed (pip install 'pyflash[bench]')")
    else:
        print(f"picture: {path}" if drawn else "no picture: no row of ours has a ratio")


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.command == "list":
        list_cases()
        return 0
    try:
        return run(options)
    except UserError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
