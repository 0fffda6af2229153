// LayerNorm and RMSNorm, forward with the residual sum before it, and backward. A row is read from memory once and
// stays in the first cache for the passes after that. RMSNorm (kCentres false) is LayerNorm with 0 in the mean's place,
// and without a bias.
#pragma once
#include "../../common/norm.h"
#include "rows.h"

namespace PF_ISA::norm {

namespace {

constexpr int kNormRows = 4;  // rows whose part of dweight and dbias is added in registers

// kStream: outputs go past the caches.
template <class S, bool kResidual, bool kCentres, bool kStream>
void layer_norm_fwd_rows(const LayerNormFwd& p, int64_t begin, int64_t end) {
  constexpr bool kAdds = kResidual && sizeof(S) != 2;
  // The sum is kept and read back; what goes past the caches is added again instead.
  constexpr bool kKeeps = kAdds && !kStream, kAddsAgain = kAdds && kStream;
  typedef Acc<S> T;
  typedef Vec<T> V;
  const int64_t cols = p.cols, first = min_of(cols, kLanes<T>);
  const double share = 1 / (double)cols;
  const T *weight = (const T*)p.weight, *bias = (const T*)p.bias;
  for (int64_t row = begin; row < end; row++) {
    const S* x = (const S*)p.x + row * p.x_row_stride;
    const S* residual = kResidual ? (const S*)p.residual + row * p.residual_row_stride : x;
    S* summed = kResidual ? (S*)p.summed + row * cols : nullptr;
    S* y = (S*)p.y + row * cols;

    // Asked for ahead of time, as the processor's own prefetch stops at the end of a page.
    const S* next_x = row + 1 < end ? x + p.x_row_stride : x;
    const S* next_residual = kResidual && row + 1 < end ? residual + p.residual_row_stride : x;
    if (kResidual && !kAdds) {  // half types: the norm is that of the rounded sum
      for_columns<T, 1>(0, cols, [&](int64_t j, auto count, int) {
        store_part(summed + j, load_part(x + j, count) + load_part(residual + j, count), count);
      });
      x = summed;
    }

    // Deviations from a guess of the mean, the first vector's. The variance is a difference, which costs digits only
    // when the guess was off by more than a standard deviation: then once more, from the mean.
    T shift = kCentres ? reduce_add(norm_input<S, kAdds>(x, residual, 0, first, 0)) / (T)first : 0;
    double sum, square;
    layer_norm_sums<S, kAdds, kKeeps>(x, residual, summed, cols, shift, &sum, &square);
    double correction = kCentres ? sum * share : 0, variance = square * share - correction * correction;
    if (kCentres && !(correction * correction <= variance)) {
      shift = (T)(shift + correction);
      layer_norm_sums<S, kAdds, false>(x, residual, summed, cols, shift, &sum, &square);
      correction = sum * share, variance = square * share - correction * correction;
      if (variance < 0) variance = 0;
    }
    double unit = 1;
    if (__builtin_isinf(square) && (!kCentres || __builtin_isfinite(sum))) {
      unit = sizeof(T) == 4 ? 0x1p-96 : 0x1p-700;
      variance = layer_norm_large_variance<S, kAdds, kCentres>(x, residual, cols, &shift, (T)unit), correction = 0;
    }
    const T rstd = (T)(unit / __builtin_sqrt(variance + p.eps * unit * unit));
    const S* from = kKeeps ? summed : x;
    const V scale = splat<V>(rstd), offset = splat<V>((T)(-correction * rstd));
    for_columns_down<T>(0, cols, [&](int64_t j, auto count) {
      __builtin_prefetch(next_x + j);
      if (kResidual) __builtin_prefetch(next_residual + j);
      V value = norm_input<S, kAddsAgain>(from, residual, j, count, 0);
      if (kAddsAgain) store_row<kStream>(summed + j, value, count);
      V xhat = kCentres ? fma(value - shift, scale, offset) : value * scale;
      V scaled = kCentres ? fma(xhat, param<T>(weight, j, count, 1), param<T>(bias, j, count, 0))
                          : xhat * param<T>(weight, j, count, 1);
      store_row<kStream>(y + j, scaled, count);
    });
    if (kCentres) ((T*)p.mean)[row] = (T)(shift + correction);
    ((T*)p.rstd)[row] = rstd;
  }
  if (kStream) stream_fence();
}

// Only whole aligned vectors of float are streamed.
template <class S, bool kResidual, bool kCentres>
void layer_norm_fwd_all(const LayerNormFwd& p, int threads) {
  int64_t bytes = p.rows * p.cols * (int64_t)sizeof(S) * (kResidual ? 4 : 2);
  bool is_aligned = p.cols % kLanes<Acc<S>> == 0 && ((uintptr_t)p.y | (uintptr_t)p.summed) % PF_VECTOR_BYTES == 0;
  parallel_ranges(p.rows, max_of(1, kElementwiseGrain / max_of(1, p.cols)), threads, [&](int64_t begin, int64_t end) {
    if constexpr (sizeof(S) == 4)
      if (bytes >= kStreamBytes && is_aligned) return layer_norm_fwd_rows<S, kResidual, kCentres, true>(p, begin, end);
    layer_norm_fwd_rows<S, kResidual, kCentres, false>(p, begin, end);
  });
}

// dx of kRows rows, and their part of dweight and dbias (added to, or the first to be written).
template <class S, bool kDx, bool kParams, bool kCentres, int kRows>
PF_INLINE void layer_norm_bwd_rows(const LayerNormBwd& p, int64_t row, Acc<S>* dweight, Acc<S>* dbias, bool is_first,
                                   bool has_next, bool is_streamed) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  const int64_t cols = p.cols;
  const double share = 1 / (double)cols;
  const T* weight = (const T*)p.weight;
  const S *dy[kRows], *x[kRows];
  T mean[kRows], rstd[kRows], mean_dxhat[kRows], mean_product[kRows];  // of dxhat = dy * weight, of dxhat * xhat
  for (int r = 0; r < kRows; r++) {
    dy[r] = (const S*)p.dy + (row + r) * p.dy_row_stride;
    x[r] = (const S*)p.x + (row + r) * p.x_row_stride;
    mean[r] = kCentres ? ((const T*)p.mean)[row + r] : 0;
    rstd[r] = ((const T*)p.rstd)[row + r];
    if (!kDx) continue;
    double total_dxhat = 0, total_product = 0;
    for (int64_t j0 = 0; j0 < cols; j0 += kNormChunk) {
      V sum_dxhat[kNormChains] = {}, sum_product[kNormChains] = {};
      for_columns<T, kNormChains>(j0, min_of(cols, j0 + kNormChunk), [&](int64_t j, auto count, int chain) {
        V dxhat = load_part(dy[r] + j, count) * param<T>(weight, j, count, 1);
        if (kCentres) sum_dxhat[chain] += dxhat;
        sum_product[chain] = fma(dxhat, load_part(x[r] + j, count, mean[r]) - mean[r], sum_product[chain]);
      });
      total_dxhat += sum_chains(sum_dxhat);
      total_product += sum_chains(sum_product);
    }
    mean_dxhat[r] = kCentres ? (T)(total_dxhat * share) : 0;
    mean_product[r] = (T)(total_product * (double)rstd[r] * share);
  }
  const int64_t next_dy = has_next ? kRows * p.dy_row_stride : 0, next_x = has_next ? kRows * p.x_row_stride : 0;
  for_columns_down<T>(0, cols, [&](int64_t j, auto count) {
    V dw = {}, db = {}, w = param<T>(weight, j, count, 1);
    if (kParams && !is_first) {
      dw = load_part(dweight + j, count);
      if (kCentres) db = load_part(dbias + j, count);
    }
    V dy_of[kRows], x_of[kRows];  // all loads before the first store, for the reason that for_columns_down has
    PF_UNROLL
    for (int r = 0; r < kRows; r++) dy_of[r] = load_part(dy[r] + j, count), x_of[r] = load_part(x[r] + j, count);
    PF_UNROLL
    for (int r = 0; r < kRows; r++) {
      // To the second cache: the first is full, and rows of 4 KB would push each other out of it.
      __builtin_prefetch(dy[r] + next_dy + j, 0, 2), __builtin_prefetch(x[r] + next_x + j, 0, 2);
      V xhat = (x_of[r] - mean[r]) * rstd[r];
      if (kParams) {
        dw = fma(dy_of[r], xhat, dw);
        if (kCentres) db += dy_of[r];
      }
      if (kDx) {
        // In this order no product is fused with mean_dxhat, so that their difference is exactly 0 where all of
        // dxhat is equal.
        V dx = (dy_of[r] * w - xhat * mean_product[r] - mean_dxhat[r]) * rstd[r];
        if (p.dsummed) dx += load_part((const S*)p.dsummed + (row + r) * p.dsummed_row_stride + j, count);
        S* out = (S*)p.dx + (row + r) * cols + j;
        if (is_streamed)
          store_row<true>(out, dx, count);
        else
          store_part(out, dx, count);
      }
    }
    if (kParams) {
      store_part(dweight + j, dw, count);
      if (kCentres) store_part(dbias + j, db, count);
    }
  });
}

template <class S, bool kDx, bool kParams, bool kCentres>
void layer_norm_bwd_all(const LayerNormBwd& p, int threads) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  const int64_t cols = p.cols, blocks = layer_norm_bwd_blocks(p.rows, cols);
  const int64_t block_rows = layer_norm_bwd_block_rows(p.rows, cols);
  const bool is_streamed = sizeof(S) == 4 && p.rows * cols * (int64_t)sizeof(S) * 3 >= kStreamBytes &&
                           cols % kLanes<T> == 0 && (uintptr_t)p.dx % PF_VECTOR_BYTES == 0;
  T* partial = (T*)p.workspace;  // [blocks, 2, cols]
  parallel_ranges(blocks, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; block++) {
      T* dweight = kParams ? partial + block * 2 * cols : nullptr;
      T* dbias = kParams ? dweight + cols : nullptr;
      int64_t first = block * block_rows, last = min_of(p.rows, first + block_rows), row = first;
      for (; row + kNormRows <= last; row += kNormRows)
        layer_norm_bwd_rows<S, kDx, kParams, kCentres, kNormRows>(p, row, dweight, dbias, row == first,
                                                                  row + 2 * kNormRows <= last, is_streamed);
      for (; row < last; row++)
        layer_norm_bwd_rows<S, kDx, kParams, kCentres, 1>(p, row, dweight, dbias, row == first, false, is_streamed);
    }
    if (is_streamed) stream_fence();
  });
  if (!kParams) return;
  parallel_ranges(cols, max_of(64, kElementwiseGrain / max_of(1, blocks) / 64 * 64), threads,
                  [&](int64_t begin, int64_t end) {
                    for (int which = 0; which < 2; which++) {
                      T* out = (T*)(which ? p.dbias : p.dweight);
                      if (!out) continue;
                      for_columns<T, 1>(begin, end, [&](int64_t j, auto count, int) {
                        V sum = {};
                        for (int64_t block = 0; block < blocks; block++)
                          sum += load_part(partial + (block * 2 + which) * cols + j, count);
                        store_part(out + j, sum, count);
                      });
                    }
                  });
}

template <bool kCentres>
void norm_fwd(const LayerNormFwd& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    if (p.residual) return layer_norm_fwd_all<decltype(storage), true, kCentres>(p, num_threads);
    layer_norm_fwd_all<decltype(storage), false, kCentres>(p, num_threads);
  });
}

template <bool kCentres>
void norm_bwd(const LayerNormBwd& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    typedef decltype(storage) S;
    const bool has_params = p.dweight || p.dbias;
    if (p.dx && has_params) layer_norm_bwd_all<S, true, true, kCentres>(p, num_threads);
    if (p.dx && !has_params) layer_norm_bwd_all<S, true, false, kCentres>(p, num_threads);
    if (!p.dx && has_params) layer_norm_bwd_all<S, false, true, kCentres>(p, num_threads);
  });
}

}  // namespace

void layer_norm_fwd(const LayerNormFwd& p, int num_threads) {
  p.mean ? norm_fwd<true>(p, num_threads) : norm_fwd<false>(p, num_threads);
}

void layer_norm_bwd(const LayerNormBwd& p, int num_threads) {
  p.mean ? norm_bwd<true>(p, num_threads) : norm_bwd<false>(p, num_threads);
}

}  // namespace PF_ISA::norm
