"""One bar per row of ours: how many times torch's speed, with the machine's limit as a mark. A panel per operation."""

from __future__ import annotations

import math
from itertools import groupby
from pathlib import Path

from benchmarks.rows import Row

FASTER, SLOWER, TORCHS, LIMIT = "#2b6cb0", "#c05621", "#a0aec0", "#1a202c"
WIDTH, BAR, HEADING = 8.0, 0.22, 0.5  # inches: of a column of panels, of a bar, around a panel
NEAR = 1.5  # a limit so near a bar has its label after it, which would cross it otherwise
ONE_COLUMN, LONGEST = 30, 32  # bars: of a picture with one column, of a panel


def colour(row: Row) -> str:
    return TORCHS if row.served == "torch" else FASTER if row.ratio >= 1 else SLOWER


def draw(axes, name: str, bars: list[Row], low: float, high: float) -> None:
    """One operation, its first row on top. `low` and `high`: the least and the most that the axis shows."""
    axes.barh(
        range(len(bars)), [row.ratio - 1 for row in bars], left=1, color=[colour(row) for row in bars], height=0.7
    )
    for place, row in enumerate(bars):
        offset, side = (3, "left") if row.ratio >= 1 else (-3, "right")
        label = f"{row.ratio:.2f}x"
        is_near = row.ratio >= 1 and row.limit_ratio is not None and row.limit_ratio < NEAR * row.ratio
        axes.annotate(
            label,
            (max(row.ratio, row.limit_ratio) if is_near else row.ratio, place),
            (offset, 0),
            textcoords="offset points",
            ha=side,
            va="center",
            fontsize=7,
        )
        if row.limit_ratio is not None and row.limit_ratio <= high:
            axes.plot([row.limit_ratio] * 2, [place - 0.4, place + 0.4], color=LIMIT, linewidth=1.5)
        elif row.limit_ratio is not None:  # farther than any bar: at the edge, as an arrow
            axes.plot([high * 1.25], [place], color=LIMIT, marker=">", markersize=3, clip_on=False)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xlim(low / 1.35, high * 1.35)
    ticks = [2.0**power for power in range(-6, 8) if low / 1.35 <= 2.0**power <= high * 1.35]
    axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks], fontsize=7)
    labels = [f"{row.case}, {row.mode}" + ("" if row.dtype == "float32" else f", {row.dtype}") for row in bars]
    axes.set_yticks(range(len(bars)), labels, fontsize=7)
    axes.set_ylim(len(bars) - 0.3, -0.7)
    axes.set_title(name, loc="left", fontsize=9, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)


def cut(rows: list[Row]) -> list[list[Row]]:
    """A panel for each operation, several where it has many rows."""
    panels = []
    for _, same in groupby(rows, key=lambda row: row.operation):
        same = list(same)
        pieces = math.ceil(len(same) / LONGEST)
        each = math.ceil(len(same) / pieces)
        panels += [same[i : i + each] for i in range(0, len(same), each)]
    return panels


def columns(panels: list[list[Row]]) -> list[list[list[Row]]]:
    """The panels in their order, as one column or as two of about the same height."""
    total, left = sum(map(len, panels)), 0
    if total <= ONE_COLUMN or len(panels) == 1:
        return [panels]
    for count, panel in enumerate(panels, 1):
        left += len(panel)
        if 2 * left >= total or count == len(panels) - 1:
            return [panels[:count], panels[count:]]


def bounds(bars: list[Row]) -> tuple[float, float]:
    """The ends of the axis: all bars fit; limits farther than twice the longest bar do not make the others small."""
    longest = max([2.0, *(row.ratio for row in bars)])
    marks = [row.limit_ratio for row in bars if row.limit_ratio is not None and row.limit_ratio <= 2 * longest]
    return min([0.5, *(row.ratio for row in bars)]), max([longest, *marks])


def plot(rows: list[Row], path: Path, title: str) -> bool:
    """Writes the picture; False where there is nothing to show. Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    providers = [row.provider for row in rows if row.ratio is not None and row.provider != "torch"]
    shown = "pyflash" if "pyflash" in providers else providers[0] if providers else None
    bars = [row for row in rows if row.provider == shown and row.ratio is not None]
    if not bars:
        return False
    low, high = bounds(bars)
    sides = columns(cut(bars))
    height = max(sum(len(panel) * BAR + HEADING for panel in side) for side in sides)
    figure = plt.figure(figsize=(WIDTH * len(sides), height + 0.8), layout="constrained")
    for side, part in zip(sides, figure.subfigures(1, len(sides), squeeze=False)[0]):
        heights = [len(panel) * BAR + HEADING for panel in side]
        rest = height - sum(heights)
        grid = part.add_gridspec(len(side) + (rest > 0), 1, height_ratios=heights + [rest] * (rest > 0))
        for i, panel in enumerate(side):
            draw(part.add_subplot(grid[i]), panel[0].operation, panel, low, high)
    figure.suptitle(
        f"{title}\n{shown}: times the speed of torch in the same run; grey: torch computes;"
        " dark marks: this machine's limit, by the peaks measured in that run",
        fontsize=9,
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return True
