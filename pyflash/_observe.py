"""What the modules of a model take in one forward: for `report`."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from pyflash.ops.core.backends import counts

_CALL = torch.nn.Module._call_impl.__code__


class Observation:
    """Watches the forwards of `model` inside a `with` block, in this thread.

    By Python's profiling hook, because a forward hook would change what is seen: two modules with hooks are not fused.

    Attributes:
        taken: module -> (operation, backend, reason) -> calls that were made in its forward and in no other module's.
        called: the modules that were called.
        attention: the modules whose own forward calls torch's scaled_dot_product_attention.
    """

    def __init__(self, model: torch.nn.Module):
        self.modules = set(model.modules())
        self.taken: defaultdict[torch.nn.Module, Counter] = defaultdict(Counter)
        self.called: set[torch.nn.Module] = set()
        self.attention: set[torch.nn.Module] = set()
        self.stack = [model]
        self.seen: Counter = Counter()

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
        elif frame.f_code is _CALL and event in ("call", "return"):
            module = frame.f_locals.get("self")
            if module in self.modules:
                self._settle()
                if event == "call":
                    self.called.add(module)
                    self.stack.append(module)
                elif len(self.stack) > 1:
                    self.stack.pop()


def _is_ours(frame) -> bool:
    return frame.f_globals.get("__name__", "").startswith("pyflash.")


def observe(model: torch.nn.Module, example_inputs) -> Observation:
    """One forward of `model` in its mode, without gradients; its dropout leaves torch's generators as they were."""
    args: Any = example_inputs
    kwargs: Mapping = {}
    if isinstance(args, Mapping):
        args, kwargs = (), args
    elif not isinstance(args, (tuple, list)):
        args = (args,)
    gpus = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(list(gpus)), torch.no_grad(), Observation(model) as observation:
        model(*args, **kwargs)
    return observation
