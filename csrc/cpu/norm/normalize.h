// Vectors over their norm, or their root mean square: rows, whose elements are adjacent, and columns, which are
// adjacent to each other. What is read for the norm is still in a cache when it is divided.
#pragma once
#include "../../common/normalize.h"
#include "rows.h"

namespace PF_ISA::norm {

namespace {

constexpr int64_t kNormalizeColumns = 512;     // walked together, at most
constexpr int64_t kNormalizeKept = 256 << 10;  // bytes of a block of columns, in the second cache
constexpr int64_t kNormalizeRows = 256;        // summed in float before the sum goes on in double

template <VectorNorm kKind>
constexpr bool kSquares = kKind == VectorNorm::two || kKind == VectorNorm::mean;

// What a norm is folded from; a NaN stays.
template <VectorNorm kKind, class V>
PF_INLINE V fold_norm(V sum, V x) {
  if constexpr (kSquares<kKind>) return fma(x, x, sum);
  if constexpr (kKind == VectorNorm::one) return sum + abs(x);
  return select((abs(x) > sum) | (x != x), abs(x), sum);
}

// One element's part in the norm's derivative: x, its sign, or its sign where it is one of the largest.
template <VectorNorm kKind, class V>
PF_INLINE V norm_part(V x, V norm) {
  if constexpr (kSquares<kKind>) return x;
  const V one = splat<V>(1), sign = select(x > V{}, one, select(x < V{}, -one, V{}));
  if constexpr (kKind == VectorNorm::one) return sign;
  return select(abs(x) == norm, sign, V{});
}

// The norm of a sum; not of the largest, which is one itself.
template <VectorNorm kKind>
PF_INLINE double norm_of(double sum, const Normalize& p) {
  if (kKind == VectorNorm::mean) return __builtin_sqrt(sum / (double)p.n + p.eps);
  return kKind == VectorNorm::two ? __builtin_sqrt(sum) : sum;
}

template <VectorNorm kKind, class T>
PF_INLINE T divisor_of(T norm, double eps) {
  if (kKind == VectorNorm::mean) return norm;
  return norm < (T)eps ? (T)eps : norm;  // NaN stays
}

// What multiplies norm_part in dx = (dy - part * factor) / divisor, of the sum of dy * x and how many are the largest.
template <VectorNorm kKind, class T>
PF_INLINE T part_factor(double dot, double count, T norm, const Normalize& p) {
  if (kKind == VectorNorm::mean) return (T)(dot / (double)norm / (double)norm / (double)p.n);
  if (norm < (T)p.eps) return 0;  // the norm is not what was divided by
  const double d = (double)divisor_of<kKind>(norm, p.eps);
  if (kKind == VectorNorm::two) return norm == 0 ? 0 : (T)(dot / d / (double)norm);
  return (T)(kKind == VectorNorm::one ? dot / d : dot / d / (count < 1 ? 1 : count));
}

template <class S, VectorNorm kKind>
void normalize_rows(const Normalize& p, int64_t begin, int64_t end) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  for (int64_t row = begin; row < end; row++) {
    const S* x = (const S*)p.x + row * p.n;
    S* y = (S*)p.to + row * p.n;
    double total = 0;
    V most = {};
    for (int64_t j0 = 0; j0 < p.n; j0 += kNormChunk) {
      V sums[kNormChains] = {};
      for_columns<T, kNormChains>(j0, min_of(p.n, j0 + kNormChunk), [&](int64_t j, auto count, int chain) {
        sums[chain] = fold_norm<kKind>(sums[chain], load_part(x + j, count));
      });
      if constexpr (kKind == VectorNorm::most)
        for (int chain = 0; chain < kNormChains; chain++) most = fold_norm<kKind>(most, sums[chain]);
      else
        total += sum_chains(sums);
    }
    T norm = (T)norm_of<kKind>(total, p);
    if constexpr (kKind == VectorNorm::most)
      for (int i = 0; i < kLanes<T>; i++) norm = most[i] > norm || most[i] != most[i] ? most[i] : norm;
    ((T*)p.norm)[row] = norm;
    const V divisor = splat<V>(divisor_of<kKind>(norm, p.eps));
    for_columns_down<T>(0, p.n,
                        [&](int64_t j, auto count) { store_part(y + j, load_part(x + j, count) / divisor, count); });
  }
}

template <class S, VectorNorm kKind>
void normalize_rows_bwd(const Normalize& p, int64_t begin, int64_t end) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  for (int64_t row = begin; row < end; row++) {
    const S *x = (const S*)p.x + row * p.n, *dy = (const S*)p.dy + row * p.n;
    S* dx = (S*)p.to + row * p.n;
    const T norm = ((const T*)p.norm)[row];
    const V norms = splat<V>(norm);
    double dot = 0, largest = 0;
    for (int64_t j0 = 0; j0 < p.n; j0 += kNormChunk) {
      V sums[kNormChains] = {}, counts[kNormChains] = {};
      for_columns<T, kNormChains>(j0, min_of(p.n, j0 + kNormChunk), [&](int64_t j, auto count, int chain) {
        const V value = load_part(x + j, count);
        sums[chain] = fma(load_part(dy + j, count), value, sums[chain]);
        if (kKind == VectorNorm::most) counts[chain] += abs(norm_part<kKind>(value, norms));
      });
      dot += sum_chains(sums);
      if (kKind == VectorNorm::most) largest += sum_chains(counts);
    }
    const V divisor = splat<V>(divisor_of<kKind>(norm, p.eps));
    const V factor = splat<V>(part_factor<kKind>(dot, largest, norm, p));
    for_columns_down<T>(0, p.n, [&](int64_t j, auto count) {
      const V part = norm_part<kKind>(load_part(x + j, count), norms);
      store_part(dx + j, (load_part(dy + j, count) - part * factor) / divisor, count);
    });
  }
}

