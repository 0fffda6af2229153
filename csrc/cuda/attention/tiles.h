// Tiles of rows in shared memory, how they get there, and products of them.
//
// A row's pieces of 16 bytes are swizzled: piece c of row r lies at place c ^ (r % 8), so that the eight rows that
// ldmatrix reads at once, and the eight that a warp writes, lie in different banks.
//
// A lane holds of a tile of products [16, 8] the elements (lane / 4, lane % 4 * 2) and the next, then those eight rows
// below, as mma has them. Such a tile of 16-bit numbers is, two by two, a left operand.
#pragma once
#include "schedule.h"

namespace pf::cuda::attention {

constexpr int kPiece = 8;  // elements of 16 bits

template <int kD>
__device__ __forceinline__ int place_in_tile(int row, int piece) {
  return row * kD + (piece ^ (row & 7)) * kPiece;
}
// Of the piece `further` than that of a place, of a row `down` eights below: one exclusive or, and a constant. The
// pieces' bits must not overlap.
template <int kD>
__device__ __forceinline__ int place_from(int place, int further, int down = 0) {
  return (place ^ further * kPiece) + down * 8 * kD;
}

// How rows of a tensor may be read: by 16 bytes, or one by one.
struct Access {
  int64_t column_stride;
  bool is_aligned;
};
inline Access access_of(const void* data, const Strides4& stride, int64_t columns) {
  bool aligned = stride.dim[3] == 1 && columns % kPiece == 0;
  for (int i = 0; i < 3; i++) aligned = aligned && is_aligned(data, stride.dim[i], 2);
  return {stride.dim[3], aligned};
}

// kRows rows, each kD columns; row_at(row) is its first element, or null. What is not there is zeros.
template <int kRows, int kD, class T, class RowAt>
__device__ __forceinline__ void load_tile(T* to, int columns, const Access& access, RowAt row_at) {
  constexpr int kPieces = kD / kPiece, kAtOnce = kThreads / kPieces;
  static_assert(kThreads % kPieces == 0 && kRows % kAtOnce == 0, "all threads do the same");
  const int piece = (int)threadIdx.x % kPieces;
  PF_UNROLL_BY(1)  // else the addresses of all rows are kept in registers
  for (int first = 0; first < kRows; first += kAtOnce) {
    const int row = first + (int)threadIdx.x / kPieces;
    const T* const from = row_at(row);
    T* const at = to + place_in_tile<kD>(row, piece);
    if (access.is_aligned) {
      const bool is_there = from && piece * kPiece < columns;
      copy_async<16>(at, is_there ? from + piece * kPiece : from, is_there);
    } else {
      PF_UNROLL_BY(1)
      for (int i = 0; i < kPiece; i++) {
        const int column = piece * kPiece + i;
        at[i] = from && column < columns ? from[column * access.column_stride] : T{0};
      }
    }
  }
}
// Rows [first, first + kRows) of a head's matrix, whose row 0 is at `from`; there are `rows`.
template <int kRows, int kD, class T>
__device__ __forceinline__ void load_rows(T* to, const T* from, int64_t row_stride, int first, int rows, int columns,
                                          const Access& access) {
  load_tile<kRows, kD>(to, columns, access,
                       [&](int row) { return first + row < rows ? from + (first + row) * row_stride : nullptr; });
}

// ---- products, of a warp

// sums[m][n] += rows of a, from first_row on, times rows of b: [16 m, kD] [8 n, kD]^T.
template <class T, int kD, int kRowTiles, int kColumnTiles>
__device__ __forceinline__ void add_row_products(float (&sums)[kRowTiles][kColumnTiles][4], const T* a, int first_row,
                                                 const T* b) {
  const int lane = (int)threadIdx.x % kWarp;
  const int of_a = place_in_tile<kD>(first_row + lane % 16, lane / 16);
  const int of_b = place_in_tile<kD>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
  PF_UNROLL_BY(2)
  for (int k = 0; k < kD / 16; k++) {
    uint32_t left[kRowTiles][4];
    PF_UNROLL_ALL
    for (int m = 0; m < kRowTiles; m++) load_matrices<4>(left[m], a + place_from<kD>(of_a, 2 * k, 2 * m));
    PF_UNROLL_ALL
    for (int n = 0; n < kColumnTiles; n += 2) {
      uint32_t right[4];
      load_matrices<4>(right, b + place_from<kD>(of_b, 2 * k, n));
      PF_UNROLL_ALL
      for (int m = 0; m < kRowTiles; m++) {
        multiply_add<T>(sums[m][n], left[m], {right[0], right[1]});
        multiply_add<T>(sums[m][n + 1], left[m], {right[2], right[3]});
      }
    }
  }
}

// sums[m][n] += weights, rounded to T, times the rows of b that their columns count: [16 m, 8 k] [8 k, kD].
template <class T, int kD, int kRowTiles, int kTerms>
__device__ __forceinline__ void add_weighted_rows(float (&sums)[kRowTiles][kD / 8][4],
                                                  const float (&weights)[kRowTiles][kTerms][4], const T* b) {
  const int lane = (int)threadIdx.x % kWarp, of_b = place_in_tile<kD>(lane % 16, lane / 16);
  PF_UNROLL_ALL
  for (int k = 0; k < kTerms; k += 2) {
    uint32_t left[kRowTiles][4];
    PF_UNROLL_ALL
    for (int m = 0; m < kRowTiles; m++) PF_UNROLL_ALL
    for (int i = 0; i < 4; i++)
      left[m][i] = pair_of<T>(weights[m][k + i / 2][i % 2 * 2], weights[m][k + i / 2][i % 2 * 2 + 1]);
    PF_UNROLL_ALL
    for (int n = 0; n < kD / 8; n += 2) {
      uint32_t right[4];
      load_matrices_transposed<4>(right, b + place_from<kD>(of_b, n, k));
      PF_UNROLL_ALL
      for (int m = 0; m < kRowTiles; m++) {
        multiply_add<T>(sums[m][n], left[m], {right[0], right[1]});
        multiply_add<T>(sums[m][n + 1], left[m], {right[2], right[3]});
      }
    }
  }
}

// A warp's sums to memory by way of its own rows of a tile. factor(m, half): what a lane's row is multiplied by;
// row_at(row): where a row of the warp goes, or null.
template <class T, int kD, int kRowTiles, class Factor, class RowAt>
__device__ __forceinline__ void store_sums(const float (&sums)[kRowTiles][kD / 8][4], T* tile, int first_row,
                                           int columns, bool is_aligned, Factor factor, RowAt row_at) {
  const int lane = (int)threadIdx.x % kWarp;
  __syncwarp();  // other lanes may have loaded from these rows; ldmatrix orders no memory
  PF_UNROLL_ALL
  for (int m = 0; m < kRowTiles; m++) PF_UNROLL_ALL
  for (int half = 0; half < 2; half++) {
    const float by = factor(m, half);
    const int row = first_row + 16 * m + 8 * half + lane / 4;
    PF_UNROLL_ALL
    for (int n = 0; n < kD / 8; n++)
      *(uint32_t*)(tile + place_in_tile<kD>(row, n) + lane % 4 * 2) =
          pair_of<T>(sums[m][n][2 * half] * by, sums[m][n][2 * half + 1] * by);
  }
  __syncwarp();
  constexpr int kPieces = kD / kPiece;
  PF_UNROLL_BY(1)
  for (int i = lane; i < 16 * kRowTiles * kPieces; i += kWarp) {
    const int row = i / kPieces, piece = i % kPieces, left = columns - piece * kPiece;
    T* const to = row_at(row);
    if (!to || left <= 0) continue;
    const T* const from = tile + place_in_tile<kD>(first_row + row, piece);
    if (is_aligned) {
      *as_vector<Chunk<T, kPiece>>(to + piece * kPiece) = *as_vector<Chunk<T, kPiece>>(from);
    } else {
      PF_UNROLL_BY(1)
      for (int j = 0; j < kPiece && j < left; j++) to[piece * kPiece + j] = from[j];
    }
  }
}

}  // namespace pf::cuda::attention
