// The table of activations (pyflash/activations.py), as tools/generate.py renders it to C++, over single numbers.
#pragma once
#include "../../common/activation.h"
#include "math.h"

namespace pf::cuda {

template <class V>
__device__ __forceinline__ constexpr V constant(double x) {
  return (V)x;
}
template <class V>
__device__ __forceinline__ V select(bool condition, V yes, V no) {
  return condition ? yes : no;
}

// From exp(-|x|), which cannot overflow: both tails keep their digits.
template <class V>
__device__ __forceinline__ V sigmoid(V x) {
  const V e = exp(-abs(x));
  return select(x < V(0), e, V(1)) / (V(1) + e);
}

// 1 / (1 + exp(-z)), z = 2 sqrt(2 / pi) (x + 0.044715 x^3), for gelu_tanh. In the left tail exp magnifies the error of
// z as many times as z is large, up to 88. So |x| = high + low, and a high of 6 digits has exact products with the
// first digits of the constants, 18 and 6 of them; what is left is small.
__device__ __forceinline__ float gelu_sigmoid(float x) {
  const float magnitude = abs(x), a = magnitude > 14.0f ? 14.0f : magnitude;  // 0 or 1 from there; keeps NaN
  const float high = __uint_as_float(__float_as_uint(a) & 0xfffc0000u), low = a - high, cube = high * high * high;
  const float linear = high * 1.5957717895507812f, cubic = cube * 0.072265625f, sum = linear + cubic;
  const float second = sum - linear, lost = (linear - (sum - second)) + (cubic - second);
  float rest = low * (a * a + a * high + high * high) * 7.1354816273e-02f + low * 1.5957691216e+00f;
  rest += cube * -9.1080872740e-04f + high * -2.6679450504e-06f + lost;
  const float z = sum + rest, beyond = rest - (z - sum);
  float e = exp(-z);
  e -= e * beyond;
  return select(x < 0.0f, e, 1.0f) / (1.0f + e);
}
__device__ __forceinline__ double gelu_sigmoid(double x) {
  return sigmoid(1.5957691216057308 * x * (1.0 + 0.044715 * x * x));
}

// exp(-x^2 / 2) / sqrt(2 pi). Squaring rounds, and exp magnifies that x^2 times: the square of `high` is exact.
__device__ __forceinline__ float normal_pdf(float x) {
  const float magnitude = abs(x), a = magnitude > 15.0f ? 15.0f : magnitude;
  const float high = __uint_as_float(__float_as_uint(a) & 0xfffff000u);
  return 0.39894228040143268f * (exp(high * high * -0.5f) * exp((a - high) * (a + high) * -0.5f));
}
__device__ __forceinline__ double normal_pdf(double x) { return exp(x * x * -0.5) * 0.39894228040143267794; }

// x - tanh(x); below 0.625 that cancels, and is what tanh's series has beyond x.
__device__ __forceinline__ float tanh_rest(float x) {
  const float s = x * x;
  const float series =
      -3.3333328948e-01f +
      s * (1.3332770083e-01f + s * (-5.3850953396e-02f + s * (2.0997357213e-02f + s * -6.0969411366e-03f)));
  return abs(x) < 0.625f ? 0.0f - x * s * series : x - tanh(x);
}
__device__ __forceinline__ double tanh_rest(double x) { return x - tanh(x); }

// for_activation is the host's, which launches a kernel of each; and a kernel's own, whose activation is an argument.
#define PF_MEMBER __device__ __forceinline__
#define PF_INLINE inline
#include "../../common/activations.inc"
#undef PF_INLINE
namespace in_kernel {
#define PF_INLINE __device__ inline
#include "../../common/activations.inc"
#undef PF_INLINE
}  // namespace in_kernel
#undef PF_MEMBER

}  // namespace pf::cuda
