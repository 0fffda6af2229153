"""torch.optim.AdamW."""

from __future__ import annotations

import torch

from pyflash.optim._fused import EXTRAS
from pyflash.optim.adam import AdamRule


class AdamW(AdamRule, torch.optim.AdamW):
    __doc__ = f"torch.optim.AdamW, each group in one pass over memory.{EXTRAS}"
