// Rows of a table, looked up by index; and the gradient of the table, a sum over the places where each row was looked
// up.
#pragma once
#include <stdint.h>

#include "dtype.h"

// Indices are int32 or int64. One that is not in [0, rows) is not followed: its place is left in `wrong`.
enum class IndexType : int32_t { i32 = 0, i64 = 1 };
constexpr int kIndexTypes = 2;

// y[i] = weight[indices[i]]: bytes are moved, whatever they mean.
struct EmbeddingFwd {
  const void* weight;                             // [rows, row_bytes], columns adjacent
  const void* indices;                            // [n], index_type
  void* y;                                        // [n, row_bytes], contiguous
  int64_t n, rows, row_bytes, weight_row_stride;  // the stride in bytes
  IndexType index_type;
  int64_t* wrong;  // in: -1; out: a place whose index is out of range, where there is one
};

// dweight[r] = sum of dy[i] over all i with indices[i] == r, in the order of i; rows that nobody looked up are zero.
struct EmbeddingBwd {
  const void* dy;                        // [n, cols], dtype, columns adjacent
  const void* indices;                   // [n], index_type
  void* dweight;                         // [rows, cols], dtype, contiguous
  int64_t* workspace;                    // embedding_bwd_workspace(n, rows)
  int64_t n, rows, cols, dy_row_stride;  // elements
  int64_t padding;                       // a row that gets no gradient; -1: none
  bool scale_by_frequency;               // the mean instead of the sum
  Dtype dtype;
  IndexType index_type;
  int64_t* wrong;
};

// Where the places of each row begin, then the places themselves, row by row.
static inline int64_t embedding_bwd_workspace(int64_t n, int64_t rows) { return rows + 2 + n; }

// y[i] = weight[indices[i]], scaled down to the norm max_norm where its norm is above it.
struct EmbeddingRenorm {
  const void* weight;   // [rows, cols], dtype, columns adjacent
  const void* indices;  // [n], index_type
  void* y;              // [n, cols], dtype, contiguous
  int64_t n, rows, cols, weight_row_stride;
  double max_norm, norm_type;  // the p-norm; infinities too
  Dtype dtype;
  IndexType index_type;
  int64_t* wrong;
};

// Pairs of elements turned by an angle that depends on the position: (a, b) -> (a cos - b sin, b cos + a sin).
struct Rotary {
  const void* x;          // rows of dim elements, dtype, adjacent; at three strides
  const void *cos, *sin;  // rows of half elements, double for double, else float, adjacent
  void* y;                // like x
  int64_t size[3];        // of what x has before its last dimension, the farthest apart first
  int64_t x_stride[3], y_stride[3], table_stride[3];
  int64_t dim, half;  // 2 half <= dim; what is behind is copied
  bool interleaved;   // a pair is two neighbours; else element i and element i + half
  bool inverse;       // the opposite angle
  Dtype dtype;
};
