"""What the recorded numbers say of each layer, as rows, a table and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from math import inf, isfinite, nan

from pyflash.diagnostics.series import Moments

VERDICTS = ("healthy", "vanishing", "exploding", "dead", "saturated")

__all__ = ["VERDICTS", "Layer", "Moments", "Report", "Thresholds", "judge"]


@dataclass(frozen=True)
class Thresholds:
    """As the arguments of `gradient_flow`."""

    vanishing: float = 1e-3
    exploding: float = 1e3
    dead: float = 0.7
    saturated: float = 0.5
    margin: float = 0.02

    def __post_init__(self):
        shares = {"dead": (0, 1), "saturated": (0, 1), "margin": (0, 0.5)}
        for name, (low, high) in {"vanishing": (0, 1), "exploding": (1, inf), **shares}.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"pyflash.diagnostics.gradient_flow: {name} is {value!r}, expected a number")
            if not low <= value <= high:
                raise ValueError(f"pyflash.diagnostics.gradient_flow: {name} is {value}, expected {low} to {high}")


@dataclass
class Layer:
    """A row of the report.

    Attributes:
        name: as in named_modules.
        kind: the class of the module.
        order: which module of the last forward it was, from 1 on; 0: its forward was not seen.
        activation: of its output.
        gradient: of the loss with respect to its output.
        weights: of the loss with respect to its own parameters, all of them together.
        dead_units: the share of its units (features, channels) that were 0 for every sample, or whose gradient was.
        relative: the norm of `gradient` over that of the layer nearest to the loss. Where no forward was seen (a compiled
            model), that of `weights`.
        steps: the norm of the gradient at each time step of a recurrent layer: with respect to its input there, which is what
            has come back through all later steps; of a cell's, with respect to its output there.
        verdict: one of `VERDICTS`.
        why: the number that decided.
    """

    name: str
    kind: str
    order: int = 0
    activation: Moments | None = None
    gradient: Moments | None = None
    weights: Moments | None = None
    dead_units: float = nan
    relative: float = nan
    steps: list[float] = field(default_factory=list)
    verdict: str = "healthy"
    why: str = ""


def judge(layers: list[Layer], thresholds: Thresholds) -> None:
    """Fills in `relative`, `verdict` and `why`."""
    seen = sorted((layer for layer in layers if layer.order and layer.gradient), key=lambda layer: layer.order)
    if seen:
        _compare(seen, lambda layer: layer.gradient)
    else:
        _compare([layer for layer in layers if layer.weights], lambda layer: layer.weights)
    around: dict[int, tuple[Layer | None, Layer | None]] = {
        id(layer): (before, after) for before, layer, after in zip([None, *seen], seen, [*seen[1:], None])
    }
    for layer in layers:
        layer.verdict, layer.why = _verdict(layer, *around.get(id(layer), (None, None)), thresholds)


def _compare(layers: list[Layer], moments: Callable) -> None:
    """With the last one whose gradient is not 0, which is nearest to the loss."""
    last = next((moments(layer).norm for layer in reversed(layers) if moments(layer).norm > 0), nan)
    for layer in layers:
        layer.relative = moments(layer).norm / last


def _verdict(layer: Layer, before: Layer | None, after: Layer | None, limits: Thresholds) -> tuple[str, str]:
    """The cause before its effect: a dead layer has no gradient, a saturated one little."""
    for name, moments in (
        ("activations", layer.activation),
        ("gradients", layer.gradient),
        ("gradients", layer.weights),
    ):
        if moments is not None and moments.not_finite:
            return "exploding", f"{moments.not_finite} {name} are infinite or NaN"
    if layer.dead_units >= limits.dead and _is_the_cause(layer, before, after, limits):
        return "dead", f"{layer.dead_units:.0%} of its units are never active"
    if layer.activation is not None and layer.activation.ends >= limits.saturated:
        return "saturated", f"{layer.activation.ends:.0%} of its outputs are at an end of their range"
    if layer.relative > limits.exploding:
        return "exploding", f"its gradient is {layer.relative:.1e} of that at the loss"
    if layer.relative < limits.vanishing:
        return "vanishing", f"its gradient is {layer.relative:.1e} of that at the loss"
    return _in_time(layer.steps, limits)


def _is_the_cause(layer: Layer, before: Layer | None, after: Layer | None, limits: Thresholds) -> bool:
    """Are the units never active, or is the gradient lost elsewhere: on its way, or at weights that are 0, as a residual branch
    may begin? An activation of zeros is dead where nothing comes through it to the layer before. Of an output that nobody looks
    at, the layer behind has a gradient, and its weights have none."""
    if layer.weights is None and layer.activation is not None and layer.activation.zeros >= limits.dead:
        return before is None or before.dead_units >= limits.dead
    if after is None or not after.relative >= limits.vanishing:
        return False
    return after.weights is None or after.weights.zeros >= 0.5  # those of the biases are not


def _in_time(steps: list[float], limits: Thresholds) -> tuple[str, str]:
    """The first step against the largest and against the last that has any: later ones may be padding."""
    last = next((norm for norm in reversed(steps) if norm > 0), 0.0)
    if last:
        if steps[0] < limits.vanishing * max(steps):
            return (
                "vanishing",
                f"its gradient at the first of {len(steps)} steps is {steps[0] / max(steps):.1e} of the largest",
            )
        if steps[0] > limits.exploding * last:
            return (
                "exploding",
                f"its gradient at the first of {len(steps)} steps is {steps[0] / last:.1e} of the last's",
            )
    return "healthy", ""


@dataclass(frozen=True)
class Report:
    """What `gradient_flow` found; printing it prints a table.

    Attributes:
        rows: in the order of named_modules.
        silent: names of layers of which nothing was seen.
        steps: forwards of the model that were recorded.
    """

    rows: list[Layer]
    thresholds: Thresholds
    silent: list[str]
    steps: int

    def to_json(self) -> str:
        """Numbers that are not finite, and those that are not known, are null."""
        fields = {"steps": self.steps, "thresholds": asdict(self.thresholds), "silent": self.silent}
        return json.dumps(_finite({**fields, "layers": [asdict(row) for row in self.rows]}), indent=2)

    def __str__(self) -> str:
        cells = [_HEAD] + [_cells(row) for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*cells)]
        lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip() for line in cells]
        found = [f"{sum(row.verdict == name for row in self.rows)} {name}" for name in VERDICTS]
        lines.append(
            f"{', '.join(part for part in found if part[:2] != '0 ') or 'nothing was seen'}; {self.steps} forwards"
        )
        if self.silent:
            lines.append(f"nothing was seen of {', '.join(self.silent)}")
        return "\n".join(lines)


_HEAD = (
    "layer", "class", "output", "mean", "zeros", "ends", "dead units", "gradient", "of the last", "weights'", "verdict",
)  # fmt: skip


def _cells(row: Layer) -> tuple[str, ...]:
    output = row.activation
    return (
        row.name or "(model)",
        row.kind,
        *(("", "", "", "") if output is None else (_number(output.norm), _number(output.mean), _share(output.zeros), _share(output.ends))),
        _share(row.dead_units),
        "" if row.gradient is None else _number(row.gradient.norm),
        _number(row.relative),
        "" if row.weights is None else _number(row.weights.norm),
        row.verdict + (f": {row.why}" if row.why else ""),
    )  # fmt: skip


def _number(value: float) -> str:
    return f"{value:.2g}" if isfinite(value) else ""


def _share(value: float) -> str:
    return f"{value:.0%}" if isfinite(value) else ""


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value
