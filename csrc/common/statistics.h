// Sums and counts over the elements of a tensor, for each of its groups (its channels, its features, its steps in
// time).
#pragma once
#include <stdint.h>

#include "dtype.h"

// What is kept of a group, in this order, as doubles.
enum class Moment : int32_t {
  sum = 0,         // of the finite elements
  squares = 1,     // of their squares
  zeros = 2,       // elements that are 0
  outside = 3,     // elements <= low or >= high
  not_finite = 4,  // infinities and NaN
};
constexpr int kMoments = 5;

struct TensorStats {
  const void* x;                 // [outer, groups, inner], dtype, dense
  void* moments;                 // double [groups, kMoments]
  int64_t outer, groups, inner;  // elements
  double low, high;              // compared in the arithmetic type of dtype
  void* workspace;               // double [tensor_stats_parts, groups, kMoments]
  Dtype dtype;
};

// A tensor is summed in parts of its outer dimension (a single group: of its elements), and these in order: the result
// is the same for any number of threads.
constexpr int64_t kStatsChunk = 32768;  // elements
// Rows of a part. Its sums, kMoments doubles a group, are written and read again: of 64 rows that is a sixth of what is
// read of x itself.
static inline int64_t tensor_stats_rows(int64_t groups, int64_t inner) {
  const int64_t row = groups * inner, rows = row > 0 ? kStatsChunk / row : 1;
  return rows < 64 ? 64 : rows;
}
static inline int64_t tensor_stats_parts(int64_t outer, int64_t groups, int64_t inner) {
  const int64_t whole = groups == 1 ? outer * inner : outer;
  const int64_t part = groups == 1 ? kStatsChunk : tensor_stats_rows(groups, inner);
  return (whole + part - 1) / part;
}
