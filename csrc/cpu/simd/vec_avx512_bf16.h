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
// Lanes kFirst, kFirst + 1, ... of two halves or vectors kApart lanes apart, in turn.
template <int kFirst, int kApart>
struct Alternating {
  static constexpr int lane(int i) { return kFirst + i / 2 + (i % 2 ? kApart : 0); }
};

PF_INLINE vu join_terms(const vf (&x)[2]) {
  const vw halves = (vw)round_adjacent(x[0], x[1]);
  return (vu)shuffle<Alternating<0, 16>>(halves, halves);
}

// (even[i], odd[i]) for 32 columns of two rows.
PF_INLINE void interleave_rows(const bf16* even, const bf16* odd, bf16_pair* to) {
  vw a = (vw)load((const bf16_pair*)even), b = (vw)load((const bf16_pair*)odd);
  store(to, (vu)shuffle<Alternating<0, 32>>(a, b));
  store(to + 16, (vu)shuffle<Alternating<16, 32>>(a, b));
}
