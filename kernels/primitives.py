"""Device functions every kernel builds on: products, casts, and elementary functions safe at every input.

All of them take float32 or float64 tensors and return the same type; NaN in gives NaN out, infinities give the limit.
Stated errors are of the interpreter, where `exp2`, `log` and `erf` are the C library's; the hardware's add their own.
COARSE forms of float32 are for results that are rounded to 16 bits: within 2^-15, a third of the instructions.
"""

import torch
import triton
import triton.language as tl
from triton import knobs

# Triton chooses between interpreter and compiler when a kernel module is imported; so do we.
INTERPRETED = tl.constexpr(knobs.runtime.interpret)

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b with a float32 accumulator; PRECISION ("ieee" or "tf32") matters to float32 operands only."""
    if INTERPRETED:  # which multiplies the bit patterns of bfloat16
        acc += tl.dot(cast(a, tl.float32), cast(b, tl.float32), input_precision="ieee")
    elif a.dtype == tl.float32:
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    else:
        acc = tl.dot(a, b, acc)
    return acc


@triton.jit
def maximum(a, b):
    """The larger; NaN where either is."""
    return tl.where((a > b) | (a != a), a, b)


@triton.jit
def cast(x, dtype: tl.constexpr):
    """x rounded to the nearest value of dtype, ties to even.

    The interpreter truncates on the way to bfloat16 and mistakes its subnormals on the way back; there the bits are
    moved by hand. Stores go through here too, because tl.store converts like `.to`.
    """
    if INTERPRETED and x.dtype == tl.bfloat16 and dtype == tl.float32:
        y = (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    elif INTERPRETED and x.dtype != tl.bfloat16 and dtype == tl.bfloat16:
        bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        y = tl.where(x == x, rounded, 0x7FC0).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        y = x.to(dtype)
    return y


@triton.constexpr_function
def acc_dtype(dtype):
    """The type in which sums over values of `dtype` are kept: float64 for float64, float32 for all others."""
    return tl.float64 if dtype == tl.float64 else tl.float32


@triton.constexpr_function
def lowest(dtype):
    """Below every number of float32 or float64, and finite: where a maximum begins, so that a block of -inf before the first
    number adds exp(-inf - lowest) = 0 and no NaN."""
    return -1.7976931348623157e308 if dtype == tl.float64 else -3.4028234663852886e38


def acc_of(tensor):
    """The same for launches that hand it over, of torch's tensor."""
    return tl.float64 if tensor.dtype == torch.float64 else tl.float32


@triton.jit
def scalar(x, dtype: tl.constexpr):
    """A number that a launch hands over, a float64 or a constant, as one of dtype."""
    return tl.full([], x, dtype)


@triton.jit
def _polynomial(x, COEFFICIENTS: tl.constexpr):
    """COEFFICIENTS[0] + COEFFICIENTS[1] * x + ..., by Horner."""
    degree: tl.constexpr = len(COEFFICIENTS) - 1
    y = tl.full(x.shape, COEFFICIENTS[degree], x.dtype)
    for i in tl.static_range(degree):
        y = y * x + COEFFICIENTS[degree - 1 - i]
    return y


@triton.jit
def _clamp(x, low: tl.constexpr, high: tl.constexpr):
    """x within [low, high]; NaN stays, where tl.minimum would drop it."""
    x = tl.where(x < low, low, x)
    return tl.where(x > high, high, x)


