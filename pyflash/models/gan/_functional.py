"""The functions of a model: pyflash's, or for its twin in torch.nn the same names in torch's operations."""

from __future__ import annotations

from types import ModuleType

import torch

import pyflash
import pyflash.functional


class Functional:
    """pyflash.functional as an attribute of a module, which is copied and pickled."""

    def __getattr__(self, name: str):
        return getattr(pyflash.functional, name)


class _InTorch(Functional):
    def __getattr__(self, name: str):
        function = super().__getattr__(name)

        def in_torch(*args, **kwargs):
            with pyflash.use_backend("torch"):
                return function(*args, **kwargs)

        return in_torch


def functional_of(nn: ModuleType) -> Functional:
    return _InTorch() if nn is torch.nn else Functional()
