"""torch.optim.Adam, and the rule that AdamW shares with it."""

from __future__ import annotations

import torch

from pyflash.ops.optim.update import Options
from pyflash.optim._fused import EXTRAS, Fused


class AdamRule(Fused):
    rule, has_steps = "adam", True

    def states(self, group):
        return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq") if group["amsgrad"] else ("exp_avg", "exp_avg_sq")

    def options(self, group, stage):
        lr, decay, (beta1, beta2) = float(group["lr"]), float(group["weight_decay"]), map(float, group["betas"])
        is_decoupled = group["decoupled_weight_decay"]
        return Options(
            self.rule,
            weight_decay=0.0 if is_decoupled else decay,
            shrink=1 - lr * decay if is_decoupled else 1.0,
            step_size=lr / (1 - beta1**stage),
            mean_decay=beta1,
            square_decay=beta2,
            root_scale=(1 - beta2**stage) ** 0.5,
            eps=float(group["eps"]),
        )


class Adam(AdamRule, torch.optim.Adam):
    __doc__ = f"torch.optim.Adam, each group in one pass over memory.{EXTRAS}"
