// Vectors divided by their norm, or by eps where that is larger, and the backward of it; or divided by the root of the
// mean square and eps.
#pragma once
#include <stdint.h>

#include "dtype.h"

// Sum of magnitudes, root of squares, the largest; root of the mean square and eps.
enum class VectorNorm : int32_t { one = 0, two = 1, most = 2, mean = 3 };
constexpr int kVectorNorms = 4;

struct Normalize {
  const void* x;   // [outer, n, inner], dtype, contiguous: vectors of n elements, `inner` apart
  const void* dy;  // like x; null: the forward
  void* norm;      // [outer, inner], float, double for double: written by the forward, read by the backward
  void* to;        // like x: y, or dx
  int64_t outer, n, inner;
  VectorNorm kind;
  double eps;
  Dtype dtype;
};
