"""replace, restore and report: the modules of an existing model become ours, and torch's again.

A replacement assigns a module's class (pyflash/nn/_twins.py): parameters, buffers, hooks, optimizers and the module
objects themselves stay. Only exact classes are replaced, never a subclass, whose forward may be another.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from weakref import WeakKeyDictionary

import torch
from torch.nn.utils.parametrize import ParametrizationList

import pyflash.nn as nn
from pyflash import _fastest
from pyflash._observe import observe
from pyflash.nn import _blocks, _chains
from pyflash.nn._fuse import row_of
from pyflash.nn._twins import ASKS_FOR, ORIGINALS, TWINS, class_of, find_twins, holds_own_forward, is_bare, set_class
from pyflash.ops.core import backends

_CONTAINERS = (
    torch.nn.Sequential,
    torch.nn.ModuleList,
    torch.nn.ModuleDict,
    torch.nn.ParameterList,
    torch.nn.ParameterDict,
    ParametrizationList,
)
_NOTHING_TO_SERVE = (  # no arithmetic
    torch.nn.Identity, torch.nn.Flatten, torch.nn.Unflatten,
    torch.nn.PixelShuffle, torch.nn.PixelUnshuffle, torch.nn.ChannelShuffle,
)  # fmt: skip
_NO_CLASS = "no class of ours yet"
_NOTHING_TO_FUSE = "no chain of modules that could be one"
_OUT_PROJ = nn.linear.NonDynamicallyQuantizableLinear

_POLICIES = "all", "fastest"

# Of the last replace of a model:
_left: WeakKeyDictionary[torch.nn.Module, dict[str, str]] = WeakKeyDictionary()  # name -> why
_measured: WeakKeyDictionary[torch.nn.Module, _fastest.Choices] = WeakKeyDictionary()


def replace(
    model: torch.nn.Module,
    *,
    only=None,
    exclude=(),
    dry_run: bool = False,
    example_inputs=None,
    policy: str = "all",
    cache=None,
) -> torch.nn.Module:
    """Swaps the modules of `model` for ours, in place; the same object comes back. A second call changes nothing.

    Args:
        only: replace nothing else; None: everything that can be.
        exclude: leave these; None: leave none. Both take one or several of: a qualified name, which stands for all below it; a glob over
            qualified names ("encoder.*.linear1"); a class, torch.nn's or ours, which stands for its own modules only.
        dry_run: change nothing; `report(model)` tells what would be.
        policy: "all" replaces every module that can be; which kernel serves a call, `auto` decides by its tables. "fastest"
            runs the model once with `example_inputs` to see what its modules are called with, calls torch's and ours with it
            (the backward too, where the model is in training; under the autocast and the threads of now), and replaces those
            that are faster beyond noise and give the same numbers within rounding: modules that run as one are measured as
            one, and in the end the whole model. It takes seconds to a minute or two. Parameters, gradients, buffers and random
            numbers stay as they are: it works on copies of the modules that share the parameters. What the run does not
            call, what has hooks, and what is called with anything but tensors and plain values is left, and `report(model)`
            says so, with milliseconds of both for what was measured.
        example_inputs: for "fastest": what the model is called with, a tensor, a tuple of arguments or a dict of keyword
            arguments.
        cache: for "fastest": a JSON file. What it holds of such a model, called so, on such a machine, is taken without a
            measurement; else it is written.
    Raises:
        TypeError: `model` is no module, or a pattern neither a string nor a class. ValueError: a name matches nothing; the
            policy is none; "fastest" has no example_inputs, or cannot copy the model.
    """
    _expect_module("replace", model)
    _expect_policy(policy, example_inputs, cache)
    wanted = None if only is None else _Patterns("only", only)
    unwanted = _Patterns("exclude", () if exclude is None else exclude)
    left, planned = {}, {}
    find_twins(model)
    for name, module in model.named_modules():
        # Both are asked about every module, so that a name that matches nothing is noticed.
        chosen = wanted is None or wanted.match(name, module)
        excluded = unwanted.match(name, module)
        if class_of(module) in TWINS:
            why = "excluded" if excluded else "not in only" if not chosen else _obstacle(module)
            if why:
                left[name] = why
            else:
                planned[name] = module
        elif chosen and not excluded and not _blocks.is_fused(module) and _blocks.may_be_fused(module):
            planned[name] = module
    for patterns in (wanted, unwanted):
        if patterns is not None:
            patterns.expect_all_matched()
    _measured.pop(model, None)
    if policy == "fastest" and planned:
        choices = _fastest.choose(model, list(planned), _swap, _swap_back, example_inputs, cache)
        left.update({name: choice.reason for name, choice in choices.modules.items() if not choice.is_ours})
        _measured[model] = choices
        planned = {name: module for name, module in planned.items() if choices.modules[name].is_ours}
    _left[model] = left
    if not dry_run:
        for module in planned.values():
            _swap(module)
    return model


def _swap(module: torch.nn.Module) -> None:
    """Makes ours of a module of torch's or of the user's."""
    if class_of(module) in TWINS:
        set_class(module, TWINS[class_of(module)])
    else:
        _blocks.fuse(module)


def _swap_back(module: torch.nn.Module) -> None:
    if class_of(module) in ORIGINALS:
        set_class(module, ORIGINALS[class_of(module)])
    _blocks.unfuse(module)


def restore(model: torch.nn.Module) -> torch.nn.Module:
    """Gives every module of ours in `model` its torch.nn class back, in place; the same object comes back.

    Nothing is remembered: it works on a copy, on a loaded model, and on one that was built from pyflash.nn.
    """
    _expect_module("restore", model)
    for module in model.modules():
        _swap_back(module)
    _left.pop(model, None)
    _measured.pop(model, None)
    return model


def report(model: torch.nn.Module, *, example_inputs=None) -> Report:
    """What became of each module of `model`: its class before and now, the backend it will use, or why it was left.

    Containers, classes of your own that hold other modules, and modules without arithmetic have no row.

    Args:
        example_inputs: what the model is called with once, in its mode and without gradients: a tensor, a tuple of
            arguments or a dict of keyword arguments. Then the rows say what each module took, and why: which kernel
            serves a call depends on its size. Without it they say what could serve the module.
    """
    _expect_module("report", model)
    find_twins(model)
    observed = None if example_inputs is None else observe(model, example_inputs)
    rows, left, chained, measured = [], _left.get(model, {}), _chained(model, observed), _measured.get(model)
    parents: dict[torch.nn.Module, torch.nn.Module] = {}
    for name, module in model.named_modules():
        parents.update((child, module) for child in module.children())
        cls = class_of(module)
        if cls in ORIGINALS:
            reason = chained.get(module) or _bypass(module, parents.get(module))
            before, backend = ORIGINALS[cls], _backend(module, model)
        else:
            before, backend, reason = cls, "", left.get(name) or _why_left(module)
            if reason == _NOTHING_TO_FUSE:
                reason = ""
        took = () if observed is None else _took(observed, module)
        if observed is not None and cls in ORIGINALS:
            backend, reason = _summary(took, module in observed.called, _backend(module, model), reason)
        if observed is not None and module in observed.attention:
            reason = "; ".join(filter(None, (reason, _TORCHS_ATTENTION)))
        if cls in ORIGINALS or reason:
            times = () if measured is None or name not in measured.modules else measured.modules[name].times
            rows.append(Row(name, _name(before), _name(cls), backend, reason, issubclass(cls, before), took, *times))
    return Report(rows, observed is not None, None if measured is None else measured.whole)


_TORCHS_ATTENTION = "its scaled_dot_product_attention stays torch's; pyflash.overrides() takes it"


def _took(observed, module) -> tuple[dict, ...]:
    return tuple(
        {"operation": operation, "backend": backend, "reason": reason, "calls": calls}
        for (operation, backend, reason), calls in sorted(observed.taken.get(module, Counter()).items())
    )


def _summary(took, was_called: bool, could: str, reason: str) -> tuple[str, str]:
    """Backend and reason of a module of ours that was observed."""
    if not took:
        if not was_called:
            return "", reason or "not called: its parent does its work, or nobody needs it"
        # Evaluation's dropout and the like: the call asked for no kernel; so did one whose children do the work.
        return could if could in ("its children's", "its parent's") else "none needed", reason
    backends = {call["backend"] for call in took}
    if len(backends) == 1:
        backend = backends.pop()
    else:
        backend = ", ".join(dict.fromkeys(f"{call['operation']}: {call['backend']}" for call in took))
    reasons = dict.fromkeys(call["reason"] for call in took if call["reason"])
    return backend, "; ".join(filter(None, (*reasons, reason)))


@dataclass(frozen=True)
class Row:
    """A module: `backend` is what serves it, empty for one that is torch's; `reason` why, or what to know; `took` the
    calls of the forward with `example_inputs`: operation, backend, reason, calls. `torch_ms` and `pyflash_ms`: milliseconds of
    all its calls in a run of the model, as torch's and as ours, where `replace` measured them."""

    name: str
    before: str
    now: str
    backend: str
    reason: str
    isinstance_kept: bool = True
    took: tuple[dict, ...] = ()
    torch_ms: float | None = None
    pyflash_ms: float | None = None