// Sums over rows, a column each: short ones in the arithmetic type, long ones in double.
template <class T>
struct ColumnSums {
  T part[kNormalizeColumns];
  double total[kNormalizeColumns];
  void clear(int64_t columns) {
    for (int64_t j = 0; j < columns; j++) part[j] = 0, total[j] = 0;
  }
  void flush(int64_t columns) {
    for (int64_t j = 0; j < columns; j++) total[j] += (double)part[j], part[j] = 0;
  }
};

// The columns [first, last) of one matrix.
template <class S, VectorNorm kKind>
void normalize_columns(const Normalize& p, int64_t outer, int64_t first, int64_t last) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  const int64_t at = outer * p.n * p.inner + first, columns = last - first;
  const S* x = (const S*)p.x + at;
  S* y = (S*)p.to + at;
  T* norm = (T*)p.norm + outer * p.inner + first;
  ColumnSums<T> sums;
  sums.clear(columns);
  for (int64_t i = 0; i < p.n; i++) {
    for_columns<T, 1>(0, columns, [&](int64_t j, auto count, int) {
      const V value = load_part(x + i * p.inner + j, count);
      store_part(sums.part + j, fold_norm<kKind>(load_part(sums.part + j, count), value), count);
    });
    if (kKind != VectorNorm::most && i % kNormalizeRows == kNormalizeRows - 1) sums.flush(columns);
  }
  if (kKind != VectorNorm::most) sums.flush(columns);
  for (int64_t j = 0; j < columns; j++) {
    if (kKind == VectorNorm::most)
      norm[j] = sums.part[j];
    else
      norm[j] = (T)norm_of<kKind>(sums.total[j], p);
    sums.part[j] = divisor_of<kKind>(norm[j], p.eps);
  }
  for (int64_t i = 0; i < p.n; i++)
    for_columns<T, 1>(0, columns, [&](int64_t j, auto count, int) {
      const int64_t e = i * p.inner + j;
      store_part(y + e, load_part(x + e, count) / load_part(sums.part + j, count), count);
    });
}

