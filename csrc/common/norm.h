// LayerNorm over the rows of a matrix, with the sum before it (Ba et al. 2016, arXiv:1607.06450), and RMSNorm, which
// has no mean and no bias (Zhang & Sennrich 2019, arXiv:1910.07467).
#pragma once
#include <stdint.h>

#include "dtype.h"

struct LayerNormFwd {
  const void* x;         // [rows, cols], dtype; columns adjacent
  const void* residual;  // like x, or null
  const void* weight;    // [cols], type of rstd, or null
  const void* bias;      // [cols], type of rstd, or null
  void* y;               // [rows, cols], dtype, contiguous
  void* summed;          // [rows, cols], dtype, contiguous: x + residual; null without a residual
  void* mean;            // [rows], type of rstd; null: RMSNorm, without bias
  void* rstd;            // [rows], float, double for double
  int64_t rows, cols, x_row_stride, residual_row_stride;  // elements
  double eps;
  Dtype dtype;
};

struct LayerNormBwd {
  const void* dy;       // [rows, cols], dtype; columns adjacent
  const void* dsummed;  // like dy, added to dx; or null
  const void* x;        // [rows, cols], dtype: what was normalised; columns adjacent
  const void* weight;   // [cols], type of rstd, or null
  const void* mean;     // [rows], type of rstd; null: RMSNorm, without dbias
  const void* rstd;     // [rows], float, double for double
  void* dx;             // [rows, cols], dtype, contiguous; or null: not wanted
  void* dweight;        // [cols], type of rstd; or null
  void* dbias;          // [cols], type of rstd; or null
  void* workspace;      // layer_norm_bwd_blocks(rows, cols) * 2 * cols, type of rstd; null without dweight and dbias
  int64_t rows, cols, dy_row_stride, dsummed_row_stride, x_row_stride;
  Dtype dtype;
};

// Rows whose share of dweight and dbias is summed in one piece. From the sizes alone, so that the result does not
// depend on the number of threads; at most 256 pieces, each worth a thread's while.
static inline int64_t layer_norm_bwd_block_rows(int64_t rows, int64_t cols) {
  int64_t block = 32, few = (rows + 255) / 256, work = 32768 / (cols > 0 ? cols : 1);
  if (block < few) block = few;
  if (block < work) block = work;
  return (block + 3) / 4 * 4;
}
static inline int64_t layer_norm_bwd_blocks(int64_t rows, int64_t cols) {
  int64_t block = layer_norm_bwd_block_rows(rows, cols);
  return (rows + block - 1) / block;
}
