// Rows of adjacent elements. A row is read once, a chunk at a time, each chunk for its maximum and then, from the first
// cache, for its exponentials, which are counted from the maximum so far (Milakov & Gimelshein 2018, arXiv:1805.02867).
// They are kept where a row's fit into a quarter of the second cache; of longer rows, and for the logarithm, which has
// no use for them, the row is read again.
#pragma once
#include "vectors.h"

namespace PF_ISA::softmax {

namespace {

// The next row is asked for while this one is written, as the processor's own prefetch stops at the end of a page; of
// long rows both, and what is kept, would push each other out of the second cache.
constexpr int64_t kAskedFor = 64 << 10;  // bytes

template <class T>
constexpr int64_t kMostKept = kSoftmaxKept / (int64_t)sizeof(T);  // elements of a row

template <class From, class To, bool kLog, bool kKeeps>
PF_INLINE void softmax_row(const From* x, To* y, int64_t n, Acc<From> sign, Acc<From>* kept, int64_t ahead,
                           bool is_streamed) {
  typedef Acc<From> T;
  typedef Vec<T> V;
  const T nothing = -sign * (T)__builtin_inf();  // becomes -inf, whose exponential is 0
  const V signs = splat<V>(sign);
  T top = kLowest<T>, tops[kKeeps ? kMostKept<T> / kChunk : 1];  // the maximum so far; what each chunk counts from
  double sum = 0;
  for (int64_t j0 = 0; j0 < n; j0 += kChunk) {
    const int64_t j1 = min_of(n, j0 + kChunk);
    // NaN is no maximum here: its exponential makes the sum NaN, and with it the row.
    V most[kChains] = {splat<V>(top), splat<V>(top), splat<V>(top), splat<V>(top)}, sums[kChains] = {};
    for_columns<T, kChains>(j0, j1, [&](int64_t j, auto count, int chain) {
      most[chain] = max_fast(load_part(x + j, count, nothing) * signs, most[chain]);
    });
    const T own = reduce_max(max_fast(max_fast(most[0], most[1]), max_fast(most[2], most[3])));
    if (own > top) {
      if (j0) sum *= ::exp((double)top - (double)own);
      top = own;
    }
    if (kKeeps) tops[j0 / kChunk] = top;
    const V minus = splat<V>(-top);
    for_columns<T, kChains>(j0, j1, [&](int64_t j, auto count, int chain) {
      V e = exp(fma(load_part(x + j, count, nothing), signs, minus));
      sums[chain] += e;
      if (kKeeps) store(kept + j, e);  // also what is past the end, up to a whole vector
    });
    sum += (double)reduce_add(sum_chains(sums));
  }
  const V minus = splat<V>(-top), inverse = splat<V>((T)(1 / sum)), log_sum = splat<V>(kLog ? (T)::log(sum) : 0);
  const int64_t last = (n - 1) / kChunk * kChunk;
  for (int64_t j0 = last; j0 >= 0; j0 -= kChunk) {
    V factor = inverse;
    if (kKeeps) {
      const T own = tops[j0 / kChunk];
      if (own != top) factor = splat<V>((T)(::exp((double)own - (double)top) / sum));
    }
    for_columns_down<T>(j0, min_of(n, j0 + kChunk), [&](int64_t j, auto count) {
      __builtin_prefetch(x + ahead + j, 0, 2);
      V value;
      if (kKeeps) {
        value = load(kept + j) * factor;
      } else {
        value = fma(load_part(x + j, count, nothing), signs, minus);
        value = kLog ? value - log_sum : exp(value) * factor;
      }
      store_output(y + j, value, count, is_streamed);
    });
  }
}

template <class From, class To, bool kLog>
void softmax_fwd_rows(const SoftmaxFwd& p, int threads) {
  typedef Acc<From> T;
  const int64_t n = p.n;
  const T sign = p.kind == SoftmaxKind::softmin ? -1 : 1;
  const bool asks = n * (int64_t)sizeof(From) <= kAskedFor;
  const bool past = is_streamed<To>(p.y, p.outer * n * (int64_t)(sizeof(From) + sizeof(To)), n);
  parallel_ranges(p.outer, max_of(1, kElementwiseGrain / n), threads, [&](int64_t begin, int64_t end) {
    T* kept = (T*)((char*)p.workspace + omp_get_thread_num() * kSoftmaxKept);
    for (int64_t row = begin; row < end; row++) {
      const From* x = (const From*)p.x + row * p.x_outer_stride;
      To* y = (To*)p.y + row * n;
      const int64_t ahead = asks && row + 1 < end ? p.x_outer_stride : 0;
      if (!kLog && n <= kMostKept<T>)
        softmax_row<From, To, kLog, !kLog>(x, y, n, sign, kept, ahead, past);
      else
        softmax_row<From, To, kLog, false>(x, y, n, sign, kept, ahead, past);
    }
    if (past) stream_fence();
  });
}

template <class From, class To, bool kLog>
PF_INLINE void softmax_bwd_row(const From* dy, const From* y, To* dx, int64_t n, Acc<From> sign, int64_t dy_ahead,
                               int64_t y_ahead, bool is_streamed) {
  typedef Acc<From> T;
  typedef Vec<T> V;
  double total = 0;  // of dy, or of dy y
  for (int64_t j0 = 0; j0 < n; j0 += kChunk) {
    V sums[kChains] = {};
    for_columns<T, kChains>(j0, min_of(n, j0 + kChunk), [&](int64_t j, auto count, int chain) {
      V d = load_part(dy + j, count);
      sums[chain] = kLog ? sums[chain] + d : fma(d, load_part(y + j, count), sums[chain]);
    });
    total += (double)reduce_add(sum_chains(sums));
  }
  const V sum = splat<V>((T)total), signs = splat<V>(sign);
  for_columns_down<T>(0, n, [&](int64_t j, auto count) {
    __builtin_prefetch(dy + dy_ahead + j, 0, 2), __builtin_prefetch(y + y_ahead + j, 0, 2);
    V d = load_part(dy + j, count), of_y = load_part(y + j, count);
    store_output(dx + j, kLog ? d - exp(of_y) * sum : of_y * signs * (d - sum), count, is_streamed);
  });
}

template <class From, class To, bool kLog>
void softmax_bwd_rows(const SoftmaxBwd& p, int threads) {
  const int64_t n = p.n;
  const Acc<From> sign = p.kind == SoftmaxKind::softmin ? -1 : 1;
  const bool asks = n * (int64_t)sizeof(From) <= kAskedFor;
  const bool past = is_streamed<To>(p.dx, p.outer * n * (int64_t)(2 * sizeof(From) + sizeof(To)), n);
  parallel_ranges(p.outer, max_of(1, kElementwiseGrain / n), threads, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) {
      const bool has_next = asks && row + 1 < end;
      softmax_bwd_row<From, To, kLog>((const From*)p.dy + row * p.dy_outer_stride,
                                      (const From*)p.y + row * p.y_outer_stride, (To*)p.dx + row * n, n, sign,
                                      has_next ? p.dy_outer_stride : 0, has_next ? p.y_outer_stride : 0, past);
    }
    if (past) stream_fence();
  });
}

}  // namespace

}  // namespace PF_ISA::softmax
