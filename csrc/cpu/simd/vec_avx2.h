// What AVX2 with FMA and F16C (x86-64-v3) has one instruction for.

PF_INLINE vf round_even(vf x) { return (vf)_mm256_round_ps((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

// x * 2^n for an integral n, in two exact steps so that subnormal results come out right.
PF_INLINE vf scale_pow2(vf x, vf n) {
  __m256i exponent = _mm256_cvtps_epi32((__m256)n);
  exponent = _mm256_max_epi32(_mm256_min_epi32(exponent, _mm256_set1_epi32(252)), _mm256_set1_epi32(-252));
  vi whole = (vi)exponent, half = whole >> 1;
  vf first = (vf)((half + 127) << 23), second = (vf)((whole - half + 127) << 23);
  return x * first * second;
}

PF_INLINE vf reciprocal(vf x) { return 1.0f / x; }   // of a normal number
PF_INLINE vf quotient(vf a, vf b) { return a / b; }  // of normal numbers

PF_INLINE vf square_root(vf x) { return (vf)_mm256_sqrt_ps((__m256)x); }
PF_INLINE vd square_root(vd x) { return (vd)_mm256_sqrt_pd((__m256d)x); }

// b when either is NaN.
PF_INLINE vf max_fast(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
PF_INLINE vf min_fast(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
PF_INLINE vd max_fast(vd a, vd b) { return (vd)_mm256_max_pd((__m256d)a, (__m256d)b); }
PF_INLINE vd min_fast(vd a, vd b) { return (vd)_mm256_min_pd((__m256d)a, (__m256d)b); }

template <>
struct Memory<f16> {
  PF_INLINE float get(const f16* p) { return _cvtsh_ss(p->bits); }
  PF_INLINE void put(f16* p, float x) { p->bits = _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }
  PF_INLINE vf load(const f16* p) { return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
  PF_INLINE void store(f16* p, vf x) {
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
  }
};

PF_INLINE __m256i first_lanes(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
PF_INLINE vf load_first(const float* p, int count, float fill) {
  __m256i lanes = first_lanes(count);
  return (vf)_mm256_blendv_ps(_mm256_set1_ps(fill), _mm256_maskload_ps(p, lanes), (__m256)lanes);
}
PF_INLINE void store_first(float* p, vf x, int count) { _mm256_maskstore_ps(p, first_lanes(count), (__m256)x); }

PF_INLINE float reduce_add(vf x) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128((__m256)x), _mm256_extractf128_ps((__m256)x, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}
PF_INLINE double reduce_add(vd x) {
  __m128d sum = _mm_add_pd(_mm256_castpd256_pd128((__m256d)x), _mm256_extractf128_pd((__m256d)x, 1));
  return _mm_cvtsd_f64(_mm_add_sd(sum, _mm_unpackhi_pd(sum, sum)));
}

// Past the caches, to an aligned address; stream_fence() before another thread reads it.
PF_INLINE void store_stream(float* p, vf x) { _mm256_stream_ps(p, (__m256)x); }
PF_INLINE void stream_fence() { _mm_sfence(); }
