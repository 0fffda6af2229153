// Products of the recurrent kernels: sums of a few rows and one panel of weights, both of operands (simd/operand.h).
//
// A panel holds, for each k, all gates of the same units side by side, so that the sums of a row hold everything its
// cells need: LSTM i|f|g|o of one vector of units, GRU r|z|n; plain RNN and the transposed weights of the backward four
// vectors of units. Between products the sums lie in a strip, kSlots vectors a row: GRU's n has two, one for x and one
// for h, which the reset gate keeps apart.
#pragma once
#include "../simd/register_tile.h"

namespace PF_ISA::recurrent {

constexpr int kSlots = 4;
template <class T>
constexpr int kStripRow = kSlots * kLanes<T>;
// 24 of 32 registers for sums; 12 of 16.
template <int kVectors>
constexpr int kTileRows = (PF_VECTOR_BYTES == 64 ? 24 : 12) / kVectors;

// One serial sum: shorter than gemm.h's, because the sums of several steps follow each other.
constexpr int64_t kChunk = 64;

// Operands of a row of so many elements.
template <class T>
PF_INLINE int64_t depth_of(int64_t elements) {
  return ceil_div(elements, kTerms<T>);
}

namespace {

// A vector of a row that a product will read: of pairs nothing after the last element, where they want a zero.
template <class T>
PF_INLINE void put_factors(Term<T>* to, Vec<Acc<T>> value, int64_t count) {
  if constexpr (kTerms<T> > 1)
    store_n(to, value, count);
  else
    store(to, value);
}

// strip += a [kRows, count] b [count, kVectors]. Few rows take kSplit sums each, which hides the latency of the
// additions; the last of three vectors is added to `last_slot`.
template <class T, int kRows, int kVectors>
__attribute__((noinline)) void register_tile(int64_t count, const T* a, int64_t a_stride, const T* b, Acc<T>* strip,
                                             int last_slot) {
  constexpr int split = kRows == 1 ? 4 : kRows * kVectors <= 12 && PF_VECTOR_BYTES == 64 ? 2 : 1, lanes = kLanes<T>;
  Vec<Acc<T>> sums[kRows][kVectors];
  multiply_tile<split>(sums, count, RowFactors<T, kRowMajor>{a, a_stride}, ColumnFactors<T>{b, kVectors * lanes});
  PF_UNROLL
  for (int r = 0; r < kRows; r++) {
    PF_UNROLL
    for (int v = 0; v < kVectors; v++) {
      Acc<T>* slot = strip + r * kStripRow<T> + (kVectors == 3 && v == 2 ? last_slot : v) * lanes;
      store(slot, load(slot) + sums[r][v]);
    }
  }
}

template <class T>
using Tile = void (*)(int64_t, const T*, int64_t, const T*, Acc<T>*, int);

template <class T, int kVectors, int kRows = kTileRows<kVectors>>
Tile<T> tile_of(int rows) {
  if constexpr (kRows > 1)
    if (rows < kRows) return tile_of<T, kVectors, kRows - 1>(rows);
  return register_tile<T, kRows, kVectors>;
}

struct Nothing {
  void operator()(int64_t) const {}
};

// strip [rows, kStripRow] += of [rows, elements] times one panel, in chunks of k. Rows of `of` are as far apart as
// whole operands reach, and zero after the last element there. meanwhile(i) comes before tile i: the time to ask for
// memory that is wanted afterwards.
template <class T, int kVectors, class Meanwhile = Nothing>
void product(const Term<T>* of, int64_t stride, int64_t rows, int64_t elements, const T* panel, Acc<T>* strip,
             int last_slot, Meanwhile meanwhile = {}) {
  constexpr int tile_rows = kTileRows<kVectors>;
  const T* a = (const T*)of;
  const int64_t a_stride = stride / kTerms<T>, count = depth_of<T>(elements);
  int64_t tiles = 0;
  for (int64_t k = 0; k < count; k += kChunk) {
    const int64_t chunk = min_of(kChunk, count - k);
    for (int64_t i = 0, tile; i < rows; i += tile) {
      const int64_t left = rows - i;  // the last two tiles share evenly
      tile = left >= 2 * tile_rows ? tile_rows : left > tile_rows ? ceil_div(left, 2) : left;
      meanwhile(tiles++);
      tile_of<T, kVectors>((int)tile)(chunk, a + i * a_stride + k, a_stride, panel + k * (kVectors * kLanes<T>),
                                      strip + i * kStripRow<T>, last_slot);
    }
  }
}

}  // namespace

}  // namespace PF_ISA::recurrent
