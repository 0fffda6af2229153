// LayerNorm, forward with the residual sum before it, and backward. A row is read from memory once and stays in the
// first cache for the passes after that.

namespace {

// Elements summed in float before the sum goes on in double: accuracy of a short sum at the price of a long one.
constexpr int64_t kNormChunk = 1024;
constexpr int kNormChains = 4;  // independent sums, to hide the latency of an addition
constexpr int kNormRows = 4;    // rows whose part of dweight and dbias is added in registers

struct WholeVector {};
template <class S>
PF_INLINE Vec<Acc<S>> load_part(const S* p, WholeVector, Acc<S> = 0) {
  return load(p);
}
template <class S>  // a call: once a row at most, and the conversions of half types element by element are long
__attribute__((noinline)) Vec<Acc<S>> load_part(const S* p, int64_t count, Acc<S> fill = 0) {
  return load_n(p, count, fill);
}
template <class S>
PF_INLINE void store_part(S* p, Vec<Acc<S>> x, WholeVector) {
  store(p, x);
}
template <class S>
__attribute__((noinline)) void store_part(S* p, Vec<Acc<S>> x, int64_t count) {
  store_n(p, x, count);
}

// body(column, count, chain) over [begin, end), a vector at a time; count is WholeVector but for the last.
template <class T, int kChains, class Body>
PF_INLINE void for_columns(int64_t begin, int64_t end, Body body) {
  constexpr int lanes = kLanes<T>;
  int64_t j = begin;
  if constexpr (kChains > 1)
    for (; j + kChains * lanes <= end; j += kChains * lanes) {
      PF_UNROLL
      for (int chain = 0; chain < kChains; chain++) body(j + chain * lanes, WholeVector{}, chain);
    }
  for (; j + lanes <= end; j += lanes) body(j, WholeVector{}, 0);
  if (j < end) body(j, end - j, 0);
}

template <class V>
PF_INLINE double sum_chains(const V* chains) {
  return reduce_add((chains[0] + chains[1]) + (chains[2] + chains[3]));
}

template <class T, class Count>
PF_INLINE Vec<T> param(const T* p, int64_t j, Count count, T absent) {
  return p ? load_part(p + j, count) : splat<Vec<T>>(absent);
}

template <class S>
void layer_norm_fwd_rows(const LayerNormFwd& p, int64_t begin, int64_t end) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  const int64_t cols = p.cols;
  const T *weight = (const T*)p.weight, *bias = (const T*)p.bias;
  for (int64_t row = begin; row < end; row++) {
    const S* x = (const S*)p.x + row * p.x_row_stride;
    S* y = (S*)p.y + row * cols;
    double total = 0;
    for (int64_t j0 = 0; j0 < cols; j0 += kNormChunk) {
      V sum[kNormChains] = {};
      int64_t j1 = min_of(cols, j0 + kNormChunk);
      if (p.residual) {
        const S* residual = (const S*)p.residual + row * p.residual_row_stride;
        S* summed = (S*)p.summed + row * cols;
        for_columns<T, kNormChains>(j0, j1, [&](int64_t j, auto count, int chain) {
          V s = load_part(x + j, count) + load_part(residual + j, count);
          store_part(summed + j, s, count);
          sum[chain] += s;
        });
      } else {
        for_columns<T, kNormChains>(j0, j1,
                                    [&](int64_t j, auto count, int chain) { sum[chain] += load_part(x + j, count); });
      }
      total += sum_chains(sum);
    }
    if (p.residual) x = (const S*)p.summed + row * cols;

    // Deviations from the rounded mean; their own mean corrects both statistics, so a large mean costs no digits.
    const T shift = (T)(total / (double)cols);
    double deviation = 0, squares = 0;
    for (int64_t j0 = 0; j0 < cols; j0 += kNormChunk) {
      V sum[kNormChains] = {}, square[kNormChains] = {};
      for_columns<T, kNormChains>(j0, min_of(cols, j0 + kNormChunk), [&](int64_t j, auto count, int chain) {
        V d = load_part(x + j, count, shift) - shift;
        sum[chain] += d;
        square[chain] = fma(d, d, square[chain]);
      });
      deviation += sum_chains(sum);
      squares += sum_chains(square);
    }
    const double correction = deviation / (double)cols;
    double variance = squares / (double)cols - correction * correction;
    if (variance < 0) variance = 0;
    const T rstd = (T)(1 / __builtin_sqrt(variance + p.eps));
    const V scale = splat<V>(rstd), offset = splat<V>((T)(-correction) * rstd);
    for_columns<T, 1>(0, cols, [&](int64_t j, auto count, int) {
      V normal = fma(load_part(x + j, count) - shift, scale, offset);
      store_part(y + j, fma(normal, param<T>(weight, j, count, 1), param<T>(bias, j, count, 0)), count);
    });
    ((T*)p.mean)[row] = (T)(shift + correction);
    ((T*)p.rstd)[row] = rstd;
  }
}

