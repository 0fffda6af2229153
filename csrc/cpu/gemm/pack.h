// Packing for gemm.h: panels of B, tiles of A, conversion to operands (simd/operand.h) on the way. `k` counts elements
// of a row of A; steps and depths count operands, of which the last may lack terms.
#pragma once
#include "../core/parallel.h"
#include "tile.h"

namespace PF_ISA::gemm {

constexpr int64_t kAhead = 8;  // rows, or vectors of a row: prefetchers do not follow short pieces of many rows

// Steps [begin, end) of B [k, n], of one panel's `columns` columns, into out[step][kPanel]; columns that are not there
// become zeros.
template <class S, class T>
void pack_panel(const S* b, int64_t row_stride, int64_t column_stride, int64_t begin, int64_t end, int64_t k,
                int64_t columns, T* out) {
  constexpr int lanes = kLanes<T>, terms = kTerms<T>;
  const int64_t whole = min_of(end, k / terms);  // steps with all their terms
  if (column_stride == 1) {
    int64_t step = begin;
    for (; step < whole && columns == kPanel<T>; step++) {
      const S* row = b + step * terms * row_stride;
      PF_UNROLL
      for (int v = 0; v < kTileVectors; v += terms) {
        PF_UNROLL
        for (int i = 0; i < terms; i++) __builtin_prefetch(row + (kAhead * terms + i) * row_stride + v * lanes);
        T* to = out + step * kPanel<T> + v * lanes;
        if constexpr (terms == 1)
          store(to, load(row + v * lanes));
        else
          interleave_rows(row + v * lanes, row + row_stride + v * lanes, to);
      }
    }
    for (; step < end; step++)
      for (int64_t c = 0; c < kPanel<T>; c += lanes)
        store(out + step * kPanel<T> + c, c < columns ? load_joined_n<T>(b + step * terms * row_stride + c, row_stride,
                                                                         k - step * terms, columns - c)
                                                      : Vec<T>{});
  } else if (row_stride == 1) {
    for (int64_t c = 0; c < kPanel<T>; c += lanes) {
      const int64_t there = max_of(0, min_of(lanes, columns - c));
      for (int64_t step = begin; step < end; step += lanes) {
        const int64_t count = min_of(lanes, end - step), left = min_of(end * terms, k) - step * terms;
        Vec<T> square[lanes];
        if (there == lanes && left >= lanes * terms) {
          PF_UNROLL
          for (int i = 0; i < lanes; i++) {
            const S* row = b + (c + i) * column_stride + step * terms;
            square[i] = load_operands_n<T>(row, lanes * terms);
            __builtin_prefetch(row + kAhead * lanes * terms);
          }
        } else {
          for (int i = 0; i < lanes; i++)
            square[i] = i < there ? load_operands_n<T>(b + (c + i) * column_stride + step * terms, left) : Vec<T>{};
        }
        transpose(square);
        if (count == lanes) {
          PF_UNROLL
          for (int i = 0; i < lanes; i++) store(out + (step + i) * kPanel<T> + c, square[i]);
        } else {
          for (int i = 0; i < count; i++) store(out + (step + i) * kPanel<T> + c, square[i]);
        }
      }
    }
  } else {
    for (int64_t step = begin; step < end; step++)
      for (int64_t c = 0; c < kPanel<T>; c++)
        out[step * kPanel<T> + c] = c < columns ? get_operand<T>(b + step * terms * row_stride + c * column_stride,
                                                                 row_stride, k - step * terms)
                                                : T{};
  }
}

// B [k, n] into panels [panel][step][kPanel].
template <class S, class T>
void pack_b(const S* b, int64_t row_stride, int64_t column_stride, int64_t k, int64_t n, T* out, int threads) {
  constexpr int64_t piece = 256;  // steps: 64 KB of a panel
  const int64_t panels = ceil_div(n, kPanel<T>), depth = ceil_div(k, kTerms<T>), pieces = ceil_div(depth, piece);
  parallel_ranges(panels * pieces, 4, threads, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
      const int64_t panel = i / pieces, begin = i % pieces * piece, column = panel * kPanel<T>;
      pack_panel(b + column * column_stride, row_stride, column_stride, begin, min_of(depth, begin + piece), k,
                 min_of(kPanel<T>, n - column), out + panel * depth * kPanel<T>);
    }
  });
}

