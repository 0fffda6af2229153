"""What the modules of a model take in one forward: for `report`."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from pyflash.nn import _chains
from pyflash.ops.core.backends import counts

_CALL = torch.nn.Module._call_impl.__code__
_RUN, _RUN_FOLDED = _chains.run.__code__, _chains.run_folded.__code__


class Observation:
    """Watches the forwards of `model` inside a `with` block, in this thread.

    By Python's profiling hook, because a forward hook would change what is seen: two modules with hooks are not fused.

    Attributes:
        taken: module -> (operation, backend, reason) -> calls that were made in its forward and in no other module's.
        called: the modules that were called.
        chained: module -> (what became of it, of which module), of one that ran in a chain behind another.
        attention: the modules whose own forward calls torch's scaled_dot_product_attention.
    """

    def __init__(self, model: torch.nn.Module):
        self.modules = set(model.modules())
        self.taken: defaultdict[torch.nn.Module, Counter] = defaultdict(Counter)
        self.called: set[torch.nn.Module] = set()
        self.chained: defaultdict[torch.nn.Module, set[tuple[str, torch.nn.Module]]] = defaultdict(set)
        self.attention: set[torch.nn.Module] = set()
        self.stack = [model]
        self.seen: Counter = Counter()
        self.folds = False  # does the chain that runs, or ran last

    def __enter__(self):
        self.outer = sys.getprofile()
        self.seen = counts.copy()
        sys.setprofile(self._watch)
        return self

    def __exit__(self, *_):
        sys.setprofile(self.outer)
        self._settle()

    def _settle(self):
        """What was counted since the last time belongs to the innermost module that runs."""
        if counts != self.seen:
            self.taken[self.stack[-1]] += counts - self.seen
            self.seen = counts.copy()

    def _watch(self, frame, event, value):
        if event == "c_call":
            if value is F.scaled_dot_product_attention and not _is_ours(frame):
                self.attention.add(self.stack[-1])
        elif event in ("call", "return"):
            if frame.f_code is _CALL:
                self._enter_or_leave(frame.f_locals.get("self"), event)
            elif frame.f_code is _RUN:
                self._enter_or_leave(frame.f_locals["chain"].head, event)
                if event == "call":
                    self.folds = False
                else:
                    chain = frame.f_locals["chain"]
                    for module, what in chain.inner(self.folds).items():
                        self.chained[module].add((what, chain.head))
            elif frame.f_code is _RUN_FOLDED and frame.f_locals["chain"].norm is not None:
                self.folds = True

    def _enter_or_leave(self, module, event):
        if module in self.modules:
            self._settle()
            if event == "call":
                self.called.add(module)
                self.stack.append(module)
            elif len(self.stack) > 1:
                self.stack.pop()


def _is_ours(frame) -> bool:
    return frame.f_globals.get("__name__", "").startswith("pyflash.")


def arguments(example_inputs: Any) -> tuple[tuple, dict]:
    """What a model is called with: of a tensor, a tuple of arguments, or a dict of keyword arguments."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    return tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,), {}


def observe(model: torch.nn.Module, example_inputs) -> Observation:
    """One forward of `model` in its mode, without gradients; its dropout leaves torch's generators as they were."""
    args, kwargs = arguments(example_inputs)
    gpus = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(list(gpus)), torch.no_grad(), Observation(model) as observation:
        model(*args, **kwargs)
    return observation
