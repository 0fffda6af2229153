"""Sequential, as torch.nn.Sequential."""

from __future__ import annotations

import torch

from pyflash.nn import _chains
from pyflash.nn._chains import chain_of
from pyflash.nn._twins import twin

__all__ = ["Sequential"]


@twin()
class Sequential(torch.nn.Sequential):
    """One module after another, as torch.nn.Sequential; what can run as one does (nn/_chains.py): a Linear and the activation
    behind it; a convolution, its batch norm and its activation.

    All must be ours and nothing but themselves: with a hook on one of them, it is called.
    """

    def forward(self, input):
        modules = list(self)
        at = 0
        while at < len(modules):
            chain = chain_of(modules[at : at + 3]) if isinstance(input, torch.Tensor) else None
            if chain is None:
                input = modules[at](input)
                at += 1
            else:
                input = _chains.run(chain, input)
                at += len(chain.modules)
        return input
