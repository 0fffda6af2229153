"""What calls of a container that were alike took: which of its chains paid, and where none did, which of its modules' calls
were torch's, and which activations may write into what the module before them has just made.

To find a chain and to run it takes 20 us (Zen 4): one that `auto` leaves to torch is worth that only for a large tensor less.
And to ask about each module's call takes 1 to 3 us, of a model with small inputs a tenth: where the answer is known, what torch
computes is called and what was counted is counted again. An answer may be given of a container that has changed since: whoever
serves a call, the result is the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from sys import getprofile
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, get_num_threads, is_grad_enabled
from torch._C import (
    _are_functorch_transforms_active,
    _get_tracing_state,
    _is_any_autocast_enabled,
    _len_torch_function_stack,
)
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

from pyflash.activations import ACTIVATIONS
from pyflash.nn import _activations, _chains, batchnorm, conv, linear, pooling
from pyflash.nn._chains import Chain
from pyflash.nn._fuse import activation_of
from pyflash.nn._twins import ORIGINALS, are_bare, is_bare
from pyflash.ops.core.backends import _state, counts
from pyflash.ops.core.choice import follows_rules
from pyflash.ops.pointwise.argument import resolve

FUSED_OPERATIONS = {"conv_bias_act", "batch_norm_act", "linear_act"}
CALLS = 64  # of a container

# An activation in place, where its module would make a tensor, on Zen 4, one thread, behind a batch norm in evaluation: 1 us
# less of 64 KB, 10 of 256 KB, 120 of 3 MB. To find out that it may takes 3, and 8 between two convolutions.
LARGE_BYTES = 1 << 20

# Class of ours -> the forward of a call that is torch's; of classes that do nothing else than to ask whose it is.
TORCHS: dict[type, Callable] = {
    cls: ORIGINALS[cls].forward
    for module in (_activations, pooling)
    for name in module.__all__
    if not name.startswith(("LPPool", "MaxUnpool"))
    for cls in (getattr(module, name),)
}
TORCHS |= dict.fromkeys((conv.Conv1d, conv.Conv2d, conv.Conv3d), conv.by_torch)
TORCHS |= dict.fromkeys((batchnorm.BatchNorm1d, batchnorm.BatchNorm2d, batchnorm.BatchNorm3d), batchnorm.by_torch)
TORCHS[linear.Linear] = linear.by_torch


class Known:
    """Of calls that were alike."""

    __slots__ = ("classes", "counted", "forwards", "in_place", "of", "places")

    def __init__(self, of: Any, places: frozenset, in_place: dict[int, int]):
        self.of = of  # what says which modules are called, and what each reads
        self.places = places  # where the chains that pay begin, or end
        # Of calls of modules an activation's, and that of the module which made what it, alone, reads.
        self.in_place = in_place
        self.classes: list | None = (
            None  # of the modules in the order of their calls; None: it is called, whatever it is
        )
        self.forwards: list[Callable] = []  # for each
        self.counted: list[tuple[tuple, int]] = []  # of those that have a class


_known: WeakKeyDictionary[torch.nn.Module, dict[tuple, Known]] = WeakKeyDictionary()
follows_rules.append(_known)


def known_of(of: Any, container: torch.nn.Module, x: Tensor, *others: Tensor) -> tuple[tuple | None, Known | None]:
    """What decides in a call, and what is known of those in which it was the same, and `of` too; None where nothing is
    remembered of it."""
    # Between two convolutions the processor has forgotten all of this, and it takes three times as long as in a loop.
    if (
        _state.wish != "auto"
        or _state.strict
        or _state.twice
        or is_dynamo_compiling()
        or _get_tracing_state() is not None
        or _are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    ):
        return None, None
    try:
        key: tuple = x.shape, x.stride(), x.dtype, x.is_cpu, container.training, is_grad_enabled(), get_num_threads()
        for other in others:
            key += other.shape, other.stride(), other.dtype, other.is_cpu
    except RuntimeError:  # without strides
        return None, None
    if _is_any_autocast_enabled():
        for kind in ("cpu", "cuda"):
            key += torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    known = _known.get(container)
    found = None if known is None else known.get(key)
    return key, None if found is None or found.of is not of else found


def remember(
    of: Any, container: torch.nn.Module, key: tuple | None, places: set[Hashable], in_place: dict[int, int]
) -> None:
    if key is not None:
        known = _known.setdefault(container, {})
        if len(known) >= CALLS:
            known.clear()
        known[key] = Known(of, frozenset(places), in_place)


# ---- chains


def pays(chain: Chain, input: Tensor, residual: Tensor | None = None) -> tuple[Tensor, bool]:
    """What the chain gives, and whether it was worth to run it."""
    before = counts.copy()
    result = _chains.run(chain, input, residual)
    ours = {name for name, backend, _ in counts - before if backend != "torch"}
    return result, not ours.isdisjoint(FUSED_OPERATIONS)


def saves_a_tensor(chain: Chain, result: Tensor) -> bool:
    """Is the activation's module worth to be called in place?"""
    name = "" if chain.last is None else resolve("conv_bias_act", chain.activation)[0]
    in_place = bool(name) and ACTIVATIONS[name].inplace and not getattr(chain.last, "inplace", False)
    return in_place and result.nbytes >= LARGE_BYTES


