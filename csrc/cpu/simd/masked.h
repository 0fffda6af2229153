// Loads of lanes in any pattern.
#pragma once
#include "vec.h"

namespace PF_ISA {

// Lanes whose bit is set; the others are zero and are not touched in memory.
template <class S>
PF_INLINE Vec<Acc<S>> load_masked(const S* p, uint32_t bits) {
  constexpr int lanes = kLanes<Acc<S>>;
  if (bits == (1u << lanes) - 1) return load(p);
  Acc<S> buffer[lanes] __attribute__((aligned(64)));
  for (int i = 0; i < lanes; i++) buffer[i] = bits >> i & 1 ? get(p + i) : 0;
  return *(const Vec<Acc<S>>*)buffer;
}
#if PF_VECTOR_BYTES == 64
PF_INLINE vf load_masked(const float* p, uint32_t bits) { return (vf)_mm512_maskz_loadu_ps((__mmask16)bits, p); }
#endif

}  // namespace PF_ISA
