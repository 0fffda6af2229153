"""Forecasts the yearly number of sunspots since 1700 with an LSTM, and plots it.

The model is torch.nn's after pyflash.replace. It learns to continue each year of the record up to 1960 by the next one;
then it reads that record once and goes on by itself to 2008, each forecast its next input, its state carried along. The
forecast must be nearer to what was observed than the mean of the past, and the same as torch's own, or it exits with 1.
The series comes with statsmodels: pip install 'pyflash[examples]'.

    python examples/forecast.py [--epochs 300] [--out forecast-output]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import nn

import pyflash
from pyflash.show import picture
from pyflash.show.progress import Progress

MISSING = "statsmodels, whose data set this forecasts, is not installed: pip install 'pyflash[examples]'"
FIRST_HELD_OUT = 1961
WINDOW = 66  # years, six cycles
SEED = 20261122


def sunspots() -> tuple[torch.Tensor, torch.Tensor]:
    """Years and yearly means."""
    try:
        from statsmodels.datasets import sunspots as data
    except ImportError:
        raise SystemExit(MISSING) from None
    table = data.load_pandas().data
    return torch.tensor(table["YEAR"].to_numpy()).int(), torch.tensor(table["SUNACTIVITY"].to_numpy()).float()


class Forecaster(nn.Module):
    """What is added to one year to give the next."""

    def __init__(self, hidden: int = 48):
        super().__init__()
        self.layers = nn.LSTM(1, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x, state=None):
        y, state = self.layers(x, state)
        return x + self.head(y), state


def train(model: nn.Module, series: torch.Tensor, epochs: int) -> float:
    """All windows of the series at once, each year predicted from those before it in its window; the last loss."""
    windows = series.unfold(0, WINDOW + 1, 1)[..., None]
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    with Progress("  training", epochs) as progress:
        for _ in range(epochs):
            forecast, _ = model(windows[:, :-1])
            # the first years of a window have no past to be told by
            loss = (forecast - windows[:, 1:])[:, 11:].square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.advance(f"loss {loss.item():.4f}")
    return loss.item()


@torch.no_grad()
def forecast(model: nn.Module, past: torch.Tensor, years: int) -> torch.Tensor:
    """The past in one call, then a step a year."""
    y, state = model(past[None, :, None])
    found = [y[:, -1:]]
    while len(found) < years:
        y, state = model(found[-1], state)
        found.append(y)
    return torch.cat(found, 1).flatten()


def draw(years, values, first: int, found: torch.Tensor, path: Path) -> str:
    def curves(axes):
        axes.plot(years[first - 120 :], values[first - 120 :], color="#718096", linewidth=1.5, label="observed")
        axes.plot(years[first:], found, color="#2b6cb0", linewidth=2, label="forecast, nothing observed after 1960")
        axes.axvline(FIRST_HELD_OUT - 0.5, color="#c05621", linewidth=1)
        axes.set(xlabel="year", ylabel="sunspots, yearly mean")

    return picture.draw(path, [curves], (9, 4), "examples")


def run(epochs: int, out: Path) -> int:
    years, values = sunspots()
    first = int((years < FIRST_HELD_OUT).sum())
    series = values.sqrt() / 5  # nearly even cycles of order 1
    torch.manual_seed(SEED)
    model = pyflash.replace(Forecaster())
    print(f"yearly sunspots {years[0]} to {years[-1]}; learns from {first} years, forecasts {len(years) - first}")
    print(pyflash.report(model))
    train(model, series[:first], epochs)
    found = (5 * forecast(model, series[:first], len(years) - first).clamp(min=0)).square()
    observed, mean = values[first:], values[:first].mean()
    error, by_mean = ((e - observed).square().mean().sqrt().item() for e in (found, mean))
    print(f"root mean square error {error:.1f} spots; of the mean of the past {by_mean:.1f}")
    torchs = (5 * forecast(pyflash.restore(model), series[:first], len(observed)).clamp(min=0)).square()
    difference = (found - torchs).abs().max().item()
    print(f"torch.nn with the same weights forecasts the same to {difference:.1e} spots")
    print(draw(years, values, first, found, out / "sunspots.png"))
    failed = []
    if not error < by_mean:
        failed.append("the forecast is no better than the mean of the past")
    if not difference < 0.1:
        failed.append("torch.nn forecasts something else")
    print("\n".join(f"FAILED: {reason}" for reason in failed) if failed else "all comparisons passed")
    return 1 if failed else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("forecast-output"), help="folder of the picture")
    options = parser.parse_args(arguments)
    return run(options.epochs, options.out)


if __name__ == "__main__":
    sys.exit(main())
