"""The activation table: one row serves Triton, C++ (every instruction set), modules, tests, benchmarks and documents.

`make generate` (tools/generate.py) renders the expressions to kernels/pointwise/activations.py and csrc/common/activations.inc,
the functions to pyflash/ops/pointwise/functions.py and the modules to pyflash/nn/_activations.py.
Expressions are Python over `x` (input), `y` (output), `dy`, `ddx` (what arrives at the gradient of `x`), the row's parameters,
numbers, comparisons, `where` and the functions of `FUNCTIONS`. A gradient is written whole rather than as a factor of `dy`,
because torch's ReLU gives 0 where the factor would give inf * 0. `reference` is torch's own function, so a row cannot agree
with itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

FUNCTIONS = (  # tanh_rest: x - tanh(x); gelu_sigmoid: of the argument below; float32's log1p of the C++ core is for arguments from 0 to 1
    "exp", "expm1", "log1p", "tanh", "tanh_rest", "erf", "sigmoid", "gelu_sigmoid", "normal_cdf", "normal_pdf", "abs", "where",
)  # fmt: skip


MOST_PARAMETERS = 2  # of a row: two numbers go through every operator, used or not

Values = tuple[float, float]  # of a row's parameters, in its order; 0 for what it has not


@dataclass(frozen=True)
class Activation:
    """A row: `name`; `forward` in x; `backward` in dy and what `saves` names ("x" or "y"); `double_backward`, the derivative of
    `backward` by what is saved times ddx, empty where it is 0 but for steps; torch's `reference`, which takes
    the values of the row's `parameters` after x; these with torch's defaults, in torch's order, None where it has none;
    `max_ulp`, the largest float32 error of `forward` over the whole range, and `gpu_ulp`, what a GPU may add: its 2^x and
    its division are each within 2 ulp (PTX: ex2.approx, div.full) where the C library's are within a half.

    And what it is in torch: the class `module` of torch.nn, the function in torch.nn.functional (`function`, the row's name
    if it says none), other `torch_functions` that do the same, whether both work `inplace`, and the `attribute` of the
    module, a keyword of the function, whose value tells rows of one function apart. `subclasses` are classes of torch.nn that
    derive from `module` and have its attributes. In the directions of `rounds` torch rounds the parameters to the tensors'
    type. Parameters that are not `allowed` torch refuses, and those of an in-place call whose gradient is needed that are not
    `allowed_inplace`: such a call is torch's, whose error it is. `meaning` is for documents.
    """

    name: str
    forward: str
    backward: str
    saves: str
    reference: Callable[..., torch.Tensor]
    max_ulp: int
    module: str
    meaning: str
    double_backward: str = ""
    parameters: tuple[tuple[str, float | None], ...] = ()
    gpu_ulp: int = 0
    function: str = ""
    torch_functions: tuple[Callable, ...] = ()
    inplace: bool = False
    attribute: tuple[str, str] | None = None
    subclasses: tuple[str, ...] = ()
    rounds: tuple[str, ...] = ()
    allowed: Callable[..., bool] | None = None
    allowed_inplace: Callable[..., bool] | None = None

    def __post_init__(self):
        object.__setattr__(self, "function", self.function or self.name)
        if len(self.parameters) > MOST_PARAMETERS:
            raise ValueError(
                f"{self.name} has {len(self.parameters)} parameters, at most {MOST_PARAMETERS} are handed on"
            )

    def may_be_in_place(self, values: Iterable) -> bool:
        """Is torch's gradient of it in place, where it has one, that of the result, which then is all that is left?"""
        return self.saves == "y" if self.allowed_inplace is None else self.allowed_inplace(*values)

    def values(self, given: Iterable) -> Values:
        """These values of the parameters as the operators take them."""
        first, second, *_ = *map(float, given), 0.0, 0.0
        return first, second

    def of(self, x: torch.Tensor, values: Values) -> torch.Tensor:
        """torch's result."""
        return self.reference(x, *values[: len(self.parameters)])


