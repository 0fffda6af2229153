// What AVX-512 (x86-64-v4) has one instruction for.

PF_INLINE vf round_even(vf x) {
  return (vf)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
PF_INLINE vf scale_pow2(vf x, vf n) { return (vf)_mm512_scalef_ps((__m512)x, (__m512)n); }

// For normal numbers, to 1 ulp: 14 bits and one Newton step take a quarter of a division's time.
PF_INLINE vf reciprocal(vf x) {
  vf r = (vf)_mm512_rcp14_ps((__m512)x);
  return r * (2.0f - x * r);
}
// a / b of normal numbers, to 1 ulp and never rounded past 1: 14 bits, and what they leave over once more.
PF_INLINE vf quotient(vf a, vf b) {
  vf r = (vf)_mm512_rcp14_ps((__m512)b), q = a * r;
  return (a - q * b) * r + q;
}

PF_INLINE vf square_root(vf x) { return (vf)_mm512_sqrt_ps((__m512)x); }
PF_INLINE vd square_root(vd x) { return (vd)_mm512_sqrt_pd((__m512d)x); }

// b when either is NaN.
PF_INLINE vf max_fast(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
PF_INLINE vf min_fast(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
PF_INLINE vd max_fast(vd a, vd b) { return (vd)_mm512_max_pd((__m512d)a, (__m512d)b); }
PF_INLINE vd min_fast(vd a, vd b) { return (vd)_mm512_min_pd((__m512d)a, (__m512d)b); }

template <>
struct Memory<f16> {
  PF_INLINE float get(const f16* p) { return _cvtsh_ss(p->bits); }
  PF_INLINE void put(f16* p, float x) { p->bits = _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }
  PF_INLINE vf load(const f16* p) { return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
  PF_INLINE void store(f16* p, vf x) {
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
  }
};

PF_INLINE vf load_first(const float* p, int count, float fill) {
  return (vf)_mm512_mask_loadu_ps(_mm512_set1_ps(fill), (__mmask16)((1u << count) - 1), p);
}
PF_INLINE void store_first(float* p, vf x, int count) {
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << count) - 1), (__m512)x);
}

PF_INLINE float reduce_add(vf x) { return _mm512_reduce_add_ps((__m512)x); }
PF_INLINE double reduce_add(vd x) { return _mm512_reduce_add_pd((__m512d)x); }
PF_INLINE float reduce_max(vf x) { return _mm512_reduce_max_ps((__m512)x); }
PF_INLINE double reduce_max(vd x) { return _mm512_reduce_max_pd((__m512d)x); }

// Past the caches, to an aligned address; stream_fence() before another thread reads it.
PF_INLINE void store_stream(float* p, vf x) { _mm512_stream_ps(p, (__m512)x); }
PF_INLINE void stream_fence() { _mm_sfence(); }

// The first `count` lanes to every other element, nothing in between.
PF_INLINE void store_every_other(float* p, vf x, int64_t count) {
  const __m512i low = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
  const uint32_t there = count >= 16 ? 0x55555555u : 0x55555555u & ((1u << 2 * count) - 1);
  _mm512_mask_storeu_ps(p, (__mmask16)there, _mm512_permutexvar_ps(low, (__m512)x));
  if (count > 8)
    _mm512_mask_storeu_ps(p + 16, (__mmask16)(there >> 16),
                          _mm512_permutexvar_ps(_mm512_add_epi32(low, _mm512_set1_epi32(8)), (__m512)x));
}
