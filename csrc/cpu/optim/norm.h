// The norm of many tensors as of one vector, and all of them times a number.
#pragma once
#include "../core/reductions.h"
#include "../core/widened.h"
#include "step.h"

namespace PF_ISA::optim {

namespace {

// NaN where either is.
template <class T>
PF_INLINE T larger(T a, T b) {
  return a > b || a != a ? a : b;
}

template <class S>
double squares_of(const S* x, int64_t n) {
  typedef Acc<S> T;
  constexpr int kHalves = 8 / (int)sizeof(T);
  vd sums[kChains] = {};
  for_columns<T, kChains / kHalves>(0, n, [&](int64_t i, auto count, int chain) {
    const Vec<T> v = load_part(x + i, count);
    PF_UNROLL
    for (int half = 0; half < kHalves; half++) {
      const vd wide = widened(v, half);
      sums[chain * kHalves + half] = fma(wide, wide, sums[chain * kHalves + half]);
    }
  });
  return reduce_add(sum_chains(sums));
}

template <class S>
double maximum_of(const S* x, int64_t n) {
  typedef Acc<S> T;
  Vec<T> largest[kChains] = {};
  for_columns<T, kChains>(0, n, [&](int64_t i, auto count, int chain) {
    largest[chain] = maximum(largest[chain], abs(load_part(x + i, count)));
  });
  const Vec<T> all = maximum(maximum(largest[0], largest[1]), maximum(largest[2], largest[3]));
  T found = 0;
  for (int i = 0; i < kLanes<T>; i++) found = larger(found, (T)all[i]);
  return found;
}

// In order: the same for any number of threads.
PF_INLINE double together(const double* chunks, int64_t count, NormKind kind) {
  double total = 0;
  for (int64_t i = 0; i < count; i++)
    total = kind == NormKind::euclidean ? total + chunks[i] : larger(total, chunks[i]);
  return total;
}

template <class S>
void norm_of(const TotalNorm& norm, int num_threads) {
  const TensorList chunks = {norm.chunks_before, norm.of.count, norm.of.dtype};
  const int64_t count = norm.chunks_before[norm.of.count];
  parallel_ranges(count, 1, num_threads, [&](int64_t begin, int64_t end) {
    for_tensors(chunks, begin, end, [&](int64_t i, int64_t first, int64_t last) {
      const int64_t n = norm.of.before[i + 1] - norm.of.before[i];
      for (int64_t chunk = first; chunk < last; chunk++) {
        const S* x = (const S*)norm.tensors[i] + chunk * kNormChunk;
        const int64_t rest = min_of(kNormChunk, n - chunk * kNormChunk);
        norm.chunks[norm.chunks_before[i] + chunk] =
            norm.kind == NormKind::euclidean ? squares_of(x, rest) : maximum_of(x, rest);
      }
    });
  });
  *norm.total = together(norm.chunks, count, norm.kind);
}

template <class S>
void scale_of(const ScaleTensors& scale, int num_threads) {
  typedef Acc<S> T;
  const T factor = (T)scale.factor;
  parallel_ranges(scale.of.before[scale.of.count], kElementwiseGrain, num_threads, [&](int64_t begin, int64_t end) {
    for_tensors(scale.of, begin, end, [&](int64_t i, int64_t first, int64_t last) {
      S* x = (S*)scale.tensors[i];
      for_columns<T, 1>(
          first, last, [&](int64_t j, auto count, int) { store_part(x + j, load_part(x + j, count) * factor, count); });
    });
  });
}

}  // namespace

void total_norm(const TotalNorm& norm, int num_threads) {
  for_dtype(norm.of.dtype, [&](auto storage) { norm_of<decltype(storage)>(norm, num_threads); });
}

void scale_tensors(const ScaleTensors& scale, int num_threads) {
  for_dtype(scale.of.dtype, [&](auto storage) { scale_of<decltype(storage)>(scale, num_threads); });
}

}  // namespace PF_ISA::optim
