"""Curves as a PNG, where matplotlib is installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

STOCK = {"color": "#c05621", "linewidth": 3, "alpha": 0.5}  # torch's curve lies under ours
OURS = {"color": "#2b6cb0", "linewidth": 1}


def draw(
    path: Path, panels: list[Callable], size: tuple[float, float], extra: str = "bench", *, one_scale: bool = True
) -> str:
    """Calls each of `panels` with its axes, side by side; returns what to print about the picture.

    Args:
        extra: of pyflash, which installs matplotlib.
        one_scale: for all panels.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return f"no picture: matplotlib is not installed (pip install 'pyflash[{extra}]')"
    figure, every = plt.subplots(1, len(panels), figsize=size, sharey=one_scale, squeeze=False, layout="constrained")
    for axes, panel in zip(every[0], panels):
        panel(axes)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)
    plt.close(figure)
    return f"picture: {path}"
