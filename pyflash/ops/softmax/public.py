"""What the family offers in pyflash.functional, and which of torch's functions that stands for."""

import torch
import torch.nn.functional as F

from pyflash.ops.core.public import stands_for
from pyflash.ops.softmax.softmax import log_softmax, softmax, softmin

__all__ = ["log_softmax", "softmax", "softmin"]


def _with_torchs_arguments(ours, theirs):
    """`ours` as torch's operator and method of the name are called: a dimension must be said, and dtype follows it."""

    def softmax(input, dim=None, dtype=None):
        if dim is None:
            return theirs(input, dim, dtype)  # its error
        return ours(input, dim, dtype=dtype)

    return softmax


stands_for({F.softmax: softmax, F.log_softmax: log_softmax, F.softmin: softmin})
for _name, _ours in (("softmax", softmax), ("log_softmax", log_softmax)):
    for _module in (torch, torch.Tensor, torch.special):
        _theirs = getattr(_module, _name)
        stands_for({_theirs: _with_torchs_arguments(_ours, _theirs)})
