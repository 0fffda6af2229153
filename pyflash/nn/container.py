"""Sequential, as torch.nn.Sequential."""

from __future__ import annotations

import torch

from pyflash.nn import _chains, _remembered
from pyflash.nn._chains import chain_of
from pyflash.nn._remembered import in_turn, pays, remember, run, saves_a_tensor
from pyflash.nn._twins import twin

__all__ = ["Sequential"]


@twin()
class Sequential(torch.nn.Sequential):
    """One module after another, as torch.nn.Sequential; what can run as one does (nn/_chains.py): a Linear and the activation
    behind it; a convolution, its batch norm and its activation.

    All must be ours and nothing but themselves: with a hook on one of them, it is called.
    """

    def forward(self, input):
        key, known = _remembered.known_of(in_turn, self, input) if type(input) is torch.Tensor else (None, None)
        modules, at, found, in_place = list(self), 0, set(), {}
        if known is not None and not known.places:
            return run(known, in_turn, modules, input)
        while at < len(modules):
            chain = None
            if isinstance(input, torch.Tensor) and (known is None or at in known.places):
                chain = chain_of(modules[at : at + 3])
            if chain is None:
                input = modules[at](input)
                at += 1
                continue
            if key is None or known is not None:
                input = _chains.run(chain, input)
            else:
                input, is_worth_it = pays(chain, input)
                if is_worth_it:
                    found.add(at)
                elif saves_a_tensor(chain, input):
                    end = at + len(chain.modules) - 1
                    in_place[end] = end - 1
            at += len(chain.modules)
        if known is None:
            remember(in_turn, self, key, found, in_place)
        return input
