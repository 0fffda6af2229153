// The gradient of a table: places are sorted by the row that was looked up there (a counting sort, stable), then every
// row of the gradient is summed in registers and written once. The order of a sum is that of the places, whatever the
// number of threads.
#pragma once
#include "../core/memory.h"
#include "../core/parallel.h"
#include "indices.h"

namespace PF_ISA::embedding {

namespace {

constexpr int kSumVectors = kRegisters / 4;  // of a row, summed at once; twice as many registers
constexpr int64_t kSumChunk = 128;           // terms that are added to each other before they are to the rest
constexpr int64_t kTaskBytes = 256 << 10;    // of the gradient: what a thread takes at a time
constexpr int64_t kTaskCols = 512;           // of a row that many places look up, a thread sums so much

// starts[r] to starts[r + 1]: what of `places` looked up row r; starts has one element more, which the sort works with.
// False, and nothing of use in them, where an index is out of range.
template <class I>
bool sort_by_row(const EmbeddingBwd& p, int64_t n, int64_t* starts, int64_t* places) {
  const I* indices = (const I*)p.indices;
  memset(starts, 0, (p.rows + 2) * sizeof(int64_t));
  for (int64_t i = 0; i < n; i++) {
    if (!is_row(indices[i], p.rows)) {
      note_wrong(p.wrong, i);
      return false;
    }
    starts[(int64_t)indices[i] + 2] += indices[i] != p.padding;
  }
  for (int64_t r = 0; r < p.rows; r++) starts[r + 2] += starts[r + 1];
  for (int64_t i = 0; i < n; i++)
    if (indices[i] != p.padding) places[starts[(int64_t)indices[i] + 1]++] = i;
  return true;
}

// What the sums read: the places, sorted, and of bags which row of dy a place counts with, and how much.
struct Sorted {
  const int64_t *starts, *places, *bags;
  const void* factors;
  int64_t row_of(int64_t k) const { return bags ? bags[places[k]] : places[k]; }
};

template <class S>
void fill_bags(const EmbeddingBwd& p, int64_t* bags, Acc<S>* factors) {
  typedef Acc<S> T;
  for (int64_t bag = 0; bag < p.bags; bag++) {
    const T factor = p.counts && p.counts[bag] ? 1 / (T)p.counts[bag] : 1;
    for (int64_t i = p.bounds[bag]; i < p.bounds[bag + 1]; i++) {
      bags[i] = bag;
      factors[i] = p.per_sample ? get((const S*)p.per_sample + i) : factor;
    }
  }
}

template <bool kStream, class S>
PF_INLINE void store_zeros(S* p, int64_t count) {
  if (!kStream) {
    memset(p, 0, count * sizeof(S));
    return;
  }
  for (int64_t b = 0; b < count * (int64_t)sizeof(S); b += PF_VECTOR_BYTES) store_stream((float*)((char*)p + b), vf{});
}

// dweight[j .. j + count) of a row that places [begin, end) looked up.
template <class S, bool kBags, int kVectors>
PF_INLINE void sum_columns(const EmbeddingBwd& p, const Sorted& of, int64_t begin, int64_t end, int64_t ahead,
                           int64_t j, int64_t count, S* out, Vectors<kVectors>) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  constexpr int lanes = kLanes<T>;
  const auto row = [&](int64_t k) { return (const S*)p.dy + of.row_of(k) * p.dy_row_stride + j; };
  V total[kVectors] = {};
  for (int64_t first = begin; first < end; first += kSumChunk) {
    V sum[kVectors] = {};
    for (int64_t k = first; k < min_of(end, first + kSumChunk); k++) {
      const S* dy = row(k);
      if (k + kAhead < ahead) prefetch_rows(row(k + kAhead), 0, 1, count);
      const T factor = kBags ? ((const T*)of.factors)[of.places[k]] : 1;
      PF_UNROLL
      for (int v = 0; v < kVectors; v++) {
        const V term = kVectors == 1 ? load_n(dy, count) : load(dy + v * lanes);
        sum[v] += kBags ? term * factor : term;
      }
    }
    PF_UNROLL
    for (int v = 0; v < kVectors; v++) total[v] += sum[v];
  }
  const T scale = p.scale_by_frequency ? 1 / (T)(end - begin) : 1;
  PF_UNROLL
  for (int v = 0; v < kVectors; v++) {
    if (kVectors == 1)
      store_n(out, total[v] * scale, count);
    else
      store(out + v * lanes, total[v] * scale);
  }
}

// The same of a maximum: only where the place is the one that won.
template <class S>
void sum_where_won(const EmbeddingBwd& p, const Sorted& of, int64_t begin, int64_t end, int64_t from, int64_t to,
                   S* out) {
  typedef Acc<S> T;
  constexpr int64_t width = 64;
  for (int64_t j = from; j < to; j += width) {
    const int64_t count = min_of(width, to - j);
    T total[width] = {};
    for (int64_t k = begin; k < end; k++) {
      const S* dy = (const S*)p.dy + of.row_of(k) * p.dy_row_stride + j;
      const int64_t *winner = p.winners + of.row_of(k) * p.cols + j, place = of.places[k];
      for (int64_t c = 0; c < count; c++) total[c] += winner[c] == place ? get(dy + c) : 0;
    }
    for (int64_t c = 0; c < count; c++) put(out + j + c, total[c]);
  }
}

// Columns [from, to) of rows [begin, end).
template <class S, bool kBags, bool kStream>
void sum_rows(const EmbeddingBwd& p, const Sorted& of, int64_t begin, int64_t end, int64_t from, int64_t to) {
  for (int64_t r = begin; r < end; r++) {
    S* out = (S*)p.dweight + r * p.cols;
    const int64_t first = of.starts[r], last = of.starts[r + 1], ahead = of.starts[end];
    if (first == last) {
      store_zeros<kStream>(out + from, to - from);
    } else if (kBags && p.winners) {
      sum_where_won(p, of, first, last, from, to, out);
    } else {
      in_vectors<kSumVectors, Acc<S>>(from, to, [&](int64_t j, int64_t count, auto vectors) {
        sum_columns<S, kBags>(p, of, first, last, ahead, j, count, out + j, vectors);
      });
    }
  }
  if (kStream) stream_fence();
}

template <class S, bool kBags>
void sum_all_rows(const EmbeddingBwd& p, const Sorted& of, int threads) {
  const int64_t row_bytes = p.cols * (int64_t)sizeof(S), bytes = p.rows * row_bytes;
  const bool is_streamed =
      bytes >= kStreamBytes && row_bytes % PF_VECTOR_BYTES == 0 && (uintptr_t)p.dweight % PF_VECTOR_BYTES == 0;
  const int64_t task_cols = min_of(p.cols, kTaskCols), column_tasks = ceil_div(p.cols, max_of(1, task_cols));
  const int64_t task_rows = max_of(1, kTaskBytes / max_of(1, task_cols * (int64_t)sizeof(S)));
  const int64_t row_tasks = ceil_div(p.rows, task_rows);
  if ((p.rows + p.n) * p.cols < 4 * kElementwiseGrain) threads = 1;
  parallel_tasks(row_tasks * column_tasks, threads, [&](int64_t task, int) {
    const int64_t begin = task / column_tasks * task_rows, from = task % column_tasks * task_cols;
    const int64_t end = min_of(p.rows, begin + task_rows), to = min_of(p.cols, from + task_cols);
    if (is_streamed)
      sum_rows<S, kBags, true>(p, of, begin, end, from, to);
    else
      sum_rows<S, kBags, false>(p, of, begin, end, from, to);
  });
}

}  // namespace

void embedding_bwd(const EmbeddingBwd& p, int num_threads) {
  if (p.bounds && !are_bounds(p.bounds, p.bags, p.n, p.wrong_bag)) return;
  const int64_t n = p.bounds ? p.bounds[p.bags] : p.n;  // what is behind the last bag counts nowhere
  int64_t *starts = p.workspace, *places = starts + p.rows + 2, *bags = places + p.n, *factors = bags + p.n;
  bool is_sorted = false;
  for_index_type(p.index_type, [&](auto index) { is_sorted = sort_by_row<decltype(index)>(p, n, starts, places); });
  if (!is_sorted) return;
  for_dtype(p.dtype, [&](auto storage) {
    typedef decltype(storage) S;
    if (!p.bounds) return sum_all_rows<S, false>(p, {starts, places, nullptr, nullptr}, num_threads);
    fill_bags<S>(p, bags, (Acc<S>*)factors);
    sum_all_rows<S, true>(p, {starts, places, bags, factors}, num_threads);
  });
}

}  // namespace PF_ISA::embedding
