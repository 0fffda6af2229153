"""The activation table: one row serves Triton, C++ (every instruction set), modules, tests, benchmarks and documents.

`make generate` renders the expressions to kernels/pointwise/activations.py and csrc/common/activations.inc (tools/generate.py).
Expressions are Python over `x` (input), `y` (output), `dy`, numbers, comparisons, `where` and the functions of
`FUNCTIONS`. A gradient is written whole rather than as a factor of `dy`, because torch's ReLU gives 0 where the factor
would give inf * 0. `reference` is torch's own function, so a row cannot agree with itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

FUNCTIONS = ("exp", "tanh", "erf", "sigmoid", "normal_cdf", "normal_pdf", "where")


@dataclass(frozen=True)
class Activation:
    """A row: `name`; `forward` in x; `backward` in dy and what `saves` names ("x" or "y"); torch's `reference`;
    `max_ulp`, the largest float32 error of `forward` over the whole range, and `gpu_ulp`, what a GPU may add: its 2^x and
    its division are each within 2 ulp (PTX: ex2.approx, div.full) where the C library's are within a half."""

    name: str
    forward: str
    backward: str
    saves: str
    reference: Callable[[torch.Tensor], torch.Tensor]
    max_ulp: int
    gpu_ulp: int = 0


# gpu_ulp: 1.5 for 2^x and 1.5 for the quotient; of tanh's 1 - 2 / (e^2x + 1) both are at most a third of the result.
# tanh(sqrt(2/pi) (x + 0.044715 x^3)) = 2 sigmoid(2 sqrt(2/pi) ...) - 1: in this form the left tail does not cancel.
_GELU_TANH_ARGUMENT = "1.5957691216057308 * x * (1 + 0.044715 * x * x)"

ACTIVATIONS = {
    row.name: row
    for row in (
        Activation("relu", "where(x < 0, 0, x)", "where(y <= 0, 0, dy)", "y", F.relu, max_ulp=0),
        Activation(
            "gelu", "x * normal_cdf(x)", "dy * (normal_cdf(x) + x * normal_pdf(x))", "x", F.gelu, max_ulp=9, gpu_ulp=3
        ),
        Activation(
            "gelu_tanh",
            f"x * sigmoid({_GELU_TANH_ARGUMENT})",
            f"dy * sigmoid({_GELU_TANH_ARGUMENT}) * (1 + x * sigmoid(-({_GELU_TANH_ARGUMENT}))"
            " * 1.5957691216057308 * (1 + 0.134145 * x * x))",
            "x",
            partial(F.gelu, approximate="tanh"),
            max_ulp=200,
            gpu_ulp=3,
        ),
        Activation(
            "silu", "x * sigmoid(x)", "dy * sigmoid(x) * (1 + x * (1 - sigmoid(x)))", "x", F.silu, max_ulp=4, gpu_ulp=3
        ),
        Activation("tanh", "tanh(x)", "dy * (1 - y * y)", "y", torch.tanh, max_ulp=2, gpu_ulp=1),
        Activation("sigmoid", "sigmoid(x)", "dy * y * (1 - y)", "y", torch.sigmoid, max_ulp=3, gpu_ulp=3),
    )
}
