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

// dweight[r] = sum of dy[i] over all i with indices[i] == r, in the order of i; rows that nobody looked up are zero. Of
// bags, dy has a row a bag: place i counts with that of its bag, times per_sample[i], or over the bag's count, or where
// it won.
struct EmbeddingBwd {
  const void* dy;                        // [n, cols], dtype, columns adjacent; of bags [bags, cols]
  const void* indices;                   // [n], index_type
  void* dweight;                         // [rows, cols], dtype, contiguous
  int64_t* workspace;                    // embedding_bwd_workspace(n, rows, are there bags)
  int64_t n, rows, cols, dy_row_stride;  // elements
  int64_t padding;                       // a row that gets no gradient; -1: none
  bool scale_by_frequency;               // the mean instead of the sum
  const int64_t* bounds;                 // [bags + 1]: places where bags begin and end, ascending; null: no bags
  const void* per_sample;                // [n], dtype; or null
  const int64_t* counts;                 // [bags], of a mean; or null
  const int64_t* winners;                // [bags, cols]: which place gave the maximum, -1: none; or null
  int64_t bags;
  Dtype dtype;
  IndexType index_type;
  int64_t* wrong;
  int64_t* wrong_bag;  // in: -1; out: a bag whose bounds are not ascending or past n
};

// Where the places of each row begin, then the places themselves, row by row; of bags, then the bag of each place and
// its factor.
static inline int64_t embedding_bwd_workspace(int64_t n, int64_t rows, bool has_bags) {
  return rows + 2 + (has_bags ? 3 : 1) * n;
}

// y[b] = sum, mean or maximum of weight[indices[i]] over the places i of bag b, without those of `padding`; 0 of none.
enum class BagMode : int32_t { sum = 0, mean = 1, max = 2 };
constexpr int kBagModes = 3;

struct EmbeddingBagFwd {
  const void* weight;      // [rows, cols], dtype, columns adjacent
  const void* indices;     // [n], index_type
  const int64_t* bounds;   // [bags + 1]
  const void* per_sample;  // [n], dtype: what rows are multiplied by, of a sum; or null
  void* y;                 // [bags, cols], dtype, contiguous
  int64_t* counts;         // [bags]: places that are no padding
  int64_t* winners;        // [bags, cols], of a maximum
  int64_t n, rows, cols, bags, weight_row_stride, padding;
  BagMode mode;
  Dtype dtype;
  IndexType index_type;
  int64_t *wrong, *wrong_bag;
};

// dper_sample[i] = dy[bag of i] . weight[indices[i]]; 0 for padding and outside of all bags.
struct EmbeddingBagDots {
  const void* dy;         // [bags, cols], dtype, columns adjacent
  const void* weight;     // [rows, cols], dtype, columns adjacent
  const void* indices;    // [n], index_type
  const int64_t* bounds;  // [bags + 1]
  void* dper_sample;      // [n], dtype
  int64_t n, rows, cols, bags, dy_row_stride, weight_row_stride, padding;
  Dtype dtype;
  IndexType index_type;
  int64_t *wrong, *wrong_bag;
};

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