@dataclass(frozen=True)
class Report:
    """Rows of `report`, in the order of `named_modules`; printing it prints a table. `whole`: of the model, where `replace`
    measured it."""

    rows: list[Row]
    is_observed: bool = False
    whole: _fastest.Choice | None = None

    @property
    def replaced(self) -> int:
        """Modules that are ours now."""
        return sum(row.now != row.before for row in self.rows)

    @property
    def isinstance_changed(self) -> list[str]:
        """Names of modules that are no longer an instance of the class they had."""
        return [row.name for row in self.rows if not row.isinstance_kept]

    def to_json(self) -> str:
        fields = {
            "replaced": self.replaced,
            "whole": None if self.whole is None else asdict(self.whole),
            "isinstance_changed": self.isinstance_changed,
            "is_observed": self.is_observed,
        }
        return json.dumps({**fields, "modules": [asdict(row) for row in self.rows]}, indent=2)

    def __str__(self) -> str:
        cells = [("module", "before", "now", "backend or reason")]
        missing = [row for row in self.rows if row.reason == _NO_CLASS]
        for row in self.rows:
            if row.reason == _NO_CLASS:
                continue
            now = "same" if row.now == row.before else row.now
            why = "; ".join(
                filter(None, (row.backend, row.reason, _fastest.times_in_words(row.torch_ms, row.pyflash_ms)))
            )
            cells.append((row.name or "(model)", row.before, now, why))
        widths = [max(map(len, column)) for column in zip(*cells)]
        lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip() for line in cells]
        if missing:
            classes = Counter(row.before for row in missing).items()
            lines.append(f"{_NO_CLASS}: {', '.join(f'{name} ({count})' for name, count in classes)}")
        lines.append(f"{self.replaced} of {len(self.rows)} modules are pyflash's")
        if self.whole is not None:
            times = _fastest.times_in_words(self.whole.torch_ms, self.whole.pyflash_ms)
            lines.append("; ".join(filter(None, ("the whole model, measured", self.whole.reason, times))))
        if self.replaced and not self.is_observed:
            lines.append("what could serve them; pyflash.report(model, example_inputs=...) shows what a forward takes")
        if self.isinstance_changed:
            lines.append(f"isinstance changed: {', '.join(self.isinstance_changed)}")
        return "\n".join(lines)


