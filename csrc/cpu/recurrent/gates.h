// sigmoid and tanh of gates: one exponential and one quotient each, where those of math.h compute two branches. Both
// are e^x - 1 over or under e^x + 1, so that small values of tanh keep their digits.
#pragma once
#include "../simd/math.h"

namespace PF_ISA::recurrent {

namespace {

// e^x - 1 for |x| <= limit, which is below 88; farther out the value there.
PF_INLINE vf exp_minus_one(vf x, double limit) {
  x = min_fast(constant<vf>(limit), max_fast(constant<vf>(-limit), x));  // keeps NaN: the second argument wins
  vf n = round_even(x * 1.44269504088896f);
  vf r = fma(n, constant<vf>(-0.693359375), x);
  r = fma(n, constant<vf>(2.12194440054690583e-4), r);
  vf q = horner(r, 4.9999998584e-01, 1.6666474070e-01, 4.1667069629e-02, 8.3771200828e-03, 1.3907082289e-03);
  vf scale = scale_pow2(constant<vf>(1), n);  // r + r^2 q is e^r - 1
  return fma(fma(r * r, q, r), scale, scale - 1.0f);
}

PF_INLINE vf gate_sigmoid(vf x) { return quotient(constant<vf>(1), exp_minus_one(-x, 87) + 2.0f); }
PF_INLINE vd gate_sigmoid(vd x) { return sigmoid(x); }

PF_INLINE vf gate_tanh(vf x) {
  vf e = exp_minus_one(x + x, 40);  // 1 from 9.1 on
  return quotient(e, e + 2.0f);
}
PF_INLINE vd gate_tanh(vd x) { return tanh(x); }

}  // namespace

}  // namespace PF_ISA::recurrent
