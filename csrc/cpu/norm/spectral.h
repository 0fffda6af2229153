// Spectral norms of all layers of a model in one region, and a weight divided by its own.
//
// An iteration is u = W v / |W v|, then v = W^T u / |W^T u|. Both come of one walk over the rows of W: s_r = W_r . v,
// and with the row still in a cache t += s_r W_r. Then u = s / |s|, v = t / |t|, and sigma = u . (W v) = |t| / |s|: no
// third walk.
#pragma once
#include "../../common/spectral.h"
#include "rows.h"

namespace PF_ISA::norm {

namespace {

constexpr int kSpectralRows = 4;  // walked together: they share the loads of v and t

// A layer's part of the workspace.
template <class T>
struct SpectralWork {
  T *s, *v, *parts;
  SpectralWork(const SpectralMatrix& of, T* at) : s(at), v(at + of.rows), parts(v + of.outer * of.inner) {}
};

// s = W v of the rows [row, row + kRows), and, unless t is null, t += s W.
template <class S, int kRows>
PF_INLINE void spectral_rows(const SpectralMatrix& of, int64_t row, const Acc<S>* v, Acc<S>* s, Acc<S>* t) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  const int64_t inner = of.inner, stride = of.rows * inner, group = max_of(1, kNormChunk / inner);
  const S* w = (const S*)of.weight + row * inner;
  double totals[kRows] = {};
  for (int64_t o0 = 0; o0 < of.outer; o0 += group)
    for (int64_t j0 = 0; j0 < inner; j0 += kNormChunk) {
      V sums[kRows] = {};
      for (int64_t o = o0; o < min_of(of.outer, o0 + group); o++)
        for_columns<T, 1>(j0, min_of(inner, j0 + kNormChunk), [&](int64_t j, auto count, int) {
          const V along = load_part(v + o * inner + j, count);
          PF_UNROLL
          for (int r = 0; r < kRows; r++)
            sums[r] = fma(load_part(w + o * stride + r * inner + j, count), along, sums[r]);
        });
      for (int r = 0; r < kRows; r++) totals[r] += (double)reduce_add(sums[r]);
    }
  V factors[kRows];
  for (int r = 0; r < kRows; r++) s[row + r] = (T)totals[r], factors[r] = splat<V>((T)totals[r]);
  if (!t) return;
  for (int64_t o = 0; o < of.outer; o++)
    for_columns<T, 1>(0, inner, [&](int64_t j, auto count, int) {
      V sum = load_part(t + o * inner + j, count);
      PF_UNROLL
      for (int r = 0; r < kRows; r++) sum = fma(load_part(w + o * stride + r * inner + j, count), factors[r], sum);
      store_part(t + o * inner + j, sum, count);
    });
}

template <class S>
void spectral_block(const SpectralLayer& p, const SpectralWork<Acc<S>>& work, int64_t block) {
  typedef Acc<S> T;
  const int64_t size = spectral_block_rows(p.of), cols = p.of.outer * p.of.inner;
  const int64_t end = min_of(p.of.rows, (block + 1) * size);
  T* t = p.iterations ? work.parts + block * cols : nullptr;
  if (t) memset(t, 0, (size_t)cols * sizeof(T));
  int64_t row = block * size;
  for (; row + kSpectralRows <= end; row += kSpectralRows)
    spectral_rows<S, kSpectralRows>(p.of, row, work.v, work.s, t);
  for (; row < end; row++) spectral_rows<S, 1>(p.of, row, work.v, work.s, t);
}

template <class T>
PF_INLINE double sum_of_products(const T* a, const T* b, int64_t n) {
  double total = 0;
  for (int64_t j0 = 0; j0 < n; j0 += kNormChunk) {
    Vec<T> sums[kNormChains] = {};
    for_columns<T, kNormChains>(j0, min_of(n, j0 + kNormChunk), [&](int64_t j, auto count, int chain) {
      sums[chain] = fma(load_part(a + j, count), load_part(b + j, count), sums[chain]);
    });
    total += sum_chains(sums);
  }
  return total;
}

template <class S, class T>
PF_INLINE void divided(const T* from, double divisor, int64_t n, S* to) {
  const Vec<T> divisors = splat<Vec<T>>((T)divisor);
  for_columns_down<T>(0, n,
                      [&](int64_t j, auto count) { store_part(to + j, load_part(from + j, count) / divisors, count); });
}

PF_INLINE double at_least(double norm, double eps) { return norm < eps ? eps : norm; }  // NaN stays

// What is left of an iteration when the pieces are there.
template <class S>
void spectral_close(const SpectralLayer& p, const SpectralWork<Acc<S>>& work, bool is_last) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  const int64_t rows = p.of.rows, cols = p.of.outer * p.of.inner, blocks = spectral_blocks(p.of);
  const double s_norm = at_least(__builtin_sqrt(sum_of_products(work.s, work.s, rows)), p.eps);
  const V divisor = splat<V>((T)s_norm);
  for_columns<T, 1>(0, cols, [&](int64_t j, auto count, int) {
    V sum = {};
    for (int64_t block = 0; block < blocks; block++) sum += load_part(work.parts + block * cols + j, count);
    store_part(work.v + j, sum / divisor, count);
  });
  const double square = sum_of_products(work.v, work.v, cols), t_norm = at_least(__builtin_sqrt(square), p.eps);
  divided(work.v, t_norm, cols, work.v);
  if (!is_last) return;
  divided(work.s, s_norm, rows, (S*)p.next_u);
  divided(work.v, 1, cols, (S*)p.next_v);
  *(T*)p.sigma = (T)(square / t_norm);
}

