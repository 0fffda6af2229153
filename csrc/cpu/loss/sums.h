// What sums of losses share: long ones that go on in double, and one number of any type.
#pragma once
#include "../core/reductions.h"

namespace PF_ISA::loss {

namespace {

constexpr int64_t kSummed = 4096;       // in the arithmetic type, before the sum goes on in double
constexpr int64_t kChunksOfThread = 2;  // less is not worth opening a region for

// `of(i, count)` is the vector at i; lanes past the end count for nothing.
template <class T, class Of>
PF_INLINE double sum_range(int64_t begin, int64_t end, Of of) {
  typedef Vec<T> V;
  double total = 0;
  for (int64_t i0 = begin; i0 < end; i0 += kSummed) {
    V sums[kChains] = {};
    for_columns<T, kChains>(i0, min_of(end, i0 + kSummed),
                            [&](int64_t i, auto count, int chain) { sums[chain] += first_lanes(of(i, count), count); });
    total += (double)reduce_add(sum_chains(sums));
  }
  return total;
}

// Both of an element, or a softmax, or of a sum of them: the loss, and what it counts for in a mean.
struct Part {
  double loss, weight;
};

PF_INLINE void put_number(void* to, int64_t at, double x, Dtype dtype) {
  for_dtype(dtype, [&](auto storage) {
    typedef decltype(storage) S;
    put((S*)to + at, (Acc<S>)x);
  });
}

PF_INLINE double number_of(const void* from, int64_t at, Dtype dtype) {
  double x = 0;
  for_dtype(dtype, [&](auto storage) { x = (double)get((const decltype(storage)*)from + at); });
  return x;
}

}  // namespace

}  // namespace PF_ISA::loss
