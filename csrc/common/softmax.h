// Softmax over the middle dimension of [outer, n, inner], its logarithm, and softmax of -x. Rows of adjacent elements
// are inner = 1; columns have the elements of `inner` adjacent.
#pragma once
#include <stdint.h>

#include "dtype.h"

enum class SoftmaxKind : int32_t { softmax = 0, log_softmax = 1, softmin = 2 };
constexpr int kSoftmaxKinds = 3;

// Bytes in which a thread keeps what it has read of a row, or of a block of columns: a quarter of a second cache.
constexpr int64_t kSoftmaxKept = 256 << 10;

struct SoftmaxFwd {
  const void* x;    // [outer, n, inner], type `from`; with inner 1 the n adjacent, else the inner
  void* y;          // [outer, n, inner], type `to`, contiguous
  void* workspace;  // kSoftmaxKept bytes for each thread, aligned to 64
  int64_t outer, n, inner;
  int64_t x_outer_stride, x_step;  // elements; the step is that of n
  SoftmaxKind kind;
  Dtype from, to;  // one type, or from bf16 or f16 to f32
};

struct SoftmaxBwd {
  const void* dy;   // [outer, n, inner], type `from`; adjacent as x
  const void* y;    // the forward's result, like dy
  void* dx;         // [outer, n, inner], type `to`, contiguous
  void* workspace;  // as the forward's
  int64_t outer, n, inner;
  int64_t dy_outer_stride, dy_step, y_outer_stride, y_step;  // elements
  SoftmaxKind kind;
  Dtype from, to;  // one type, or from f32 to bf16 or f16
};