// Without an iteration.
template <class S>
void spectral_read(const SpectralLayer& p, const SpectralWork<Acc<S>>& work) {
  typedef Acc<S> T;
  const int64_t rows = p.of.rows, cols = p.of.outer * p.of.inner;
  double sigma = 0;
  for (int64_t r = 0; r < rows; r++) sigma += (double)get((const S*)p.u + r) * (double)work.s[r];
  memcpy(p.next_u, p.u, (size_t)rows * sizeof(S));
  memcpy(p.next_v, p.v, (size_t)cols * sizeof(S));
  *(T*)p.sigma = (T)sigma;
}

template <class S>
void spectral_sigma_of(const SpectralSigma& p, int threads) {
  typedef Acc<S> T;
  const auto work_of = [&](int64_t layer) {
    T* at = (T*)p.workspace;
    for (int64_t i = 0; i < layer; i++) at += spectral_elements(p.layers[i].of);
    return SpectralWork<T>(p.layers[layer].of, at);
  };
  int64_t blocks = 0, elements = 0, iterations = 0;
  for (int64_t i = 0; i < p.count; i++) {
    const SpectralLayer& layer = p.layers[i];
    blocks += spectral_blocks(layer.of);
    elements += layer.of.outer * layer.of.rows * layer.of.inner;
    iterations = max_of(iterations, layer.iterations);
    const T* v = work_of(i).v;
    for_columns<T, 1>(0, layer.of.outer * layer.of.inner, [&](int64_t j, auto count, int) {
      store_part((T*)v + j, load_part((const S*)layer.v + j, count), count);
    });
  }
  if (elements < 2 * kElementwiseGrain) threads = 1;
  for (int64_t step = 0; step < max_of(1, iterations); step++) {
    parallel_tasks(blocks, threads, [&](int64_t task, int) {
      int64_t layer = 0;
      for (; task >= spectral_blocks(p.layers[layer].of); layer++) task -= spectral_blocks(p.layers[layer].of);
      if (step < max_of(1, p.layers[layer].iterations)) spectral_block<S>(p.layers[layer], work_of(layer), task);
    });
    parallel_tasks(p.count, threads, [&](int64_t i, int) {
      const SpectralLayer& layer = p.layers[i];
      if (step < layer.iterations) spectral_close<S>(layer, work_of(i), step == layer.iterations - 1);
      if (step == 0 && !layer.iterations) spectral_read<S>(layer, work_of(i));
    });
  }
}

template <class S>
void spectral_scale_of(const SpectralScale& p, int threads) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  const int64_t inner = p.of.inner, segments = p.of.outer * p.of.rows, n = segments * inner;
  if (!n) return;
  const S *w = (const S*)p.of.weight, *dy = (const S*)p.dy;
  S* to = (S*)p.to;
  const T sigma = *(const T*)p.sigma;
  const V sigmas = splat<V>(sigma);
  if (!dy)
    return parallel_ranges(n, kElementwiseGrain, threads, [&](int64_t begin, int64_t end) {
      for_columns_down<T>(begin, end,
                          [&](int64_t j, auto count) { store_part(to + j, load_part(w + j, count) / sigmas, count); });
    });
  const int64_t blocks = spectral_scale_blocks(p.of);
  double* parts = (double*)p.workspace;
  parallel_ranges(blocks, 1, threads, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; block++) {
      const int64_t last = min_of(n, (block + 1) * kSpectralScaleBlock);
      parts[block] = 0;
      for (int64_t j0 = block * kSpectralScaleBlock; j0 < last; j0 += kNormChunk) {
        V sums[kNormChains] = {};
        for_columns<T, kNormChains>(j0, min_of(last, j0 + kNormChunk), [&](int64_t j, auto count, int chain) {
          sums[chain] = fma(load_part(dy + j, count), load_part(w + j, count), sums[chain]);
        });
        parts[block] += sum_chains(sums);
      }
    }
  });
  double dot = 0;
  for (int64_t block = 0; block < blocks; block++) dot += parts[block];
  const double factor = dot / (double)sigma / (double)sigma;
  parallel_ranges(segments, max_of(1, kElementwiseGrain / inner), threads, [&](int64_t begin, int64_t end) {
    for (int64_t segment = begin; segment < end; segment++) {
      const V along = splat<V>((T)(factor * (double)get((const S*)p.u + segment % p.of.rows)));
      const S* v = (const S*)p.v + segment / p.of.rows * inner;
      const int64_t at = segment * inner;
      for_columns_down<T>(0, inner, [&](int64_t j, auto count) {
        store_part(to + at + j, load_part(dy + at + j, count) / sigmas - along * load_part(v + j, count), count);
      });
    }
  });
}

}  // namespace

void spectral_sigma(const SpectralSigma& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) { spectral_sigma_of<decltype(storage)>(p, num_threads); });
}

void spectral_scale(const SpectralScale& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) { spectral_scale_of<decltype(storage)>(p, num_threads); });
}

}  // namespace PF_ISA::norm
