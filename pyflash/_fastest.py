"""Which modules of a model are worth to be replaced: measured, for `replace(model, policy="fastest")`.

Everything runs on copies of the model that share its parameters and have their own buffers: one with torch's modules, one with
ours, one with what was chosen so far. From the innermost module out, each is called with what it got in one run of the model: as
torch's, as ours with all that is in it, and as torch's with the choices below. Last, the whole model is held against torch's.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import pyflash
from pyflash._calls import Call, alike, cloned, copied, measured, obstacle, recorded, signature_of
from pyflash._observe import arguments
from pyflash.auto import processor
from pyflash.nn._twins import class_of
from pyflash.ops.core.backends import MISSING, _state
from pyflash.show.progress import Progress


@dataclass(frozen=True)
class Choice:
    """Of a module: whether it becomes ours, why, and what a forward of the model spends in it; None where it was not measured."""

    is_ours: bool
    reason: str
    torch_ms: float | None = None
    pyflash_ms: float | None = None

    @property
    def times(self) -> tuple[float | None, float | None]:
        return self.torch_ms, self.pyflash_ms


def times_in_words(torch_ms: float | None, pyflash_ms: float | None) -> str:
    return "" if torch_ms is None or pyflash_ms is None else f"torch {torch_ms:.3g} ms, ours {pyflash_ms:.3g} ms"


@dataclass
class Choices:
    """`modules`: name -> choice, of those that could be replaced; `whole`: of the model."""

    whole: Choice
    modules: dict[str, Choice] = field(default_factory=dict)


def choose(model: torch.nn.Module, names: list[str], swap, swap_back, example_inputs, cache=None) -> Choices:
    """What to replace of the modules with these names, in the order of `named_modules`.

    Args:
        swap, swap_back: make a module ours, and torch's again.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments.
        cache: a JSON file, read where it speaks of such a model on such a machine, else written.
    """
    args, kwargs = arguments(example_inputs)
    path = None if cache is None else Path(cache)
    key = _key(model, names, args, kwargs)
    kept = {} if path is None else _read(path)
    if key in kept:
        return _loaded(path, kept[key])
    choices = _Measurement(model, names, swap, swap_back, args, kwargs).choose()
    if path is not None:
        _write(path, {**kept, key: {"machine": _machine(), **asdict(choices)}})
    return choices


class _Measurement:
    def __init__(self, model, names, swap, swap_back, args, kwargs):
        self.names, self.swap, self.swap_back, self.inputs = names, swap, swap_back, (args, kwargs)
        self.torchs, self.ours, self.mixed = (copied(model) for _ in range(3))
        for name in names:
            swap(self.ours.get_submodule(name))
        self.choices: dict[str, Choice] = {}
        self.alike: dict[tuple, tuple] = {}  # of two layers that differ in their numbers only, one is measured

    def choose(self) -> Choices:
        calls, obstacles = recorded(self.torchs, self.names, *self.inputs)
        with Progress("replace", len(self.names) + 1, sys.stderr) as progress:
            for name in reversed(self.names):  # what is inside comes before what it is in
                progress.note(name)
                if name in obstacles or not calls[name]:
                    self.choices[name] = Choice(False, obstacles.get(name, "not called with the example inputs"))
                else:
                    self._choose(name, calls[name])
                progress.advance()
            whole = self._choose_whole()
            progress.advance("the whole model")
        return Choices(whole, {name: self.choices[name] for name in self.names})

    def _below(self, name: str) -> list[str]:
        return [other for other in self.names if other != name and (not name or other.startswith(f"{name}."))]

    def _choose(self, name: str, calls: list[Call]) -> None:
        below = self._below(name)
        has_parts = any(self.choices[other].is_ours for other in below)
        candidates = [self.torchs, self.ours, *([self.mixed] if has_parts else [])]
        modules = [candidate.get_submodule(name) for candidate in candidates]
        key = alike(modules[0], calls), tuple(self.choices[other].is_ours for other in below)
        if key not in self.alike:
            self.alike[key] = measured(modules, calls)
        best, reason, times = self.alike[key]
        if best is None:  # what was chosen in it stays
            self.choices[name] = Choice(False, reason)
            return
        if best == 1:
            self._take(name, below, True, f"in {name or 'the model'}")
        elif best == 0 and has_parts:
            self._take(name, below, False, f"{name or 'the model'} is faster with torch's")
        self.choices[name] = Choice(best == 1, reason, *times)
        (self.swap if best == 1 else self.swap_back)(self.mixed.get_submodule(name))

    def _take(self, name: str, below: list[str], is_ours: bool, reason: str) -> None:
        for other in below:
            if self.choices[other].is_ours is not is_ours:
                before = self.choices[other]
                self.choices[other] = Choice(is_ours, reason, before.torch_ms, before.pyflash_ms)
                (self.swap if is_ours else self.swap_back)(self.mixed.get_submodule(other))

    def _choose_whole(self) -> Choice:
        if not any(choice.is_ours for choice in self.choices.values()):
            return Choice(False, "no module is faster as ours")
        if self.names[0] == "" and self.choices[""].torch_ms is not None:
            return replace(self.choices[""], is_ours=True)
        reason = obstacle(self.torchs, self.inputs)
        if not reason:
            args, kwargs = cloned(self.inputs)
            best, reason, times = measured([self.torchs, self.mixed], [Call(args, kwargs, 1)], must_be_equal=False)
            if best == 0:
                self._take("", self.names, False, "the whole model is not faster with what is")
            if best is not None:
                return Choice(best == 1, reason, *times)
        return Choice(True, reason)


# ---- what is kept in a file


def _machine() -> dict[str, Any]:
    return {
        "cpu": processor.name(),
        "kernels": "none" if MISSING["cpu"] else processor.family("cpu"),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "torch": torch.__version__,
        "pyflash": pyflash.__version__,
    }


def _key(model, names, args, kwargs) -> str:
    """Of all that a measurement depends on: the modules, how they are called, and where."""
    parts = [
        (name, str(class_of(module)), module.extra_repr(), module.training) for name, module in model.named_modules()
    ]
    parameters = [(name, signature_of(parameter)) for name, parameter in model.named_parameters()]
    state = _state.wish, [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")]
    what = repr((parts, parameters, names, signature_of((args, kwargs)), state, _machine()))
    return hashlib.sha256(what.encode()).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        kept = json.loads(path.read_text())
        if not isinstance(kept, dict):
            raise ValueError("no table of measurements")
    except ValueError as error:
        raise ValueError(
            f"pyflash.replace: cache={str(path)!r} is no file that it wrote ({error}); remove it, or name another"
        ) from None
    return kept


def _loaded(path: Path | None, kept: Any) -> Choices:
    try:
        return Choices(Choice(**kept["whole"]), {name: Choice(**choice) for name, choice in kept["modules"].items()})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"pyflash.replace: cache={str(path)!r} holds a measurement that cannot be read ({error}); remove it, or name"
            " another"
        ) from None


def _write(path: Path, kept: dict[str, Any]) -> None:
    """Whole or not at all: several processes may write it."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(kept, indent=1))
    os.replace(temporary, path)
