// Losses of rows of two or three tensors, which are compared by sums over their columns; summed or not, and their
// gradients.
#pragma once
#include <stdint.h>

#include "dtype.h"

// cosine_embedding, of two tensors and a target: 1 - cos where it is 1, max(0, cos - margin) where it is -1, else 0.
// triplet_margin, of an anchor, a positive and a negative: max(0, margin + |a - p| - |a - n|), or less the smaller one
// of |a - n| and |p - n|; |x| is the norm of x + eps.
enum class RowLossKind : int32_t { cosine_embedding = 0, triplet_margin = 1 };
constexpr int kRowLossKinds = 2;
constexpr int kRowLossTensors = 3;
constexpr int kRowLossSums = 3;

struct RowLoss {
  const void* rows[kRowLossTensors];  // [n, columns], dtype, columns adjacent
  int64_t strides[kRowLossTensors];   // elements from row to row
  const void* target;                 // [n], dtype: cosine_embedding's
  int64_t n, columns;
  RowLossKind kind;
  double margin, eps;
  bool is_squared;  // triplet_margin: is |x| the root of the squares, or the sum of absolute values
  bool is_swapped;  // triplet_margin: does |p - n| count
  bool is_reduced;
  Dtype dtype;
  Dtype loss_dtype;  // dtype, or float32 beside a half type
};

struct RowLossFwd {
  RowLoss of;
  void* loss;      // loss_dtype: one number, or [n]
  double* sums;    // [n, kRowLossSums]: a b, a a, b b; or of a - p, a - n, p - n
  double* chunks;  // workspace, row_loss_chunks
  double divisor;  // of the sum
};

struct RowLossBwd {
  RowLoss of;
  const void* dloss;  // like loss
  const double* sums;
  double divisor;
  void* gradients[kRowLossTensors];  // [n, columns], dtype, contiguous; null: not wanted
};

// Rows whose losses one thread sums, the same for any number of threads.
static inline int64_t row_loss_rows_of_chunk(int64_t columns) {
  return columns < 16384 ? 16384 / (columns > 0 ? columns : 1) : 1;
}
static inline int64_t row_loss_chunks(int64_t n, int64_t columns) {
  const int64_t rows = row_loss_rows_of_chunk(columns);
  return (n + rows - 1) / rows;
}
