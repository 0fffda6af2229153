// Rows of a norm: a vector at a time, whole or the rest of a row; sums over a row.
#pragma once
#include "../core/columns.h"
#include "../core/memory.h"
#include "../core/parallel.h"

namespace PF_ISA::norm {

namespace {

// Elements summed in float before the sum goes on in double: accuracy of a short sum at the price of a long one.
constexpr int64_t kNormChunk = 1024;
constexpr int kNormChains = 4;  // independent sums, to hide the latency of an addition
static_assert(kNormChains == 4, "sum_chains adds so many");

template <bool kStream, class S, class Count>
PF_INLINE void store_row(S* p, Vec<Acc<S>> x, Count count) {
  if constexpr (kStream && sizeof(S) == 4) return store_stream(p, x);
  store_part(p, x, count);
}

template <class V>
PF_INLINE double sum_chains(const V* chains) {
  return reduce_add((chains[0] + chains[1]) + (chains[2] + chains[3]));
}

template <class T, class Count>
PF_INLINE Vec<T> param(const T* p, int64_t j, Count count, T absent) {
  return p ? load_part(p + j, count) : splat<Vec<T>>(absent);
}

// The input of a norm, j columns into the row: x, or x + residual.
template <class S, bool kAdds, class Count>
PF_INLINE Vec<Acc<S>> norm_input(const S* x, const S* residual, int64_t j, Count count, Acc<S> fill) {
  if (!kAdds) return load_part(x + j, count, fill);
  return load_part(x + j, count, fill) + load_part(residual + j, count);
}

// Sum and sum of squares of the deviations from `shift` over a row; with kKeeps the row goes to `summed`; with kScales
// the deviations are counted in `1 / unit`.
template <class S, bool kAdds, bool kKeeps, bool kScales = false>
PF_INLINE void layer_norm_sums(const S* x, const S* residual, S* summed, int64_t cols, Acc<S> shift, double* sum,
                               double* square, Acc<S> unit = 1) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  *sum = *square = 0;
  for (int64_t j0 = 0; j0 < cols; j0 += kNormChunk) {
    V sums[kNormChains] = {}, squares[kNormChains] = {};
    for_columns<T, kNormChains>(j0, min_of(cols, j0 + kNormChunk), [&](int64_t j, auto count, int chain) {
      V value = norm_input<S, kAdds>(x, residual, j, count, shift), d = value - shift;
      if (kKeeps) store_part(summed + j, value, count);
      if (kScales) d *= unit;
      sums[chain] += d;
      squares[chain] = fma(d, d, squares[chain]);
    });
    *sum += sum_chains(sums);
    *square += sum_chains(squares);
  }
}

// The same for a row whose squares are larger than the type holds: mean in `*shift`, and the variance times unit^2.
template <class S, bool kAdds, bool kCentres>
__attribute__((noinline)) double layer_norm_large_variance(const S* x, const S* residual, int64_t cols, Acc<S>* shift,
                                                           Acc<S> unit) {
  double sum, square;
  if (kCentres) {
    layer_norm_sums<S, kAdds, false, true>(x, residual, nullptr, cols, *shift, &sum, &square, unit);
    *shift += (Acc<S>)(sum / (double)cols / unit);
  }
  layer_norm_sums<S, kAdds, false, true>(x, residual, nullptr, cols, *shift, &sum, &square, unit);
  return square / (double)cols;
}

}  // namespace

}  // namespace PF_ISA::norm
