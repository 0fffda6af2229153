// Softmaxes over rows of adjacent scores. A row is read once, a chunk at a time, each chunk for its maximum and then,
// from the first cache, for its sums, which are counted from the maximum so far (Milakov & Gimelshein 2018,
// arXiv:1805.02867).
#pragma once
#include "../core/outputs.h"
#include "../core/reductions.h"
#include "../simd/math.h"
#include "spread.h"

namespace PF_ISA::loss {

namespace {

constexpr int64_t kRowChunk = 1024;

// Of the scores of one softmax, counted from the largest, `top`: sum exp(x - top), sum q and sum q (x - top).
template <class T>
struct Sums {
  T top;
  double sum, mass, moment;
};

template <class S, Spread kSpread>
PF_INLINE Sums<Acc<S>> sums_of_row(const S* x, int64_t n, const Weights<S, kSpread>& w) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  const T nothing = -(T)__builtin_inf();
  Sums<T> found = {kLowest<T>, 0, 0, 0};
  for (int64_t j0 = 0; j0 < n; j0 += kRowChunk) {
    const int64_t j1 = min_of(n, j0 + kRowChunk);
    // NaN is no maximum here: its exponential makes the sum NaN.
    V most[kChains];
    for (V& m : most) m = splat<V>(found.top);
    for_columns<T, kChains>(j0, j1, [&](int64_t j, auto count, int chain) {
      most[chain] = max_fast(load_part(x + j, count, nothing), most[chain]);
    });
    const T own = reduce_max(max_fast(max_fast(most[0], most[1]), max_fast(most[2], most[3])));
    if (own > found.top) {
      if (j0) {
        const double by = (double)found.top - (double)own;
        found.sum *= ::exp(by);
        found.moment += by * found.mass;
      }
      found.top = own;
    }
    const V top = splat<V>(found.top);
    V sums[kChains] = {}, masses[kChains] = {}, moments[kChains] = {};
    for_columns<T, kChains>(j0, j1, [&](int64_t j, auto count, int chain) {
      sums[chain] += exp(load_part(x + j, count, nothing) - top);
      if constexpr (kSpread != Spread::nothing) {
        const V q = w.of_row(w, j, count);
        masses[chain] += q;
        moments[chain] = fma(q, load_part(x + j, count, found.top) - top, moments[chain]);
      }
    });
    found.sum += (double)reduce_add(sum_chains(sums));
    if constexpr (kSpread != Spread::nothing) {
      found.mass += (double)reduce_add(sum_chains(masses));
      found.moment += (double)reduce_add(sum_chains(moments));
    }
  }
  return found;
}

template <class S, Spread kSpread>
PF_INLINE double mass_of_row(int64_t n, const Weights<S, kSpread>& w) {
  typedef Acc<S> T;
  double mass = 0;
  if constexpr (kSpread != Spread::nothing)
    for (int64_t j0 = 0; j0 < n; j0 += kRowChunk) {
      Vec<T> sums[kChains] = {};
      for_columns<T, kChains>(j0, min_of(n, j0 + kRowChunk),
                              [&](int64_t j, auto count, int chain) { sums[chain] += w.of_row(w, j, count); });
      mass += (double)reduce_add(sum_chains(sums));
    }
  return mass;
}

// dx = g (mass softmax(x) - q), and less `at_target` at the target.
template <class S, Spread kSpread>
PF_INLINE void gradient_of_row(const S* x, S* dx, int64_t n, const Weights<S, kSpread>& w, Acc<S> top, Acc<S> log_sum,
                               Acc<S> g, Acc<S> mass, int64_t target, Acc<S> at_target, bool is_streamed) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  const V tops = splat<V>(top), logs = splat<V>(log_sum), gs = splat<V>(g), masses = splat<V>(mass);
  for_columns_down<T>(0, n, [&](int64_t j, auto count) {
    V d = masses * exp((load_part(x + j, count) - tops) - logs);
    if constexpr (kSpread != Spread::nothing) d -= w.of_row(w, j, count);
    if ((uint64_t)(target - j) < (uint64_t)kLanes<T>) {
      T lanes[kLanes<T>] __attribute__((aligned(64)));
      *(V*)lanes = d;
      lanes[target - j] -= at_target;
      d = *(const V*)lanes;
    }
    store_output(dx + j, gs * d, count, is_streamed);
  });
}

// The gradient of the probabilities: g keep weight (log sum exp x - x).
template <class S>
PF_INLINE void probabilities_of_row(const S* x, const Acc<S>* weight, S* to, int64_t n, Acc<S> top, Acc<S> log_sum,
                                    Acc<S> g) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  const V tops = splat<V>(top), logs = splat<V>(log_sum), gs = splat<V>(g);
  for_columns_down<T>(0, n, [&](int64_t j, auto count) {
    const V d = gs * (logs - (load_part(x + j, count) - tops));
    store_part(to + j, weight ? d * load_part(weight + j, count) : d, count);
  });
}

}  // namespace

}  // namespace PF_ISA::loss
