// The loop of every matrix product here: a tile of sums that stays in registers. How many rows and vectors it has, and
// where its factors come from, is its user's to say.
#pragma once
#include "operand.h"

namespace PF_ISA {

enum Order { kRowMajor, kColumnMajor };  // element (r, k) is at [r * stride + k], or at [r + k * stride]

// What rows are multiplied with: operand (r, k), the same in all lanes.
template <class T, Order kOrder>
struct RowFactors {
  const T* at;
  int64_t stride;
  inline __attribute__((always_inline)) Vec<T> operator()(int r, int64_t k) const {
    return broadcast(kOrder == kRowMajor ? at + r * stride + k : at + r + k * stride);
  }
};
// What columns are multiplied with: vector v of row k.
template <class T>
struct ColumnFactors {
  const T* at;
  int64_t stride;
  inline __attribute__((always_inline)) Vec<T> operator()(int64_t k, int v) const {
    return load(at + k * stride + v * kLanes<T>);
  }
};

// One k.
template <class V, int kRows, int kVectors, class A, class B>
PF_INLINE void multiply_step(V (&sums)[kRows][kVectors], int64_t k, const A& a, const B& b) {
  decltype(b(k, 0)) row[kVectors];
  PF_UNROLL
  for (int v = 0; v < kVectors; v++) row[v] = b(k, v);
  PF_UNROLL
  for (int r = 0; r < kRows; r++) {
    const auto x = a(r, k);
    PF_UNROLL
    for (int v = 0; v < kVectors; v++) sums[r][v] = multiply_add(x, row[v], sums[r][v]);
  }
}

// sums[r][v] = sum over k in [0, depth) of a(r, k) b(k, v). A tile of few sums has kSplit of each, of every kSplit-th
// k, which hides the latency of the additions.
template <int kSplit = 1, class V, int kRows, int kVectors, class A, class B>
PF_INLINE void multiply_tile(V (&sums)[kRows][kVectors], int64_t depth, const A& a, const B& b) {
  V parts[kSplit][kRows][kVectors];
  PF_UNROLL
  for (int s = 0; s < kSplit; s++) PF_UNROLL
  for (int r = 0; r < kRows; r++) PF_UNROLL
  for (int v = 0; v < kVectors; v++) parts[s][r][v] = V{};
  int64_t k = 0;
  if constexpr (kSplit > 1) {
    for (; k + kSplit <= depth; k += kSplit) {
      PF_UNROLL
      for (int s = 0; s < kSplit; s++) multiply_step(parts[s], k + s, a, b);
    }
  }
#pragma GCC unroll 4  // the counting takes ports that the products want
  for (; k < depth; k++) multiply_step(parts[0], k, a, b);
  PF_UNROLL
  for (int r = 0; r < kRows; r++) {
    PF_UNROLL
    for (int v = 0; v < kVectors; v++) {
      sums[r][v] = parts[0][r][v];
      PF_UNROLL
      for (int s = 1; s < kSplit; s++) sums[r][v] += parts[s][r][v];
    }
  }
}

}  // namespace PF_ISA
