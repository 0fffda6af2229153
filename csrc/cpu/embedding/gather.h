// Look-ups: rows copied as bytes, and rows scaled down to a norm.
#pragma once
#include "../core/memory.h"
#include "../core/parallel.h"
#include "indices.h"

namespace PF_ISA::embedding {

namespace {

constexpr int64_t kCopyGrain = 256 << 10;  // bytes: fewer are copied while another thread is called

PF_INLINE void copy_streamed(char* to, const char* from, int64_t bytes) {
  for (int64_t b = 0; b < bytes; b += PF_VECTOR_BYTES) store_stream((float*)(to + b), load((const float*)(from + b)));
}

template <class I>
void copy_rows(const EmbeddingFwd& p, int64_t begin, int64_t end, bool is_streamed) {
  const I* indices = (const I*)p.indices;
  const char* weight = (const char*)p.weight;
  const auto row = [&](int64_t i) { return weight + (int64_t)indices[i] * p.weight_row_stride; };
  for (int64_t i = begin; i < end; i++) {
    if (i + kAhead < end && is_row(indices[i + kAhead], p.rows)) prefetch_far(row(i + kAhead), p.row_bytes);
    if (!is_row(indices[i], p.rows)) {
      note_wrong(p.wrong, i);
      continue;
    }
    char* y = (char*)p.y + i * p.row_bytes;
    if (is_streamed)
      copy_streamed(y, row(i), p.row_bytes);
    else
      memcpy(y, row(i), p.row_bytes);
  }
  if (is_streamed) stream_fence();
}

// |x|^p summed, or what p says instead; pow() for other p than these, an element at a time.
template <class S>
Acc<S> norm_of(const S* x, int64_t cols, double p) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  constexpr int lanes = kLanes<T>, chunk = 1024;
  if (p == 2 || p == 1) {
    double total = 0;
    for (int64_t j0 = 0; j0 < cols; j0 += chunk) {
      V sum[2] = {};
      const int64_t last = min_of(cols, j0 + chunk);
      int chain = 0;
      for (int64_t j = j0; j < last; j += lanes, chain ^= 1) {
        const V v = load_n(x + j, last - j);
        sum[chain] += p == 2 ? v * v : abs(v);
      }
      total += (double)reduce_add(sum[0] + sum[1]);
    }
    return (T)(p == 2 ? sqrt((T)total) : total);
  }
  double total = p == -INFINITY ? INFINITY : 0;
  for (int64_t j = 0; j < cols; j++) {
    const double a = fabs((double)get(x + j));
    if (p == INFINITY)
      total = a > total || a != a ? a : total;
    else if (p == -INFINITY)
      total = a < total || a != a ? a : total;
    else
      total += p == 0 ? (a != 0) : pow(a, p);
  }
  return (T)(p == 0 || p == INFINITY || p == -INFINITY ? total : pow(total, 1 / p));
}

template <class S, class I>
void renormalised_rows(const EmbeddingRenorm& p, int64_t begin, int64_t end) {
  typedef Acc<S> T;
  const I* indices = (const I*)p.indices;
  for (int64_t i = begin; i < end; i++) {
    if (!is_row(indices[i], p.rows)) {
      note_wrong(p.wrong, i);
      continue;
    }
    const S* x = (const S*)p.weight + (int64_t)indices[i] * p.weight_row_stride;
    S* y = (S*)p.y + i * p.cols;
    const double norm = (double)norm_of(x, p.cols, p.norm_type);
    if (!(norm > p.max_norm)) {
      memcpy(y, x, p.cols * sizeof(S));
      continue;
    }
    const T scale = (T)(p.max_norm / (norm + 1e-7));  // torch's constant
    for (int64_t j = 0; j < p.cols; j += kLanes<T>) store_n(y + j, load_n(x + j, p.cols - j) * scale, p.cols - j);
  }
}

}  // namespace

void embedding_fwd(const EmbeddingFwd& p, int num_threads) {
  const bool is_streamed = p.n * p.row_bytes * 2 >= kStreamBytes && p.row_bytes % PF_VECTOR_BYTES == 0 &&
                           (uintptr_t)p.y % PF_VECTOR_BYTES == 0;
  const int64_t grain = max_of(1, kCopyGrain / max_of(1, p.row_bytes));
  for_index_type(p.index_type, [&](auto index) {
    parallel_ranges(p.n, grain, num_threads,
                    [&](int64_t begin, int64_t end) { copy_rows<decltype(index)>(p, begin, end, is_streamed); });
  });
}

void embedding_renorm(const EmbeddingRenorm& p, int num_threads) {
  const int64_t grain = max_of(1, kElementwiseGrain / max_of(1, p.cols));
  for_index_type(p.index_type, [&](auto index) {
    for_dtype(p.dtype, [&](auto storage) {
      parallel_ranges(p.n, grain, num_threads, [&](int64_t begin, int64_t end) {
        renormalised_rows<decltype(storage), decltype(index)>(p, begin, end);
      });
    });
  });
}

}  // namespace PF_ISA::embedding