def _expect_policy(policy, example_inputs, cache) -> None:
    if policy not in _POLICIES:
        raise ValueError(f"pyflash.replace: policy is {policy!r}, expected one of {', '.join(map(repr, _POLICIES))}")
    if policy == "fastest" and example_inputs is None:
        raise ValueError(
            'pyflash.replace: policy="fastest" measures a run of the model: example_inputs is missing, a tensor, a tuple of'
            " arguments or a dict of keyword arguments"
        )
    if policy == "all" and not (example_inputs is None and cache is None):
        name = "cache" if example_inputs is None else "example_inputs"
        raise ValueError(f'pyflash.replace: {name} is given, which only policy="fastest" reads; the policy is "all"')


class _Patterns:
    def __init__(self, argument: str, given):
        if isinstance(given, torch.nn.Module):
            raise TypeError(
                f"pyflash.replace: {argument} is a module ({type(given).__name__}), expected names, globs or classes; its"
                " name is in model.named_modules()"
            )
        if not isinstance(given, (str, type)) and not isinstance(given, Iterable):
            raise TypeError(
                f"pyflash.replace: {argument} is {given!r}, expected a name, a glob or a class, or several of them"
            )
        given = (given,) if isinstance(given, (str, type)) else tuple(given)
        for pattern in given:
            if not isinstance(pattern, (str, type)):
                raise TypeError(f"pyflash.replace: {argument} contains {pattern!r}, expected a name, a glob or a class")
        self.argument = argument
        self.classes = tuple(ORIGINALS.get(pattern, pattern) for pattern in given if isinstance(pattern, type))
        self.unmatched = {pattern for pattern in given if isinstance(pattern, str)}
        self.names = tuple(self.unmatched)

    def match(self, name: str, module: torch.nn.Module) -> bool:
        hits = {p for p in self.names if name == p or name.startswith(p + ".") or fnmatchcase(name, p)}
        self.unmatched -= hits
        return bool(hits) or isinstance(module, self.classes)

    def expect_all_matched(self):
        if self.unmatched:
            names = ", ".join(map(repr, sorted(self.unmatched)))
            raise ValueError(
                f"pyflash.replace: {self.argument} names {names}, but no module of the model has that name"
            )


def _expect_module(function: str, model) -> None:
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"pyflash.{function}: expected a torch.nn.Module, got {type(model).__name__}")


