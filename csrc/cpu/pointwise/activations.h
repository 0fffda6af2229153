// The table of activations (tools/generate.py), for kernels that apply one to what they have just computed.
#pragma once
#include "../../common/activation.h"
#include "../simd/math.h"

#define PF_MEMBER inline __attribute__((always_inline))

namespace PF_ISA::pointwise {

// 1 / (1 + exp(-z)), z = 2 sqrt(2 / pi) (x + 0.044715 x^3), for gelu_tanh. In the left tail exp magnifies the error of
// z as many times as z is large, up to 88. So |x| = high + low, and a high of 6 digits has exact products with the
// first digits of the constants, 18 and 6 of them; what is left is small. 13 ulp with x times it.
PF_INLINE vf gelu_sigmoid(vf x) {
  vf a = min_fast(constant<vf>(14), abs(x));  // the result is 0 or 1 there; keeps NaN
  vf high = (vf)((vi)a & (int32_t)0xfffc0000), low = a - high, cube = high * high * high;
  vf linear = high * 1.5957717895507812f, cubic = cube * 0.072265625f, sum = linear + cubic;
  vf second = sum - linear, lost = (linear - (sum - second)) + (cubic - second);
  vf rest = low * (a * a + a * high + high * high) * 7.1354816273e-02f + low * 1.5957691216e+00f;
  rest += cube * -9.1080872740e-04f + high * -2.6679450504e-06f + lost;
  vf z = sum + rest, beyond = rest - (z - sum);
  vf e = exp_sum(-z, -beyond), s = 1.0f / (e + 1.0f);
  return select(x < vf{}, e * s, s);
}
PF_INLINE vd gelu_sigmoid(vd x) { return sigmoid(1.5957691216057308 * x * (x * x * 0.044715 + 1.0)); }

#include "../../common/activations.inc"

}  // namespace PF_ISA::pointwise
