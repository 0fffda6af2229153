// Elementary functions under one name for float and double. CUDA's own, without -use_fast_math: within 2 ulp,
// subnormals included.
#pragma once
#include "../facade.h"

namespace pf::cuda {

#define PF_FUNCTION(name, of_float, of_double)                             \
  __device__ __forceinline__ float name(float x) { return ::of_float(x); } \
  __device__ __forceinline__ double name(double x) { return ::of_double(x); }
PF_FUNCTION(abs, fabsf, fabs)
PF_FUNCTION(exp, expf, exp)
PF_FUNCTION(expm1, expm1f, expm1)
PF_FUNCTION(log, logf, log)
PF_FUNCTION(log1p, log1pf, log1p)
PF_FUNCTION(tanh, tanhf, tanh)
PF_FUNCTION(erf, erff, erf)
PF_FUNCTION(sqrt, sqrtf, sqrt)
PF_FUNCTION(normal_cdf, normcdff, normcdf)
#undef PF_FUNCTION

template <class V>
__device__ __forceinline__ V infinity() {
  return (V)__builtin_huge_val();
}

// Rounded, also where a sum follows: the compiler would make one operation of the two.
__device__ __forceinline__ float product(float x, float y) { return ::__fmul_rn(x, y); }
__device__ __forceinline__ double product(double x, double y) { return ::__dmul_rn(x, y); }

}  // namespace pf::cuda
