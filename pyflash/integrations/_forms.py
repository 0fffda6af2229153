"""How `replace` learns of classes of other libraries that are torch's in all but name.

A library's table has a row for each form: a class of theirs, and the forward that stands for its. A class is taken where it is that
one, or where its code is, instruction for instruction: models of transformers have copies of each other's classes. So a row holds for
those that are to come, and not for one whose code has become another.
"""

from __future__ import annotations

import copyreg
import inspect
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from types import FunctionType
from typing import Any, NamedTuple

from pyflash.activations import ACTIVATIONS
from pyflash.nn._twins import FINDERS, ORIGINALS, TWINS, twin
from pyflash.ops.pointwise.argument import MODULES


class Form(NamedTuple):
    """`pattern`, a class of theirs, "module:name"; the class whose forward stands for its; what that asks for, as `explain` names
    it; how the names of copies end; of an activation its row's name in pyflash/activations.py."""

    pattern: str
    stands_for: type
    operations: tuple[str, ...] = ()
    endings: tuple[str, ...] = ()
    activation: str = ""


class Taken:
    """In front of a class of theirs, whose attributes, constructor and state_dict it has."""

    _library: str

    def __reduce_ex__(self, protocol):
        made, args, *rest = super().__reduce_ex__(protocol)
        if made is copyreg.__newobj__ and args[0] in ORIGINALS:
            made, args = _new, (args[0]._library, ORIGINALS[args[0]], *args[1:])
        return made, args, *rest


def _new(library: str, original: type, *args):
    import_module(library)  # whose table has it
    for find in FINDERS:
        find(original)
    return TWINS[original].__new__(TWINS[original], *args)


def take(integration: str, library: str, forms: Sequence[Form]) -> None:
    """Has `replace` look into these forms for classes of `library`; `integration` is the module that calls."""

    @lru_cache(maxsize=4096)
    def find(cls: type) -> None:
        if cls.__module__.partition(".")[0] != library or cls in TWINS:
            return
        form = next((form for form in forms if _is_of(cls, form)), None)
        if form is not None:
            _make(integration, cls, form)

    FINDERS.append(find)


def _is_of(cls: type, form: Form) -> bool:
    module, _, name = form.pattern.partition(":")
    is_pattern = (cls.__module__, cls.__name__) == (module, name)
    if not (is_pattern or (form.endings and cls.__name__.endswith(form.endings))):
        return False
    try:
        pattern = cls if is_pattern else getattr(import_module(module), name)
    except (ImportError, AttributeError):  # a version of theirs that has none
        return False
    return have_same_code(cls, pattern)


def have_same_code(cls: type, other: type) -> bool:
    """Does the forward of one do what the other's does, instruction for instruction, with what it calls of its own?"""
    if cls.__bases__ != other.__bases__ or "__call__" in vars(cls):
        return False
    names = ["forward"]
    for name in names:
        first: Any = vars(cls).get(name)
        second: Any = vars(other).get(name)
        if not (_is_plain(first) and _is_plain(second) and _instructions(first) == _instructions(second)):
            return False
        for called in first.__code__.co_names:
            if first.__globals__.get(called) is not second.__globals__.get(called):
                return False
            if called not in names and isinstance(vars(other).get(called), FunctionType):
                names.append(called)
    return True


def _is_plain(function) -> bool:
    """Is it a function whose code is all that it does? A decorator's code is every decorated function's."""
    return isinstance(function, FunctionType) and not function.__closure__ and not hasattr(function, "__wrapped__")


def _instructions(function: FunctionType) -> tuple:
    code = function.__code__
    constants = [None if value == function.__doc__ else value for value in code.co_consts]
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]  # they may be given by name
    return (
        code.co_code,
        code.co_names,
        constants,
        arguments,
        code.co_flags & inspect.CO_GENERATOR,
        function.__defaults__,
    )


def _make(integration: str, original: Any, form: Form) -> None:
    members = {
        "_library": integration,
        "forward": form.stands_for.forward,  # type: ignore[attr-defined]
        "__module__": integration,
        "__qualname__": original.__name__,
        "__doc__": form.stands_for.__doc__,
    }
    made: Any = type(original)(original.__name__, (form.stands_for, Taken, original), members)
    twin(*form.operations, of=original)(made)
    if form.activation:
        row = [replace(ACTIVATIONS[form.activation], attribute=None)]
        MODULES.update({original: row, made: row})
