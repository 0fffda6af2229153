// Softmaxes over columns: the scores of one are `step` apart and those of a class adjacent, so that each lane of a
// vector has a softmax of its own. A block of columns is walked twice, and the second time found in a cache.
#pragma once
#include "class_rows.h"

namespace PF_ISA::loss {

namespace {

constexpr int kVectors = 4;  // of columns that are walked together: lines of memory are whole

template <class V>
struct ColumnSums {
  V top, sum, mass, moment;  // see Sums
};

template <int kCount, class S, Spread kSpread, class Count>
PF_INLINE void sums_of_columns(const S* x, int64_t step, int64_t n, const Weights<S, kSpread>& w, Count count,
                               ColumnSums<Vec<Acc<S>>>* found) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  for (int v = 0; v < kCount; v++) found[v] = {splat<V>(kLowest<T>), V{}, V{}, V{}};
  for (int64_t i = 0; i < n; i++) {
    PF_UNROLL
    for (int v = 0; v < kCount; v++)
      found[v].top = max_fast(load_part(x + i * step + v * kLanes<T>, count), found[v].top);
  }
  for (int64_t i0 = 0; i0 < n; i0 += kRowChunk) {
    V sum[kCount] = {}, mass[kCount] = {}, moment[kCount] = {};
    for (int64_t i = i0; i < min_of(n, i0 + kRowChunk); i++) {
      PF_UNROLL
      for (int v = 0; v < kCount; v++) {
        const V d = load_part(x + i * step + v * kLanes<T>, count) - found[v].top;
        sum[v] += exp(d);
        if constexpr (kSpread != Spread::nothing) {
          const V q = w.of_columns(w, i, v, count);
          mass[v] += q;
          moment[v] = fma(q, d, moment[v]);
        }
      }
    }
    for (int v = 0; v < kCount; v++) found[v].sum += sum[v], found[v].mass += mass[v], found[v].moment += moment[v];
  }
}

template <int kCount, class S, Spread kSpread, class Count>
PF_INLINE void masses_of_columns(int64_t n, const Weights<S, kSpread>& w, Count count, Vec<Acc<S>>* masses) {
  typedef Vec<Acc<S>> V;
  for (int v = 0; v < kCount; v++) masses[v] = V{};
  if constexpr (kSpread != Spread::nothing)
    for (int64_t i0 = 0; i0 < n; i0 += kRowChunk) {
      V sum[kCount] = {};
      for (int64_t i = i0; i < min_of(n, i0 + kRowChunk); i++) {
        PF_UNROLL
        for (int v = 0; v < kCount; v++) sum[v] += w.of_columns(w, i, v, count);
      }
      for (int v = 0; v < kCount; v++) masses[v] += sum[v];
    }
}

// What a softmax of a column is differentiated by.
template <class V>
struct ColumnGradient {
  V top, log_sum, g, mass;
  V target, at_target;  // the number of a class, or -1, and what its score has less
};

template <int kCount, class S, Spread kSpread, class Count>
PF_INLINE void gradient_of_columns(const S* x, int64_t step, S* dx, int64_t dx_step, int64_t n,
                                   const Weights<S, kSpread>& w, Count count, const ColumnGradient<Vec<Acc<S>>>* of) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  for (int64_t i = 0; i < n; i++) {
    const V own = splat<V>((T)i);
    PF_UNROLL
    for (int v = 0; v < kCount; v++) {
      V d = of[v].mass * exp((load_part(x + i * step + v * kLanes<T>, count) - of[v].top) - of[v].log_sum);
      if constexpr (kSpread != Spread::nothing) d -= w.of_columns(w, i, v, count);
      if constexpr (kSpread != Spread::probabilities) d -= select(of[v].target == own, of[v].at_target, V{});
      store_part(dx + i * dx_step + v * kLanes<T>, of[v].g * d, count);
    }
  }
}

template <int kCount, class S, class Count>
PF_INLINE void probabilities_of_columns(const S* x, int64_t step, const Acc<S>* weight, S* to, int64_t to_step,
                                        int64_t n, Count count, const ColumnGradient<Vec<Acc<S>>>* of) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  for (int64_t i = 0; i < n; i++) {
    const V weights = splat<V>(weight ? weight[i] : (T)1);
    PF_UNROLL
    for (int v = 0; v < kCount; v++) {
      const V d = of[v].log_sum - (load_part(x + i * step + v * kLanes<T>, count) - of[v].top);
      store_part(to + i * to_step + v * kLanes<T>, of[v].g * weights * d, count);
    }
  }
}

}  // namespace

}  // namespace PF_ISA::loss
