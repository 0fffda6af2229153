// What weighs the scores of a softmax beside its target: q of csrc/common/cross_entropy.h, of adjacent classes (rows)
// and of one class of adjacent softmaxes (columns).
#pragma once
#include "../../common/cross_entropy.h"
#include "../core/reductions.h"

namespace PF_ISA::loss {

namespace {

template <auto kValue>
struct Constant {
  static constexpr auto value = kValue;
};

enum class Spread { nothing, smoothing, weighted_smoothing, probabilities };

template <class S, Spread kSpread>
struct Weights {
  typedef Acc<S> T;
  typedef Vec<T> V;
  const T* weight;         // [n], or null
  const S* probabilities;  // of this row, or of this column and those after it
  int64_t step;            // from one class to the next
  T keep, share;           // 1 - smoothing, smoothing / n

  // Of the classes j, j + 1, ...; 0 past the end.
  template <class Count>
  PF_INLINE V of_row(const Weights& w, int64_t j, Count count) {
    if constexpr (kSpread == Spread::smoothing) {
      return first_lanes(splat<V>(w.share), count);
    } else if constexpr (kSpread == Spread::weighted_smoothing) {
      return splat<V>(w.share) * load_part(w.weight + j, count);
    } else {
      const V q = fma(load_part(w.probabilities + j, count), splat<V>(w.keep), splat<V>(w.share));
      return w.weight ? q * load_part(w.weight + j, count) : first_lanes(q, count);
    }
  }
  // Of class i, v vectors from the first column.
  template <class Count>
  PF_INLINE V of_columns(const Weights& w, int64_t i, int v, Count count) {
    if constexpr (kSpread == Spread::smoothing) {
      return splat<V>(w.share);
    } else if constexpr (kSpread == Spread::weighted_smoothing) {
      return splat<V>(w.share * w.weight[i]);
    } else {
      const S* from = w.probabilities + i * w.step + v * kLanes<T>;
      const V q = fma(load_part(from, count), splat<V>(w.keep), splat<V>(w.share));
      return w.weight ? q * splat<V>(w.weight[i]) : q;
    }
  }
};

}  // namespace

}  // namespace PF_ISA::loss
