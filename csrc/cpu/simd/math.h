// exp, tanh, erf and the normal distribution on vectors, safe at every input: NaN stays NaN, infinities and subnormal
// results come out right. Coefficients are minimax fits of ours, relative error in brackets; the ULP stated at each
// function is the largest seen over the whole float range (tests/pointwise/test_activation.py holds the table's rows to
// theirs).
// double has an exp of its own, on which SiLU, the sigmoid and softmax rest; else it takes the C library's scalar
// functions: float64 is served for correctness.
#pragma once
#include "vec.h"

namespace PF_ISA {

template <class V>
PF_INLINE V constant(double x) {
  return splat<V>((Element<V>)x);
}

template <class F>
PF_INLINE vd each_lane(vd x, F f) {
  for (int i = 0; i < kLanes<double>; i++) x[i] = f(x[i]);
  return x;
}

template <class V>
PF_INLINE V horner(V, double c) {
  return constant<V>(c);
}
template <class V, class... Rest>
PF_INLINE V horner(V x, double c, Rest... rest) {  // c + x * (next + x * (...))
  return fma(x, horner(x, rest...), constant<V>(c));
}

// exp(x + extra) for a small extra that x is too coarse to hold.
PF_INLINE vf exp_sum(vf x, vf extra) {
  x = min_fast(constant<vf>(90), max_fast(constant<vf>(-110), x));  // keeps NaN: the second argument wins
  vf n = round_even(x * 1.44269504088896f);
  vf r = fma(n, constant<vf>(-0.693359375), x);  // the product is exact, fused or not
  r = fma(n, constant<vf>(2.12194440054690583e-4), r) + extra;
  vf q = horner(r, 4.9999998584e-01, 1.6666474070e-01, 4.1667069629e-02, 8.3771200828e-03,
                1.3907082289e-03);  // [3e-8 of e^r]
  return scale_pow2(fma(r * r, q, r) + 1.0f, n);
}
PF_INLINE vf exp(vf x) { return exp_sum(x, vf{}); }  // 1 ulp
// Rounded by adding 1.5 2^52, whose low bits then are the integer; 2^n in two factors, since neither 2^1024 nor
// 2^-1074 has an exponent's bits.
PF_INLINE vd exp(vd x) {  // 1 ulp
  const vd shift = constant<vd>(6755399441055744.0);
  x = min_fast(constant<vd>(710), max_fast(constant<vd>(-746), x));  // keeps NaN
  vd n = (x * 1.4426950408889634 + shift) - shift;
  vd r = fma(n, constant<vd>(-0.693147180369123816490), x);  // the product is exact, fused or not
  r = fma(n, constant<vd>(-1.90821492927058770002e-10), r);
  vd q = horner(r, 1.0 / 2, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720, 1.0 / 5040, 1.0 / 40320, 1.0 / 362880,
                1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600, 1.0 / 6227020800);  // Taylor's, [4e-18 of e^r]
  vd half = n * 0.5 + shift, rest = (n - (half - shift)) + shift;
  vd y = fma(r * r, q, r) + 1.0;
  return y * (vd)(((vl)half << 52) + (1023LL << 52)) * (vd)(((vl)rest << 52) + (1023LL << 52));
}

// e^x - 1 = 2^n (e^r - 1) + (2^n - 1), which cancels nowhere. Halves of both: 2^128 is none of float's.
PF_INLINE vf expm1(vf x) {                                                  // 2 ulp
  vf clamped = min_fast(constant<vf>(89), max_fast(constant<vf>(-20), x));  // keeps NaN
  vf n = round_even(clamped * 1.44269504088896f);
  vf r = fma(n, constant<vf>(-0.693359375), clamped);
  r = fma(n, constant<vf>(2.12194440054690583e-4), r);
  vf q = horner(r, 4.9999998584e-01, 1.6666474070e-01, 4.1667069629e-02, 8.3771200828e-03, 1.3907082289e-03);
  vf half = scale_pow2(constant<vf>(0.5), n);
  vf y = fma(half, fma(r * r, q, r), half - 0.5f);
  return select(x == vf{}, x, y + y);  // keeps -0
}
PF_INLINE vd expm1(vd x) {
  return each_lane(x, [](double v) { return ::expm1(v); });
}

// log(1 + x) for 0 <= x <= 1: 2 artanh(s), s = x / (2 + x).
PF_INLINE vf log1p(vf x) {  // 3 ulp
  vf s = x / (x + 2.0f);
  vf p = horner(s * s, 3.3333339654e-01, 1.9999345451e-01, 1.4310361056e-01, 1.0696625306e-01,
                1.2206534100e-01);  // [1e-10 of the whole]
  s += s;
  return fma(s * (s * s) * 0.25f, p, s);
}
PF_INLINE vd log1p(vd x) {
  return each_lane(x, [](double v) { return ::log1p(v); });
}

// log(x) of a normal number above 0, of 0, infinity and NaN: n log(2) + 2 artanh(s) with x = 2^n m, 2/3 <= m < 4/3,
// s = (m - 1) / (m + 1); the polynomial is log1p's.
PF_INLINE vf log(vf x) {  // 2 ulp
  vi n = ((vi)x - 0x3f2aaaab) >> 23;
  vf m = (vf)((vi)x - (n << 23)), e = __builtin_convertvector(n, vf);
  vf s = (m - 1.0f) / (m + 1.0f);
  vf p = horner(s * s, 3.3333339654e-01, 1.9999345451e-01, 1.4310361056e-01, 1.0696625306e-01, 1.2206534100e-01);
  s += s;
  vf y = fma(e, constant<vf>(0.693359375), fma(s * (s * s) * 0.25f, p, s) + e * -2.12194440054690583e-4f);
  y = select(x == vf{}, constant<vf>(-__builtin_inf()), y);
  return select((x == __builtin_inff()) | (x != x), x, y);
}
PF_INLINE vd log(vd x) {
  return each_lane(x, [](double v) { return ::log(v); });
}

// (tanh(x) - x) / x^3 for |x| < 0.625, of the square of x.
PF_INLINE vf tanh_series(vf s) {
  return horner(s, -3.3333328948e-01, 1.3332770083e-01, -5.3850953396e-02, 2.0997357213e-02,
                -6.0969411366e-03);  // [1e-7 of the cubic term]
}

PF_INLINE vf tanh(vf x) {  // 2 ulp
  vf a = abs(x), s = x * x;
  vf small = fma(x * s, tanh_series(s), x);
  vf large = copy_sign(1.0f - 2.0f / (exp(a + a) + 1.0f), x);
  return a < 0.625f ? small : large;
}
PF_INLINE vd tanh(vd x) {
  return each_lane(x, [](double v) { return ::tanh(v); });
}

PF_INLINE vf tanh_rest(vf x) {  // x - tanh(x)
  vf s = x * x;
  vf small = vf{} - x * s * tanh_series(s);  // from 0: 0 of -0, as the difference
  return abs(x) < 0.625f ? small : x - tanh(x);
}
PF_INLINE vd tanh_rest(vd x) { return x - tanh(x); }

// From exp(-|x|), which cannot overflow: both tails keep their digits.
template <class V>
PF_INLINE V sigmoid(V x) {  // 3 ulp
  V e = exp(-abs(x));
  V s = constant<V>(1) / (constant<V>(1) + e);
  return select(x < constant<V>(0), e * s, s);
}

// exp(a^2) erfc(a) for a >= 0, through the substitution of Shepherd and Laframboise 1981: (1 + 2a) times it is smooth
// in q = (a - 2) / (a + 2). Fitted for a <= 10.1, beyond which exp(-a^2) is 0 in float. One reciprocal serves both
// quotients.
PF_INLINE vf erfcx(vf a) {
  a = min_fast(constant<vf>(10.1), a);
  vf plus = a + 2.0f, scale = fma(a, constant<vf>(2), constant<vf>(1));
  vf r = reciprocal(plus * scale);
  vf q = (a - 2.0f) * (r * scale);
  vf p =
      horner(q, 1.2769783935e+00, -9.2763980845e-02, -1.6603142508e-01, 1.6405534672e-01, -5.4204298679e-02,
             -8.0598753480e-03, 8.6316819799e-03, 1.3135234752e-03, -1.2299284359e-03, -4.0057764713e-04);  // [1.3e-8]
  return p * (r * plus);
}

// exp(-x^2 scale), with x split so that the large part of the square is exact.
PF_INLINE vf exp_minus_square(vf x, float scale) {
  vf high = (vf)((vi)x & (int32_t)0xfffff000);
  return exp_sum(-scale * high * high, -scale * (x - high) * (x + high));
}

PF_INLINE vf erf(vf x) {  // 3 ulp
  vf a = abs(x), s = x * x;
  vf small = x * horner(s, 1.1283791657e+00, -3.7612625824e-01, 1.1283585146e-01, -2.6853811808e-02, 5.1883274433e-03,
                        -8.0101914943e-04, 7.8538543153e-05);  // [1.2e-9]
  vf far = min_fast(constant<vf>(8), a);                       // erf is 1 there; keeps NaN, and the square finite
  vf large = copy_sign(1.0f - exp_minus_square(far, 1.0f) * erfcx(far), x);
  return a < 1.0f ? small : large;
}
PF_INLINE vd erf(vd x) {
  return each_lane(x, [](double v) { return ::erf(v); });
}

// Phi(x) = erfc(-x / sqrt 2) / 2, accurate to a few ulp in the left tail too, where 1 + erf cancels.
// Beyond kTailEnd it is 0 in float; those lanes compute at 0, as subnormal numbers on the way would cost a hundred
// cycles.
constexpr float kTailEnd = 12.95f;
PF_INLINE vf normal_cdf(vf x) {  // 6 ulp
  vf a = abs(x), near = select(a > kTailEnd, vf{}, a);
  vf tail = 0.5f * exp_minus_square(near, 0.5f) * erfcx(near * 0.70710678118654752f);
  tail = select(a > kTailEnd, vf{}, tail);
  return x < 0.0f ? tail : 1.0f - tail;
}
PF_INLINE vd normal_cdf(vd x) {
  return each_lane(x, [](double v) { return 0.5 * ::erfc(v * -0.70710678118654752440); });
}
// phi(x) = exp(-x^2 / 2) / sqrt(2 pi). Beside normal_cdf the exponential is the same expression: computed once.
PF_INLINE vf normal_pdf(vf x) {
  vf a = abs(x), near = select(a > kTailEnd, vf{}, a);
  return select(a > kTailEnd, vf{}, 0.39894228040143267794f * exp_minus_square(near, 0.5f));
}
PF_INLINE vd normal_pdf(vd x) { return exp(x * x * -0.5) * 0.39894228040143267794; }

}  // namespace PF_ISA
