"""Rows: what a run finds out about one provider on one case, and the JSON they are kept in."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from benchmarks.limits import set_older_limit
from benchmarks.machine import Machine


@dataclass
class Row:
    """One provider on one case: what the table, the JSON and the pictures are made from. Times in seconds."""

    operation: str
    case: str
    mode: str
    dtype: str
    provider: str
    model: str = ""
    status: str = "ok"  # ok, noisy, wrong, unsupported, out of memory, error
    note: str = ""
    served: str = ""  # the backends that pyflash's calls took, torch among them where `auto` preferred it
    median: float | None = None
    q25: float | None = None
    q75: float | None = None
    clean: int = 0
    samples: int = 0
    calls_per_sample: int = 0
    flops_per_s: float | None = None
    bytes_per_s: float | None = None
    exps_per_s: float | None = None
    limit: str = ""  # what of this machine limits the row (limits.py); empty where nothing says
    share: float | None = None  # of that limit: its time over this one's
    ratio: float | None = None  # torch's time over this one's, the median of the rounds
    ratio_low: float | None = None  # 95% interval of that median
    ratio_high: float | None = None
    torch_median: float | None = None
    first_call: float | None = None  # what is compiled, packed or looked up once, included
    host_seconds: float | None = None  # of one call, besides its kernels: overhead.py
    peak_bytes: int | None = None  # that one call adds at its peak
    saved_bytes: int | None = None  # that a forward keeps for its backward; training only
    max_error: float | None = None
    allowed_error: float | None = None

    @property
    def key(self) -> tuple[str, ...]:
        """What the same row of another run is found by."""
        return self.operation, self.case, self.mode, self.dtype, self.provider

    @property
    def limit_ratio(self) -> float | None:
        """How many times torch's speed the limit is; None where there is none."""
        return None if self.share is None or self.ratio is None else self.ratio / self.share


# JSON: a list of rows, each with the machine it was measured on.


def save(path: Path, rows: list[Row], machine: Machine) -> None:
    """Written whole after every case, then renamed: an interrupted run keeps its finished rows."""
    text = json.dumps([asdict(row) | {"machine": machine.to_json()} for row in rows], indent=1)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text + "\n")
    unfinished.replace(path)


NAMED = {"zen4": "zen4", "zen5": "zen5", "granite-rapids": "amx"}  # older files tell the family by their name alone
KINDS = {"str": str, "int": int, "float": int | float, "None": type(None), "dict[str, float]": dict}


def checked(what: type, values: dict) -> dict:
    """The values that are fields of this dataclass. Raises TypeError where one is not what its annotation says."""
    kinds = {field.name: field.type.split(" | ") for field in fields(what)}
    values = {name: value for name, value in values.items() if name in kinds}
    for name, value in values.items():
        if not any(isinstance(value, KINDS[kind]) for kind in kinds[name]):
            raise TypeError(f"{name} is {value!r:.40}, not {' or '.join(kinds[name])}")
    return values


def read(path: Path) -> tuple[list[Row], list[Machine]]:
    """Raises ValueError, in one line, on anything that save() did not write. Files without limits get those that they allow."""
    try:
        loaded = json.loads(path.read_text())
        family = next((name for word, name in NAMED.items() if word in path.name), "")
        machines = [Machine(**{"family": family, **checked(Machine, row["machine"])}) for row in loaded]
        found = [Row(**checked(Row, row)) for row in loaded]
    except (OSError, TypeError, KeyError, AttributeError, ValueError, RecursionError) as failure:
        raise ValueError(f"{path}: not a benchmark result ({failure})") from None
    for row, values, machine in zip(found, loaded, machines, strict=True):
        if "limit" not in values:
            set_older_limit(row, machine)
    return found, machines