# gpu_ulp: 1.5 for 2^x and 1.5 for the quotient; of tanh's 1 - 2 / (e^2x + 1) both are at most a third of the result.
# tanh(sqrt(2/pi) (x + 0.044715 x^3)) = 2 sigmoid(2 sqrt(2/pi) ...) - 1: in this form the left tail does not cancel.
# Of its derivatives: beyond 30 those of the sigmoid are 0 in every type, and what they are multiplied by stays finite.
_GELU_TANH_X = "where(x > 30, 30, where(x < -30, -30, x))"
_GELU_TANH_ARGUMENT = f"1.5957691216057308 * {_GELU_TANH_X} * (1 + 0.044715 * {_GELU_TANH_X} * {_GELU_TANH_X})"
_GELU_TANH_SLOPE = f"(1.5957691216057308 * (1 + 0.134145 * {_GELU_TANH_X} * {_GELU_TANH_X}))"

# mish: with e = exp(x) and n = e (e + 2), tanh(log(1 + e)) = n / (n + 2), and its square falls short of 1 by 4 (n + 1) /
# (n + 2)^2: nothing cancels. From 20 on the quotient is 1 in every type, and e^2 stays finite.
_MISH_E = "exp(where(x < 20, x, 20))"
_MISH_N = f"({_MISH_E} * ({_MISH_E} + 2))"

# In its derivatives e = exp(-|x|), which every x allows, of numerators and denominators over e^2 where x is positive. t =
# tanh(log(1 + exp(x))); t' is the sigmoid, high / (1 + e), times 1 - t^2; low / (1 + e) is 1 - the sigmoid. No abs: its
# derivative at 0 is 0.
_MISH_FAR = "exp(where(x > 0, -x, x))"
_MISH_LOW, _MISH_HIGH = f"where(x > 0, {_MISH_FAR}, 1)", f"where(x > 0, 1, {_MISH_FAR})"
_MISH_OVER = f"where(x > 0, 1 + 2 * {_MISH_FAR} * (1 + {_MISH_FAR}), 2 + {_MISH_FAR} * (2 + {_MISH_FAR}))"
_MISH_T = f"(where(x > 0, 1 + 2 * {_MISH_FAR}, {_MISH_FAR} * (2 + {_MISH_FAR})) / {_MISH_OVER})"
_MISH_DT = f"(4 * {_MISH_FAR} * {_MISH_LOW} / ({_MISH_OVER} * {_MISH_OVER}))"  # over 1 + e

# log(1 + e^z), z = beta x.
_SOFTPLUS = "where(x * beta > 0, x * beta, 0) + log1p(exp(-abs(x * beta)))"

# Where |x| <= lambd, which NaN is not.
_SHRUNK = "where(x >= -lambd, where(x <= lambd, 0, {0}), {0})"


