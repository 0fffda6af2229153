// The register tile of matrix products: a few rows by a panel of columns.
#pragma once
#include "../simd/register_tile.h"

namespace PF_ISA::gemm {

// 24 of 32 registers for sums, 4 for B; 12 of 16 and 2. Six rows keep panels a power of two wide.
constexpr int kTileRows = 6;
constexpr int kTileVectors = PF_VECTOR_BYTES == 64 ? 4 : 2;
static_assert(kTileRows * kTileVectors + kTileVectors + 1 <= kRegisters, "sums, a row of B and an element of A");
static_assert(kTileVectors % 2 == 0, "two rows of bf16 become two vectors of pairs: see pack_panel");
template <class T>
constexpr int kPanel = kTileVectors * kLanes<T>;

// How A lies: a(r, k) is a[r * a_stride + k], or a[k * a_stride + r], or a[k * kRows + r].
enum class Lies { by_row, by_column, packed };

// One tile, one chunk of K: sums into `strip` (rows of kPanel), from zero when `fresh`.
template <class T, int kRows, int kVectors, Lies kA>
__attribute__((noinline)) void register_tile(int64_t depth, const T* a, int64_t a_stride, const T* b, Acc<T>* strip,
                                             bool fresh) {
  Vec<Acc<T>> acc[kRows][kVectors];
  multiply_tile(acc, depth,
                RowFactors<T, kA == Lies::by_row ? kRowMajor : kColumnMajor>{a, kA == Lies::packed ? kRows : a_stride},
                ColumnFactors<T>{b, kPanel<T>});
  PF_UNROLL
  for (int r = 0; r < kRows; r++) {
    PF_UNROLL
    for (int v = 0; v < kVectors; v++) {
      Acc<T>* p = strip + r * kPanel<T> + v * kLanes<T>;
      store(p, fresh ? acc[r][v] : load(p) + acc[r][v]);
    }
  }
}

template <class T>
using Tile = void (*)(int64_t, const T*, int64_t, const T*, Acc<T>*, bool);

// The tile function of this many rows and vectors: [1, kTileRows] x [1, kTileVectors].
template <class T, Lies kA, int kRows = kTileRows, int kVectors = kTileVectors>
Tile<T> tile_of(int rows, int vectors) {
  if constexpr (kRows > 1)
    if (rows < kRows) return tile_of<T, kA, kRows - 1, kVectors>(rows, vectors);
  if constexpr (kVectors > 1)
    if (vectors < kVectors) return tile_of<T, kA, kRows, kVectors - 1>(rows, vectors);
  return register_tile<T, kRows, kVectors, kA>;
}

// Rows of the next tile when `left` are left: the last two share evenly, because a tile of one row starves for sums.
PF_INLINE int next_tile_rows(int64_t left) {
  return (int)(left >= 2 * kTileRows ? kTileRows : left > kTileRows ? ceil_div(left, 2) : left);
}

}  // namespace PF_ISA::gemm
