// Portable form of what other instruction sets have one instruction for. No intrinsics: any processor.

// Adding and taking away 1.5 * 2^23 rounds to nearest even for |x| < 2^22; callers stay far below.
PF_INLINE vf round_even(vf x) { return (x + 12582912.0f) - 12582912.0f; }

// x * 2^n for an integral n, in two exact steps so that subnormal results come out right.
PF_INLINE vf scale_pow2(vf x, vf n) {
  vi exponent = __builtin_convertvector(n, vi);
  exponent = exponent > 252 ? vi{} + 252 : exponent;
  exponent = exponent < -252 ? vi{} - 252 : exponent;
  vi half = exponent >> 1;
  vf first = (vf)((half + 127) << 23), second = (vf)((exponent - half + 127) << 23);
  return x * first * second;
}

PF_INLINE vf reciprocal(vf x) { return 1.0f / x; }   // of a normal number
PF_INLINE vf quotient(vf a, vf b) { return a / b; }  // of normal numbers

template <class V>
PF_INLINE V square_root(V x) {
  for (size_t i = 0; i < sizeof(V) / sizeof(x[0]); i++) x[i] = (Element<V>)__builtin_sqrt(x[i]);
  return x;
}

// One instruction elsewhere; b when either is NaN.
template <class V>
PF_INLINE V max_fast(V a, V b) {
  return a > b ? a : b;
}
template <class V>
PF_INLINE V min_fast(V a, V b) {
  return a < b ? a : b;
}

template <>
struct Memory<f16> {
  PF_INLINE float get(const f16* p) { return f16_to_float(p->bits); }
  PF_INLINE void put(f16* p, float x) { p->bits = float_to_f16(x); }
  PF_INLINE vf load(const f16* p) {
    vf x;
    for (int i = 0; i < kF32; i++) x[i] = f16_to_float(p[i].bits);
    return x;
  }
  PF_INLINE void store(f16* p, vf x) {
    for (int i = 0; i < kF32; i++) p[i].bits = float_to_f16(x[i]);
  }
};

PF_INLINE vf load_first(const float* p, int count, float fill) {
  vf x;
  for (int i = 0; i < kF32; i++) x[i] = i < count ? p[i] : fill;
  return x;
}
PF_INLINE void store_first(float* p, vf x, int count) {
  for (int i = 0; i < count; i++) p[i] = x[i];
}

PF_INLINE void store_stream(float* p, vf x) { *(vf_unaligned*)p = x; }
PF_INLINE void stream_fence() {}
