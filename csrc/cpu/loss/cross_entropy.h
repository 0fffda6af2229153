// Cross entropy, forward and backward: over rows (class_rows.h) or columns (class_columns.h).
#pragma once
#include "../core/parallel.h"
#include "class_columns.h"
#include "sums.h"

namespace PF_ISA::loss {

namespace {

// A chunk of softmaxes: `count` of them from `first` on, of one of `outer`; all rows are of the first one.
struct Chunk {
  int64_t outer, first, count;
};

PF_INLINE Chunk chunk_of(const CrossEntropy& p, int64_t number) {
  if (p.inner == 1) {
    const int64_t rows = cross_entropy_rows_of_chunk(p.n), first = number * rows;
    return {0, first, min_of(p.outer - first, rows)};
  }
  const int64_t chunks = ceil_div(p.inner, kColumnsOfChunk), first = number % chunks * kColumnsOfChunk;
  return {number / chunks, first, min_of(p.inner - first, kColumnsOfChunk)};
}

template <class Body>
PF_INLINE void for_chunks(const CrossEntropy& p, int threads, Body body) {
  const int64_t softmaxes = p.inner == 1 ? cross_entropy_rows_of_chunk(p.n) : kColumnsOfChunk;
  const int64_t grain = max_of(1, kElementwiseGrain / max_of(1, softmaxes * p.n));
  parallel_ranges(cross_entropy_chunks(p.outer, p.n, p.inner), grain, threads, [&](int64_t begin, int64_t end) {
    for (int64_t number = begin; number < end; number++) body(number, chunk_of(p, number));
  });
}

// body(first, vectors, count) over the columns of a chunk: kVectors vectors at a time, one, and what is left.
template <class T, class Body>
PF_INLINE void for_blocks(const Chunk& chunk, Body body) {
  int64_t at = chunk.first;
  const int64_t end = chunk.first + chunk.count;
  for (; at + kVectors * kLanes<T> <= end; at += kVectors * kLanes<T>) body(at, Constant<kVectors>{}, WholeVector{});
  for (; at + kLanes<T> <= end; at += kLanes<T>) body(at, Constant<1>{}, WholeVector{});
  if (at < end) body(at, Constant<1>{}, end - at);
}

template <class S, Spread kSpread>
PF_INLINE Weights<S, kSpread> weights_of(const CrossEntropy& p) {
  return {(const Acc<S>*)p.weight, (const S*)p.probabilities, p.inner, (Acc<S>)(1 - p.smoothing),
          (Acc<S>)(p.smoothing / (double)p.n)};
}

// The target of a softmax, or -1 where it counts for nothing.
PF_INLINE int64_t target_of(const CrossEntropy& p, int64_t softmax) {
  const int64_t target = p.targets[softmax];
  return target == p.ignore_index || target < 0 || target >= p.n ? -1 : target;
}

template <class S>
PF_INLINE double weight_of(const CrossEntropy& p, int64_t target) {
  return p.weight ? (double)((const Acc<S>*)p.weight)[target] : 1;
}

// x: of the target, or any where it is -1.
template <class S>
PF_INLINE Part part_of(const CrossEntropy& p, int64_t target, double x, double top, double log_sum, double mass,
                       double moment) {
  if (p.probabilities) return {log_sum * mass - moment, 1};
  if (target < 0) return {0, 0};
  const double weight = weight_of<S>(p, target);
  double loss = (1 - p.smoothing) * weight * (log_sum - (x - top));
  if (p.smoothing != 0) loss += log_sum * mass - moment;
  return {loss, weight};
}

PF_INLINE void add_part(const CrossEntropyFwd& p, int64_t softmax, Part part, Part* sum) {
  if (p.of.reduction == Reduction::none) put_number(p.loss, softmax, part.loss, p.of.loss_dtype);
  sum->loss += part.loss, sum->weight += part.weight;
}

template <class S, Spread kSpread>
Part rows_of_chunk(const CrossEntropyFwd& f, const Chunk& chunk) {
  typedef Acc<S> T;
  const CrossEntropy& p = f.of;
  auto w = weights_of<S, kSpread>(p);
  Part sum = {};
  for (int64_t row = chunk.first; row < chunk.first + chunk.count; row++) {
    const S* x = (const S*)p.x + row * p.x_outer_stride;
    if (p.probabilities) w.probabilities = (const S*)p.probabilities + row * p.n;
    const Sums<T> of = sums_of_row(x, p.n, w);
    const double log_sum = ::log(of.sum);
    ((T*)f.tops)[row] = of.top, ((T*)f.logs)[row] = (T)log_sum;
    const int64_t target = p.targets ? target_of(p, row) : -1;
    const double score = target < 0 ? 0 : (double)get(x + target);
    add_part(f, row, part_of<S>(p, target, score, (double)of.top, log_sum, of.mass, of.moment), &sum);
  }
  return sum;
}

template <class S, Spread kSpread>
Part columns_of_chunk(const CrossEntropyFwd& f, const Chunk& chunk) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  const CrossEntropy& p = f.of;
  auto w = weights_of<S, kSpread>(p);
  Part sum = {};
  for_blocks<T>(chunk, [&](int64_t first, auto vectors, auto count) {
    constexpr int kCount = decltype(vectors)::value;
    const S* x = (const S*)p.x + chunk.outer * p.x_outer_stride + first;
    if (p.probabilities) w.probabilities = (const S*)p.probabilities + chunk.outer * p.n * p.inner + first;
    ColumnSums<V> sums[kCount];
    sums_of_columns<kCount>(x, p.x_step, p.n, w, count, sums);
    const int64_t softmax = chunk.outer * p.inner + first;
    for (int v = 0; v < kCount; v++) {
      const V logs = log(sums[v].sum);
      const int64_t here = softmax + v * kLanes<T>;
      store_part((T*)f.tops + here, sums[v].top, count);
      store_part((T*)f.logs + here, logs, count);
      int64_t lanes = kLanes<T>;
      if constexpr (__is_same(decltype(count), int64_t)) lanes = count;
      for (int64_t lane = 0; lane < lanes; lane++) {
        const int64_t target = p.targets ? target_of(p, here + lane) : -1;
        const double score = target < 0 ? 0 : (double)get(x + target * p.x_step + v * kLanes<T> + lane);
        add_part(f, here + lane,
                 part_of<S>(p, target, score, (double)sums[v].top[lane], (double)logs[lane], (double)sums[v].mass[lane],
                            (double)sums[v].moment[lane]),
                 &sum);
      }
    }
  });
  return sum;
}

// What one softmax is differentiated by: g times (mass softmax(x) - q), where at_target is what q has at the target.
struct Scales {
  double g, mass, at_target;
  int64_t target;
};

template <class S>
PF_INLINE Scales scales_of(const CrossEntropyBwd& b, int64_t softmax, double mass, double scale) {
  const CrossEntropy& p = b.of;
  double g = scale;
  if (p.reduction == Reduction::none) g = number_of(b.dloss, softmax, p.loss_dtype);
  if (p.probabilities) return {g, mass, 0, -1};
  const int64_t target = target_of(p, softmax);
  if (target < 0) return {0, 0, 0, -1};
  const double at_target = (1 - p.smoothing) * weight_of<S>(p, target);
  return {g, mass + at_target, at_target, target};
}

template <class S, Spread kSpread>
void gradient_rows(const CrossEntropyBwd& b, const Chunk& chunk, double mass, double scale, bool past) {
  typedef Acc<S> T;
  const CrossEntropy& p = b.of;
  auto w = weights_of<S, kSpread>(p);
  for (int64_t row = chunk.first; row < chunk.first + chunk.count; row++) {
    const S* x = (const S*)p.x + row * p.x_outer_stride;
    const T top = ((const T*)b.tops)[row], log_sum = ((const T*)b.logs)[row];
    if (p.probabilities) {
      w.probabilities = (const S*)p.probabilities + row * p.n;
      mass = mass_of_row<S, kSpread>(p.n, w);
    }
    const Scales of = scales_of<S>(b, row, mass, scale);
    const bool counts = p.probabilities || of.target >= 0;
    S* dx = b.dx ? (S*)b.dx + row * p.n : nullptr;
    if (dx && !counts)
      for_columns_down<T>(0, p.n, [&](int64_t j, auto count) { store_output(dx + j, Vec<T>{}, count, past); });
    else if (dx)
      gradient_of_row(x, dx, p.n, w, top, log_sum, (T)of.g, (T)of.mass, of.target, (T)of.at_target, past);
    if (b.dprobabilities)
      probabilities_of_row(x, (const T*)p.weight, (S*)b.dprobabilities + row * p.n, p.n, top, log_sum,
                           (T)(of.g * (1 - p.smoothing)));
  }
  if (past) stream_fence();
}

template <class S, Spread kSpread>
void gradient_columns(const CrossEntropyBwd& b, const Chunk& chunk, double mass, double scale) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  const CrossEntropy& p = b.of;
  auto w = weights_of<S, kSpread>(p);
  for_blocks<T>(chunk, [&](int64_t first, auto vectors, auto count) {
    constexpr int kCount = decltype(vectors)::value;
    const S* x = (const S*)p.x + chunk.outer * p.x_outer_stride + first;
    const int64_t softmax = chunk.outer * p.inner + first, element = chunk.outer * p.n * p.inner + first;
    V masses[kCount];
    if (p.probabilities) {
      w.probabilities = (const S*)p.probabilities + element;
      masses_of_columns<kCount>(p.n, w, count, masses);
    }
    ColumnGradient<V> of[kCount];
    bool all_count = true;
    for (int v = 0; v < kCount; v++) {
      const int64_t here = softmax + v * kLanes<T>;
      of[v] = {
          load_part((const T*)b.tops + here, count), load_part((const T*)b.logs + here, count), V{}, V{}, V{}, V{}};
      int64_t lanes = kLanes<T>;
      if constexpr (__is_same(decltype(count), int64_t)) lanes = count;
      for (int64_t lane = 0; lane < lanes; lane++) {
        const Scales scales = scales_of<S>(b, here + lane, p.probabilities ? (double)masses[v][lane] : mass, scale);
        of[v].g[lane] = (T)scales.g, of[v].mass[lane] = (T)scales.mass;
        of[v].target[lane] = (T)scales.target, of[v].at_target[lane] = (T)scales.at_target;
        all_count &= p.probabilities || scales.target >= 0;
      }
    }
    if (b.dx) gradient_of_columns<kCount>(x, p.x_step, (S*)b.dx + element, p.inner, p.n, w, count, of);
    if (b.dx && !all_count)  // what counts for nothing has no gradient, also where a score is infinite
      for (int v = 0; v < kCount; v++) {
        int64_t lanes = kLanes<T>;
        if constexpr (__is_same(decltype(count), int64_t)) lanes = count;
        for (int64_t lane = 0; lane < lanes; lane++)
          if (of[v].target[lane] < 0)
            for (int64_t i = 0; i < p.n; i++) put((S*)b.dx + element + i * p.inner + v * kLanes<T> + lane, 0);
      }
    if (b.dprobabilities) {
      for (int v = 0; v < kCount; v++) of[v].g *= splat<V>((T)(1 - p.smoothing));
      probabilities_of_columns<kCount>(x, p.x_step, (const T*)p.weight, (S*)b.dprobabilities + element, p.inner, p.n,
                                       count, of);
    }
  });
}