template <class S, VectorNorm kKind>
void normalize_columns_bwd(const Normalize& p, int64_t outer, int64_t first, int64_t last) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  const int64_t at = outer * p.n * p.inner + first, columns = last - first;
  const S *x = (const S*)p.x + at, *dy = (const S*)p.dy + at;
  S* dx = (S*)p.to + at;
  const T* norm = (const T*)p.norm + outer * p.inner + first;
  ColumnSums<T> dots, largest;
  dots.clear(columns);
  largest.clear(columns);
  for (int64_t i = 0; i < p.n; i++) {
    for_columns<T, 1>(0, columns, [&](int64_t j, auto count, int) {
      const int64_t e = i * p.inner + j;
      const V value = load_part(x + e, count);
      store_part(dots.part + j, fma(load_part(dy + e, count), value, load_part(dots.part + j, count)), count);
      if (kKind == VectorNorm::most) {
        const V is_largest = abs(norm_part<kKind>(value, load_part(norm + j, count)));
        store_part(largest.part + j, load_part(largest.part + j, count) + is_largest, count);
      }
    });
    if (i % kNormalizeRows == kNormalizeRows - 1) dots.flush(columns), largest.flush(columns);
  }
  dots.flush(columns), largest.flush(columns);
  T *divisor = dots.part, *factor = largest.part;
  for (int64_t j = 0; j < columns; j++) {
    factor[j] = part_factor<kKind>(dots.total[j], largest.total[j], norm[j], p);
    divisor[j] = divisor_of<kKind>(norm[j], p.eps);
  }
  for (int64_t i = 0; i < p.n; i++)
    for_columns<T, 1>(0, columns, [&](int64_t j, auto count, int) {
      const int64_t e = i * p.inner + j;
      const V part = norm_part<kKind>(load_part(x + e, count), load_part(norm + j, count));
      const V dxhat = load_part(dy + e, count) - part * load_part(factor + j, count);
      store_part(dx + e, dxhat / load_part(divisor + j, count), count);
    });
}

template <class S, VectorNorm kKind>
void normalize_all(const Normalize& p, int threads) {
  if (p.inner == 1)
    return parallel_ranges(p.outer, max_of(1, kElementwiseGrain / p.n), threads, [&](int64_t begin, int64_t end) {
      p.dy ? normalize_rows_bwd<S, kKind>(p, begin, end) : normalize_rows<S, kKind>(p, begin, end);
    });
  const int64_t fits = kNormalizeKept / (p.n * (int64_t)sizeof(S)) / 64 * 64;
  const int64_t block = max_of(64, min_of(fits, kNormalizeColumns)), blocks = ceil_div(p.inner, block);
  const int64_t elements = p.n * min_of(block, p.inner);
  parallel_ranges(p.outer * blocks, max_of(1, kElementwiseGrain / elements), threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t first = i % blocks * block, last = min_of(p.inner, first + block);
      p.dy ? normalize_columns_bwd<S, kKind>(p, i / blocks, first, last)
           : normalize_columns<S, kKind>(p, i / blocks, first, last);
    }
  });
}

}  // namespace

void normalize(const Normalize& p, int num_threads) {
  if (!(p.outer && p.n && p.inner)) return;
  for_dtype(p.dtype, [&](auto storage) {
    typedef decltype(storage) S;
    if (p.kind == VectorNorm::one) return normalize_all<S, VectorNorm::one>(p, num_threads);
    if (p.kind == VectorNorm::two) return normalize_all<S, VectorNorm::two>(p, num_threads);
    if (p.kind == VectorNorm::mean) return normalize_all<S, VectorNorm::mean>(p, num_threads);
    normalize_all<S, VectorNorm::most>(p, num_threads);
  });
}

}  // namespace PF_ISA::norm
