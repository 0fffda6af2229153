"""Memory that a kernel works in during one call."""

from __future__ import annotations

import threading

import torch

from pyflash.ops.core.native import in_large_pages

_KEPT_BYTES = 32 << 20
_kept = threading.local()


def take_workspace(size: int, purpose: str = "gemm") -> torch.Tensor:
    """Memory for one call of this thread, kept for the next one unless it is large: the C library would give it back to
    the system, and touching new pages costs more than what is written to them."""
    if size > _KEPT_BYTES:
        return in_large_pages(torch.empty(size, dtype=torch.uint8, device="cpu"))
    memory = getattr(_kept, purpose, None)
    if memory is None or memory.numel() < size:
        memory = torch.empty(size, dtype=torch.uint8, device="cpu")
        setattr(_kept, purpose, memory)
    return memory
