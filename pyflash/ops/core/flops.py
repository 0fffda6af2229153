"""torch.utils.flop_counter.FlopCounterMode counts our operators: matrix products, as it does for torch's. An operator says
its formula itself (`Op(flops=...)`).

A multiplication and an addition are two. As torch's formulas do: a causal mask halves nothing, the backward of attention
counts the scores that it computes again, what costs a number per element counts nothing.
"""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.util import find_spec

import torch

from pyflash.ops.core.registry import OPS

_COUNTER = "torch.utils.flop_counter"


def _register(flop_counter):
    for name, op in OPS.items():
        if op.flops:
            flop_counter.register_flop_formula(getattr(torch.ops.pyflash, name), get_raw=True)(op.flops)


class _Following(Loader):
    """Another loader, and `_register` after it."""

    def __init__(self, loader):
        self.loader = loader

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        _register(module)


class _Finder(MetaPathFinder):
    """Waits for the import of the counter, which takes 0.2 s and brings Triton: who counts nothing does not pay."""

    def find_spec(self, name, path, target=None):
        if name != _COUNTER or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        spec.loader = _Following(spec.loader)
        return spec


def register() -> None:
    """Makes FlopCounterMode know our operators, now or as soon as it is imported."""
    if _COUNTER in sys.modules:
        _register(sys.modules[_COUNTER])
    else:
        sys.meta_path.insert(0, _Finder())