template <class F>
PF_INLINE void for_spread(const CrossEntropy& p, F f) {
  if (p.probabilities) return f(Constant<Spread::probabilities>{});
  if (p.smoothing == 0) return f(Constant<Spread::nothing>{});
  p.weight ? f(Constant<Spread::weighted_smoothing>{}) : f(Constant<Spread::smoothing>{});
}

}  // namespace

void cross_entropy_fwd(const CrossEntropyFwd& f, int num_threads) {
  const CrossEntropy& p = f.of;
  Part* parts = (Part*)f.chunks;
  Part sum = {};
  for_dtype(p.dtype, [&](auto storage) {
    typedef decltype(storage) S;
    for_spread(p, [&](auto chosen) {
      constexpr Spread kSpread = decltype(chosen)::value;
      for_chunks(p, num_threads, [&](int64_t number, const Chunk& chunk) {
        parts[number] = p.inner == 1 ? rows_of_chunk<S, kSpread>(f, chunk) : columns_of_chunk<S, kSpread>(f, chunk);
      });
    });
    for (int64_t i = 0; i < cross_entropy_chunks(p.outer, p.n, p.inner); i++)
      sum.loss += parts[i].loss, sum.weight += parts[i].weight;
    const bool is_mean = p.reduction == Reduction::mean;
    *(Acc<S>*)f.total = (Acc<S>)(is_mean ? sum.weight : 1);
    if (p.reduction != Reduction::none) put_number(f.loss, 0, is_mean ? sum.loss / sum.weight : sum.loss, p.loss_dtype);
  });
}

void cross_entropy_bwd(const CrossEntropyBwd& b, int num_threads) {
  const CrossEntropy& p = b.of;
  for_dtype(p.dtype, [&](auto storage) {
    typedef decltype(storage) S;
    for_spread(p, [&](auto chosen) {
      constexpr Spread kSpread = decltype(chosen)::value;
      double scale = 0, mass = 0;
      if (p.reduction != Reduction::none) scale = number_of(b.dloss, 0, p.loss_dtype) / (double)*(const Acc<S>*)b.total;
      if constexpr (kSpread != Spread::nothing && kSpread != Spread::probabilities)
        mass = mass_of_row<S, kSpread>(p.n, weights_of<S, kSpread>(p));
      const bool past = is_streamed<S>(b.dx, 2 * p.outer * p.n * p.inner * (int64_t)sizeof(S), p.n);
      for_chunks(p, num_threads, [&](int64_t, const Chunk& chunk) {
        if (p.inner == 1)
          gradient_rows<S, kSpread>(b, chunk, mass, scale, past);
        else
          gradient_columns<S, kSpread>(b, chunk, mass, scale);
      });
    });
  });
}

}  // namespace PF_ISA::loss
