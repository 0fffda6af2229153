// Lanes in an order of their own, known at run time. Lane i of
//   permute(x, index) is lane index[i] of x,
//   permute(x, y, index) is that of x and y side by side,
//   gather(p, index) is p[index[i]].
#pragma once
#include "vec.h"

namespace PF_ISA {

typedef vi vi_unaligned __attribute__((aligned(1), may_alias));

#if PF_VECTOR_BYTES == 64
PF_INLINE vf permute(vf x, vi index) { return (vf)_mm512_permutexvar_ps((__m512i)index, (__m512)x); }
PF_INLINE vf permute(vf x, vf y, vi index) { return (vf)_mm512_permutex2var_ps((__m512)x, (__m512i)index, (__m512)y); }
PF_INLINE vf gather(const float* p, vi index) { return (vf)_mm512_i32gather_ps((__m512i)index, p, 4); }
#elif PF_VECTOR_BYTES == 32
PF_INLINE vf permute(vf x, vi index) { return (vf)_mm256_permutevar8x32_ps((__m256)x, (__m256i)index); }
PF_INLINE vf permute(vf x, vf y, vi index) { return select(index < kF32, permute(x, index), permute(y, index)); }
PF_INLINE vf gather(const float* p, vi index) { return (vf)_mm256_i32gather_ps(p, (__m256i)index, 4); }
#else
PF_INLINE vf gather(const float* p, vi index) {
  vf picked;
  for (int i = 0; i < kF32; i++) picked[i] = p[index[i]];
  return picked;
}
PF_INLINE vf permute(vf x, vi index) {
  float lanes[kF32];
  *(vf_unaligned*)lanes = x;
  return gather(lanes, index);
}
PF_INLINE vf permute(vf x, vf y, vi index) {
  float lanes[2 * kF32];
  *(vf_unaligned*)lanes = x, *(vf_unaligned*)(lanes + kF32) = y;
  return gather(lanes, index);
}
#endif

}  // namespace PF_ISA
