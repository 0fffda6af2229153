"""One bar per row of ours: how many times torch's speed, with the ratio asked for as a mark."""

from __future__ import annotations

from pathlib import Path

from benchmarks.rows import Row

FASTER, SLOWER, TORCHS, ASKED = "#2b6cb0", "#c05621", "#a0aec0", "#1a202c"


def colour(row: Row) -> str:
    return TORCHS if row.served == "torch" else FASTER if row.ratio >= 1 else SLOWER


def plot(rows: list[Row], path: Path, title: str) -> bool:
    """Writes the picture; False where there is nothing to show. Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    providers = [row.provider for row in rows if row.ratio is not None and row.provider != "torch"]
    shown = "pyflash" if "pyflash" in providers else providers[0] if providers else None
    bars = [row for row in rows if row.provider == shown and row.ratio is not None][::-1]
    if not bars:
        return False
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.26 * len(bars)), layout="constrained")
    ratios = [row.ratio for row in bars]
    lengths = [ratio - 1 for ratio in ratios]  # to either side of 1
    axes.barh(range(len(bars)), lengths, left=1, color=[colour(row) for row in bars], height=0.7)
    for place, row in enumerate(bars):
        offset, side = (3, "left") if row.ratio >= 1 else (-3, "right")
        label = f"{row.ratio:.2f}x"
        axes.annotate(
            label, (row.ratio, place), (offset, 0), textcoords="offset points", ha=side, va="center", fontsize=7
        )
        if row.floor is not None:
            axes.plot([row.floor] * 2, [place - 0.4, place + 0.4], color=ASKED, linewidth=1.5)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    low, high = min(0.5, *ratios), max(2.0, *ratios, *(row.floor or 0 for row in bars))
    axes.set_xlim(low / 1.35, high * 1.35)
    ticks = [2.0**power for power in range(-6, 8) if low / 1.35 <= 2.0**power <= high * 1.35]
    axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    labels = [
        f"{row.operation}: {row.case}, {row.mode}" + ("" if row.dtype == "float32" else f", {row.dtype}")
        for row in bars
    ]
    axes.set_yticks(range(len(bars)), labels, fontsize=7)
    axes.set_ylim(-0.7, len(bars) - 0.3)
    axes.tick_params(top=True, labeltop=True)  # a long picture is read from its top
    axes.set_xlabel(f"{shown}: times the speed of torch in the same run; grey: torch computes; dark marks: asked for")
    axes.set_title(title, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=160)
    plt.close(figure)
    return True
