// Parameters of the linear kernels: y = activation(x weight^T + bias).
#pragma once
#include <stdint.h>

#include "dtype.h"

// weight [N, K], any strides, and how its panels are stored: arithmetic type, instruction set's own layout.
struct LinearPack {
  const void* weight;
  int64_t weight_row_stride, weight_column_stride;
  void* packed;  // LinearSizes::packed_bytes, 64-byte aligned
  int64_t n, k;
  Dtype dtype;
};

struct LinearFwd {
  const void* x;  // [M, K], dtype
  int64_t x_row_stride, x_column_stride;
  const void* weight;  // [N, K], dtype; not read when `packed` is given
  int64_t weight_row_stride, weight_column_stride;
  const void* packed;  // of LinearPack by the same instruction set, or null
  const void* bias;    // [M, N] with row stride 0 for [N], dtype, columns contiguous; or null
  int64_t bias_row_stride;
  void* y;          // [M, N], dtype, contiguous
  void* preact;     // like y: x weight^T + bias before the activation; or null
  void* workspace;  // LinearSizes::workspace_bytes, 64-byte aligned
  int64_t m, n, k;
  int32_t activation;  // row of the table, -1: none
  Dtype dtype;
};

// How much memory a LinearPack, or a LinearFwd with these fields and this number of threads, wants.
struct LinearSizes {
  LinearFwd fwd;
  int64_t* packed_bytes;
  int64_t* workspace_bytes;
};

// A hash of a weight's bits at `samples` places spread over all of it, of every element when there are fewer.
struct Fingerprint {
  const void* data;  // [rows, columns]
  int64_t rows, columns, row_stride, column_stride;
  int64_t samples;
  Dtype dtype;
  uint64_t* hash;
  // [samples]: the places, as elements behind `data`. To find them takes longer than to read what is there. Null: found
  // again; else, unless is_found, they are written here.
  int64_t* places;
  bool is_found;
};
