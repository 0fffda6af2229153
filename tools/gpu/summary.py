"""One page from what the steps left behind; written again after every one of them."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from statistics import median

from tools.gpu.environment import Environment
from tools.gpu.smoke import is_right
from tools.gpu.steps import Step

MOST_LINES = 30


def read_lines(path: Path) -> list[dict]:
    """The whole lines of a file that someone may have been writing when he was stopped."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def tests(record: Path) -> list[str]:
    rows = {row["test"]: row for row in read_lines(record)}.values()
    if not rows:
        return []
    outcomes = Counter(row["outcome"] for row in rows)
    failed = [row for row in rows if row["outcome"] == "failed"]
    skipped = Counter(row["why"].removeprefix("Skipped: ") for row in rows if row["outcome"] == "skipped")
    lines = ["", "## Tests", ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))]
    lines += [
        f"- FAILED {row['test']}: {row['why'].splitlines()[0] if row['why'] else ''}" for row in failed[:MOST_LINES]
    ]
    lines += [f"- and {len(failed) - MOST_LINES} more" for _ in range(len(failed) > MOST_LINES)]
    lines += [f"- skipped {count}: {why}" for why, count in skipped.most_common(8)]
    return lines


def smoke(record: Path) -> list[str]:
    """What is not right by name, then each operation's times beside torch's."""
    rows = read_lines(record)
    if not rows:
        return []
    bad = [row for row in rows if not is_right(row)]
    lines = ["", f"## Every launcher once: {len(rows)} cases, {len(bad)} not right"]
    for row in bad[:MOST_LINES]:
        lines.append(f"- {row['case']}: {row.get('failed') or row}")
    timed = [row for row in rows if row.get("x")]
    if not timed:
        return lines
    lines += [
        "",
        "| operation | cases | x torch, geometric mean | host, us | torch's |",
        "| --- | --- | --- | --- | --- |",
    ]
    for operation in dict.fromkeys(row["case"].split(":")[0] for row in timed):
        group = [row for row in timed if row["case"].startswith(f"{operation}:")]
        host, theirs = (median(row[name] for row in group) for name in ("host_us", "torch_host_us"))
        mean = geometric_mean([row["x"] for row in group])
        lines.append(f"| {operation} | {len(group)} | {mean:.2f} | {host:.0f} | {theirs:.0f} |")
    return lines


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def benchmarks(path: Path) -> list[str]:
    """Losses first."""
    try:
        rows = json.loads(path.read_text())
    except (OSError, ValueError):
        return []
    ours = [row for row in rows if row["provider"].startswith("pyflash")]
    timed = [row for row in ours if row["ratio"]]
    noisy = sum(row["status"] == "noisy" for row in ours)
    lines = ["", f"## Benchmarks: {path.name}", f"{len(timed)} rows of ours timed, {noisy} noisy"]
    if timed:
        lines += ["", "| operation | mode | provider | rows | x torch, geometric mean | best share of peak |"]
        lines += ["| --- | --- | --- | --- | --- | --- |"]
    for key in dict.fromkeys((row["operation"], row["mode"], row["provider"]) for row in timed):
        group = [row for row in timed if (row["operation"], row["mode"], row["provider"]) == key]
        shares = [row["share"] for row in group if row["share"]]
        mean = geometric_mean([row["ratio"] for row in group])
        lines.append(f"| {' | '.join(key)} | {len(group)} | {mean:.2f} | {f'{max(shares):.0%}' if shares else ''} |")
    lines.append("")
    for row in sorted(timed, key=lambda row: row["ratio"])[:10]:
        if row["ratio"] < 1:
            lines.append(
                f"- loses: {row['operation']}, {row['case']}, {row['mode']}, {row['provider']}: {row['ratio']:.2f}x"
            )
    for row in ours:
        if row["status"] in ("wrong", "error"):
            lines.append(
                f"- {row['status']}: {row['operation']}, {row['case']}, {row['mode']}, {row['provider']}: {row['note']}"
            )
    return lines


def tuning(path: Path) -> list[str]:
    try:
        keys = json.loads(path.read_text())["keys"]
    except (OSError, ValueError, KeyError):
        return []
    lines = ["", f"## Tuned: {len(keys)} keys in {path.name}"]
    for key, row in keys.items():
        gain = row["before"]["microseconds"] / row["microseconds"]
        lines.append(f"- {key}: {row['microseconds']:.4g} us, {gain:.2f}x the row by hand; {row['config']}")
    return lines


def write(here: Environment, steps: list[Step], results: Path, stamp: str, record: Path, table: Path) -> str:
    lines = ["Left out: " + ("; ".join(here.left_out) or "nothing") + "."]
    lines += ["", f"# {here.gpu}, {stamp}", ", ".join(f"{name} {value}" for name, value in here.facts.items())]
    lines += ["", "| step | part | status | seconds |", "| --- | --- | --- | --- |"]
    lines += [f"| {step.name} | {step.part} | {step.status} | {step.seconds:.0f} |" for step in steps]
    lines += smoke(results / f"{stamp}-smoke.jsonl") + tests(record)
    for path in sorted(results.glob(f"{stamp}-*.json")):
        lines += benchmarks(path)
    lines += tuning(table)
    text = "\n".join(lines) + "\n"
    unfinished = results / f"{stamp}.unfinished"
    unfinished.write_text(text)
    unfinished.replace(results / f"{stamp}.md")
    return text