# ---- modules


def run(known: Known, code: Callable, modules: list[Any], *inputs):
    """code(modules, forwards, *inputs), which calls forwards[i](modules[i], ...) one after the other, and `again` where one
    raises. Where somebody watches, each module is called."""
    if _len_torch_function_stack() or getprofile() is not None:
        return code(modules, [_called] * len(modules), *inputs)
    if known.classes is None:
        learnt, counted = [], Counter[tuple]()

        def watched(module, *args, **kwargs):
            before = counts.copy()
            result = module(*args, **kwargs)
            taken = counts - before
            cls = type(module) if _is_torchs(module, args, kwargs, taken) else None
            learnt.append(cls)
            if cls is not None:
                counted.update(taken)
            return result

        result = code(modules, [watched] * len(modules), *inputs)
        known.forwards = [_called if cls is None else TORCHS[cls] for cls in learnt]
        for at, source in known.in_place.items():
            if learnt[at] is not None and learnt[source] is not None:
                known.forwards[at] = _in_place
        known.counted, known.classes = list(counted.items()), learnt
        return result
    if len(modules) != len(known.classes) or not are_bare(modules, known.classes):
        return code(modules, [_called] * len(modules), *inputs)
    result = code(modules, known.forwards, *inputs)
    for call, times in known.counted:
        counts[call] += times
    return result


def _called(module, *args, **kwargs):
    return module(*args, **kwargs)


def _in_place(module, input: Tensor) -> Tensor:
    """torch's forward of an activation, written into what nobody else reads."""
    name, *given = resolve("conv_bias_act", activation_of(module))
    row = ACTIVATIONS[name]
    values = given[: len(row.parameters)]
    if not row.may_be_in_place(values) and is_grad_enabled() and input.requires_grad:
        return TORCHS[type(module)](module, input)
    return getattr(torch.nn.functional, row.function)(input, *values, inplace=True)


def _is_torchs(module, args, kwargs, taken: Counter) -> bool:
    """Of a call that took these: may torch's forward stand for the next?"""
    cls = type(module)
    if cls not in TORCHS or not is_bare(module, cls) or kwargs or len(args) != 1 or type(args[0]) is not Tensor:
        return False
    return taken.total() == 1 and all([backend == "torch" for _, backend, _ in taken])


ERRORS = RuntimeError, TypeError, ValueError
_FORWARDS = frozenset((*TORCHS.values(), _in_place))


def again(forward: Callable, module, *args, **kwargs):
    """After an error: a module whose forward was torch's says it in our words."""
    if forward not in _FORWARDS:
        raise
    return module(*args, **kwargs)


def in_turn(modules, forwards, input):
    """What Sequential does."""
    for module, forward in zip(modules, forwards):
        try:
            input = forward(module, input)
        except ERRORS:
            input = again(forward, module, input)
    return input
