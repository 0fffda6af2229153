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
PF_INLINE void interleave_rows(const float* even, const float* odd, bf16_pair* to) {
  store(to, join_terms({load(even), load(odd)}));
  store(to + 16, join_terms({load(even + 16), load(odd + 16)}));
}

// Pairs of adjacent elements.
PF_INLINE vu load_terms(const bf16* p) { return load((const bf16_pair*)p); }
PF_INLINE vu load_terms(const float* p) { return round_adjacent(load(p), load(p + 16)); }
PF_INLINE vu load_first_terms(const bf16* p, int count) {
  return (vu)_mm512_maskz_loadu_epi16((__mmask32)((1u << count) - 1), p);
}
PF_INLINE vu load_first_terms(const float* p, int count) {
  return round_adjacent(load_n(p, count), load_n(p + min_of(count, 16), max_of(0, count - 16)));
}

// (even[i], odd[i]) for the first `count` columns of two rows; null: zeros.
PF_INLINE vu join_rows(const bf16* even, const bf16* odd, int64_t count) {
  return join_exact(load_n(even, count), odd ? load_n(odd, count) : vf{});
}
PF_INLINE vu join_rows(const float* even, const float* odd, int64_t count) {
  return join_terms({load_n(even, count), odd ? load_n(odd, count) : vf{}});
}
// The same for 8 columns at most; what is not there is neither read nor written.
PF_INLINE __m128i load_few(const bf16* p, __mmask8 there) { return _mm_maskz_loadu_epi16(there, p); }
PF_INLINE __m128i load_few(const float* p, __mmask8 there) {
  return (__m128i)_mm256_cvtneps_pbh(_mm256_maskz_loadu_ps(there, p));
}
template <class S>
PF_INLINE void interleave_few(const S* even, const S* odd, int count, bf16_pair* to) {
  const __mmask8 there = (__mmask8)((1u << count) - 1);
  const __m128i a = load_few(even, there), b = odd ? load_few(odd, there) : __m128i{};
  const __m256i pairs = _mm256_set_m128i(_mm_unpackhi_epi16(a, b), _mm_unpacklo_epi16(a, b));
  _mm256_mask_storeu_epi32(to, there, pairs);
}

PF_INLINE bf16 to_bf16(bf16 x) { return x; }
PF_INLINE bf16 to_bf16(float x) {
  bf16 rounded;
  put(&rounded, x);
  return rounded;
}
template <class S>
PF_INLINE bf16_pair get_pair(const S* even, const S* odd) {
  return {to_bf16(*even).bits | (uint32_t)(odd ? to_bf16(*odd).bits : 0) << 16};
}
