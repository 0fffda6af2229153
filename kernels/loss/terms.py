"""What a loss averages, of one element: f(x), g f'(x) and g f''(x). The names are those of pyflash/ops/loss/terms.py."""

import triton
import triton.language as tl

from pyflash.kernels.primitives import exp, log1p, sigmoid


@triton.jit
def value(x, TERM: tl.constexpr):
    if TERM == "softplus" or TERM == "minus_softplus":
        y = tl.where(x > 0, x, 0.0) + log1p(exp(-tl.abs(x)))  # NaN through the second
    elif TERM == "softplus_negative":
        y = tl.where(x < 0, -x, 0.0) + log1p(exp(-tl.abs(x)))
    elif TERM == "hinge_below":
        y = tl.where(1 - x <= 0, 0.0, 1 - x)
    elif TERM == "hinge_above":
        y = tl.where(1 + x <= 0, 0.0, 1 + x)
    elif TERM == "value" or TERM == "minus_value":
        y = x
    elif TERM == "half_square_to_one":
        y = 0.5 * (x - 1) * (x - 1)
    else:
        tl.static_assert(TERM == "half_square")
        y = 0.5 * x * x
    if TERM == "minus_softplus" or TERM == "minus_value":
        y = -y
    return y


@triton.jit
def first(x, g, TERM: tl.constexpr):
    if TERM == "softplus":
        y = g * sigmoid(x)
    elif TERM == "minus_softplus":
        y = -g * sigmoid(x)
    elif TERM == "softplus_negative":
        y = -g * sigmoid(-x)
    elif TERM == "hinge_below":
        y = tl.where(1 - x <= 0, 0.0, -g)
    elif TERM == "hinge_above":
        y = tl.where(1 + x <= 0, 0.0, g)
    elif TERM == "value":
        y = g + tl.zeros_like(x)
    elif TERM == "minus_value":
        y = -g + tl.zeros_like(x)
    elif TERM == "half_square_to_one":
        y = g * (x - 1)
    else:
        tl.static_assert(TERM == "half_square")
        y = g * x
    return y


@triton.jit
def second(x, g, TERM: tl.constexpr):
    if TERM == "softplus" or TERM == "softplus_negative":
        y = g * (sigmoid(x) * sigmoid(-x))
    elif TERM == "minus_softplus":
        y = -g * (sigmoid(x) * sigmoid(-x))
    elif TERM == "half_square_to_one" or TERM == "half_square":
        y = g
    else:
        y = tl.zeros_like(x)
    return y
