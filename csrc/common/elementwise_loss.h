// Losses of an input and a target, element by element, summed or not, and their gradients. The rows of the table:
// losses.inc.
#pragma once
#include <stdint.h>

#include "dtype.h"
#include "losses.h"

// A factor of each element, of a tensor that may have fewer: element i has number i / inner % count.
struct Factors {
  const void* values;  // [count], dtype; null: 1
  int64_t count, inner;
  Dtype dtype;
};

struct ElementwiseLoss {
  const void *x, *target;      // [n], dtype
  Factors weight, pos_weight;  // of a loss, and of its positive examples, where the row reads that
  int64_t n;
  int32_t row;
  double parameter;  // of the row; 0 where it has none
  bool is_reduced;
  Dtype dtype;
  Dtype loss_dtype;  // dtype, or float32 beside a half type
};

struct ElementwiseLossFwd {
  ElementwiseLoss of;
  void* loss;        // loss_dtype: one number, or [n]
  void* total;       // one double: what the sum was divided by
  void* chunks;      // 2 elementwise_loss_chunks doubles
  bool is_weighted;  // is the sum divided by that of the weights
  double divisor;    // or by this
};

struct ElementwiseLossBwd {
  ElementwiseLoss of;
  const void* dloss;  // like loss
  const void* total;
  void *dx, *dtarget;  // [n], dtype; null: not wanted
};

// Elements whose sum one thread makes: the same for any number of threads.
constexpr int64_t kElementwiseLossChunk = 16384;
static inline int64_t elementwise_loss_chunks(int64_t n) {
  return (n + kElementwiseLossChunk - 1) / kElementwiseLossChunk;
}
