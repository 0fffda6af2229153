// What reductions over a row share: independent chains of sums and maxima, where a maximum begins, and a part of a
// vector.
#pragma once
#include "columns.h"

namespace PF_ISA {

namespace {

constexpr int kChains = 4;  // independent sums and maxima, to hide the latency of an operation

// Below every number, and finite: -inf less this is -inf, where -inf less itself would be NaN.
template <class T>
constexpr T kLowest = sizeof(T) == 4 ? (T)-3.4028234663852886e38 : (T)-1.7976931348623157e308;

template <class V>
PF_INLINE V sum_chains(const V* chains) {
  static_assert(kChains == 4, "adds so many");
  return (chains[0] + chains[1]) + (chains[2] + chains[3]);
}

// x, and 0 past the lanes that count.
template <class V>
PF_INLINE V first_lanes(V x, WholeVector) {
  return x;
}
template <class V>
PF_INLINE V first_lanes(V x, int64_t count) {
  Element<V> lanes[kLanes<Element<V>>] __attribute__((aligned(64)));
  *(V*)lanes = x;
  return load_n(lanes, count);
}

}  // namespace

}  // namespace PF_ISA