@triton.jit
def _reduce_by_ln2(x):
    """(k, r) with x = k ln 2 + r, k integral, |r| <= ln(2) / 2; ln 2 in two parts so that k * high is exact."""
    k = tl.floor(x * LOG2E + 0.5)
    if x.dtype == tl.float64:
        r = (x - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10
    else:
        r = (x - k * 0.693145751953125) - k * 1.42860682030941723212e-6
    return k, r


@triton.jit
def _power_of_two(k):
    """2^k for an integral float k in the normal range: the exponent field, hence exact."""
    if k.dtype == tl.float64:
        y = ((k.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)
    else:
        y = ((k.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    return y


@triton.jit
def exp(x, COARSE: tl.constexpr = False):
    """e^x within 2 ulp, subnormals included; `tl.exp` alone multiplies by log2(e) first and is 60 ulp off at -80."""
    if COARSE or x.dtype == tl.float64:
        y = tl.exp(x)
    else:
        k, r = _reduce_by_ln2(_clamp(x, -105.0, 89.0))
        half = tl.floor(k * 0.5)  # 2^k itself leaves the normal range at both ends
        y = tl.exp2(r * LOG2E) * _power_of_two(half) * _power_of_two(k - half)
        y = tl.where(x == x, y, x)  # the integer conversion of a NaN is not one
    return y


@triton.jit
def expm1(x, COARSE: tl.constexpr = False):
    """e^x - 1 within 2 ulp: 2^k expm1(r) + (2^k - 1), with the Taylor series of expm1 on |r| <= ln(2) / 2."""
    if COARSE:
        y = tl.where(tl.abs(x) < 0.0625, x * (1 + x * (0.5 + x * 0.16666666666666666)), tl.exp(x) - 1)
    else:
        y = _expm1(x)
    return y


@triton.jit
def _expm1(x):
    if x.dtype == tl.float64:
        clamped = _clamp(x, -40.0, 710.0)
        k, r = _reduce_by_ln2(clamped)
        series = _polynomial(r, (1 / 2, 1 / 6, 1 / 24, 1 / 120, 1 / 720, 1 / 5040, 1 / 40320, 1 / 362880, 1 / 3628800,
                                 1 / 39916800, 1 / 479001600, 1 / 6227020800, 1 / 87178291200))  # fmt: skip
    else:
        clamped = _clamp(x, -20.0, 89.0)
        k, r = _reduce_by_ln2(clamped)
        series = _polynomial(r, (1 / 2, 1 / 6, 1 / 24, 1 / 120, 1 / 720, 1 / 5040, 1 / 40320))
    half = _power_of_two(k - 1)  # 2^k would overflow just below the largest result
    y = 2 * (half * (r + r * r * series) + (half - 0.5))
    return tl.where((x == 0) | (x != x), x, y)  # keeps -0 and NaN


@triton.jit
def log1p(x, COARSE: tl.constexpr = False):
    """log(1 + x): the quotient undoes the rounding of 1 + x (Kahan)."""
    u = 1 + x
    if COARSE:
        y = tl.where(tl.abs(x) < 0.00390625, x - 0.5 * x * x, tl.log(u))
    else:
        exact = (u == 1) | (u == float("inf"))
        y = tl.log(u) * (x / tl.where(exact, 1.0, u - 1))
        y = tl.where(u == 1, x, tl.where(u == float("inf"), u, y))
    return y


@triton.jit
def _coarse_reciprocal(x):
    """1 / x of x >= 1, within a few ulp; a division also takes care of what is smaller or larger than its reciprocal."""
    root = tl.rsqrt(x)
    return root * root


@triton.jit
def tanh(x, COARSE: tl.constexpr = False):
    """1 - 2 / (e^2|x| + 1) with the sign of x; below 0.625 that cancels, and x + x^3 P(x^2) takes its place."""
    if COARSE:
        square = x * x
        near = x * (1 + square * _polynomial(square, (-0.33328264951705933, 0.13206712901592255, -0.04478943347930908)))
        y = tl.where(tl.abs(x) < 0.5, near, 1 - 2 * _coarse_reciprocal(1 + tl.exp2(2.885390081777927 * x)))
    else:
        y = _tanh(x)
    return y


@triton.jit
def _tanh(x):
    a, cube, y = _tanh_parts(x)
    y = tl.where(a < 0.625, a + cube, y)
    return tl.where(x == 0, x, tl.where(x < 0, -y, y))


@triton.jit
def tanh_rest(x):
    """x - tanh(x); below 0.625 that cancels, and is what the series has beyond x."""
    a, cube, y = _tanh_parts(x)
    y = tl.where(a < 0.625, -cube, tl.abs(x) - y)
    return tl.where(x == 0, 0.0, tl.where(x < 0, -y, y))


@triton.jit
def _tanh_parts(x):
    """(a = |x| within [0, 20], tanh(a) - a where a < 0.625, tanh(a) where it is not)."""
    a = _clamp(tl.abs(x), 0.0, 20.0)
    square = tl.where(a < 0.625, a * a, 0.0)
    if x.dtype == tl.float64:
        series = _polynomial(square, (
            -0.3333333333333333, 0.13333333333333042, -0.05396825396789699, 0.021869488519008305,
            -0.008863235103240878, 0.0035921217511549622, -0.0014557754120478055, 0.0005896606577757043,
            -0.0002375906496055562, 9.257116129556769e-05, -3.12011014257974e-05, 6.485163482793113e-06))  # fmt: skip
    else:
        series = _polynomial(square, (
            -0.3333333432674408, 0.13333304226398468, -0.053959257900714874, 0.02176891826093197,
            -0.008343945257365704, 0.002292744815349579))  # fmt: skip
    return a, a * square * series, 1 - 2 / (exp(2 * a) + 1)


@triton.jit
def sigmoid(x, COARSE: tl.constexpr = False):
    """1 / (1 + e^-x), written with e^-|x| so that the left tail keeps its relative accuracy down to subnormals."""
    if COARSE:
        y = _coarse_reciprocal(1 + tl.exp2(-1.4426950408889634 * x))
    else:
        e = exp(-tl.abs(x))
        y = tl.where(x < 0, e, 1.0) / (1 + e)
    return y


@triton.jit
def gelu_sigmoid(x, COARSE: tl.constexpr = False):
    """1 / (1 + e^-z), z = 2 sqrt(2 / pi) (x + 0.044715 x^3), for gelu_tanh.

    In the left tail e^-z magnifies the error of z, up to 88 times. So |x| = high + low, and a high of 6 digits has exact
    products with the first digits of the constants, 18 and 6 of them; what is left is small.
    """
    if COARSE or x.dtype == tl.float64:
        y = sigmoid(1.5957691216057308 * x * (1 + 0.044715 * x * x), COARSE)
    else:
        a = _clamp(tl.abs(x), 0.0, 14.0)
        high = (a.to(tl.int32, bitcast=True) & -0x40000).to(tl.float32, bitcast=True)
        low, cube = a - high, high * high * high
        linear, cubic = high * 1.5957717895507812, cube * 0.072265625
        total = linear + cubic
        second = total - linear
        lost = (linear - (total - second)) + (cubic - second)
        rest = low * (a * a + a * high + high * high) * 7.1354816273e-02 + low * 1.5957691216e00
        rest += cube * -9.1080872740e-04 + high * -2.6679450504e-06 + lost
        z = total + rest
        e = exp(-z)
        e -= e * (rest - (z - total))
        y = tl.where(x != x, x, tl.where(x < 0, e, 1.0) / (1 + e))
    return y


@triton.jit
def erf(x):
    return tl.erf(x)


@triton.jit
def normal_pdf(x, COARSE: tl.constexpr = False):
    """exp(-x^2 / 2) / sqrt(2 pi)."""
    if COARSE:
        e = _coarse_exp_minus_half_square(tl.abs(x))[1]
    else:
        e = _exp_minus_half_square(tl.abs(x))
    return 0.3989422804014327 * e


@triton.jit
def normal_cdf(x, COARSE: tl.constexpr = False):
    """The standard normal distribution, erfc(-x / sqrt(2)) / 2, to a few ulp also in its left tail.

    For a = |x|: Phi(-a) = exp(-a^2 / 2) P(t) / (a + c), t = (a - c) / (a + c) in [-1, 1). P is the Chebyshev
    interpolant of the rest, which is smooth on the whole half-line.
    """
    if COARSE:
        a, e = _coarse_exp_minus_half_square(tl.abs(x))
        r = _coarse_reciprocal(a + 3)
        tail = e * r * _polynomial(1 - 6 * r, (
            0.7290825247764587, -0.5093498229980469, 0.23007504642009735, -0.047033607959747314, -0.010786638595163822,
            0.006129327695816755, 0.0013700401177629828))  # fmt: skip
        y = tl.where(x < 0, tail, 1 - tail)
    else:
        y = _normal_cdf(x)
    return y


@triton.jit
def _normal_cdf(x):
    a = tl.abs(x)
    if x.dtype == tl.float64:
        a = _clamp(a, 0.0, 40.0)
        scaled = _polynomial((a - 5) / (a + 5), (
            0.769193049750063, -0.6653825028900568, 0.49530561596998063, -0.31353315667128584, 0.16502036617018967,
            -0.06911863870695671, 0.020795066803319485, -0.0029933767603476176, -0.0007978694284289425,
            0.0005448989774452774, -5.9375585162614124e-05, -4.976236467423381e-05, 1.668084351693318e-05,
            3.979457178031698e-06, -2.7688616277210725e-06, -3.337060293210029e-07, 4.334560944180936e-07,
            3.8753301547365346e-08, -6.740160560684269e-08, -7.068039341816817e-09, 9.268656176526154e-09,
            1.322100046240203e-09, -7.842790685853537e-10, -1.419186400341344e-10)) / (a + 5)  # fmt: skip
    else:
        a = _clamp(a, 0.0, 15.0)
        scaled = _polynomial((a - 4) / (a + 4), (
            0.7552851438522339, -0.6078963875770569, 0.38713741302490234, -0.1865268051624298, 0.06039660423994064,
            -0.007511891890317202, -0.0034798309206962585, 0.001563337049447, 0.0001335102424491197,
            -0.00015712155436631292, -1.6733154097892111e-06)) / (a + 4)  # fmt: skip
    tail = _exp_minus_half_square(a) * scaled
    return tl.where(x != x, x, tl.where(x < 0, tail, 1 - tail))


@triton.jit
def _exp_minus_half_square(a):
    """exp(-a^2 / 2), a >= 0. Squaring rounds, and the error is magnified a^2 times; so a = high + low, high^2 exact."""
    if a.dtype == tl.float64:
        a = _clamp(a, 0.0, 40.0)
        high = (a.to(tl.int64, bitcast=True) & -0x8000000).to(tl.float64, bitcast=True)
    else:
        a = _clamp(a, 0.0, 15.0)
        high = (a.to(tl.int32, bitcast=True) & -0x1000).to(tl.float32, bitcast=True)
    z = (a - high) * (a + high) * -0.5  # within 0.06 of 0
    return exp(high * high * -0.5) * _polynomial(z, (1, 1, 1 / 2, 1 / 6, 1 / 24))


@triton.jit
def _coarse_exp_minus_half_square(a):
    """(a within [0, 15], exp(-a^2 / 2) within 2^-15)."""
    a = tl.where(a > 15.0, 15.0, a)
    return a, tl.exp2(a * a * -0.7213475204444817)
