// to[b, c, r] = from[b, r, c]: a copy in another memory order, planes of channels to pixels and back. Bits are moved,
// whatever they stand for.
#pragma once
#include "../../common/core.h"
#include "../simd/transpose.h"
#include "parallel.h"

namespace PF_ISA::core {

namespace {

constexpr int64_t kStripBytes = 128 << 10;  // of `to`: lines that one square leaves half full are in the second cache
                                            // still when the next one fills them

// A vector of items; those of two bytes are in lanes of four.
template <class T>
struct Items {
  typedef Vec<T> V;
  PF_INLINE V load(const T* p) { return PF_ISA::load(p); }
  PF_INLINE void store(T* p, V x) { PF_ISA::store(p, x); }
};
template <>
struct Items<uint16_t> {
  typedef vf V;
  typedef uint16_t Half __attribute__((vector_size(PF_VECTOR_BYTES / 2)));
  PF_INLINE V load(const uint16_t* p) {
    Half half;
    memcpy(&half, p, sizeof(half));
    return (V) __builtin_convertvector(half, vu);
  }
  PF_INLINE void store(uint16_t* p, V x) {
    const Half half = __builtin_convertvector((vu)x, Half);
    memcpy(p, &half, sizeof(half));
  }
};

template <class T>
PF_INLINE void transpose_square(const T* from, int64_t from_stride, T* to, int64_t to_stride) {
  typedef typename Items<T>::V V;
  V square[kLanesOf<V>];
  PF_UNROLL
  for (int i = 0; i < kLanesOf<V>; i++) square[i] = Items<T>::load(from + i * from_stride);
  transpose(square);
  PF_UNROLL
  for (int i = 0; i < kLanesOf<V>; i++) Items<T>::store(to + i * to_stride, square[i]);
}

// Columns [begin, end) of a matrix [rows, cols]: as many squares side by side as are, then what is left.
template <class T>
void transpose_strip(const T* from, T* to, int64_t rows, int64_t cols, int64_t begin, int64_t end) {
  constexpr int64_t kAll = kLanesOf<typename Items<T>::V>;
  const int64_t whole_rows = rows / kAll * kAll, whole_end = begin + (end - begin) / kAll * kAll;
  for (int64_t r = 0; r < whole_rows; r += kAll)
    for (int64_t c = begin; c < whole_end; c += kAll)
      transpose_square(from + r * cols + c, cols, to + c * rows + r, rows);
  for (int64_t c = begin; c < end; c++)
    for (int64_t r = c < whole_end ? whole_rows : 0; r < rows; r++) to[c * rows + r] = from[r * cols + c];
}

template <class T>
void transpose_all(const Transposed& p, int threads) {
  constexpr int64_t kAll = kLanesOf<typename Items<T>::V>;
  const int64_t row_bytes = max_of(1, p.rows) * (int64_t)sizeof(T);
  const int64_t strip = max_of(1, kStripBytes / row_bytes / kAll) * kAll, strips = ceil_div(p.cols, strip);
  const int64_t grain = max_of(1, kElementwiseGrain / max_of(1, p.rows * min_of(strip, p.cols)));
  parallel_ranges(p.batch * strips, grain, threads, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
      const int64_t matrix = i / strips * p.rows * p.cols, begin = i % strips * strip;
      transpose_strip((const T*)p.from + matrix, (T*)p.to + matrix, p.rows, p.cols, begin,
                      min_of(p.cols, begin + strip));
    }
  });
}

}  // namespace

void transposed(const Transposed& p, int num_threads) {
  if (p.itemsize == 2)
    transpose_all<uint16_t>(p, num_threads);
  else if (p.itemsize == 4)
    transpose_all<float>(p, num_threads);
  else
    transpose_all<double>(p, num_threads);
}

}  // namespace PF_ISA::core
