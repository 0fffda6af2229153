"""A report as a picture: gradients by depth, silent and saturated shares, gradients by time step."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from pathlib import Path

from pyflash.diagnostics.verdicts import Layer, Report
from pyflash.show import picture

COLORS = {
    "healthy": "#2b6cb0",
    "vanishing": "#805ad5",
    "exploding": "#c53030",
    "dead": "#1a202c",
    "saturated": "#dd6b20",
}
LABELLED = 40  # layers; of more the names would lie over each other


def draw(report: Report, path: Path) -> str:
    rows = [row for row in report.rows if isfinite(row.relative)]
    rows.sort(key=lambda row: row.order)
    panels = [lambda axes: _depth(axes, rows, report), lambda axes: _shares(axes, rows)]
    recurrent = [row for row in rows if len(row.steps) > 1]
    if recurrent:
        panels.append(lambda axes: _time(axes, recurrent))
    width = min(max(5.0, 0.3 * len(rows)), 12.0)
    return picture.draw(path, panels, (width * len(panels), 5), "examples", one_scale=False)


def logarithmic(axes, values: list[list[float]]) -> Callable[[float], float]:
    """Gives the axes a logarithmic scale on which all these values lie; what is 0, or below 1e-30 of the largest, lies on its
    lower edge. Returns where a value is."""
    known = [value for line in values for value in line if isfinite(value) and value > 0]
    top = max(known, default=1.0)
    floor = max(min(known, default=1.0), top * 1e-30) / 3
    axes.set_yscale("log")
    axes.set_ylim(floor, top * 3)
    return lambda value: max(value, floor) if isfinite(value) else top


def _depth(axes, rows: list[Layer], report: Report) -> None:
    norms = [row.relative for row in rows]
    place = logarithmic(axes, [norms, [0.1, 10.0]])  # at least so much
    heights = [place(norm) for norm in norms]
    limits, (low, high) = report.thresholds, axes.get_ylim()
    axes.plot(heights, color="#a0aec0", linewidth=1, zorder=1)
    for verdict, color in COLORS.items():
        at = [i for i, row in enumerate(rows) if row.verdict == verdict]
        if at:
            axes.scatter(at, [heights[i] for i in at], color=color, label=f"{verdict} ({len(at)})", zorder=2)
    if low < limits.vanishing:
        axes.axhspan(low, limits.vanishing, color=COLORS["vanishing"], alpha=0.08, linewidth=0)
    if high > limits.exploding:
        axes.axhspan(limits.exploding, high, color=COLORS["exploding"], alpha=0.08, linewidth=0)
    _name(axes, rows)
    axes.set(title="Gradient from the input to the loss", ylabel="its norm, over that at the last layer")


def _shares(axes, rows: list[Layer]) -> None:
    zeros = [row.activation.zeros if row.activation else 0.0 for row in rows]
    dead = [row.dead_units if isfinite(row.dead_units) else 0.0 for row in rows]
    ends = [row.activation.ends if row.activation else 0.0 for row in rows]
    for label, color, width, shares in (
        ("outputs that are 0", "#a0aec0", 0.8, zeros),
        ("dead units", COLORS["dead"], 0.5, dead),
        ("outputs at an end of their range", COLORS["saturated"], 0.25, ends),
    ):
        axes.bar(range(len(rows)), shares, width, color=color, label=label)
    _name(axes, rows)
    axes.set(title="Silent and saturated", ylabel="share", ylim=(0, 1.15))


def _time(axes, rows: list[Layer]) -> None:
    place = logarithmic(axes, [row.steps for row in rows])
    for row in rows:
        axes.plot([place(norm) for norm in row.steps], label=f"{row.name or row.kind}: {row.verdict}")
    axes.set(title="Gradient from the first time step to the last", xlabel="time step", ylabel="its norm")


def _name(axes, rows: list[Layer]) -> None:
    if len(rows) <= LABELLED:
        axes.set_xticks(range(len(rows)), [row.name or row.kind for row in rows], rotation=90)
    else:
        axes.set_xlabel("layer")
