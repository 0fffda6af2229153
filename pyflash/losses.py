"""The table of losses of an input and a target, element by element: one row serves Triton, C++ (every instruction set), functions
and tests.

`make generate` (tools/generate.py) renders the expressions to kernels/loss/rows.py and csrc/common/losses.inc. They are Python
over `x` (input), `t` (target), `p` (the weight of positive examples; of margin_ranking the sign, where x and t are what is
ranked), `g` (what arrives at the loss), the row's parameter, numbers, comparisons, `where` and the functions of `FUNCTIONS`. As with activations a gradient is written whole: g 0 is torch's
answer in some places, and 0 in others. `reference` is torch's own function, so a row cannot agree with itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

# log_complement: log(1 - x), which loses no digits near 0; at_least: not below the second, a number, NaN stays; probability: x where it
# is within [0, 1], else NaN; log1p as the activations have it, of arguments from 0 to 1
FUNCTIONS = "exp", "log", "log_complement", "log1p", "sigmoid", "abs", "where", "at_least", "probability"


@dataclass(frozen=True)
class Loss:
    """A row: `name`; `forward`; `by_input` and `by_target`, the gradients, of which torch may have no second (""); torch's
    `reference` (x, t, p, parameter) -> a loss for each element; the name of the row's `parameter`, and whether it reads `p`.
    """

    name: str
    forward: str
    by_input: str
    by_target: str
    reference: Callable[[torch.Tensor, torch.Tensor, Any, float], torch.Tensor]
    parameter: str = ""
    has_pos_weight: bool = False


# -log sigmoid(x) is softplus(-x): the part of it with a corner, and the smooth one, which is added last where the others cancel.
_MINUS_PART, _PLUS_PART, _SMOOTH = "where(x < 0, -x, 0)", "where(x > 0, x, 0)", "log1p(exp(-abs(x)))"

# Of a target above 1 log(t!) is nearly t log(t) - t + log(2 pi t) / 2, below it 0: the gradients are torch's, NaN at 0, below
# it, and at infinity.
_STIRLING = "where(t <= 1, 0, t * log(t) - t + 0.5 * log(6.283185307179586 * t))"
_STIRLING_BY_TARGET = "where(t > 1, log(t) + (t / t - 1 + 0.5 / t), 0 * log(t))"

LOSSES = {
    row.name: row
    for row in (
        Loss(
            "mse", "(x - t) * (x - t)", "g * (2 * (x - t))", "g * (2 * (t - x))",
            lambda x, t, p, _: F.mse_loss(x, t, reduction="none"),
        ),
        Loss(
            "l1", "abs(x - t)", "g * where(x > t, 1, where(x < t, -1, 0))", "g * where(x < t, 1, where(x > t, -1, 0))",
            lambda x, t, p, _: F.l1_loss(x, t, reduction="none"),
        ),
        Loss(
            "smooth_l1", "where(abs(x - t) < beta, 0.5 * (x - t) * (x - t) / beta, abs(x - t) - 0.5 * beta)",
            "where(x - t >= beta, g, where(x - t <= -beta, -g, g * (x - t) / beta))",
            "where(t - x >= beta, g, where(t - x <= -beta, -g, g * (t - x) / beta))",
            lambda x, t, p, beta: F.smooth_l1_loss(x, t, reduction="none", beta=beta), parameter="beta",
        ),
        Loss(
            "huber", "where(abs(x - t) < delta, 0.5 * (x - t) * (x - t), delta * (abs(x - t) - 0.5 * delta))",
            "where(x - t >= delta, g * delta, where(x - t <= -delta, -(g * delta), g * (x - t)))",
            "where(t - x >= delta, g * delta, where(t - x <= -delta, -(g * delta), g * (t - x)))",
            lambda x, t, p, delta: F.huber_loss(x, t, reduction="none", delta=delta), parameter="delta",
        ),
        Loss(
            "binary_cross_entropy",
            "(probability(t) - 1) * at_least(log_complement(x), -100) - t * at_least(log(x), -100)",
            "g * (x - t) / at_least((1 - x) * x, 1e-12)", "g * (log_complement(x) - log(x))",
            lambda x, t, p, _: F.binary_cross_entropy(x, t, reduction="none"),
        ),
        Loss(
            "binary_cross_entropy_with_logits", f"(1 - t) * x + {_MINUS_PART} + {_SMOOTH}", "g * (sigmoid(x) - t)", "-g * x",
            lambda x, t, p, _: F.binary_cross_entropy_with_logits(x, t, reduction="none"),
        ),
        Loss(
            "binary_cross_entropy_with_pos_weight",
            f"(1 - t) * x + (1 + (p - 1) * t) * ({_MINUS_PART} + {_SMOOTH})",
            "g * ((p * t + 1 - t) * sigmoid(x) - p * t)",
            f"g * (p * ({_MINUS_PART} + {_SMOOTH}) - ({_PLUS_PART} + {_SMOOTH}))",
            lambda x, t, p, _: F.binary_cross_entropy_with_logits(x, t, pos_weight=p, reduction="none"),
            has_pos_weight=True,
        ),
        Loss(  # by t: log(t) of the logarithm's factor, 1 of the logarithm, NaN at 0 as torch's
            "kl_div", "where(t == 0, 0, t * log(t)) - t * x", "-g * t", "g * (log(t) + t / t - x)",
            lambda x, t, p, _: F.kl_div(x, t, reduction="none"),
        ),
        Loss(
            "kl_div_log_target", "exp(t) * (t - x)", "-g * exp(t)", "g * (exp(t) * (t - x) + exp(t))",
            lambda x, t, p, _: F.kl_div(x, t, reduction="none", log_target=True),
        ),
        Loss(
            # abs changes nothing but keeps the last product of exp out of a fused multiply-add, where infinity less
            # infinity, 2^130 not yet rounded, would be -infinity.
            "poisson_nll", "abs(exp(x)) - t * x", "g * (abs(exp(x)) - t)", "-g * x",
            lambda x, t, p, _: F.poisson_nll_loss(x, t, reduction="none"),
        ),
        Loss(
            "poisson_nll_of_rate", "x - t * log(x + eps)", "g * (1 - t / (x + eps))", "-g * log(x + eps)",
            lambda x, t, p, eps: F.poisson_nll_loss(x, t, log_input=False, eps=eps, reduction="none"), parameter="eps",
        ),
        Loss(
            "poisson_nll_full", f"abs(exp(x)) - t * x + {_STIRLING}", "g * (abs(exp(x)) - t)", f"g * ({_STIRLING_BY_TARGET} - x)",
            lambda x, t, p, _: F.poisson_nll_loss(x, t, full=True, reduction="none"),
        ),
        Loss(
            "poisson_nll_full_of_rate", f"x - t * log(x + eps) + {_STIRLING}", "g * (1 - t / (x + eps))",
            f"g * ({_STIRLING_BY_TARGET} - log(x + eps))",
            lambda x, t, p, eps: F.poisson_nll_loss(x, t, log_input=False, full=True, eps=eps, reduction="none"), parameter="eps",
        ),
        Loss(
            "soft_margin", "where(x * t < 0, -(x * t), 0) + log1p(exp(-abs(x * t)))", "-g * (t * sigmoid(-(x * t)))", "",
            lambda x, t, p, _: F.soft_margin_loss(x, t, reduction="none"),
        ),
        Loss(  # a margin that is met exactly has the gradient still, as torch's
            "margin_ranking", "at_least(margin - p * (x - t), 0)", "where(margin - p * (x - t) >= 0, -g * p, 0)",
            "where(margin - p * (x - t) >= 0, g * p, 0)",
            lambda x, t, p, margin: F.margin_ranking_loss(x, t, p, margin, reduction="none"),
            parameter="margin", has_pos_weight=True,
        ),
        Loss(  # a target that is neither 1 nor -1 has both parts, as torch's
            "hinge_embedding", "where(t == -1, 0, x) + where(t == 1, 0, at_least(margin - x, 0))",
            "where(t == -1, 0, g) - where(t == 1, 0, where(margin - x >= 0, g, 0))", "",
            lambda x, t, p, margin: F.hinge_embedding_loss(x, t, margin, reduction="none"), parameter="margin",
        ),
    )
}  # fmt: skip