def _obstacle(module) -> str:
    """Why a module of a class that has a twin must stay."""
    if class_of(module) is torch.nn.Sequential and not _has_chain(module):
        return _NOTHING_TO_FUSE
    # Accelerate's hooks put their forward on the instance, and in it call the module's own, kept as _old_forward.
    harmless = any(holds_own_forward(module, name) for name in ("forward", "_old_forward"))
    return "its forward is set on the instance" if "forward" in vars(module) and not harmless else ""


def _has_chain(sequential) -> bool:
    """Are there modules, one behind the other, that run as one, as they are or will be?"""
    children = list(sequential)
    return any(map(_chains.may_be_chained, children, children[1:]))


def _chains_in(module) -> Iterable[_chains.Chain]:
    if class_of(module) is nn.Sequential:
        return _chains.chains_of(list(module))
    return _blocks.chains_in(module) if _blocks.is_fused(module) else ()


def _chained(model, observed) -> dict[torch.nn.Module, str]:
    """Of modules that are not called where a chain of theirs runs: in which module's kernel they are."""
    found: dict[torch.nn.Module, set] = {} if observed is None else observed.chained
    if observed is None:
        for chain in (chain for module in model.modules() for chain in _chains_in(module)):
            if chain.conv is not None and chain.norm is not None and not chain.folds():
                chain = chain.without_conv()
            for module, what in chain.inner(chain.folds()).items():
                found.setdefault(module, set()).add((what, chain.head))
    names = {module: name for name, module in model.named_modules()}
    return {
        module: "; ".join(sorted(f"{what} {names.get(head, '?')}" for what, head in into))
        for module, into in found.items()
    }


def _why_left(module) -> str:
    """Why a module is torch's or the user's; empty when there is nothing to say about it."""
    cls = class_of(module)
    if cls in TWINS:
        return _obstacle(module) or f"would become {_name(TWINS[cls])}"
    if cls in _CONTAINERS or cls in _NOTHING_TO_SERVE:
        return ""
    base = next((base for base in cls.__mro__ if base in TWINS), None)
    if base is not None:
        return f"a subclass of {_name(base)}; only exact classes are replaced"
    if cls.__module__.startswith("pyflash.nn."):
        return "no counterpart in torch.nn"
    if cls.__module__.startswith("torch.nn."):
        return _NO_CLASS
    return "" if any(True for _ in module.children()) else "a class of its own"


def _bypass(module, parent) -> str:
    is_out_proj = class_of(module) is _OUT_PROJ and isinstance(parent, torch.nn.MultiheadAttention)
    if is_out_proj and (class_of(parent) not in ORIGINALS or is_bare(module, _OUT_PROJ)):
        return "its MultiheadAttention reads the weights"
    torchs = isinstance(parent, torch.nn.TransformerEncoderLayer) and class_of(parent) not in ORIGINALS
    if torchs and class_of(module) is not nn.Dropout:
        return f"bypassed in eval: the fast path of its {_name(class_of(parent))} never calls it"
    if any(type(p.data).__name__ == "DTensor" for p in module.parameters(recurse=False)):
        return "its weight is a DTensor, which goes to torch where it is not gathered before the call, as FSDP does"
    return ""


def _backend(module, model) -> str:
    """The backend of each operation the module asks for, on its device and in its dtype."""
    tensor = next((p for m in (module, model) for p in m.parameters() if p.is_floating_point()), None)
    device, dtype = (tensor.device.type, tensor.dtype) if tensor is not None else ("cpu", torch.get_default_dtype())
    row = row_of(module)
    names = ASKS_FOR.get(class_of(module), ()) if row is None else (row.name,)
    found = {name: _serves(backends.OPERATIONS[name], device, dtype) for name in names if name in backends.OPERATIONS}
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    whose = "its parent's" if class_of(module) is _OUT_PROJ else "its children's"
    return ", ".join(f"{name}: {backend}" for name, backend in found.items()) or whose


def _serves(operation: backends.Operation, device: str, dtype: torch.dtype) -> str:
    wish = backends._state.wish
    if wish == "torch":
        return "torch (asked for)"
    if wish != "auto":
        reason = operation.unserved(wish, device, dtype)
        return f"{wish} would raise: {reason}" if reason else wish
    reason = ""
    for name in backends.ORDER:
        if name in operation.dtypes and device in backends.DEVICES[name] and (device != "cpu" or name == "cpu"):
            why = operation.unserved(name, device, dtype)
            if not why:
                return name
            reason = reason or why
    return f"torch ({reason or f'no kernel for {device} tensors'})"


def _name(cls: type) -> str:
    for module in ("torch.nn", "pyflash.nn"):
        if cls.__module__.startswith(f"{module}."):
            return f"{module}.{cls.__name__}"
    return f"{cls.__module__}.{cls.__qualname__}"