// dx of kRows rows, and their part of dweight and dbias (added to, or the first to be written).
template <class S, bool kDx, bool kParams, int kRows>
PF_INLINE void layer_norm_bwd_rows(const LayerNormBwd& p, int64_t row, Acc<S>* dweight, Acc<S>* dbias, bool is_first) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  const int64_t cols = p.cols;
  const T* weight = (const T*)p.weight;
  const S *dy[kRows], *x[kRows];
  T mean[kRows], rstd[kRows], mean_g[kRows], mean_gx[kRows];  // of g = dy * weight, and of g times the normalised row
  for (int r = 0; r < kRows; r++) {
    dy[r] = (const S*)p.dy + (row + r) * p.dy_row_stride;
    x[r] = (const S*)p.x + (row + r) * p.x_row_stride;
    mean[r] = ((const T*)p.mean)[row + r];
    rstd[r] = ((const T*)p.rstd)[row + r];
    if (!kDx) continue;
    double total_g = 0, total_gx = 0;
    for (int64_t j0 = 0; j0 < cols; j0 += kNormChunk) {
      V sum_g[kNormChains] = {}, sum_gx[kNormChains] = {};
      for_columns<T, kNormChains>(j0, min_of(cols, j0 + kNormChunk), [&](int64_t j, auto count, int chain) {
        V g = load_part(dy[r] + j, count) * param<T>(weight, j, count, 1);
        sum_g[chain] += g;
        sum_gx[chain] = fma(g, load_part(x[r] + j, count, mean[r]) - mean[r], sum_gx[chain]);
      });
      total_g += sum_chains(sum_g);
      total_gx += sum_chains(sum_gx);
    }
    mean_g[r] = (T)(total_g / (double)cols);
    mean_gx[r] = (T)(total_gx * (double)rstd[r] / (double)cols);
  }
  for_columns<T, 1>(0, cols, [&](int64_t j, auto count, int) {
    V dw = {}, db = {}, w = param<T>(weight, j, count, 1);
    if (kParams && !is_first) dw = load_part(dweight + j, count), db = load_part(dbias + j, count);
    PF_UNROLL
    for (int r = 0; r < kRows; r++) {
      V g = load_part(dy[r] + j, count), normal = (load_part(x[r] + j, count) - mean[r]) * rstd[r];
      if (kParams) {
        dw = fma(g, normal, dw);
        db += g;
      }
      if (kDx) {
        // In this order no product is fused with mean_g, so that g - mean_g is exactly 0 where all g are equal.
        V dx = (g * w - normal * mean_gx[r] - mean_g[r]) * rstd[r];
        if (p.dsummed) dx += load_part((const S*)p.dsummed + (row + r) * p.dsummed_row_stride + j, count);
        store_part((S*)p.dx + (row + r) * cols + j, dx, count);
      }
    }
    if (kParams) store_part(dweight + j, dw, count), store_part(dbias + j, db, count);
  });
}

template <class S, bool kDx, bool kParams>
void layer_norm_bwd_all(const LayerNormBwd& p, int threads) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  const int64_t cols = p.cols, blocks = layer_norm_bwd_blocks(p.rows, cols);
  const int64_t block_rows = layer_norm_bwd_block_rows(p.rows, cols);
  T* partial = (T*)p.workspace;  // [blocks, 2, cols]
  parallel_ranges(blocks, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; block++) {
      T* dweight = kParams ? partial + block * 2 * cols : nullptr;
      T* dbias = kParams ? dweight + cols : nullptr;
      int64_t first = block * block_rows, last = min_of(p.rows, first + block_rows), row = first;
      for (; row + kNormRows <= last; row += kNormRows)
        layer_norm_bwd_rows<S, kDx, kParams, kNormRows>(p, row, dweight, dbias, row == first);
      for (; row < last; row++) layer_norm_bwd_rows<S, kDx, kParams, 1>(p, row, dweight, dbias, row == first);
    }
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

}  // namespace

void layer_norm_fwd(const LayerNormFwd& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    parallel_ranges(p.rows, max_of(1, kElementwiseGrain / max_of(1, p.cols)), num_threads,
                    [&](int64_t begin, int64_t end) { layer_norm_fwd_rows<decltype(storage)>(p, begin, end); });
  });
}

void layer_norm_bwd(const LayerNormBwd& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    typedef decltype(storage) S;
    const bool has_params = p.dweight || p.dbias;
    if (p.dx && has_params) layer_norm_bwd_all<S, true, true>(p, num_threads);
    if (p.dx && !has_params) layer_norm_bwd_all<S, true, false>(p, num_threads);
    if (!p.dx && has_params) layer_norm_bwd_all<S, false, true>(p, num_threads);
  });
}
