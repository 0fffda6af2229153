"""torch.optim.SGD."""

from __future__ import annotations

import torch

from pyflash.ops.optim.update import Options
from pyflash.optim._fused import EXTRAS, Fused


class SGD(Fused, torch.optim.SGD):
    __doc__ = f"torch.optim.SGD, each group in one pass over memory.{EXTRAS}"
    rule, has_steps = "sgd", False

    def states(self, group):
        return ("momentum_buffer",) if group["momentum"] != 0 else ()

    def options(self, group, stage):
        return Options(
            self.rule,
            weight_decay=float(group["weight_decay"]),
            step_size=float(group["lr"]),
            momentum=float(group["momentum"]),
            fresh=1.0 if stage else 1 - float(group["dampening"]),  # torch's first buffer is the gradient
            is_nesterov=bool(group["nesterov"]),
        )
