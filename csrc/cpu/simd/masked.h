// Loads of lanes in any pattern.
#pragma once
#include "vec.h"

namespace PF_ISA {

// Lanes whose bit is set; the others are zero and are not touched in memory.
template <class S>
__attribute__((noinline)) Vec<Acc<S>> load_one_by_one(const S* p, uint32_t bits) {  // a call: it is long, and rare
  constexpr int lanes = kLanes<Acc<S>>;
  Acc<S> buffer[lanes] __attribute__((aligned(64)));
  for (int i = 0; i < lanes; i++) buffer[i] = bits >> i & 1 ? get(p + i) : 0;
  return *(const Vec<Acc<S>>*)buffer;
}
template <class S>
PF_INLINE Vec<Acc<S>> load_masked(const S* p, uint32_t bits) {
  return bits == (1u << kLanes<Acc<S>>)-1 ? load(p) : load_one_by_one(p, bits);
}
#if PF_VECTOR_BYTES == 64
PF_INLINE vf load_masked(const float* p, uint32_t bits) { return (vf)_mm512_maskz_loadu_ps((__mmask16)bits, p); }
PF_INLINE vf load_masked(const bf16* p, uint32_t bits) {
  const __m256i halves = _mm256_maskz_loadu_epi16((__mmask16)bits, p);
  return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
}
PF_INLINE vf load_masked(const f16* p, uint32_t bits) {
  return (vf)_mm512_cvtph_ps(_mm256_maskz_loadu_epi16((__mmask16)bits, p));
}
#elif PF_VECTOR_BYTES == 32
PF_INLINE vf load_masked(const float* p, uint32_t bits) {
  const __m256i to_sign = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);
  return (vf)_mm256_maskload_ps(p, _mm256_sllv_epi32(_mm256_set1_epi32((int)bits), to_sign));
}
#endif

}  // namespace PF_ISA