// One tile of A, steps [begin, end), into to[step][row of tile].
template <class S, class T>
PF_INLINE void pack_tile(const S* a, int64_t row_stride, int64_t column_stride, int64_t tile, int64_t begin,
                         int64_t end, int64_t k, T* to) {
  constexpr int terms = kTerms<T>;
  for (int64_t r = 0; r < tile; r++)
    for (int64_t step = begin; step < end; step++)
      to[step * tile + r] =
          get_operand<T>(a + r * row_stride + step * terms * column_stride, column_stride, k - step * terms);
}
#ifdef PF_HAS_BF16_DOT
// The same of adjacent terms, which lie as they are read, or are rounded, many at a time.
template <class S>
PF_INLINE void pack_tile_of_rows(const S* a, int64_t row_stride, int64_t tile, int64_t begin, int64_t end, int64_t k,
                                 bf16_pair* to) {
  constexpr int lanes = kLanes<bf16_pair>;
  for (int64_t step = begin; step < end; step += lanes) {
    vu square[lanes];
    for (int i = 0; i < lanes; i++)
      square[i] = i < tile ? load_operands_n<bf16_pair>(a + i * row_stride + step * 2, k - step * 2) : vu{};
    transpose(square);
    for (int i = 0; i < min_of(lanes, end - step); i++) store_n(to + (step + i) * tile, square[i], tile);
  }
}
#endif

// Rows [0, rows) of A [rows, k] into tiles [tile][step][row of tile].
template <class S, class T>
void pack_a(const S* a, int64_t row_stride, int64_t column_stride, int64_t rows, int64_t depth, int64_t k, T* out) {
  // Few k at a time, those after them only in L2: rows a power of two apart fall into one set of L1, which holds eight.
  constexpr int64_t piece = 8;
  constexpr int terms = kTerms<T>;
#ifdef PF_HAS_BF16_DOT
  if constexpr (terms > 1)
    if (column_stride == 1) {
      for (int64_t i = 0, tile; i < rows; i += tile) {
        tile = next_tile_rows(rows - i);
        pack_tile_of_rows(a + i * row_stride, row_stride, tile, 0, depth, k, out + i * depth);
      }
      return;
    }
#endif
  for (int64_t begin = 0; begin < depth; begin += piece) {
    const int64_t end = min_of(depth, begin + piece);
    for (int64_t i = 0, tile; i < rows; i += tile) {
      tile = next_tile_rows(rows - i);
      const S* from = a + i * row_stride;
      T* to = out + i * depth;
      if (row_stride != 1 || tile != kTileRows) {
        pack_tile(from, row_stride, column_stride, tile, begin, end, k, to);
        continue;
      }
      for (int64_t step = begin; step < end; step++) {
        const S* row = from + step * terms * column_stride;
        for (int t = 0; t < terms; t++) __builtin_prefetch(row + (piece * terms + t) * column_stride, 0, 2);
        if constexpr (terms > 1) {
          const S* odd = k - step * terms > 1 ? row + column_stride : nullptr;
          interleave_few(row, odd, kTileRows, to + step * kTileRows);
        } else if constexpr (sizeof(S) == sizeof(T)) {
          __builtin_memcpy(to + step * kTileRows, row, kTileRows * sizeof(S));
        } else {
          for (int r = 0; r < kTileRows; r++) to[step * kTileRows + r] = get(row + r);
        }
      }
    }
  }
}

}  // namespace PF_ISA::gemm
