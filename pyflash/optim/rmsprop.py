"""torch.optim.RMSprop."""

from __future__ import annotations

import torch

from pyflash.ops.optim.update import Options
from pyflash.optim._fused import EXTRAS, Fused


class RMSprop(Fused, torch.optim.RMSprop):
    __doc__ = f"torch.optim.RMSprop, each group in one pass over memory.{EXTRAS}"
    rule, has_steps = "rmsprop", True

    def states(self, group):
        grad_avg = ("grad_avg",) if group["centered"] else ()
        return ("square_avg", *grad_avg, *(("momentum_buffer",) if group["momentum"] > 0 else ()))

    def options(self, group, stage):
        return Options(
            self.rule,
            weight_decay=float(group["weight_decay"]),
            step_size=float(group["lr"]),
            momentum=float(group["momentum"]),
            square_decay=float(group["alpha"]),
            eps=float(group["eps"]),
        )
