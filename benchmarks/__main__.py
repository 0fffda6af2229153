"""python -m benchmarks list | run | auto | compare | plot | report | overview | inspect: parse, call, print."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from benchmarks import FAMILIES, OPERATIONS, aot, auto, compare, harness, machine, overview, plot, report, rows, table
from benchmarks.operation import DTYPES, MODES, PROVIDERS, Operation, Provider, load, select
from pyflash.show.progress import Progress


class UserError(Exception):
    """One line that says what exists; exit status 2."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(message)


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="python -m benchmarks", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    command = commands.add_parser("list", help="operations, cases and providers")
    command.set_defaults(act=list_cases)

    command = commands.add_parser("run", help="check, then time")
    command.add_argument(
        "operations",
        nargs="*",
        help=f"any of {', '.join(OPERATIONS)}, or of the families {', '.join(FAMILIES)}; default all",
    )
    command.add_argument("--device", default="cpu", help="cpu or cuda")
    command.add_argument("--dtype", choices=DTYPES, help="all cases in this dtype; default each in its own")
    command.add_argument("--mode", choices=MODES, help="only this mode")
    command.add_argument("--only", metavar="SUBSTRING", help="only cases whose operation and name contain this")
    command.add_argument("--quick", action="store_true", help="fewer cases, fewer samples")
    command.add_argument("--full", action="store_true", help="also the cases that `list` marks so: a grid, for hours")
    command.add_argument("--provider", action="append", help="may be repeated; torch is always there to compare with")
    command.add_argument("--compile", action="store_true", help="also torch.compile: seconds a case to compile")
    command.add_argument("--peers", action="store_true", help="also other people's kernels, where they are installed")
    command.add_argument("--json", type=Path, metavar="FILE", help="rows, written after every case")
    command.add_argument("--png", type=Path, metavar="FILE", help="bars of the ratios to torch")
    command.set_defaults(act=run)

    command = commands.add_parser("auto", help="what `auto` prefers on this machine's family: writes its table")
    command.add_argument(
        "--operations", nargs="+", metavar="OPERATION", help=f"any of {', '.join(auto.OPERATIONS)}; default all"
    )
    command.add_argument("--device", default="cpu", help="cpu or cuda")
    command.add_argument("--seconds", type=float, help="stop after so many; a second run goes on")
    command.add_argument("--threads", choices=("one", "several"), help="on a CPU: only this number; default both")
    command.add_argument("--output", type=Path, metavar="FILE", help="default: pyflash/auto/tables/<family>.json")
    command.set_defaults(act=write_table)

    command = commands.add_parser("compare", help="two runs; exit status 1 where a row became slower or wrong")
    command.add_argument("old", type=Path)
    command.add_argument("new", type=Path)
    command.set_defaults(act=compare_files)

    command = commands.add_parser("plot", help="the picture of a run")
    command.add_argument("json", type=Path)
    command.add_argument("--png", type=Path, help="default: beside the JSON")
    command.set_defaults(act=plot_file)

    command = commands.add_parser("report", help="one Markdown page of one or more runs, losses first")
    command.add_argument("json", type=Path, nargs="*", help="default: the committed results")
    command.add_argument("--output", type=Path, metavar="FILE", help="default: standard output")
    command.set_defaults(act=report_files)

    command = commands.add_parser("overview", help="README's short table and picture, from the committed results")
    command.add_argument("--readme", type=Path, default=overview.README, help="a document with the marks of the table")
    command.add_argument("--png", type=Path, default=overview.PICTURE)
    command.set_defaults(act=write_overview)

    command = commands.add_parser("inspect", help="what the Triton kernels compile to, without a GPU")
    aot.add_arguments(command)
    command.set_defaults(act=aot.run)
    return top


def known(what: str, name: str, existing) -> str:
    if name not in existing:
        raise UserError(f"unknown {what} {name!r}; there are {', '.join(existing)}")
    return name


def writable(*paths: Path | None) -> None:
    """Before anything is measured for them."""
    for path in filter(None, paths):
        if not path.resolve().parent.is_dir():
            raise UserError(f"{path}: there is no folder {path.resolve().parent}")
        is_new = not path.exists()
        try:
            path.open("a").close()
            if is_new:
                path.unlink()
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; name a file that can be written") from None


def picture(path: Path | None) -> Path | None:
    if path is not None:
        known("kind of picture", path.suffix, (".png", ".pdf", ".svg"))
        writable(path)
    return path


def read(path: Path) -> tuple[list[rows.Row], list[machine.Machine]]:
    try:
        return rows.read(path)
    except ValueError as error:
        raise UserError(str(error)) from None


def chosen_providers(operation: Operation, options) -> list[Provider]:
    """Torch first. Every provider of the device but torch.compile and the peers, unless some were named."""
    peers = [peer for peer in operation.peers if options.device in peer.devices]
    everyone = operation.providers or PROVIDERS.values()
    here = [provider for provider in everyone if options.device in provider.devices]
    if options.provider:
        return [one for one in here + peers if one.name in (*options.provider, "torch")]
    return [one for one in here if not one.compiled or options.compile] + (peers if options.peers else [])


def all_of(operation: Operation) -> tuple[Provider, ...]:
    return operation.providers + operation.peers


def check_providers(options) -> None:
    everyone = list(PROVIDERS.values()) + [peer for name in OPERATIONS for peer in all_of(load(name))]
    here = list(dict.fromkeys(provider.name for provider in everyone if options.device in provider.devices))
    for name in options.provider or ():
        known("provider", name, here)