def _is_not_negative(value: float) -> bool:
    return value >= 0


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
            module="LeakyReLU", inplace=True, allowed_inplace=_is_not_negative,
            meaning="x where it is positive, else negative_slope x. Maas et al. 2013",
        ),
        Activation(
            "gelu", "x * normal_cdf(x)", "dy * (normal_cdf(x) + x * normal_pdf(x))", "x", F.gelu, max_ulp=9, gpu_ulp=3,
            double_backward="ddx * dy * (2 * normal_pdf(x) - x * (x * normal_pdf(x)))",
            module="GELU", attribute=("approximate", "none"),
            meaning="x Phi(x). Hendrycks & Gimpel 2016, arXiv:1606.08415",
        ),
        Activation(
            "gelu_tanh",
            "x * gelu_sigmoid(x)",
            f"dy * sigmoid({_GELU_TANH_ARGUMENT}) * (1 + {_GELU_TANH_X} * sigmoid(-({_GELU_TANH_ARGUMENT})) * {_GELU_TANH_SLOPE})",
            "x", partial(F.gelu, approximate="tanh"), max_ulp=16, gpu_ulp=3,
            double_backward=f"ddx * dy * sigmoid({_GELU_TANH_ARGUMENT}) * sigmoid(-({_GELU_TANH_ARGUMENT}))"
            f" * (2 * {_GELU_TANH_SLOPE} + {_GELU_TANH_X} * ((sigmoid(-({_GELU_TANH_ARGUMENT})) - sigmoid({_GELU_TANH_ARGUMENT}))"
            f" * {_GELU_TANH_SLOPE} * {_GELU_TANH_SLOPE} + 1.5957691216057308 * 0.26829 * {_GELU_TANH_X}))",
            module="GELU", function="gelu", attribute=("approximate", "tanh"),
            meaning="its tanh form",
        ),
        Activation(
            "silu", "x * sigmoid(x)", "dy * sigmoid(x) * (1 + x * (1 - sigmoid(x)))", "x", F.silu, max_ulp=4, gpu_ulp=3,
            double_backward="ddx * dy * sigmoid(x) * sigmoid(-x) * (2 + x * (sigmoid(-x) - sigmoid(x)))",
            module="SiLU", inplace=True, meaning="x sigmoid(x). Elfwing et al. 2017, arXiv:1702.03118",
        ),
        Activation(
            "mish",
            f"x * ({_MISH_N} / ({_MISH_N} + 2))",
            f"dy * ({_MISH_T} + x * {_MISH_DT} * (1 + {_MISH_FAR}))",
            "x", F.mish, max_ulp=6, gpu_ulp=4,
            double_backward=f"ddx * dy * ({_MISH_DT} * (2 + 2 * {_MISH_FAR}) + x * {_MISH_DT} * ({_MISH_LOW} - 2 * {_MISH_T} * {_MISH_HIGH}))",
            module="Mish", inplace=True, meaning="x tanh(log(1 + exp(x))). Misra 2019, arXiv:1908.08681",
        ),
        Activation(
            "tanh", "tanh(x)", "dy * (1 - y * y)", "y", torch.tanh, max_ulp=2, gpu_ulp=1,
            double_backward="-2 * ddx * dy * y",
            module="Tanh", torch_functions=(torch.tanh, torch.Tensor.tanh), meaning="tanh(x)",
        ),
        Activation(
            "sigmoid", "sigmoid(x)", "dy * y * (1 - y)", "y", torch.sigmoid, max_ulp=3, gpu_ulp=3,
            double_backward="ddx * dy * (1 - 2 * y)",
            module="Sigmoid", torch_functions=(torch.sigmoid, torch.Tensor.sigmoid), meaning="1 / (1 + exp(-x))",
        ),
        Activation(
            "elu", "where(x > 0, x, alpha * expm1(x))", "where(x <= 0, dy * alpha * exp(x), dy)", "x",
            F.elu, max_ulp=4, gpu_ulp=2, parameters=(("alpha", 1.0),),
            double_backward="where(x < 0, ddx * dy * alpha * exp(x), 0)",
            module="ELU", inplace=True, allowed_inplace=_is_not_negative,
            meaning="x where it is positive, else alpha (exp(x) - 1). Clevert et al. 2015, arXiv:1511.07289",
        ),
        Activation(  # scale and alpha scale
            "selu", "where(x > 0, 1.0507009873554805 * x, 1.7580993408473766 * expm1(x))",
            "where(x <= 0, dy * 1.7580993408473766 * exp(x), 1.0507009873554805 * dy)", "x",
            F.selu, max_ulp=4, gpu_ulp=2,
            double_backward="where(x < 0, ddx * dy * 1.7580993408473766 * exp(x), 0)",
            module="SELU", inplace=True, torch_functions=(torch.selu,),
            meaning="scale (x where it is positive, else alpha (exp(x) - 1)). Klambauer et al. 2017, arXiv:1706.02515",
        ),
        Activation(
            "celu", "where(x > 0, x, alpha * expm1(x * (1 / alpha)))", "where(x <= 0, dy * exp(x * (1 / alpha)), dy)", "x",
            F.celu, max_ulp=4, gpu_ulp=2, parameters=(("alpha", 1.0),),
            double_backward="where(x < 0, ddx * dy * (1 / alpha) * exp(x * (1 / alpha)), 0)",
            module="CELU", inplace=True, torch_functions=(torch.celu,),
            allowed=lambda alpha: alpha != 0, allowed_inplace=_is_not_negative,
            meaning="x where it is positive, else alpha (exp(x / alpha) - 1). Barron 2017, arXiv:1704.07483",
        ),
        Activation(
            "hardtanh", "where(x < min_val, min_val, where(x > max_val, max_val, x))",
            "where(x <= min_val, 0, where(x >= max_val, 0, dy))", "x",
            F.hardtanh, max_ulp=0, parameters=(("min_val", -1.0), ("max_val", 1.0)),
            module="Hardtanh", subclasses=("ReLU6",), inplace=True, allowed=lambda low, high: low <= high,
            meaning="x within [min_val, max_val]",
        ),
        Activation(
            "relu6", "where(x < 0, 0, where(x > 6, 6, x))", "where(x <= 0, 0, where(x >= 6, 0, dy))", "x",
            F.relu6, max_ulp=0, module="", inplace=True, meaning="x within [0, 6]",
        ),
        Activation(  # in the backward torch's sixth is that of float32 in every type
            "hardsigmoid", "where(x < -3, 0, where(x > 3, 6, x + 3)) / 6",
            "where(x > -3, where(x < 3, dy * 0.1666666716337204, 0), 0)", "x", F.hardsigmoid, max_ulp=2, gpu_ulp=2,
            module="Hardsigmoid", inplace=True, meaning="x / 6 + 1 / 2 within [0, 1]",
        ),
        Activation(
            "hardswish", "x * (where(x < -3, 0, where(x > 3, 6, x + 3)) / 6)",
            "where(x <= -3, 0, where(x < 3, dy * (x / 3 + 0.5), dy))", "x", F.hardswish, max_ulp=3, gpu_ulp=2,
            double_backward="where(x > -3, where(x < 3, ddx * dy / 3, 0), 0)",
            module="Hardswish", inplace=True, meaning="x hardsigmoid(x). Howard et al. 2019, arXiv:1905.02244",
        ),
        Activation(
            "hardshrink", _SHRUNK.format("x"), _SHRUNK.format("dy"), "x",
            F.hardshrink, max_ulp=0, parameters=(("lambd", 0.5),),
            module="Hardshrink", rounds=("forward", "backward"), torch_functions=(torch.hardshrink, torch.Tensor.hardshrink),
            meaning="0 within [-lambd, lambd], else x",
        ),
        Activation(
            "softshrink", "where(x > lambd, x - lambd, where(x < -lambd, x + lambd, x * 0))", _SHRUNK.format("dy"), "x",
            F.softshrink, max_ulp=1, parameters=(("lambd", 0.5),),
            module="Softshrink", rounds=("backward",), allowed=_is_not_negative, meaning="x moved by lambd towards 0, which it does not pass",
        ),
        Activation(
            "softplus", f"where(x * beta > threshold, x, ({_SOFTPLUS}) / beta)",
            "where(x * beta > threshold, dy, dy * sigmoid(x * beta))", "x",
            F.softplus, max_ulp=5, gpu_ulp=4, parameters=(("beta", 1.0), ("threshold", 20.0)),
            double_backward="where(x * beta >= threshold, 0, ddx * dy * beta * sigmoid(x * beta) * sigmoid(-(x * beta)))",
            module="Softplus", meaning="log(1 + exp(beta x)) / beta; x where beta x is above threshold",
        ),
        Activation(
            "logsigmoid", "where(x < 0, x, 0) - log1p(exp(-abs(x)))", "dy * sigmoid(-x)", "x",
            F.logsigmoid, max_ulp=5, gpu_ulp=4,
            double_backward="-(ddx * dy) * sigmoid(x) * sigmoid(-x)",
            module="LogSigmoid", meaning="log(1 / (1 + exp(-x)))",
        ),
        Activation(
            "softsign", "x / (1 + abs(x))", "dy / (1 + abs(x)) / (1 + abs(x))", "x",
            F.softsign, max_ulp=2, gpu_ulp=2,
            double_backward="ddx * dy * where(x > 0, -2, where(x < 0, 2, x * 0)) / (1 + abs(x)) / (1 + abs(x)) / (1 + abs(x))",
            module="Softsign", meaning="x / (1 + |x|)",
        ),
        Activation(
            "tanhshrink", "tanh_rest(x)", "dy * tanh(x) * tanh(x)", "x",
            F.tanhshrink, max_ulp=16, gpu_ulp=8,
            double_backward="2 * ddx * dy * tanh(x) * (1 - tanh(x) * tanh(x))",
            module="Tanhshrink", meaning="x - tanh(x)",
        ),
        Activation(
            "threshold", "where(x <= threshold, value, x)", "where(x <= threshold, 0, dy)", "x",
            F.threshold, max_ulp=0, parameters=(("threshold", None), ("value", None)),
            module="Threshold", torch_functions=(torch.threshold,), inplace=True,
            meaning="x where it is above threshold, else value",
        ),
    )
}  # fmt: skip


def rows_by(field: str) -> dict[str, list[Activation]]:
    """Rows that share a `function` or a `module`, in the table's order."""
    found: dict[str, list[Activation]] = {}
    for row in ACTIVATIONS.values():
        for name in (getattr(row, field), *(row.subclasses if field == "module" else ())):
            if name:
                found.setdefault(name, []).append(row)
    return found
