// Sums, means and maxima over bags of rows, without the rows in between; and the gradient of a sum's factors.
#pragma once
#include "../core/memory.h"
#include "../core/parallel.h"
#include "indices.h"

namespace PF_ISA::embedding {

namespace {

constexpr int kBagVectors = kRegisters / 4;  // of a row, summed at once; twice as many registers
constexpr int64_t kBagChunk = 128;           // rows that are added to each other before they are to the rest

// A bag's places that are rows and no padding; false where one is no row, whose place is noted.
template <class I, class Params>
bool count_rows(const Params& p, int64_t bag, int64_t* count) {
  const I* indices = (const I*)p.indices;
  *count = 0;
  for (int64_t i = p.bounds[bag]; i < p.bounds[bag + 1]; i++) {
    if (!is_row(indices[i], p.rows)) return note_wrong(p.wrong, i), false;
    *count += indices[i] != p.padding;
  }
  return true;
}

template <class S, class I, int kVectors>
PF_INLINE void sum_bag(const EmbeddingBagFwd& p, int64_t bag, int64_t last_place, int64_t j, int64_t count,
                       Acc<S> scale, Vectors<kVectors>) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  constexpr int lanes = kLanes<T>;
  const I* indices = (const I*)p.indices;
  const auto row = [&](int64_t i) { return (const S*)p.weight + (int64_t)indices[i] * p.weight_row_stride + j; };
  V total[kVectors] = {};
  const int64_t end = p.bounds[bag + 1];
  for (int64_t first = p.bounds[bag]; first < end; first += kBagChunk) {
    V sum[kVectors] = {};
    for (int64_t i = first; i < min_of(end, first + kBagChunk); i++) {
      if (i + kAhead < last_place && is_row(indices[i + kAhead], p.rows)) prefetch_rows(row(i + kAhead), 0, 1, count);
      if (indices[i] == p.padding) continue;
      const S* x = row(i);
      const T factor = p.per_sample ? get((const S*)p.per_sample + i) : 1;
      PF_UNROLL
      for (int v = 0; v < kVectors; v++)
        sum[v] = fma((kVectors == 1 ? load_n(x, count) : load(x + v * lanes)), splat<V>(factor), sum[v]);
    }
    PF_UNROLL
    for (int v = 0; v < kVectors; v++) total[v] += sum[v];
  }
  S* y = (S*)p.y + bag * p.cols + j;
  PF_UNROLL
  for (int v = 0; v < kVectors; v++) {
    if (kVectors == 1)
      store_n(y, total[v] * scale, count);
    else
      store(y + v * lanes, total[v] * scale);
  }
}

// The first of equals wins, and NaN only where it is the first: as torch's.
template <class S, class I>
void largest_of_bag(const EmbeddingBagFwd& p, int64_t bag) {
  typedef Acc<S> T;
  constexpr int64_t width = 64;
  const I* indices = (const I*)p.indices;
  for (int64_t j = 0; j < p.cols; j += width) {
    const int64_t count = min_of(width, p.cols - j);
    T best[width] = {};
    int64_t winner[width];
    for (int64_t c = 0; c < count; c++) winner[c] = -1;
    bool is_first = true;
    for (int64_t i = p.bounds[bag]; i < p.bounds[bag + 1]; i++) {
      if (indices[i] == p.padding) continue;
      const S* x = (const S*)p.weight + (int64_t)indices[i] * p.weight_row_stride + j;
      for (int64_t c = 0; c < count; c++) {
        const T value = get(x + c);
        const bool wins = is_first || value > best[c];
        best[c] = wins ? value : best[c];
        winner[c] = wins ? i : winner[c];
      }
      is_first = false;
    }
    for (int64_t c = 0; c < count; c++) put((S*)p.y + bag * p.cols + j + c, best[c]);
    memcpy(p.winners + bag * p.cols + j, winner, count * sizeof(int64_t));
  }
}

template <class S, class I>
void fill_bags_of(const EmbeddingBagFwd& p, int64_t begin, int64_t end) {
  typedef Acc<S> T;
  for (int64_t bag = begin; bag < end; bag++) {
    int64_t* count = p.counts + bag;
    if (!count_rows<I>(p, bag, count)) return;
    if (p.mode == BagMode::max) {
      largest_of_bag<S, I>(p, bag);
      continue;
    }
    const T scale = p.mode == BagMode::mean && *count ? 1 / (T)*count : 1;
    in_vectors<kBagVectors, T>(0, p.cols, [&](int64_t j, int64_t columns, auto vectors) {
      sum_bag<S, I>(p, bag, p.bounds[end], j, columns, scale, vectors);
    });
  }
}

template <class S, class I>
void dot_bags(const EmbeddingBagDots& p, int64_t begin, int64_t end) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  const I* indices = (const I*)p.indices;
  for (int64_t bag = begin; bag < end; bag++) {
    int64_t count;
    if (!count_rows<I>(p, bag, &count)) return;
    const S* dy = (const S*)p.dy + bag * p.dy_row_stride;
    for (int64_t i = p.bounds[bag]; i < p.bounds[bag + 1]; i++) {
      T total = 0;
      if (indices[i] != p.padding) {
        const S* x = (const S*)p.weight + (int64_t)indices[i] * p.weight_row_stride;
        for (int64_t j0 = 0; j0 < p.cols; j0 += 1024) {
          V sum = {};
          const int64_t last = min_of(p.cols, j0 + 1024);
          for (int64_t j = j0; j < last; j += kLanes<T>)
            sum = fma(load_n(dy + j, last - j), load_n(x + j, last - j), sum);
          total += reduce_add(sum);
        }
      }
      put((S*)p.dper_sample + i, total);
    }
  }
}

// f(storage, index) on ranges of bags.
template <class Params, class F>
void over_bags(const Params& p, int num_threads, F f) {
  if (!are_bounds(p.bounds, p.bags, p.n, p.wrong_bag)) return;
  const int64_t of_a_bag = max_of(1, p.n / max_of(1, p.bags)) * max_of(1, p.cols);
  for_index_type(p.index_type, [&](auto index) {
    for_dtype(p.dtype, [&](auto storage) {
      parallel_ranges(p.bags, max_of(1, 2 * kElementwiseGrain / of_a_bag), num_threads,
                      [&](int64_t begin, int64_t end) { f(storage, index, begin, end); });
    });
  });
}

}  // namespace

void embedding_bag_fwd(const EmbeddingBagFwd& p, int num_threads) {
  over_bags(p, num_threads, [&](auto storage, auto index, int64_t begin, int64_t end) {
    fill_bags_of<decltype(storage), decltype(index)>(p, begin, end);
  });
}

void embedding_bag_dots(const EmbeddingBagDots& p, int num_threads) {
  over_bags(p, num_threads, [&](auto storage, auto index, int64_t begin, int64_t end) {
    dot_bags<decltype(storage), decltype(index)>(p, begin, end);
  });
  if (*p.wrong_bag >= 0) return;
  for_dtype(p.dtype, [&](auto storage) {
    const int64_t used = p.bounds[p.bags];
    memset((decltype(storage)*)p.dper_sample + used, 0, (p.n - used) * sizeof(storage));
  });
}

}  // namespace PF_ISA::embedding
