// What rows and columns share: parts of vectors, stores past the caches, the types of a call.
#pragma once
#include "../../common/softmax.h"
#include "../core/columns.h"
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

// A part of a row of outputs, past the caches where it is asked and can be.
template <class S>
PF_INLINE void store_output(S* p, Vec<Acc<S>> x, WholeVector whole, bool is_streamed) {
  if constexpr (sizeof(S) == 4)
    if (is_streamed) return store_stream(p, x);
  store_part(p, x, whole);
}
template <class S>
PF_INLINE void store_output(S* p, Vec<Acc<S>> x, int64_t count, bool) {
  store_part(p, x, count);
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
