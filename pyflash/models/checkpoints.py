"""State dicts of transformers, timm and torchvision for the models here, by tables of keys (_keys.py)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from torch import Tensor

from pyflash.models._keys import TABLES, KeyTable, Source, Transposed

SHOWN = 8  # keys of an error
Model = TypeVar("Model", bound=torch.nn.Module)


def load(model: Model, state_dict: Mapping[str, Tensor], source: str = "transformers") -> Model:
    """Fills the model with the weights of another library's model of the same architecture.

    Where a library has several (transformers' GPT-2 and Llama are both a GPT here), it is the one whose keys these are.
    Nothing is written unless everything fits.

    Args:
        model: of pyflash.models, with the sizes of the checkpoint, on pyflash.nn or on torch.nn.
        state_dict: as the other model's `state_dict()` gives it.
        source: "transformers", "timm" or "torchvision".
    Returns:
        The same model.
    Raises:
        ValueError: there is no table for this model and source; keys are missing, unknown or of another shape: each is
            named, with the nearest that is there.
    """
    name = type(model).__name__
    tables = TABLES.get((name, source))
    if tables is None:
        known = ", ".join(f"{of} from {library!r}" for of, library in TABLES)
        raise ValueError(
            f"pyflash.models.load: there is no key table for {name} from {source!r}, expected one of {known}"
        )
    ours = model.state_dict(keep_vars=True)
    table = max(
        tables, key=lambda table: sum(key in state_dict for s in _sources(table, ours).values() for key in _keys(s))
    )
    values = _values(f"{name} from {table.name}", table, ours, state_dict)
    with torch.no_grad():
        for key, value in values.items():
            ours[key].copy_(value)
    return model


def _values(what: str, table: KeyTable, ours: dict[str, Tensor], state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What each of our keys becomes; of keys that share a parameter, of those that the checkpoint has."""
    sources = _sources(table, ours)
    present = {key for key, source in sources.items() if all(k in state_dict for k in _keys(source))}
    shared = {id(ours[key]) for key in present}
    missing = [
        k
        for key, source in sources.items()
        if id(ours[key]) not in shared
        for k in _keys(source)
        if k not in state_dict
    ]
    known = {k for source in sources.values() for k in _keys(source)}
    unknown = [k for k in state_dict if k not in known and not any(fnmatchcase(k, i) for i in table.ignored)]
    problems = [*_named("has no", missing, unknown or state_dict), *_named("has an unknown", unknown, missing or known)]
    values = {key: _value(sources[key], state_dict) for key in sources if key in present}
    first: dict[int, str] = {}  # of our keys for one parameter
    for key, value in values.items():
        other = first.setdefault(id(ours[key]), key)
        if value.shape != ours[key].shape:
            theirs = " and ".join(map(repr, _keys(sources[key])))
            problems.append(
                f"{theirs} gives {tuple(value.shape)}, and {key!r} of the model is {tuple(ours[key].shape)}"
            )
        elif other != key and not torch.equal(value, values[other]):
            problems.append(f"{key!r} and {other!r} of the model are one parameter, and differ there: build it untied")
    if problems:
        raise ValueError(f"pyflash.models.load: {what}: the state_dict does not fit:\n  " + "\n  ".join(problems))
    return values


def _named(what: str, keys: list[str], others: Collection[str]) -> Iterator[str]:
    for key in keys[:SHOWN]:
        near = get_close_matches(key, others, 1, cutoff=0.0)
        yield f"it {what} {key!r}" + (f"; the nearest is {near[0]!r}" if near else "")
    if len(keys) > SHOWN:
        yield f"it {what}: {len(keys) - SHOWN} more"


def _sources(table: KeyTable, ours: Collection[str]) -> dict[str, Source]:
    """For each of our keys what it is made of there. A key without a row has the same name."""
    found: dict[str, Source] = {}
    for key in ours:
        numbers = re.findall(r"(?<=\.)\d+(?=\.)", key)
        row = table.rows.get(re.sub(r"(?<=\.)\d+(?=\.)", "*", key), key)
        found[key] = _filled(row, numbers)
    return found


def _filled(source: Source, numbers: list[str]) -> Source:
    if isinstance(source, Transposed):
        return Transposed(_filled_key(source.key, numbers))
    if isinstance(source, tuple):
        return tuple(_filled_key(key, numbers) for key in source)
    return _filled_key(source, numbers)


def _filled_key(key: str, numbers: list[str]) -> str:
    for number in numbers:
        key = key.replace("*", number, 1)
    return key


def _keys(source: Source) -> tuple[str, ...]:
    if isinstance(source, tuple):
        return source
    return (source.key if isinstance(source, Transposed) else source,)


def _value(source: Source, state_dict: Mapping[str, Tensor]) -> Tensor:
    if isinstance(source, tuple):
        return torch.cat([state_dict[key] for key in source])
    return state_dict[source.key].t() if isinstance(source, Transposed) else state_dict[source]
