"""Chains (nn/_chains.py) in a module whose forward is code: `out = self.relu(self.bn1(self.conv1(x)))` and the like.

torch.fx records what such a forward calls, once for each state that it may depend on. A module of a class made here runs the
record, with its chains as one; its parameters, children and hooks stay its own, and its class's own forward is called where
no record speaks for a call. Recorded is only what reads nothing but tensors, children and plain attributes.
"""

from __future__ import annotations

import copyreg
import dis
import inspect
import operator
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cached_property, lru_cache, wraps
from types import FunctionType
from typing import Any, NamedTuple

import torch
import torch.nn.functional
from torch import Tensor
from torch.fx import Node

from pyflash.activations import ACTIVATIONS
from pyflash.nn import _chains, _remembered
from pyflash.nn._chains import Chain, chain_of
from pyflash.nn._code import code_of
from pyflash.nn._fuse import activation_of
from pyflash.nn._remembered import pays, remember, run, saves_a_tensor
from pyflash.nn._twins import FUSED_OF, ORIGINALS, _scriptable, class_of, set_class
from pyflash.ops.conv.geometry import of_conv
from pyflash.ops.core.checks import device_type
from pyflash.ops.pointwise.argument import ActivationArgument

CONVS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
_NORMS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)
_MODULES = {"torch": torch, "nn": torch.nn, "F": torch.nn.functional, "functional": torch.nn.functional}
# What may be read of torch and of tensors: it neither draws numbers nor keeps anything.
_TENSORS = {row.function for row in ACTIVATIONS.values()} | set(
    "adaptive_avg_pool2d add avg_pool2d cat chunk contiguous dropout flatten interpolate max_pool2d mean pad permute reshape"
    " shape size softmax squeeze sum transpose unsqueeze view".split()
)
_PLAIN = (bool, int, float, str, type(None))
_ADDS = (operator.add, operator.iadd, torch.add)
_OF_EVERY_MODULE = frozenset(vars(torch.nn.Module())) - {"training"}


# ---- what a forward calls


class Variant(NamedTuple):
    """Nodes of a record, each the only one that reads the one before, which may run as one."""

    nodes: tuple[Node, ...]
    modules: tuple[str, ...]  # the children among them
    between: tuple[str, ...]  # the children that are called meanwhile
    residual: Node | None
    ends_behind_residual: bool  # with a child
    activation: ActivationArgument  # of a function at the end

    @property
    def input(self) -> Any:
        return self.nodes[0].args[0]

    def chain(self, block: torch.nn.Module) -> Chain | None:
        """What these are with the children that the block has now; None where they are to be called."""
        children: dict[str, Any] = block._modules
        modules = [children[name] for name in self.modules]
        chain = chain_of(modules, least=1)
        if chain is None or len(chain.modules) != len(modules):
            return None
        if chain.last is not None and (
            self.activation is not None or (self.residual and not self.ends_behind_residual)
        ):
            return None
        if self.ends_behind_residual and chain.last is None:
            return None
        chain = chain if self.activation is None else chain._replace(activation=self.activation)
        if chain.linear is not None and (self.residual is not None or chain.activation is None):
            return None
        return chain if all([_keeps_its_input(children[name]) for name in self.between]) else None


def _keeps_its_input(module: torch.nn.Module) -> bool:
    """Is it known to write nothing into what it is called with? The call of a chain comes behind it."""
    while isinstance(module, torch.nn.Sequential):
        if not len(module):
            return True
        module = module[0]
    cls = class_of(module)
    return ORIGINALS.get(cls, cls) in (*CONVS, *_NORMS, torch.nn.MaxPool2d, torch.nn.AvgPool2d)


