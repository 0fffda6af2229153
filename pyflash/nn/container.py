"""Sequential, as torch.nn.Sequential."""

from __future__ import annotations

import torch

import pyflash.functional as F
from pyflash.nn._fuse import activation_of
from pyflash.nn._twins import ORIGINALS, is_bare, twin
from pyflash.nn.linear import Linear
from pyflash.ops.pointwise.argument import ActivationArgument

__all__ = ["Sequential"]


@twin("linear_act")
class Sequential(torch.nn.Sequential):
    """One module after another, as torch.nn.Sequential; a Linear and the activation behind it are one kernel.

    Both must be ours and nothing but themselves: with a hook on one of them, each is called.
    """

    def forward(self, input):
        modules = [*self, None]
        at = 0
        while at < len(modules) - 1:
            module, behind = modules[at : at + 2]
            activation = fused_activation(module, behind)
            if activation is None:
                input = module(input)
            else:
                input = F.linear_act(input, module.weight, module.bias, activation)
            at += 1 if activation is None else 2
        return input


def fused_activation(module, behind) -> ActivationArgument:
    """The activation `behind` applies to the output of `module`, when the two may be one; else None."""
    if is_bare(module, Linear) and type(behind) in ORIGINALS:
        return activation_of(behind)
    return None
