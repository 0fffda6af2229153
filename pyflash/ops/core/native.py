"""The only Python that takes addresses: checked tensors in, integers to the native module. One file a kernel family.

Every function here is an implementation of an `Op`, called with CPU tensors that the operation has checked, and with
outputs the registry has allocated. The tensors stay alive in the caller's frame for the whole call.
"""

import torch

from pyflash import _cpu

DTYPES = {getattr(torch, name): number for name, number in _cpu.DTYPES.items()}


def in_large_pages(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor`, dense and not yet written to, in pages of 2 MB where the system gives them; for large ones."""
    _cpu.prefer_large_pages(tensor.data_ptr(), tensor.nbytes)
    return tensor
