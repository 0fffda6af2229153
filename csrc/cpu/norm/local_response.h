// Local response normalisation. Windows are added up anew for each channel: a sum that slides would keep what it has
// rounded, and a NaN for ever. Where positions are adjacent (NCHW) a vector holds positions, and the channels of a
// window are rows in the first cache; where channels are, a vector holds channels, and a window shifted vectors of a
// copy that has zeros at both ends.
#pragma once
#include <math.h>

#include "../../common/local_response.h"
#include "../core/columns.h"
#include "../core/parallel.h"

namespace PF_ISA::norm {

namespace {

// s^beta of s >= 0. Quarters are of roots; others take the C library's, an element at a time.
template <class T>
struct ResponsePower {
  typedef Vec<T> V;
  double beta;
  int quarters;
  explicit ResponsePower(double beta)
      : beta(beta),
        quarters(beta == 0.25   ? 1
                 : beta == 0.5  ? 2
                 : beta == 0.75 ? 3
                 : beta == 1    ? 4
                                : 0) {}
  inline __attribute__((always_inline)) V of(V s) const {
    if (quarters == 4) return s;
    if (quarters) {
      const V root = square_root(s);
      if (quarters == 2) return root;
      const V fourth = square_root(root);
      return quarters == 1 ? fourth : root * fourth;
    }
    for (int i = 0; i < kLanes<T>; i++) s[i] = (T)::pow((double)s[i], beta);
    return s;
  }
};

// The positions [begin, end) of one sample, channel by channel; for a backward they are a block.
template <class S, bool kBackward>
void response_of_planes(const LocalResponse& p, int64_t sample, int64_t begin, int64_t end, Acc<S>* workspace) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  const int64_t channels = p.channels, step = p.positions, at = sample * channels * step;
  const int64_t block = local_response_block(channels);
  const S *x = (const S*)p.x + at, *dy = kBackward ? (const S*)p.dy + at : nullptr;
  S* to = (S*)p.to + at;
  T *shares = workspace, *own = workspace + channels * block;  // [channels, block]
  const ResponsePower<T> power(p.beta);
  const V scale = splat<V>((T)p.scale), k = splat<V>((T)p.k);
  for (int64_t c = 0; c < channels; c++) {
    const int64_t first = max_of(0, c - p.before), last = min_of(channels - 1, c + p.after);
    const S* ahead = x + min_of(last + 2, channels - 1) * step;  // rows of a plane are far apart for a prefetcher
    for_columns<T, 1>(begin, end, [&](int64_t j, auto count, int) {
      __builtin_prefetch(ahead + j);
      V sum = {};
      for (int64_t t = first; t <= last; t++) {
        const V neighbour = load_part(x + t * step + j, count);
        sum = fma(neighbour, neighbour, sum);
      }
      const V s = fma(sum, scale, k), d = power.of(s), value = load_part(x + c * step + j, count);
      if (!kBackward) return store_part(to + c * step + j, value / d, count);
      const V g = load_part(dy + c * step + j, count) / d;
      store(own + c * block + j - begin, g);
      store(shares + c * block + j - begin, g * value / s);
    });
  }
  if (!kBackward) return;
  const V factor = splat<V>((T)(-2 * p.scale * p.beta));
  for (int64_t c = 0; c < channels; c++) {
    const int64_t first = max_of(0, c - p.after), last = min_of(channels - 1, c + p.before);  // whose windows have c
    for_columns<T, 1>(begin, end, [&](int64_t j, auto count, int) {
      V sum = {};
      for (int64_t t = first; t <= last; t++) sum += load(shares + t * block + j - begin);
      const V value = load_part(x + c * step + j, count);
      store_part(to + c * step + j, fma(value * factor, sum, load(own + c * block + j - begin)), count);
    });
  }
}

template <class V, class T>
PF_INLINE V window_sum(const T* from, int64_t taps) {
  V sum = {};
  for (int64_t t = 0; t < taps; t++) sum += load(from + t);
  return sum;
}

// Rows [begin, end) of channels.
template <class S, bool kBackward>
void response_of_rows(const LocalResponse& p, int64_t begin, int64_t end, Acc<S>* workspace) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  const int64_t channels = p.channels, taps = p.before + 1 + p.after;
  const int64_t width = local_response_row(channels, p.before, p.after);
  memset(workspace, 0, 3 * width * sizeof(T));  // zeros at both ends are never written to
  T *squares = workspace, *shares = workspace + width, *own = workspace + 2 * width;
  const ResponsePower<T> power(p.beta);
  const V scale = splat<V>((T)p.scale), k = splat<V>((T)p.k), factor = splat<V>((T)(-2 * p.scale * p.beta));
  for (int64_t row = begin; row < end; row++) {
    const S *x = (const S*)p.x + row * channels, *dy = kBackward ? (const S*)p.dy + row * channels : nullptr;
    S* to = (S*)p.to + row * channels;
    for_columns<T, 1>(0, channels, [&](int64_t c, auto count, int) {
      const V value = load_part(x + c, count);
      store_part(squares + p.before + c, value * value, count);
    });
    for_columns<T, 1>(0, channels, [&](int64_t c, auto count, int) {
      const V s = fma(window_sum<V>(squares + c, taps), scale, k), d = power.of(s), value = load_part(x + c, count);
      if (!kBackward) return store_part(to + c, value / d, count);
      const V g = load_part(dy + c, count) / d;
      store_part(own + c, g, count);
      store_part(shares + p.after + c, g * value / s, count);
    });
    if (!kBackward) continue;
    for_columns<T, 1>(0, channels, [&](int64_t c, auto count, int) {
      const V value = load_part(x + c, count);
      store_part(to + c, fma(value * factor, window_sum<V>(shares + c, taps), load_part(own + c, count)), count);
    });
  }
}

template <class S, bool kBackward>
void response(const LocalResponse& p, int threads) {
  typedef Acc<S> T;
  const int64_t of_thread = local_response_workspace(p.channels, p.is_last, p.before, p.after);
  const auto workspace = [&] { return (T*)p.workspace + omp_get_thread_num() * of_thread; };
  const int64_t row_grain = max_of(1, kElementwiseGrain / max_of(1, p.channels));
  if (p.is_last)
    return parallel_ranges(p.batch * p.positions, row_grain, threads, [&](int64_t begin, int64_t end) {
      response_of_rows<S, kBackward>(p, begin, end, workspace());
    });
  const int64_t block = kBackward ? local_response_block(p.channels) : kResponseBlock;
  const int64_t blocks = ceil_div(p.positions, block);
  parallel_ranges(p.batch * blocks, max_of(1, row_grain / min_of(block, max_of(1, p.positions))), threads,
                  [&](int64_t begin, int64_t end) {
                    for (int64_t i = begin; i < end; i++) {
                      const int64_t first = i % blocks * block;
                      response_of_planes<S, kBackward>(p, i / blocks, first, min_of(p.positions, first + block),
                                                       workspace());
                    }
                  });
}

}  // namespace

void local_response(const LocalResponse& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    typedef decltype(storage) S;
    p.dy ? response<S, true>(p, num_threads) : response<S, false>(p, num_threads);
  });
}

}  // namespace PF_ISA::norm
