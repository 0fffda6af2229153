"""Rows as text: one block per case, slower rows included, and the lines of the summary."""

from __future__ import annotations

from benchmarks.machine import Machine
from benchmarks.rows import Row

HEADER = (
    f"  {'case':<34} {'provider':<14} {'median':>9} {'quartiles':>19} {'clean':>7}"
    f" {'rate':>11} {'of limit':>10} {'host':>7} {'saved':>7} {'x torch':>8}"
)

HOST = {
    True: "the part of a call outside our native core, where torch computes nothing of it",
    False: "until a call returns, its kernels queued",
}


def seconds(value: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if value * scale >= 1 or unit == "us":
            return f"{value * scale:.3g} {unit}" if value * scale < 1000 else f"{value * scale:.0f} {unit}"
    raise AssertionError


def rate(row: Row) -> str:
    """GFLOP/s where arithmetic is what a call mostly does, else GB/s."""
    if row.flops_per_s is None:
        return ""
    if row.flops_per_s > 8 * row.bytes_per_s:  # also where only FLOPs were counted
        return f"{row.flops_per_s * 1e-9:.4g} GF/s"
    return f"{row.bytes_per_s * 1e-9:.3g} GB/s"


def host(row: Row) -> str:
    return "" if row.host_seconds is None else seconds(row.host_seconds)


def megabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:.3g} MB"


def share(row: Row) -> str:
    """How much of the limit is reached, and which limit that is."""
    return "-" if row.share is None else f"{row.share:.0%} {row.limit}"


def line(row: Row, name: str) -> str:
    left = f"  {name:<34} {row.provider:<14}"
    if row.median is None:
        return f"{left} {row.status}: {row.note}"
    quartiles = f"{seconds(row.q25)} .. {seconds(row.q75)}"
    ratio = "noisy" if row.status == "noisy" else "" if row.ratio is None else f"{row.ratio:.2f}x"
    return (
        f"{left} {seconds(row.median):>9} {quartiles:>19} {f'{row.clean}/{row.samples}':>7}"
        f" {rate(row):>11} {share(row):>10} {host(row):>7} {megabytes(row.saved_bytes):>7} {ratio:>8}"
        f" {elsewhere(row)}"
    ).rstrip()


def elsewhere(row: Row) -> str:
    """Under `auto` a row may be torch's own time: it must say so."""
    return "" if "torch" not in row.served else " (torch's)" if row.served == "torch" else " (partly torch's)"


def block(rows: list[Row]) -> str:
    """The rows of one case; its name stands before the first provider, its mode and dtype before the second."""
    names = [rows[0].case, f"  {rows[0].mode}, {rows[0].dtype}"]
    lines = [line(row, name) for row, name in zip(rows, names + [""] * len(rows), strict=False)]
    return "\n".join(lines + [f"  {name}" for name in names[len(rows) :]])


def machine_lines(machine: Machine) -> str:
    return (
        f"{machine.device}: {machine.cpu}, {machine.isa}, {machine.threads} threads\n"
        f"torch {machine.torch}, pyflash {machine.pyflash}, Python {machine.python}, commit {machine.commit},"
        f" {machine.date}\n"
        f"measured in this run, the limits of its rows: {machine.peaks}\n"
        f"host: {HOST[machine.device == 'cpu']}; saved: what a training forward keeps for its backward"
    )


def summary(rows: list[Row]) -> str:
    ours = [row for row in rows if row.provider.startswith("pyflash")]
    timed = [row for row in ours if row.ratio is not None]
    automatic = [row for row in ours if row.provider == "pyflash" and row.served]
    lines = [
        f"pyflash: {sum(row.ratio > 1 for row in timed)} of {len(timed)} rows faster than torch,"
        f" {sum(row.status == 'noisy' for row in ours)} noisy, {sum(row.median is None for row in ours)} not timed",
        f"under `auto` our kernels take {sum(row.served != 'torch' for row in automatic)} of {len(automatic)} rows",
    ]
    for row in rows:
        if row.status in ("wrong", "error"):
            lines.append(f"  {row.status}: {row.operation}, {row.case}, {row.mode}, {row.provider}: {row.note}")
    return "\n".join(lines)
