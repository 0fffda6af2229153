"""The activation table: one row serves Triton, C++ (every instruction set), modules, tests, benchmarks and documents.

`make generate` (tools/generate.py) renders the expressions to kernels/pointwise/activations.py and csrc/common/activations.inc,
the functions to pyflash/ops/pointwise/functions.py and the modules to pyflash/nn/_activations.py.
Expressions are Python over `x` (input), `y` (output), `dy`, the row's parameters, numbers, comparisons, `where` and the
functions of `FUNCTIONS`. A gradient is written whole rather than as a factor of `dy`, because torch's ReLU gives 0 where the factor
would give inf * 0. `reference` is torch's own function, so a row cannot agree with itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

FUNCTIONS = ("exp", "tanh", "erf", "sigmoid", "normal_cdf", "normal_pdf", "where")


MOST_PARAMETERS = 2  # of a row: two numbers go through every operator, used or not

Values = tuple[float, float]  # of a row's parameters, in its order; 0 for what it has not


@dataclass(frozen=True)
class Activation:
    """A row: `name`; `forward` in x; `backward` in dy and what `saves` names ("x" or "y"); torch's `reference`, which takes
    the values of the row's `parameters` behind x; these with torch's defaults, in torch's order, None where it has none;
    `max_ulp`, the largest float32 error of `forward` over the whole range, and `gpu_ulp`, what a GPU may add: its 2^x and
    its division are each within 2 ulp (PTX: ex2.approx, div.full) where the C library's are within a half.

    And what it is in torch: the class `module` of torch.nn, the function in torch.nn.functional (`function`, the row's name
    if it says none), other `torch_functions` that do the same, whether both work `inplace`, and the `attribute` of the
    module, a keyword of the function, whose value tells rows of one function apart. `meaning` is for documents.
    """

    name: str
    forward: str
    backward: str
    saves: str
    reference: Callable[..., torch.Tensor]
    max_ulp: int
    module: str
    meaning: str
    parameters: tuple[tuple[str, float | None], ...] = ()
    gpu_ulp: int = 0
    function: str = ""
    torch_functions: tuple[Callable, ...] = ()
    inplace: bool = False
    attribute: tuple[str, str] | None = None

    def __post_init__(self):
        object.__setattr__(self, "function", self.function or self.name)
        if len(self.parameters) > MOST_PARAMETERS:
            raise ValueError(
                f"{self.name} has {len(self.parameters)} parameters, at most {MOST_PARAMETERS} are handed on"
            )

    def values(self, given: Iterable[float]) -> Values:
        """These values of the parameters as the operators take them."""
        return (*map(float, given), 0.0, 0.0)[:MOST_PARAMETERS]

    def of(self, x: torch.Tensor, values: Values) -> torch.Tensor:
        """torch's result."""
        return self.reference(x, *values[: len(self.parameters)])


# gpu_ulp: 1.5 for 2^x and 1.5 for the quotient; of tanh's 1 - 2 / (e^2x + 1) both are at most a third of the result.
# tanh(sqrt(2/pi) (x + 0.044715 x^3)) = 2 sigmoid(2 sqrt(2/pi) ...) - 1: in this form the left tail does not cancel.
_GELU_TANH_ARGUMENT = "1.5957691216057308 * x * (1 + 0.044715 * x * x)"

# mish: with e = exp(x) and n = e (e + 2), tanh(log(1 + e)) = n / (n + 2), and its square falls short of 1 by 4 (n + 1) /
# (n + 2)^2: nothing cancels. From 20 on the quotient is 1 in every type, and e^2 stays finite.
_MISH_E = "exp(where(x < 20, x, 20))"
_MISH_N = f"({_MISH_E} * ({_MISH_E} + 2))"

ACTIVATIONS = {
    row.name: row
    for row in (
        Activation(
            "relu", "where(x < 0, 0, x)", "where(y <= 0, 0, dy)", "y", F.relu, max_ulp=0,
            module="ReLU", torch_functions=(torch.relu, torch.Tensor.relu), inplace=True,
            meaning="max(x, 0); NaN stays NaN",
        ),
        Activation(
            "leaky_relu", "where(x > 0, x, x * negative_slope)", "where(x > 0, dy, dy * negative_slope)", "x",
            F.leaky_relu, max_ulp=1, parameters=(("negative_slope", 0.01),),
            module="LeakyReLU", inplace=True,
            meaning="x where it is positive, else negative_slope x. Maas et al. 2013",
        ),
        Activation(
            "gelu", "x * normal_cdf(x)", "dy * (normal_cdf(x) + x * normal_pdf(x))", "x", F.gelu, max_ulp=9, gpu_ulp=3,
            module="GELU", attribute=("approximate", "none"),
            meaning="x Phi(x). Hendrycks & Gimpel 2016, arXiv:1606.08415",
        ),
        Activation(
            "gelu_tanh",
            f"x * sigmoid({_GELU_TANH_ARGUMENT})",
            f"dy * sigmoid({_GELU_TANH_ARGUMENT}) * (1 + x * sigmoid(-({_GELU_TANH_ARGUMENT}))"
            " * 1.5957691216057308 * (1 + 0.134145 * x * x))",
            "x", partial(F.gelu, approximate="tanh"), max_ulp=200, gpu_ulp=3,
            module="GELU", function="gelu", attribute=("approximate", "tanh"),
            meaning="its tanh form",
        ),
        Activation(
            "silu", "x * sigmoid(x)", "dy * sigmoid(x) * (1 + x * (1 - sigmoid(x)))", "x", F.silu, max_ulp=4, gpu_ulp=3,
            module="SiLU", inplace=True, meaning="x sigmoid(x). Elfwing et al. 2017, arXiv:1702.03118",
        ),
        Activation(
            "mish",
            f"x * ({_MISH_N} / ({_MISH_N} + 2))",
            f"dy * ({_MISH_N} / ({_MISH_N} + 2)"
            f" + x * sigmoid(x) * (4 * ({_MISH_N} + 1) / (({_MISH_N} + 2) * ({_MISH_N} + 2))))",
            "x", F.mish, max_ulp=6, gpu_ulp=4,
            module="Mish", inplace=True, meaning="x tanh(log(1 + exp(x))). Misra 2019, arXiv:1908.08681",
        ),
        Activation(
            "tanh", "tanh(x)", "dy * (1 - y * y)", "y", torch.tanh, max_ulp=2, gpu_ulp=1,
            module="Tanh", torch_functions=(torch.tanh, torch.Tensor.tanh), meaning="tanh(x)",
        ),
        Activation(
            "sigmoid", "sigmoid(x)", "dy * y * (1 - y)", "y", torch.sigmoid, max_ulp=3, gpu_ulp=3,
            module="Sigmoid", torch_functions=(torch.sigmoid, torch.Tensor.sigmoid), meaning="1 / (1 + exp(-x))",
        ),
    )
}  # fmt: skip


def rows_by(field: str) -> dict[str, list[Activation]]:
    """Rows that share a `function` or a `module`, in the table's order."""
    found: dict[str, list[Activation]] = {}
    for row in ACTIVATIONS.values():
        found.setdefault(getattr(row, field), []).append(row)
    return found
