// Spectral norms of weights by power iteration, and weights divided by them. Miyato et al. 2018, arXiv:1802.05957.
#pragma once
#include <stdint.h>

#include "dtype.h"

// A weight as a matrix of `rows`: [outer, rows, inner] in memory, contiguous; column o * inner + i is its place (o, i).
struct SpectralMatrix {
  const void* weight;  // dtype
  int64_t outer, rows, inner;
};

struct SpectralLayer {
  SpectralMatrix of;
  const void *u, *v;      // [rows], [outer * inner], dtype
  void *next_u, *next_v;  // the same behind the iterations
  void* sigma;            // next_u . (weight next_v); float, double for double
  int64_t iterations;     // 0: of u and v as they are
  double eps;             // no vector is divided by less
};

struct SpectralSigma {
  const SpectralLayer* layers;
  int64_t count;
  void* workspace;  // spectral_elements of every layer, one behind the other, in the type of sigma
  Dtype dtype;
};

struct SpectralScale {
  SpectralMatrix of;
  const void* dy;     // like weight; null: the forward, which reads neither u nor v
  const void *u, *v;  // as sigma was computed with
  const void* sigma;
  void* to;         // like weight: weight / sigma, or its gradient dy / sigma - (dy . weight) / sigma^2 u v^T
  void* workspace;  // of the backward: spectral_scale_blocks doubles
  Dtype dtype;
};

// Rows that are summed in one piece, four at a time. From the sizes alone, so that the result does not depend on the
// number of threads; at most 32 pieces, each worth a thread's while.
static inline int64_t spectral_block_rows(const SpectralMatrix& of) {
  const int64_t cols = of.outer * of.inner, few = 1 + of.rows / 32, work = 65536 / (cols > 0 ? cols : 1);
  return ((few > work ? few : work) + 3) / 4 * 4;
}
static inline int64_t spectral_blocks(const SpectralMatrix& of) {
  const int64_t block = spectral_block_rows(of);
  return (of.rows + block - 1) / block;
}
// weight v, v itself, and the pieces' sums.
static inline int64_t spectral_elements(const SpectralMatrix& of) {
  return (of.rows + (1 + spectral_blocks(of)) * of.outer * of.inner + 15) / 16 * 16;
}

constexpr int64_t kSpectralScaleBlock = 32768;  // elements whose products are summed in one piece
static inline int64_t spectral_scale_blocks(const SpectralMatrix& of) {
  return (of.outer * of.rows * of.inner + kSpectralScaleBlock - 1) / kSpectralScaleBlock;
}
