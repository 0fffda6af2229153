// A row vector by vector: whole ones, and the rest of the row.
#pragma once
#include "../simd/vec.h"

namespace PF_ISA {

namespace {

struct WholeVector {};

// Calls, once a row at most: the conversions of half types element by element are long.
template <class S>
__attribute__((noinline)) Vec<Acc<S>> load_rest(const S* p, int64_t count, Acc<S> fill) {
  return load_n(p, count, fill);
}
template <class S>
__attribute__((noinline)) void store_rest(S* p, Vec<Acc<S>> x, int64_t count) {
  store_n(p, x, count);
}

template <class S>
PF_INLINE Vec<Acc<S>> load_part(const S* p, WholeVector, Acc<S> = 0) {
  return load(p);
}
template <class S>
PF_INLINE Vec<Acc<S>> load_part(const S* p, int64_t count, Acc<S> fill = 0) {
  if constexpr (sizeof(S) == 4) return load_n(p, count, fill);
  return load_rest(p, count, fill);
}
template <class S>
PF_INLINE void store_part(S* p, Vec<Acc<S>> x, WholeVector) {
  store(p, x);
}
template <class S>
PF_INLINE void store_part(S* p, Vec<Acc<S>> x, int64_t count) {
  if constexpr (sizeof(S) == 4) return store_n(p, x, count);
  store_rest(p, x, count);
}

// body(column, count, chain) over [begin, end), a vector at a time; count is WholeVector but for the last. Chains are
// independent of each other, to hide the latency of an addition.
template <class T, int kChains, class Body>
PF_INLINE void for_columns(int64_t begin, int64_t end, Body body) {
  constexpr int lanes = kLanes<T>;
  int64_t j = begin;
  if constexpr (kChains > 1)
    for (; j + kChains * lanes <= end; j += kChains * lanes) {
      PF_UNROLL
      for (int chain = 0; chain < kChains; chain++) body(j + chain * lanes, WholeVector{}, chain);
    }
  for (; j + lanes <= end; j += lanes) body(j, WholeVector{}, 0);
  if (j < end) body(j, end - j, 0);
}

// The same from the last column to the first, for loops that store: see pointwise/activation.h.
template <class T, class Body>
PF_INLINE void for_columns_down(int64_t begin, int64_t end, Body body) {
  constexpr int lanes = kLanes<T>;
  int64_t j = begin + (end - begin) / lanes * lanes;
  if (j < end) body(j, end - j);
  while ((j -= lanes) >= begin) body(j, WholeVector{});
}

}  // namespace

}  // namespace PF_ISA
