"""Which class of ours stands for which class of torch.nn, and how a module changes from one to the other.

A class of ours adds no parameter, buffer or constructor argument to its twin, so the class of a living module can be
assigned: its parameters, hooks, and the references of optimizers stay the objects they were.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import MethodType
from typing import Any, TypeGuard, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch.nn.modules import module as _torch_module

Module = TypeVar("Module", bound=torch.nn.Module)
Class = TypeVar("Class", bound=type[torch.nn.Module])
Constructor = TypeVar("Constructor", bound=Callable)

TWINS: dict[type, type[torch.nn.Module]] = {}  # torch.nn class -> ours
ORIGINALS: dict[type, type[torch.nn.Module]] = {}  # ours -> torch.nn class
ASKS_FOR: dict[type, tuple[str, ...]] = {}  # ours -> operations of its forward
# Of integrations that are imported: called with a class that may be in neither, they may put it there.
FINDERS: list[Callable[[type], None]] = []

FUSED_OF = "_pyflash_of"  # in a class that runs chains: the user's class that it was made of (nn/_blocks.py)

# torch.jit.script remembers modules by their id, which another may get where one is dropped meanwhile.
_made_of: WeakKeyDictionary[torch.nn.Module, torch.nn.Module] = WeakKeyDictionary()


def twin(*operations: str, of: type[torch.nn.Module] | None = None) -> Callable[[Class], Class]:
    """Class decorator: the class stands for `of`, a class of torch.nn; for its first base, unless it is said.

    Args:
        operations: what its forward asks for, as `explain` names it; a class that only calls its children has none.
    """

    def register(cls: Class) -> Class:
        original: Any = of or cls.__bases__[0]
        TWINS[original] = cls
        ORIGINALS[cls] = original
        ASKS_FOR[cls] = operations
        setattr(cls, "__prepare_scriptable__", _scriptable)  # noqa: B010  no class of torch declares it
        return cls

    return register


def leaf(cls: Class) -> Class:
    """Class decorator: torch.fx.symbolic_trace records a call as one node, as it does with torch.nn's modules. Classes
    without it call one function, which torch.fx records as torch.nn.functional's."""
    forward = cls.forward

    @functools.wraps(forward)
    def forward_or_node(self, *args, **kwargs):
        if args and not kwargs and type(args[0]) is torch.Tensor:
            return forward(self, *args)
        if not (args and isinstance(args[0], torch.Tensor)):
            for value in (*args, *kwargs.values()):
                tracer = getattr(value, "tracer", None)
                if tracer is not None and tracer.root is not self:
                    return tracer.create_proxy("call_module", tracer.path_of_module(self), args, kwargs)
        return forward(self, *args, **kwargs)

    cls.forward = forward_or_node
    return cls


def constructor_of(original: Constructor) -> Callable[[Any], Constructor]:
    """functools.wraps of a constructor of torch.nn, whose arguments a type checker sees too."""
    wrapped: Any = functools.wraps(original)
    return wrapped


def _scriptable(module: torch.nn.Module) -> torch.nn.Module:
    """What torch.jit.script compiles in place of a module of ours: torch.nn's, on the same parameters. Of what is in it
    too: torch.jit.script writes into the containers that it finds."""
    if isinstance(module, torch.jit.ScriptModule):
        return module
    copied = module.__new__(type(module))
    vars(copied).update(vars(module))
    copied._modules = {name: child if child is None else _scriptable(child) for name, child in module._modules.items()}
    original = ORIGINALS.get(class_of(copied)) or vars(class_of(copied)).get(FUSED_OF)
    if original is not None:
        set_class(copied, original)
    _made_of[copied] = module
    return copied


def find_twins(model: torch.nn.Module) -> None:
    """Lets the integrations look at the classes of a model."""
    if FINDERS:
        for cls in {class_of(module) for module in model.modules()}:
            for find in FINDERS:
                find(cls)


def class_of(module: torch.nn.Module) -> type[torch.nn.Module]:
    """The class of a module, looking through those that torch makes for it at run time: torch.nn.utils.parametrize's
    ParametrizedLinear, FSDP2's FSDPLinear, replicate's DDPLinear, one over the other as well."""
    cls: Any = type(module)
    while _is_generated(cls):
        cls = cls.__bases__[-1]
    return cls


def _is_generated(cls: type) -> bool:
    """Was the class made by torch over its last base, under a longer name, and is it in no module?"""
    base = cls.__bases__[-1]
    if not (
        cls.__module__.startswith("torch.") and cls.__name__.endswith(base.__name__) and "forward" not in vars(cls)
    ):
        return False
    return cls.__name__ != base.__name__ and not hasattr(sys.modules.get(cls.__module__), cls.__name__)


def _generated_over(made: type, cls: type) -> type:
    """`cls`, under the generated classes that `made` consists of above its own."""
    if not _is_generated(made):
        return cls
    base = made.__bases__[-1]
    below = _generated_over(base, cls)
    # A new class, not a change of the old one: deep copies of a module share it.
    members = {k: v for k, v in vars(made).items() if k not in ("__dict__", "__weakref__")}
    prefix = made.__name__.removesuffix(base.__name__)
    return type(f"{prefix}{below.__name__}", (*made.__bases__[:-1], below), members)


def set_class(module: torch.nn.Module, cls: type[torch.nn.Module]) -> None:
    """Makes `cls` the class of `module`, under what torch generated over its class; a copy of the old class's forward
    that somebody bound to the instance (accelerate's hooks do) becomes one of the new class's."""
    bound = [name for name in vars(module) if holds_own_forward(module, name)]
    module.__class__ = _generated_over(type(module), cls)
    for name in bound:
        vars(module)[name] = MethodType(cls.forward, module)


def holds_own_forward(module: torch.nn.Module, name: str) -> bool:
    """Is the instance's attribute `name` nothing but its class's forward, bound to it?"""
    value = vars(module).get(name)
    return isinstance(value, MethodType) and value.__self__ is module and value.__func__ is class_of(module).forward


def is_bare(module: torch.nn.Module | None, *classes: type[Module]) -> TypeGuard[Module]:
    """Would calling `module` run the forward of one of `classes` and nothing else? Only then may its
    weights be read, or its work be done, in its place."""
    return module is not None and type(module) in classes and are_bare((module,), (type(module),))


def are_bare(modules, classes) -> bool:
    """Is each of these bare, and of its class? One whose class is None may be anything."""
    if (
        _torch_module._global_forward_pre_hooks
        or _torch_module._global_forward_hooks
        or _torch_module._global_backward_pre_hooks
        or _torch_module._global_backward_hooks
    ):
        return False
    for module, cls in zip(modules, classes):
        if cls is None:
            continue
        held = module.__dict__  # a forward of its own, what Module.compile leaves
        if (
            type(module) is not cls
            or module._forward_pre_hooks
            or module._forward_hooks
            or module._backward_pre_hooks
            or module._backward_hooks
            or "forward" in held
            or "_conv_forward" in held
            or "_compiled_call_impl" in held
        ):
            return False
    return True


def weight_and_bias(module: Any) -> tuple[Any, Any]:
    """Of a module that has both, past Module.__getattr__, which takes 0.5 us for each (Zen 4)."""
    held = module._parameters
    try:
        return held["weight"], held["bias"]
    except KeyError:  # parametrized, or no parameter any more
        return module.weight, module.bias


def adopt(module: torch.nn.Module) -> None:
    """Gives every module below `module` (and itself) our class, where its class is exactly a twin's."""
    for child in module.modules():
        if class_of(child) in TWINS:
            set_class(child, TWINS[class_of(child)])
