// Philox4x32-10 on vectors. Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
//
// Every 32-bit lane is a generator of its own: counter words c0..c3 a lane, one key for all. Even and odd lanes go
// through the rounds apart, each in the low half of a 64-bit lane, where one multiplication gives both halves of the
// product and nothing has to be masked: the high halves are ignored. 1 operation a round and output word, about.
#pragma once
#include "vec.h"

namespace PF_ISA {

typedef uint64_t vq __attribute__((vector_size(PF_VECTOR_BYTES), may_alias));

// The product of the low halves of the 64-bit lanes.
PF_INLINE vq multiply_low_halves(vq a, uint32_t b) {
#if PF_VECTOR_BYTES == 64
  return (vq)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(b));
#elif PF_VECTOR_BYTES == 32
  return (vq)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#elif defined(__SSE2__)
  return (vq)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(b));
#else
  return (a & 0xffffffffu) * (uint64_t)b;
#endif
}

PF_INLINE void philox_rounds(vq c[4], uint32_t key0, uint32_t key1) {
  PF_UNROLL
  for (int round = 0; round < 10; round++) {
    vq p0 = multiply_low_halves(c[0], 0xD2511F53u), p1 = multiply_low_halves(c[2], 0xCD9E8D57u);
    c[0] = (p1 >> 32) ^ c[1] ^ (vq{} + key0);
    c[2] = (p0 >> 32) ^ c[3] ^ (vq{} + key1);
    c[1] = p1;
    c[3] = p0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

// The four words of each counter (c0, c1, c2, c3) under one key.
PF_INLINE void philox4x32(vu c0, vu c1, vu c2, vu c3, uint32_t key0, uint32_t key1, vu out[4]) {
  vq even[4] = {(vq)c0, (vq)c1, (vq)c2, (vq)c3};
  vq odd[4] = {(vq)c0 >> 32, (vq)c1 >> 32, (vq)c2 >> 32, (vq)c3 >> 32};
  philox_rounds(even, key0, key1);
  philox_rounds(odd, key0, key1);
  PF_UNROLL
  for (int i = 0; i < 4; i++) out[i] = (vu)((even[i] & 0xffffffffu) | (odd[i] << 32));
}

// 0, 1, 2, ... in the lanes.
PF_INLINE vu lane_numbers() {
  vu lanes;
  for (int i = 0; i < kF32; i++) lanes[i] = i;
  return lanes;
}

}  // namespace PF_ISA
