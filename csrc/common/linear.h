// Parameters of the linear kernels: y = activation(x weight^T + bias).
#pragma once
#include <stdint.h>

#include "activation.h"
#include "dtype.h"

struct LinearFwd {
  const void* x;  // [M, K], dtype
  int64_t x_row_stride, x_column_stride;
  const void* weight;  // [N, K], dtype
  int64_t weight_row_stride, weight_column_stride;
  const void* bias;  // [M, N] with row stride 0 for [N], dtype, columns contiguous; or null
  int64_t bias_row_stride;
  void* y;          // [M, N], dtype, contiguous
  void* preact;     // like y: x weight^T + bias before the activation; or null
  void* workspace;  // LinearSizes::workspace_bytes, 64-byte aligned
  int64_t m, n, k;
  Activation activation;  // its row is -1: none
  Dtype dtype;
};

// `sums` takes a LinearFwd too: x weight^T + bias, where bias and y are of the accumulation type, without an activation
// or preact. A bias that is y adds to it.

// How much workspace a LinearFwd with these fields, whatever its row strides, and this number of threads wants.
struct LinearSizes {
  LinearFwd fwd;
  int64_t* workspace_bytes;
};