def list_cases(options) -> int:
    for name in OPERATIONS:
        operation = load(name)
        print(name)
        for case in operation.cases:
            origin = f"  [{case.model}]" if case.model else ""
            print(
                f"  {case.name:<34} {case.dtype:<9} {', '.join(case.modes)}{origin}{'  quick' * case.quick}{'  full' * case.full}"
            )
        if operation.peers:
            print("  with --peers:", ", ".join(peer.name for peer in operation.peers))
    print("providers:", ", ".join(PROVIDERS))
    return 0


def run(options) -> int:
    named = [FAMILIES.get(name) or [known("operation", name, OPERATIONS)] for name in options.operations]
    names = list(dict.fromkeys(name for family in named for name in family))
    known("device", options.device, ["cpu"] + ["cuda"] * torch.cuda.is_available())
    check_providers(options)
    writable(options.json)
    picture(options.png)
    filters = {name: getattr(options, name) for name in ("dtype", "mode", "quick", "full", "only")}
    work = select(names, **filters)
    if not work:
        more = "" if options.full else " (those marked full need --full)"
        raise UserError(f"no case is left by these filters; `python -m benchmarks list` shows all{more}")
    here = machine.describe(options.device, {case.dtype for _, case, _ in work})
    effort = harness.QUICK if options.quick else harness.FULL
    print(table.machine_lines(here), table.HEADER, sep="\n\n", flush=True)
    found: list[rows.Row] = []
    interrupted = False
    try:
        with Progress("benchmarks", len(work)) as progress:
            for operation, case, mode in work:
                if not found or found[-1].operation != operation.name:
                    progress.print(operation.name)
                progress.note(f"{operation.name}: {case.name}, {mode}")
                providers = chosen_providers(operation, options)
                new = harness.run_case(operation, case, mode, providers, here, device=options.device, effort=effort)
                found += new
                if options.json:
                    rows.save(options.json, found, here)
                progress.print(table.block(new))
                progress.advance()
    except KeyboardInterrupt:
        interrupted = True
        print("interrupted; finished rows are kept", file=sys.stderr)
    print("\n" + table.summary(found))
    if options.png and found:
        draw(found, here, options.png)
    return 130 if interrupted else 1 if any(row.status in ("wrong", "error") for row in found) else 0


def write_table(options) -> int:
    operations = [known("operation", name, auto.OPERATIONS) for name in options.operations or auto.OPERATIONS]
    known("device", options.device, ["cpu"] + ["cuda"] * torch.cuda.is_available())
    writable(options.output)
    try:
        return auto.walk(options.device, operations, options.seconds, options.output, options.threads)
    except ValueError as error:
        raise UserError(str(error)) from None
    except KeyboardInterrupt:
        print("interrupted; what was found is kept", file=sys.stderr)
        return 130


def compare_files(options) -> int:
    (old, old_machines), (new, new_machines) = read(options.old), read(options.new)
    found = compare.changes(old, new)
    if not found:
        raise UserError(f"{options.old} and {options.new} have no row in common")
    for difference in compare.differing(old_machines[0], new_machines[0]):
        print(f"benchmarks: the runs differ in more than pyflash; {difference}", file=sys.stderr)
    print(compare.text(found, old, new))
    return int(any(change.verdict in ("slower", "broken") for change in found))


def plot_file(options) -> int:
    found, machines = read(options.json)
    if not found:
        raise UserError(f"{options.json}: no rows")
    return draw(found, machines[0], picture(options.png or options.json.with_suffix(".png")))


def draw(found: list[rows.Row], here: machine.Machine, path: Path) -> int:
    try:
        drawn = plot.plot(found, path, f"{here.title}, torch {here.torch}")
    except ImportError:
        print("no picture: matplotlib is not installed (pip install 'pyflash[bench]')")
        return 1
    print(f"picture: {path}" if drawn else "no picture: no row of ours has a ratio")
    return 0


def report_files(options) -> int:
    writable(options.output)
    paths = options.json or report.committed()
    if not paths:
        raise UserError("no results; `python -m benchmarks run --json FILE` writes some")
    results = [(path, *read(path)) for path in paths]
    for path, found, _ in results:
        if not found:
            raise UserError(f"{path}: no rows")
        for row in found:
            known("operation", row.operation, OPERATIONS)
    page = report.page(results, (options.output or Path("-")).parent)
    if options.output is None:
        print(page, end="")
    else:
        options.output.write_text(page)
    return 0


def write_overview(options) -> int:
    writable(options.readme)
    picture(options.png)
    results = [(path, *read(path)) for path in report.committed()]
    try:
        options.readme.write_text(overview.written_into(options.readme.read_text(), overview.markdown(results)))
    except (OSError, ValueError) as error:
        raise UserError(f"{options.readme}: {error}") from None
    try:
        overview.draw(results, options.png)
    except ImportError:
        print("no picture: matplotlib is not installed (pip install 'pyflash[bench]')")
        return 1
    print(f"table: {options.readme}\npicture: {options.png}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    try:
        options = parser().parse_args(arguments)
        return options.act(options)
    except UserError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever reads has seen enough; nor is there a place to flush to at exit
        sys.stdout = None
        return 141


if __name__ == "__main__":
    sys.exit(main())