def _variants(start: Node, order: dict[Node, int]) -> Iterator[Variant]:
    """Those that begin at a node, the shortest first."""
    if start.op != "call_module" or len(start.args) != 1 or start.kwargs:
        return
    nodes, modules, residual, activation, is_behind = [start], [str(start.target)], None, None, False
    while len(nodes[-1].users) == 1:
        last, (node,) = nodes[-1], nodes[-1].users
        if is_behind or activation is not None or len(modules) == 3:
            return
        if node.op == "call_module" and node.args == (last,) and not node.kwargs:
            modules.append(str(node.target))
            is_behind = residual is not None
        elif node.op == "call_function" and node.target in _ADDS and residual is None and not node.kwargs:
            first, other = node.args
            if first is not last:
                first, other = other, first
                if node.target is operator.iadd:
                    return  # writes into the other
            if not isinstance(other, Node) or other is last:
                return
            residual = other
        elif node.op == "call_function" and node.args == (last,) and not set(node.kwargs) - {"inplace"}:
            activation = activation_of(node.target)
            if activation is None:
                return
        else:
            return
        nodes.append(node)
        others = [n for n in order if order[start] < order[n] < order[node] and n not in nodes]
        if any(n.op != "call_module" for n in others):
            return
        between = tuple([str(n.target) for n in others])
        yield Variant(tuple(nodes), tuple(modules), between, residual, is_behind, activation)


class Found(NamedTuple):
    """In a run of a record, as `remember` takes it."""

    places: set[int]  # the last nodes of chains that pay, in the order of all
    in_place: dict[int, int]


class Record:
    """The nodes of a forward in their order."""

    def __init__(self, graph: torch.fx.Graph):
        self.nodes = list(graph.nodes)
        self.inputs = sum(node.op == "placeholder" for node in self.nodes)
        calls = [node for node in self.nodes if node.op == "call_module"]
        self.called = [str(node.target) for node in calls]
        self.call_of = {node: at for at, node in enumerate(calls)}
        self.order = order = {node: at for at, node in enumerate(self.nodes)}
        self.variants = {node: list(_variants(node, order))[::-1] for node in self.nodes}
        self.last_read: dict[Node, list[Node]] = {
            node: [] for node in self.nodes
        }  # what is read for the last time there
        for node in self.nodes:
            self.last_read[max(node.users, key=lambda user: order[user], default=node)].append(node)

    @cached_property
    def code(self) -> Callable:
        return code_of(self.nodes, self.last_read)

    def chains(self, block, places=None) -> dict[Node, tuple[Variant, Chain]]:
        """Those that run in the block as it is now, each at its last node; only at these places, if they are given."""
        found: dict[Node, tuple[Variant, Chain]] = {}
        done: set[Node] = set()
        for node in self.nodes:
            for variant in self.variants[node]:
                chain = None
                if done.isdisjoint(variant.nodes) and (places is None or self.order[variant.nodes[-1]] in places):
                    chain = variant.chain(block)
                if chain is not None:
                    done.update(variant.nodes)
                    found[variant.nodes[-1]] = variant, chain
                    break
        return found

    def run(self, block, args, key=None, known=None):
        """The forward of `block` for these tensors."""
        values: dict[Node, Any] = {}
        given, due = iter(args), self.chains(block, None if known is None else known.places)
        waiting = {node for variant, _ in due.values() for node in variant.nodes[:-1]}
        kept = Counter(variant.input for variant, _ in due.values())  # which others may be the last to read
        found: Found | None = None if key is None or known is not None else Found(set(), {})
        for node in self.nodes:
            if node.op == "placeholder":
                values[node] = next(given)
            elif node.op == "output":
                if found is not None:
                    remember(self, block, key, *found)
                return _filled(node.args[0], values)
            elif node in due:
                self._run_chain(*due[node], block, values, kept, found)
            elif node not in waiting:
                self._call(node, block, values, kept)

    def _run_chain(self, variant, chain, block, values, kept, found):
        input = values[variant.input]
        kept[variant.input] -= 1
        residual = None if variant.residual is None else values[variant.residual]
        if not _fits(chain, input, residual):
            for node in variant.nodes:
                self._call(node, block, values, kept)
            return
        if found is None:
            values[variant.nodes[-1]] = _chains.run(chain, input, residual)
        else:
            values[variant.nodes[-1]], has_paid = pays(chain, input, residual)
            if has_paid:
                found.places.add(self.order[variant.nodes[-1]])
            elif saves_a_tensor(chain, values[variant.nodes[-1]]):
                *_, source, end = [self.call_of[node] for node in variant.nodes if node in self.call_of]
                found.in_place[end] = source
        for node in variant.nodes:
            self._forget(node, values, kept)

    def _call(self, node, block, values, kept):
        args, kwargs = _filled(node.args, values), _filled(node.kwargs, values)
        if node.op == "call_module":
            values[node] = block._modules[node.target](*args, **kwargs)
        elif node.op == "call_method":
            values[node] = getattr(args[0], node.target)(*args[1:], **kwargs)
        else:
            values[node] = node.target(*args, **kwargs)
        self._forget(node, values, kept)

    def _forget(self, node, values, kept):
        for read in self.last_read[node]:
            if not kept[read]:
                values.pop(read, None)


