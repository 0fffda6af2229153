// Dropout of whole channels, and dropout that keeps mean and variance (alpha dropout). Channels are drawn first, into a
// vector of factors; elements are drawn where they are used.
#pragma once
#include "dropout.h"

namespace PF_ISA::pointwise {

namespace {

// What the elements from 64 `block` on are multiplied by, and what is added to them.
template <class T>
PF_INLINE void draw_factors(const DropoutForm& p, int64_t block, T* factors, T* shifts) {
  vu words[kDropoutBlock / kF32];
  dropout_words(block, (uint32_t)*p.seed, (uint32_t)((uint64_t)*p.seed >> 32), words);
  uint32_t word[kDropoutBlock] __attribute__((aligned(64)));
  memcpy(word, words, sizeof word);
  for (int i = 0; i < kDropoutBlock; i++) factors[i] = word[i] >= p.drop_below ? (T)p.keep_scale : 0;
  for (int i = 0; i < kDropoutBlock; i++) shifts[i] = (T)(word[i] >= p.drop_below ? p.kept_shift : p.dropped_shift);
}

template <class S, bool kShift>
void drop_elements(const DropoutForm& p, int64_t n, int64_t begin, int64_t end) {
  typedef Acc<S> T;
  for (int64_t block = begin; block < end; block++) {
    T factors[kDropoutBlock] __attribute__((aligned(64))), shifts[kDropoutBlock] __attribute__((aligned(64)));
    draw_factors(p, block, factors, shifts);
    const int64_t first = block * kDropoutBlock, last = min_of(kDropoutBlock, n - first);
    const S* x = (const S*)p.x + first;
    S* y = (S*)p.y + first;
    for (int64_t i = 0; i < last; i += kLanes<T>) {
      Vec<T> result = load_n(x + i, last - i) * load(factors + i);
      if (kShift) result += load(shifts + i);  // 0 would take the sign of a zero
      store_n(y + i, result, last - i);
    }
  }
}

template <class T>
void draw_channels(const DropoutForm& p) {
  const int64_t channels = p.batch * p.channels;
  T* factors = (T*)p.factors;
  for (int64_t block = 0; block < ceil_div(channels, kDropoutBlock); block++) {
    T drawn[kDropoutBlock], shifts[kDropoutBlock];
    draw_factors(p, block, drawn, shifts);
    const int64_t first = block * kDropoutBlock;
    memcpy(factors + first, drawn, min_of(kDropoutBlock, channels - first) * sizeof(T));
  }
}

// A row of elements of one channel, or of neighbouring channels: `factor` gives each vector's.
template <bool kShift, class S, class F>
PF_INLINE void drop_row(const DropoutForm& p, const S* x, S* y, int64_t count, F factor) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  const V kept = splat<V>((T)p.kept_shift), dropped = splat<V>((T)p.dropped_shift);
  for (int64_t i = 0; i < count; i += kLanes<T>) {
    const V f = factor(i);
    V result = load_n(x + i, count - i) * f;
    if (kShift) result += select(f != 0, kept, dropped);
    store_n(y + i, result, count - i);
  }
}

template <class S, bool kShift>
void drop_channels(const DropoutForm& p, int num_threads) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  draw_channels<T>(p);
  const int64_t cols = p.is_channels_last ? p.channels : p.inner;
  const int64_t rows = p.batch * (p.is_channels_last ? p.inner : p.channels);
  const T* factors = (const T*)p.factors;
  parallel_ranges(rows, max_of(1, kElementwiseGrain / max_of(1, cols)), num_threads, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) {
      const S* x = (const S*)p.x + row * cols;
      S* y = (S*)p.y + row * cols;
      if (p.is_channels_last) {
        const T* of_sample = factors + row / p.inner * p.channels;
        drop_row<kShift>(p, x, y, cols, [&](int64_t i) { return load_n(of_sample + i, cols - i); });
      } else {
        const V f = splat<V>(factors[row]);
        drop_row<kShift>(p, x, y, cols, [&](int64_t) { return f; });
      }
    }
  });
}

}  // namespace

void dropout_form(const DropoutForm& p, int num_threads) {
  const bool has_shift = p.kept_shift != 0 || p.dropped_shift != 0;
  const int64_t n = p.batch * p.channels * p.inner;
  for_dtype(p.dtype, [&](auto storage) {
    typedef decltype(storage) S;
    if (p.factors) return has_shift ? drop_channels<S, true>(p, num_threads) : drop_channels<S, false>(p, num_threads);
    parallel_ranges(ceil_div(n, kDropoutBlock), kElementwiseGrain / kDropoutBlock, num_threads,
                    [&](int64_t begin, int64_t end) {
                      has_shift ? drop_elements<S, true>(p, n, begin, end) : drop_elements<S, false>(p, n, begin, end);
                    });
  });
}

}  // namespace PF_ISA::pointwise
