"""How much memory a call takes at its peak."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from pathlib import Path

import torch


class Memory:
    """The peak that a call adds to the process (Linux's VmHWM, reset before it) or to the GPU; None where unknown."""

    def __init__(self, device: str):
        self.device = device

    def added_by(self, call: Callable[[], object]) -> int | None:
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            call()
            return torch.cuda.max_memory_allocated() - before
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # what earlier steps freed goes back first, or it would hide the growth
        try:
            Path("/proc/self/clear_refs").write_text("5")
            before = self._status("VmRSS")
            call()
            return max(0, self._status("VmHWM") - before)
        except (OSError, KeyError):
            call()
            return None

    @staticmethod
    def _status(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(dict(line.split(":", 1) for line in lines)[field].split()[0]) * 1024
