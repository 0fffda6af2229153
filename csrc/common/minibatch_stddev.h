// The minibatch's deviation as more channels of it: what a discriminator sees of how alike the samples of a group are.
#pragma once
#include <stdint.h>

#include "dtype.h"

// Sample g of group m is number g * groups + m. Of x it has `rows` rows of `shares` times n elements: the channels of a
// share at all places where channels come first (one row), those at one place where they come last. A row of y has what
// the row of x has, and behind it `extra` numbers for each share.
//   v and dy null   y = x, and the mean over a share of sqrt(var + eps), the variance over the samples of a group
//   dy              dx, the gradient; y is null
//   v and dy        y and dx, the gradients of dy and x for v, that of dx
struct MinibatchStddev {
  const void* x;   // [group, groups, rows, shares, n], dtype, dense
  const void* v;   // like x, or null
  const void* dy;  // [group, groups, rows, shares * n + shares * extra], dtype, dense; or null
  void* y;         // like dy, or null
  void* dx;        // like x, or null
  int64_t groups, group, rows, shares, n, extra;
  double eps;
  void* workspace;  // minibatch_stddev_workspace(...) bytes, aligned to 64
  Dtype dtype;
};

constexpr int64_t kStddevBlock = 4096;  // elements of each sample that are one unit of work

static inline int64_t minibatch_stddev_row_block(const MinibatchStddev& p) {
  return p.n < kStddevBlock ? kStddevBlock / (p.n > 0 ? p.n : 1) : 1;
}
static inline int64_t minibatch_stddev_blocks(const MinibatchStddev& p) {  // of a share of a group
  const int64_t row_block = minibatch_stddev_row_block(p);
  return (p.rows + row_block - 1) / row_block * ((p.n + kStddevBlock - 1) / kStddevBlock);
}
// In bytes: what each unit has summed, and a factor of each share of a group.
static inline int64_t minibatch_stddev_workspace(const MinibatchStddev& p) {
  return p.groups * p.shares * (minibatch_stddev_blocks(p) + 1) * (int64_t)sizeof(double);
}
