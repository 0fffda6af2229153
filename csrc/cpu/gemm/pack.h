// Packing for gemm.h: panels of B, tiles of A, conversion to the arithmetic type on the way.
#pragma once
#include "../core/parallel.h"
#include "../simd/transpose.h"
#include "tile.h"

namespace PF_ISA::gemm {

constexpr int64_t kAhead = 8;  // rows, or vectors of a row: prefetchers do not follow short pieces of many rows

// B [k, n] (k_begin..k_end of one panel's `columns` columns) into out[k][kPanel]; columns that are not there become
// zeros.
template <class S>
void pack_panel(const S* b, int64_t row_stride, int64_t column_stride, int64_t k_begin, int64_t k_end, int64_t columns,
                Acc<S>* out) {
  typedef Acc<S> T;
  constexpr int lanes = kLanes<T>;
  if (column_stride == 1 && columns == kPanel<T>) {
    for (int64_t k = k_begin; k < k_end; k++) {
      const S* row = b + k * row_stride;
      PF_UNROLL
      for (int v = 0; v < kTileVectors; v++) {
        __builtin_prefetch(row + kAhead * row_stride + v * lanes);
        store(out + k * kPanel<T> + v * lanes, load(row + v * lanes));
      }
    }
  } else if (column_stride == 1) {
    for (int64_t k = k_begin; k < k_end; k++)
      for (int64_t c = 0; c < kPanel<T>; c += lanes)
        store(out + k * kPanel<T> + c, c < columns ? load_n(b + k * row_stride + c, columns - c) : Vec<T>{});
  } else if (row_stride == 1) {
    for (int64_t c = 0; c < kPanel<T>; c += lanes) {
      const int64_t there = max_of(0, min_of(lanes, columns - c));
      for (int64_t k = k_begin; k < k_end; k += lanes) {
        const int64_t count = min_of(lanes, k_end - k);
        Vec<T> square[lanes];
        if (there == lanes && count == lanes) {
          PF_UNROLL
          for (int i = 0; i < lanes; i++) {
            square[i] = load(b + (c + i) * column_stride + k);
            __builtin_prefetch(b + (c + i) * column_stride + k + kAhead * lanes);
          }
        } else {
          for (int i = 0; i < lanes; i++)
            square[i] = i < there ? load_n(b + (c + i) * column_stride + k, count) : Vec<T>{};
        }
        transpose(square);
        if (count == lanes) {
          PF_UNROLL
          for (int i = 0; i < lanes; i++) store(out + (k + i) * kPanel<T> + c, square[i]);
        } else {
          for (int i = 0; i < count; i++) store(out + (k + i) * kPanel<T> + c, square[i]);
        }
      }
    }
  } else {
    for (int64_t k = k_begin; k < k_end; k++)
      for (int64_t c = 0; c < kPanel<T>; c++)
        out[k * kPanel<T> + c] = c < columns ? get(b + k * row_stride + c * column_stride) : T(0);
  }
}

// B [k, n] into panels [panel][k][kPanel].
template <class S>
void pack_b(const S* b, int64_t row_stride, int64_t column_stride, int64_t k, int64_t n, Acc<S>* out, int threads) {
  typedef Acc<S> T;
  constexpr int64_t piece = 256;  // of K: 64 KB of a panel
  const int64_t panels = ceil_div(n, kPanel<T>), pieces = ceil_div(k, piece);
  parallel_ranges(panels * pieces, 4, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t panel = i / pieces, k_begin = i % pieces * piece, column = panel * kPanel<T>;
      pack_panel<S>(b + column * column_stride, row_stride, column_stride, k_begin, min_of(k, k_begin + piece),
                    min_of(kPanel<T>, n - column), out + panel * k * kPanel<T>);
    }
  });
}

// Rows [0, rows) of A, [0, k) into tiles [tile][k][row of tile].
template <class S>
void pack_a(const S* a, int64_t row_stride, int64_t column_stride, int64_t rows, int64_t k, Acc<S>* out) {
  // Few k at a time, those after them only in L2: rows a power of two apart fall into one set of L1, which holds eight.
  constexpr int64_t piece = 8;
  for (int64_t k_begin = 0; k_begin < k; k_begin += piece) {
    const int64_t k_end = min_of(k, k_begin + piece);
    for (int64_t i = 0, tile; i < rows; i += tile) {
      tile = next_tile_rows(rows - i);
      const S* from = a + i * row_stride;
      Acc<S>* to = out + i * k;
      if (row_stride == 1 && tile == kTileRows) {
        for (int64_t kk = k_begin; kk < k_end; kk++) {
          const S* row = from + kk * column_stride;
          __builtin_prefetch(row + piece * column_stride, 0, 2);
          if constexpr (sizeof(S) == sizeof(Acc<S>)) {
            __builtin_memcpy(to + kk * kTileRows, row, kTileRows * sizeof(S));
          } else {
            for (int r = 0; r < kTileRows; r++) to[kk * kTileRows + r] = get(row + r);
          }
        }
      } else {
        for (int64_t r = 0; r < tile; r++)
          for (int64_t kk = k_begin; kk < k_end; kk++)
            to[kk * tile + r] = get(from + r * row_stride + kk * column_stride);
      }
    }
  }
}

}  // namespace PF_ISA::gemm
