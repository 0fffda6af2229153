// One vector type per element type, as wide as the instruction set allows, on the compilers' vector extensions:
// + - * / and comparisons are the language's own. What those cannot say is a handful of functions; the defaults here
// are portable, and vec_<isa>.h replaces those for which the instruction set has one instruction.
//
// Everything that is compiled once per instruction set lies in `namespace PF_ISA`, and only C headers are included: an
// inline function with external linkage and one name for all instruction sets would let the linker keep the AVX-512
// copy for an AVX2 machine. setup.py gives each of these compilations PF_ISA and PF_VECTOR_BYTES.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../../common/dtype.h"

#ifndef PF_ISA
#error "PF_ISA and PF_VECTOR_BYTES say what this is compiled for: see X86_FLAGS in setup.py"
#endif

#define PF_INLINE static inline __attribute__((always_inline))
#define PF_UNROLL _Pragma("GCC unroll 32")

namespace PF_ISA {

template <class T>
struct VecOf;
template <>
struct VecOf<float> {
  typedef float type __attribute__((vector_size(PF_VECTOR_BYTES), may_alias));
  typedef int32_t mask __attribute__((vector_size(PF_VECTOR_BYTES), may_alias));
};
template <>
struct VecOf<double> {
  typedef double type __attribute__((vector_size(PF_VECTOR_BYTES), may_alias));
  typedef int64_t mask __attribute__((vector_size(PF_VECTOR_BYTES), may_alias));
};
template <class T>
using Vec = typename VecOf<T>::type;
typedef Vec<float> vf;
typedef Vec<double> vd;
typedef typename VecOf<float>::mask vi;   // also the result of comparing two vf
typedef typename VecOf<double>::mask vl;  // also the result of comparing two vd
typedef uint32_t vu __attribute__((vector_size(PF_VECTOR_BYTES), may_alias));

template <class V>
struct ElementOf;
template <>
struct ElementOf<vf> {
  typedef float type;
};
template <>
struct ElementOf<vd> {
  typedef double type;
};
template <class V>
using Element = typename ElementOf<V>::type;

// Arithmetic type of a storage type.
template <class S>
struct AccOf {
  typedef float type;
};
template <>
struct AccOf<double> {
  typedef double type;
};
template <class S>
using Acc = typename AccOf<S>::type;

template <class T>
constexpr int kLanes = PF_VECTOR_BYTES / (int)sizeof(T);
constexpr int kF32 = kLanes<float>;
constexpr int kRegisters = PF_VECTOR_BYTES == 64 ? 32 : 16;

PF_INLINE int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
PF_INLINE int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
PF_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
PF_INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

template <class V>
PF_INLINE V splat(Element<V> x) {
  return x - V{};  // exact, and keeps the sign of zero; one broadcast
}

template <class V>
PF_INLINE V fma(V a, V b, V c) {
  return a * b + c;  // contracted: the files are compiled with -ffp-contract=fast
}

template <class V, class M>
PF_INLINE V select(M condition, V yes, V no) {
  return condition ? yes : no;
}

// NaN in either argument gives NaN, as torch.maximum does.
template <class V>
PF_INLINE V maximum(V a, V b) {
  return select((a > b) | (a != a), a, b);
}
PF_INLINE vf abs(vf x) { return (vf)((vi)x & 0x7fffffff); }
PF_INLINE vd abs(vd x) { return (vd)((vl)x & 0x7fffffffffffffffLL); }
PF_INLINE vf copy_sign(vf magnitude, vf sign) {
  return (vf)(((vi)magnitude & 0x7fffffff) | ((vi)sign & (int32_t)0x80000000));
}

template <class V>
PF_INLINE Element<V> reduce_add(V x) {
  Element<V> buffer[sizeof(V) / sizeof(Element<V>)] __attribute__((aligned(64)));
  *(V*)buffer = x;
  PF_UNROLL
  for (int width = sizeof(V) / sizeof(Element<V>) / 2; width > 0; width /= 2) {
    PF_UNROLL
    for (int i = 0; i < width; i++) buffer[i] += buffer[i + width];
  }
  return buffer[0];
}

// The largest lane; of NaN lanes no promise.
template <class V>
PF_INLINE Element<V> reduce_max(V x) {
  Element<V> buffer[sizeof(V) / sizeof(Element<V>)] __attribute__((aligned(64)));
  *(V*)buffer = x;
  PF_UNROLL
  for (int width = sizeof(V) / sizeof(Element<V>) / 2; width > 0; width /= 2) {
    PF_UNROLL
    for (int i = 0; i < width; i++) buffer[i] = buffer[i] > buffer[i + width] ? buffer[i] : buffer[i + width];
  }
  return buffer[0];
}

// ---- float16, portable ------------------------------------------------------------------------------------------
PF_INLINE float f16_to_float(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, fraction = h & 0x3ff, bits;
  if (exponent == 31) {
    bits = sign | 0x7f800000 | (fraction << 13) | (fraction ? 0x400000 : 0);
  } else if (exponent) {
    bits = sign | ((exponent + 112) << 23) | (fraction << 13);
  } else {  // subnormal: exact as a product
    float value = (float)fraction * 5.9604644775390625e-08f;
    memcpy(&bits, &value, 4);
    bits |= sign;
  }
  float out;
  memcpy(&out, &bits, 4);
  return out;
}

PF_INLINE uint16_t float_to_f16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  uint16_t sign = (uint16_t)((bits >> 16) & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return sign | 0x7e00 | (uint16_t)((bits >> 13) & 0x3ff);
  if (bits >= 0x47800000) return sign | 0x7c00;
  if (bits < 0x38800000) {  // subnormal result: the addition rounds to nearest even
    float magnitude, shifted;
    memcpy(&magnitude, &bits, 4);
    shifted = magnitude + 0.5f;
    uint32_t result;
    memcpy(&result, &shifted, 4);
    return sign | (uint16_t)(result - 0x3f000000);
  }
  uint32_t rounded = bits + 0xfff + ((bits >> 13) & 1) - 0x38000000;
  return sign | (uint16_t)(rounded >> 13);
}

// ---- loads and stores: S is the storage type, the vector holds its arithmetic type ---------------------------------
typedef vf vf_unaligned __attribute__((aligned(1), may_alias));
typedef vd vd_unaligned __attribute__((aligned(1), may_alias));

template <class S>
struct Memory;

template <>
struct Memory<float> {
  PF_INLINE vf load(const float* p) { return *(const vf_unaligned*)p; }
  PF_INLINE void store(float* p, vf x) { *(vf_unaligned*)p = x; }
  PF_INLINE float get(const float* p) { return *p; }
  PF_INLINE void put(float* p, float x) { *p = x; }
};

template <>
struct Memory<double> {
  PF_INLINE vd load(const double* p) { return *(const vd_unaligned*)p; }
  PF_INLINE void store(double* p, vd x) { *(vd_unaligned*)p = x; }
  PF_INLINE double get(const double* p) { return *p; }
  PF_INLINE void put(double* p, double x) { *p = x; }
};

typedef uint16_t vh __attribute__((vector_size(PF_VECTOR_BYTES / 2), may_alias));
typedef vh vh_unaligned __attribute__((aligned(1), may_alias));

template <>
struct Memory<bf16> {
  PF_INLINE float get(const bf16* p) {
    uint32_t bits = (uint32_t)p->bits << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
  }
  PF_INLINE void put(bf16* p, float x) {  // round to nearest even; NaN stays NaN
    uint32_t bits;
    memcpy(&bits, &x, 4);
    p->bits = x != x ? (uint16_t)((bits >> 16) | 0x40) : (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  }
  PF_INLINE vf load(const bf16* p) {
    vh half = *(const vh_unaligned*)p;
    return (vf)(__builtin_convertvector(half, vu) << 16);
  }
  PF_INLINE void store(bf16* p, vf x) {
    vu bits = (vu)x;
    vu rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    vu quiet = (bits >> 16) | 0x40;
    vu result = (x != x) ? quiet : rounded;
    *(vh_unaligned*)p = __builtin_convertvector(result, vh);
  }
};

#if PF_VECTOR_BYTES == 64
#include "vec_avx512.h"
#elif PF_VECTOR_BYTES == 32
#include "vec_avx2.h"
#else
#include "vec_generic.h"
#endif

template <class S>
PF_INLINE Vec<Acc<S>> load(const S* p) {
  return Memory<S>::load(p);
}
template <class S>
PF_INLINE void store(S* p, Vec<Acc<S>> x) {
  Memory<S>::store(p, x);
}
template <class S>
PF_INLINE Acc<S> get(const S* p) {
  return Memory<S>::get(p);
}
template <class S>
PF_INLINE void put(S* p, Acc<S> x) {
  Memory<S>::put(p, x);
}

// The first `count` lanes; the others are `fill` and are not touched in memory. 0 <= count.
template <class S>
PF_INLINE Vec<Acc<S>> load_n(const S* p, int64_t count, Acc<S> fill = 0) {
  constexpr int lanes = kLanes<Acc<S>>;
  if (count >= lanes) return load(p);
  Acc<S> buffer[lanes] __attribute__((aligned(64)));
  for (int i = 0; i < lanes; i++) buffer[i] = i < count ? get(p + i) : fill;
  return *(const Vec<Acc<S>>*)buffer;
}
PF_INLINE vf load_n(const float* p, int64_t count, float fill = 0) {
  return count >= kF32 ? load(p) : load_first(p, (int)count, fill);
}
template <class S>
PF_INLINE void store_n(S* p, Vec<Acc<S>> x, int64_t count) {
  constexpr int lanes = kLanes<Acc<S>>;
  if (count >= lanes) return store(p, x);
  Acc<S> buffer[lanes] __attribute__((aligned(64)));
  *(Vec<Acc<S>>*)buffer = x;
  for (int i = 0; i < count; i++) put(p + i, buffer[i]);
}
PF_INLINE void store_n(float* p, vf x, int64_t count) {
  if (count >= kF32) return store(p, x);
  store_first(p, x, (int)count);
}

template <class S>
PF_INLINE void store_every_other(S* p, Vec<Acc<S>> x, int64_t count) {
  Acc<S> buffer[kLanes<Acc<S>>] __attribute__((aligned(64)));
  *(Vec<Acc<S>>*)buffer = x;
  for (int64_t i = 0; i < count; i++) put(p + 2 * i, buffer[i]);
}

// Between two looks at memory that another thread will write.
PF_INLINE void spin_pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// Calls f with a value of the storage type: one kernel template serves every dtype.
template <class F>
PF_INLINE void for_dtype(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::f32: return f(float{});
    case Dtype::f64: return f(double{});
    case Dtype::bf16: return f(bf16{});
    case Dtype::f16: return f(f16{});
  }
}

}  // namespace PF_ISA
