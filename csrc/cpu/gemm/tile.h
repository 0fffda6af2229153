// The register tile of matrix products: a few rows by a panel of columns.
#pragma once
#include "../simd/vec.h"

namespace PF_ISA::gemm {

// 24 of 32 registers for sums, 4 for B; 12 of 16 and 2. Six rows keep panels a power of two wide.
constexpr int kTileRows = 6;
constexpr int kTileVectors = PF_VECTOR_BYTES == 64 ? 4 : 2;
static_assert(kTileRows * kTileVectors + kTileVectors + 1 <= kRegisters, "sums, a row of B and an element of A");
template <class T>
constexpr int kPanel = kTileVectors * kLanes<T>;

// acc[r][v] += sum over k of a(r, k) * b[k * kPanel + v * lanes]. a(r, k) is a[r * a_stride + k], or a[k * kRows + r]
// when packed. All loops but the one over k unroll; the accumulators stay in registers.
template <class T, int kRows, int kVectors, bool kPackedA>
PF_INLINE void accumulate(Vec<T> (&acc)[kRows][kVectors], int64_t count, const T* a, int64_t a_stride, const T* b) {
  typedef Vec<T> V;
  // Twice: the counting takes ports that the products want.
#pragma GCC unroll 2
  for (int64_t k = 0; k < count; k++) {
    V bk[kVectors];
    PF_UNROLL
    for (int v = 0; v < kVectors; v++) bk[v] = load(b + k * kPanel<T> + v * kLanes<T>);
    PF_UNROLL
    for (int r = 0; r < kRows; r++) {
      V ak = splat<V>(kPackedA ? a[k * kRows + r] : a[r * a_stride + k]);
      PF_UNROLL
      for (int v = 0; v < kVectors; v++) acc[r][v] = fma(ak, bk[v], acc[r][v]);
    }
  }
}

// One tile, one chunk of K: sums into `strip` (rows of kPanel), from zero when `fresh`.
template <class T, int kRows, int kVectors, bool kPackedA>
__attribute__((noinline)) void register_tile(int64_t count, const T* a, int64_t a_stride, const T* b, T* strip,
                                             bool fresh) {
  Vec<T> acc[kRows][kVectors];
  PF_UNROLL
  for (int r = 0; r < kRows; r++) PF_UNROLL
  for (int v = 0; v < kVectors; v++) acc[r][v] = Vec<T>{};
  accumulate<T, kRows, kVectors, kPackedA>(acc, count, a, a_stride, b);
  PF_UNROLL
  for (int r = 0; r < kRows; r++) {
    PF_UNROLL
    for (int v = 0; v < kVectors; v++) {
      T* p = strip + r * kPanel<T> + v * kLanes<T>;
      store(p, fresh ? acc[r][v] : load(p) + acc[r][v]);
    }
  }
}

template <class T>
using Tile = void (*)(int64_t, const T*, int64_t, const T*, T*, bool);

// The tile function of this many rows and vectors: [1, kTileRows] x [1, kTileVectors].
template <class T, bool kPackedA, int kRows = kTileRows, int kVectors = kTileVectors>
Tile<T> tile_of(int rows, int vectors) {
  if constexpr (kRows > 1)
    if (rows < kRows) return tile_of<T, kPackedA, kRows - 1, kVectors>(rows, vectors);
  if constexpr (kVectors > 1)
    if (vectors < kVectors) return tile_of<T, kPackedA, kRows, kVectors - 1>(rows, vectors);
  return register_tile<T, kRows, kVectors, kPackedA>;
}

// Rows of the next tile when `left` are left: the last two share evenly, because a tile of one row starves for sums.
PF_INLINE int next_tile_rows(int64_t left) {
  return (int)(left >= 2 * kTileRows ? kTileRows : left > kTileRows ? ceil_div(left, 2) : left);
}

}  // namespace PF_ISA::gemm
