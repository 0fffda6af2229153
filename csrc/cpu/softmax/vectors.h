// What rows and columns share: parts of vectors, stores past the caches, the types of a call.
#pragma once
#include "../../common/softmax.h"
#include "../core/memory.h"
#include "../core/parallel.h"
#include "../simd/math.h"

namespace PF_ISA::softmax {

namespace {

// Elements summed in the arithmetic type before a sum goes on in double, or in a second sum.
constexpr int64_t kChunk = 1024;
constexpr int kChains = 4;  // independent sums and maxima, to hide the latency of an operation

// Below every number, and finite: -inf less this is -inf, where -inf less itself would be NaN.
template <class T>
constexpr T kLowest = sizeof(T) == 4 ? (T)-3.4028234663852886e38 : (T)-1.7976931348623157e308;

struct WholeVector {};
template <class S>
PF_INLINE Vec<Acc<S>> load_part(const S* p, WholeVector, Acc<S> = 0) {
  return load(p);
}
template <class S>  // a call: once a row at most, and the conversions of half types element by element are long
__attribute__((noinline)) Vec<Acc<S>> load_part(const S* p, int64_t count, Acc<S> fill = 0) {
  return load_n(p, count, fill);
}
PF_INLINE vf load_part(const float* p, int64_t count, float fill = 0) { return load_n(p, count, fill); }

template <class S>
PF_INLINE void store_part(S* p, Vec<Acc<S>> x, WholeVector, bool) {
  store(p, x);
}
PF_INLINE void store_part(float* p, vf x, WholeVector, bool is_streamed) {
  is_streamed ? store_stream(p, x) : store(p, x);
}
template <class S>
__attribute__((noinline)) void store_part(S* p, Vec<Acc<S>> x, int64_t count, bool) {
  store_n(p, x, count);
}
PF_INLINE void store_part(float* p, vf x, int64_t count, bool) { store_n(p, x, count); }

// body(first, count, chain) over [begin, end), a vector at a time; count is WholeVector but for the last.
template <class T, class Body>
PF_INLINE void for_vectors(int64_t begin, int64_t end, Body body) {
  constexpr int lanes = kLanes<T>;
  int64_t j = begin;
  for (; j + kChains * lanes <= end; j += kChains * lanes) {
    PF_UNROLL
    for (int chain = 0; chain < kChains; chain++) body(j + chain * lanes, WholeVector{}, chain);
  }
  for (; j + lanes <= end; j += lanes) body(j, WholeVector{}, 0);
  if (j < end) body(j, end - j, 0);
}

// The same from the last to the first, for loops that store: see pointwise/activation.h.
template <class T, class Body>
PF_INLINE void for_vectors_down(int64_t begin, int64_t end, Body body) {
  constexpr int lanes = kLanes<T>;
  int64_t j = begin + (end - begin) / lanes * lanes;
  if (j < end) body(j, end - j);
  while ((j -= lanes) >= begin) body(j, WholeVector{});
}

template <class V>
PF_INLINE V sum_chains(const V* chains) {
  static_assert(kChains == 4, "adds so many");
  return (chains[0] + chains[1]) + (chains[2] + chains[3]);
}

// Do outputs go past the caches? Only whole aligned vectors of float do.
template <class To>
PF_INLINE bool is_streamed(const void* out, int64_t bytes, int64_t width) {
  return sizeof(To) == 4 && bytes >= kStreamBytes && width % kLanes<float> == 0 &&
         (uintptr_t)out % PF_VECTOR_BYTES == 0;
}

// f(narrow, wide) of two types that are one, or float beside a half type.
template <class F>
PF_INLINE void for_pair(Dtype narrow, Dtype wide, F f) {
  for_dtype(narrow, [&](auto storage) {
    if constexpr (sizeof(storage) == 2)
      if (wide == Dtype::f32) return f(storage, float{});
    f(storage, storage);
  });
}

}  // namespace

}  // namespace PF_ISA::softmax
