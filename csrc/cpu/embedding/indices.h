// Indices as the kernels read them.
#pragma once
#include "../../common/embedding.h"
#include "../simd/vec.h"

namespace PF_ISA::embedding {

namespace {

constexpr int64_t kAhead = 8;  // rows that are asked for before they are read: prefetchers do not follow indices

template <class F>
PF_INLINE void for_index_type(IndexType type, F f) {
  type == IndexType::i64 ? f(int64_t{}) : f(int32_t{});
}

PF_INLINE bool is_row(int64_t index, int64_t rows) { return (uint64_t)index < (uint64_t)rows; }

PF_INLINE void note_wrong(int64_t* wrong, int64_t place) { __atomic_store_n(wrong, place, __ATOMIC_RELAXED); }

template <int kCount>
struct Vectors {};

// body(j, count, Vectors<n>) over columns [from, to): kMost vectors at a time, then half as many; the last one is a
// part.
template <int kMost, class T, class Body>
PF_INLINE void in_vectors(int64_t from, int64_t to, Body body) {
  constexpr int64_t width = kMost * kLanes<T>;
  int64_t j = from;
  if constexpr (kMost > 1) {
    for (; j + width <= to; j += width) body(j, width, Vectors<kMost>{});
    if (j < to) in_vectors<kMost / 2, T>(j, to, body);
  } else {
    for (; j < to; j += width) body(j, min_of(width, to - j), Vectors<1>{});
  }
}

// Are these ascending, from 0 to at most n? A bag for which they are not is noted.
PF_INLINE bool are_bounds(const int64_t* bounds, int64_t bags, int64_t n, int64_t* wrong_bag) {
  if (bounds[0] != 0) return *wrong_bag = 0, false;
  for (int64_t bag = 0; bag < bags; bag++)
    if (bounds[bag + 1] < bounds[bag] || bounds[bag + 1] > n) return *wrong_bag = bag, false;
  return true;
}

}  // namespace

}  // namespace PF_ISA::embedding
