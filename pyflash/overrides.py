"""overrides: torch.nn.functional calls of any code go to pyflash.functional, inside a `with` block."""

from __future__ import annotations

import functools
import threading

import torch
import torch.utils.checkpoint as torch_checkpoint
from torch.overrides import TorchFunctionMode

from pyflash.nn import _chains, _remembered
from pyflash.nn._twins import ORIGINALS
from pyflash.ops.core.backends import _state, use_backend
from pyflash.ops.core.public import STANDS_FOR


class overrides(TorchFunctionMode):
    """Context manager: calls inside of torch's functions that have a counterpart here (torch.nn.functional's names in
    pyflash.functional, and what torch.nn's RNN, LSTM, GRU and their cells call) are ours, whoever makes them.

    A torch function mode: no function is patched, other threads see nothing, and it may be nested. What
    torch.utils.checkpoint computes inside it is computed again by the same functions, wherever the backward runs.
    Every call of a torch function inside costs about 1.3 us more, except within modules of ours: that pays in training and
    on long sequences, and does not where a call is small, as in a model that generates one token at a time.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if kwargs and kwargs.get("out") is not None:
            return func(*args, **kwargs)  # our functions allocate their results
        return STANDS_FOR.get(func, func)(*args, **(kwargs or {}))

    is_counted = False

    def __enter__(self) -> overrides:
        if not torch.compiler.is_compiling():  # a graph computes again what it is made of
            self.is_counted = True
            _active.enter()
        return super().__enter__()

    def __exit__(self, *exception):
        try:
            return super().__exit__(*exception)
        finally:
            if self.is_counted:
                _active.leave()


def _is_on() -> bool:
    """Is an `overrides` active in this thread?"""
    stack = (torch._C._get_function_stack_at(i) for i in range(torch._C._len_torch_function_stack()))
    return any(isinstance(mode, overrides) for mode in stack)


def _again_as_now(function):
    """`function`, called later under the mode and the backend of now: a recomputation must take what its forward took.

    The forward itself calls it too, where both are as they were.
    """
    if not callable(function) or not _is_on():
        return function
    wish = _state.wish

    @functools.wraps(function)
    def again(*args, **kwargs):
        if _is_on():
            return function(*args, **kwargs)
        with use_backend(wish), overrides():
            return function(*args, **kwargs)

    return again


def _has_modules(module) -> bool:
    return bool(module._modules)


def _without_mode(function, may_call_others=lambda first: False):
    """The forward of a module of ours, or what runs a chain of them, with the mode off where it is the innermost and nobody
    else's module is called: what is called is ours already, and each shape that it reads would go through the mode."""

    @functools.wraps(function)
    def quietly(first, *args, **kwargs):
        if torch.compiler.is_compiling() or may_call_others(first) or not torch._C._len_torch_function_stack():
            return function(first, *args, **kwargs)
        mode = torch._C._pop_torch_function_stack()
        try:
            if isinstance(mode, overrides):
                return function(first, *args, **kwargs)
        finally:
            torch._C._push_on_torch_function_stack(mode)
        return function(first, *args, **kwargs)

    return quietly


class _Active:
    """What is wrapped while any `overrides` is active, and given back after; in a thread without the mode it does what it did.

    The forward of our modules, and what runs chains of them: their functions are ours without a mode. And the function that torch.utils.checkpoint keeps
    for the backward: autograd calls it when the mode is off, and nothing that a mode is asked about tells it so. Both kinds
    of checkpoint come through one place each, whoever imported `checkpoint` before.
    """

    def __init__(self):
        self.lock = threading.Lock()
        self.count = 0
        self.forwards: dict[type, object] = {}

    def enter(self):
        with self.lock:
            self.count += 1
            if self.count == 1:
                self._wrap_checkpoints()
                self.forwards = {cls: cls.forward for cls in ORIGINALS if "forward" in vars(cls)}
                for cls, forward in self.forwards.items():
                    cls.forward = _without_mode(forward, _has_modules)
                self.run_chain, _chains.run = _chains.run, _without_mode(_chains.run)
                self.known_of, _remembered.known_of = _remembered.known_of, _without_mode(_remembered.known_of)

    def leave(self):
        with self.lock:
            self.count -= 1
            if not self.count:
                del torch_checkpoint.CheckpointFunction.apply  # Function's again
                torch_checkpoint._CheckpointFrame.__init__ = self.init
                for cls, forward in self.forwards.items():
                    cls.forward = forward
                _chains.run, _remembered.known_of = self.run_chain, self.known_of

    def _wrap_checkpoints(self):
        reentrant, frame = torch_checkpoint.CheckpointFunction, torch_checkpoint._CheckpointFrame
        apply, self.init = reentrant.apply, frame.__init__
        init = self.init

        def apply_again(function, *args):
            return apply(_again_as_now(function), *args)

        @functools.wraps(init)
        def init_again(self, recompute, *args, **kwargs):
            init(self, _again_as_now(recompute), *args, **kwargs)

        reentrant.apply, frame.__init__ = apply_again, init_again


_active = _Active()
