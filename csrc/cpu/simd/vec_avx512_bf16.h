// Pairs of bf16 in AVX-512. The instruction takes subnormal operands as zero, whatever the processor's mode.

PF_INLINE vf multiply_add(vu a, vu b, vf c) { return (vf)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b); }

// 32 numbers in order.
PF_INLINE vu round_adjacent(vf low, vf high) { return (vu)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low); }

template <int kVectors>
PF_INLINE void store_adjacent(bf16_pair* to, const vf (&x)[kVectors]) {
  static_assert(kVectors % 2 == 0, "two vectors become one");
  PF_UNROLL
  for (int j = 0; j < kVectors; j += 2) store(to + j / 2 * kF32, round_adjacent(x[j], x[j + 1]));
}

typedef uint16_t vw __attribute__((vector_size(PF_VECTOR_BYTES), may_alias));
PF_INLINE vw even_odd(bool high_half) {  // 0, 32, 1, 33, ...: for a shuffle of two vectors
  vw index;
  for (int i = 0; i < 32; i++) index[i] = (high_half ? 16 : 0) + i / 2 + (i % 2 ? 32 : 0);
  return index;
}

PF_INLINE vu join_terms(const vf (&x)[2]) {
  vw halves = (vw)round_adjacent(x[0], x[1]), index = even_odd(false);
  return (vu)__builtin_shuffle(halves, index - (index >= 32 ? vw{} + 16 : vw{}));
}

// (even[i], odd[i]) for 32 columns of two rows.
PF_INLINE void interleave_rows(const bf16* even, const bf16* odd, bf16_pair* to) {
  vw a = (vw)load((const bf16_pair*)even), b = (vw)load((const bf16_pair*)odd);
  store(to, (vu)__builtin_shuffle(a, b, even_odd(false)));
  store(to + 16, (vu)__builtin_shuffle(a, b, even_odd(true)));
}