def _filled(arguments, values):
    return torch.fx.node.map_arg(arguments, lambda node: values[node])


def _fits(chain: Chain, input, residual) -> bool:
    """May the chain take this residual into its pass? What a sum broadcasts or promotes is torch's to say."""
    if type(input) is not Tensor:
        return False
    if residual is None:
        return True
    if type(residual) is not Tensor or residual.dtype != input.dtype or residual.device != input.device:
        return False
    if torch.is_autocast_enabled(device_type(input)):
        return False
    if chain.conv is None:
        return residual.shape == input.shape
    conv = chain.conv
    if conv.padding_mode != "zeros" or input.dim() != conv.weight.dim():
        return False
    geometry = of_conv(input.shape, conv.weight.shape, conv.stride, conv.padding, conv.dilation, conv.groups)
    return geometry is not None and residual.shape == (input.shape[0], conv.out_channels, *geometry.size)


# ---- recording


class _Child(torch.nn.Module):
    """Stands for a child while a forward is recorded: what that reads of a child fails."""


class _Proxy(torch.fx.Proxy):
    """torch.fx records `x += y` as x + y, which leaves x as it was."""


def _in_place(function):
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


_OPERATORS = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift"
for _name in _OPERATORS.split():
    setattr(_Proxy, f"__i{_name}__", _in_place(getattr(operator, f"i{_name}")))


class _Tracer(torch.fx.Tracer):
    def proxy(self, node):
        return _Proxy(node, self)

    def is_leaf_module(self, m, module_qualified_name):
        return True


def _is_torchs(name: str, value) -> bool:
    """Is this, called `name` where a forward stands, what torch calls so?"""
    if name in _MODULES:
        return value is _MODULES[name]
    return name in _TENSORS and value in [getattr(module, name, None) for module in (torch, torch.nn.functional)]


@lru_cache(maxsize=256)
def _names_read(cls: Any, forward) -> tuple[str, ...] | None:
    """The attributes that the forward of this class reads, of whatever, and its methods; None where it may depend on
    anything else than those and its arguments, or does more than to compute a result."""
    names = dict.fromkeys(["forward"])
    for method in (methods := ["forward"]):
        function = getattr(cls, method)
        if not isinstance(function, FunctionType) or hasattr(function, "__wrapped__") or function.__defaults__:
            return None
        code = function.__code__
        if code.co_freevars or code.co_kwonlyargcount or code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS):
            return None
        if any(type(constant) is type(code) for constant in code.co_consts):
            return None
        for instruction in dis.get_instructions(code):
            name = instruction.argval
            if instruction.opname in ("STORE_ATTR", "DELETE_ATTR", "STORE_GLOBAL", "IMPORT_NAME"):
                return None
            if instruction.opname == "LOAD_GLOBAL" and not _is_torchs(name, function.__globals__.get(name)):
                return None
            if instruction.opname in ("LOAD_ATTR", "LOAD_METHOD") and name not in names:
                names[name] = None
                if isinstance(getattr(cls, name, None), FunctionType) and not hasattr(torch.nn.Module, name):
                    methods.append(name)
    return tuple(names)


def _state(block, cls, training: bool) -> tuple | None:
    """What a record of its forward depends on; None where that is not known."""
    names = _names_read(cls, cls.forward)
    held, children = vars(block), block._modules
    found: list[Any] = [training]
    for name in names or ():
        if name in children:
            found.append(children[name] is None)
        elif name in held:
            if name in _OF_EVERY_MODULE or type(held[name]) not in _PLAIN:
                return None
            found += [] if name == "training" else [type(held[name]), held[name]]
        elif name == "forward" or (
            not hasattr(torch.nn.Module, name) and isinstance(getattr(cls, name, None), FunctionType)
        ):
            found.append(getattr(cls, name))
        elif not (name in _MODULES or name in _TENSORS) or hasattr(cls, name):
            return None
    return None if names is None else tuple(found)


def _recorded(block, cls, training: bool) -> Record | None:
    copied = object.__new__(cls)
    vars(copied).update(vars(block), training=training)
    children = {name: None if child is None else _Child() for name, child in block._modules.items()}
    copied._modules = children
    copied._parameters, copied._buffers = {}, {}
    try:
        graph = _Tracer().trace(copied)
    except Exception:  # whatever its forward does with what is no tensor
        return None
    for node in graph.nodes:
        if node.op == "get_attr" or (node.op == "call_module" and node.target not in children):
            return None
    return Record(graph)


class Fused:
    """In front of a class of the user's; its forward runs the record of the state that it is in, where there is one."""

    _pyflash_of: type[torch.nn.Module]
    _pyflash_records: dict[tuple, Record | None]

    def __reduce_ex__(self, protocol):
        made, args, *rest = super().__reduce_ex__(protocol)
        if made is copyreg.__newobj__ and FUSED_OF in vars(args[0]):
            made, args = _new, (args[0]._pyflash_of, *args[1:])
        return made, args, *rest

    def __prepare_scriptable__(self: Any):
        return _scriptable(self)


STATES = 16  # of a class


def record_of(block, training: bool | None = None) -> Record | None:
    """The record of the forward of a block of ours in the state it is in, or would be in that mode."""
    cls: Any = class_of(block)
    training = block.training if training is None else training
    state = _state(block, cls._pyflash_of, training)
    if state is None:
        return None
    if state not in cls._pyflash_records:
        if threading.current_thread() is not threading.main_thread():
            return None  # torch.fx patches torch.nn.Module while it records
        if len(cls._pyflash_records) >= STATES:
            cls._pyflash_records.clear()
        cls._pyflash_records[state] = _recorded(block, cls._pyflash_of, training)
    return cls._pyflash_records[state]


@lru_cache(maxsize=256)
def _fused(cls: Any) -> Any:
    @wraps(cls.forward)  # torch.fx and torch.export read the signature
    def forward(self, *args, **kwargs):
        record = key = known = None
        if not (kwargs or torch.compiler.is_compiling()) and all([type(x) is Tensor for x in args]):
            record = record_of(self)
        if record is None or len(args) != record.inputs:
            return cls.forward(self, *args, **kwargs)
        key, known = _remembered.known_of(record, self, *args)
        if known is not None and not known.places:
            return run(known, record.code, [self._modules[name] for name in record.called], *args)
        return record.run(self, args, key, known)

    members = {
        FUSED_OF: cls,
        "_pyflash_records": {},
        "forward": forward,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
    }
    return type(cls.__name__, (Fused, cls), members)


def _new(cls: type, *args):
    made = _fused(cls)
    return made.__new__(made, *args)


def is_fused(module: torch.nn.Module) -> bool:
    return issubclass(class_of(module), Fused)


def may_be_fused(module: torch.nn.Module) -> bool:
    """Is it of a class of the user's, with a convolution or more among its children, and a forward that can be recorded?"""
    cls: Any = class_of(module)
    if is_fused(module):
        return True
    if cls.__module__.startswith(("torch.", "pyflash.nn.")) or "forward" in vars(module):
        return False
    if cls.__hash__ is not object.__hash__:  # what is remembered of a block is found by it
        return False
    if not any(ORIGINALS.get(class_of(child), class_of(child)) in CONVS for child in module.children()):
        return False
    if type(cls) is not type or any(
        getattr(cls, name) is not getattr(torch.nn.Module, name) for name in ("__getattr__", "__getattribute__")
    ):
        return False
    has_subclass_hook = hasattr(cls.__init_subclass__, "__func__")  # it would see the class that is made
    return not has_subclass_hook and _state(module, cls, module.training) is not None


def fuse(module: torch.nn.Module) -> None:
    """Gives the module the class that runs its chains as one, if it has any."""
    if is_fused(module):
        return
    cls: Any = class_of(module)
    set_class(module, _fused(cls))
    records = [record_of(module, training) for training in (True, False)]
    if not any(record is not None and any(record.variants.values()) for record in records):
        unfuse(module)


def unfuse(module: torch.nn.Module) -> None:
    cls: Any = class_of(module)
    if is_fused(module):
        set_class(module, cls._pyflash_of)


def chains_in(module: torch.nn.Module) -> list[Chain]:
    record = record_of(module)
    return [] if record is None else [chain for _, chain in record.chains(module).values()]
