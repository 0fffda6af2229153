// Sums and counts of a tensor in one pass: of all of it, of groups that lie in runs, of groups that are columns.
#pragma once
#include "../core/parallel.h"
#include "tally.h"

namespace PF_ISA::statistics {

namespace {

constexpr int64_t kColumnsOfTask = 512;  // whose sums, 28 bytes each, stay in the first level of the cache
constexpr int kRowsAtOnce = 4;

template <class S>
struct Job {
  typedef Acc<S> T;
  const S* x;
  T low, high;
  int64_t outer, groups, inner;

  // n elements that lie in a row.
  PF_INLINE void run(const Job& job, const S* x, int64_t n, Tally<T>& tally, double* rest) {
    constexpr int lanes = kLanes<T>;
    const Vec<T> low = splat<Vec<T>>(job.low), high = splat<Vec<T>>(job.high);
    int64_t i = 0;
    for (; i + lanes <= n; i += lanes) Tally<T>::add(tally, load(x + i), low, high);
    for (; i < n; i++) add_one(rest, get(x + i), job.low, job.high);
  }

  // Groups [g0, g1) of the rows [begin, end), each group `inner` neighbours in a row.
  static void runs(const Job& job, int64_t begin, int64_t end, int64_t g0, int64_t g1, double* moments) {
    for (int64_t g = g0; g < g1; g++) {
      Tally<T> tally;
      double rest[kMoments] = {};
      for (int64_t o = begin; o < end; o++) run(job, job.x + (o * job.groups + g) * job.inner, job.inner, tally, rest);
      add_all(rest, tally);
      memcpy(moments + g * kMoments, rest, sizeof rest);
    }
  }

  // The same where a group is one column: along a few rows at a time, with the sums of all columns in the first level
  // of the cache. Down a column each line is waited for: rows that are 4 KB apart share a set of it. Zen 4, one thread,
  // 4096 x 1024 in float32: 9.9 ms down the columns.
  static void columns(const Job& job, int64_t begin, int64_t end, int64_t g0, int64_t g1, double* moments) {
    constexpr int lanes = kLanes<T>;
    const Vec<T> low = splat<Vec<T>>(job.low), high = splat<Vec<T>>(job.high);
    const int64_t vectors = (g1 - g0) / lanes;
    Tally<T> tallies[kColumnsOfTask / lanes];
    int64_t o = begin;
    for (; o + kRowsAtOnce <= end; o += kRowsAtOnce)
      for (int64_t v = 0; v < vectors; v++) {
        Tally<T> tally = tallies[v];
        PF_UNROLL
        for (int row = 0; row < kRowsAtOnce; row++)
          Tally<T>::add(tally, load(job.x + (o + row) * job.groups + g0 + v * lanes), low, high);
        tallies[v] = tally;
      }
    for (; o < end; o++)
      for (int64_t v = 0; v < vectors; v++)
        Tally<T>::add(tallies[v], load(job.x + o * job.groups + g0 + v * lanes), low, high);
    memset(moments + g0 * kMoments, 0, (g1 - g0) * kMoments * sizeof(double));
    for (int64_t v = 0; v < vectors; v++) add_lanes(moments + (g0 + v * lanes) * kMoments, tallies[v]);
    for (o = begin; o < end; o++)
      for (int64_t g = g0 + vectors * lanes; g < g1; g++)
        add_one(moments + g * kMoments, get(job.x + o * job.groups + g), job.low, job.high);
  }
};

template <class S>
void stats_of(const TensorStats& p, int num_threads) {
  const Job<S> job = {(const S*)p.x, (Acc<S>)p.low, (Acc<S>)p.high, p.outer, p.groups, p.inner};
  const int64_t parts = tensor_stats_parts(p.outer, p.groups, p.inner), row = p.groups * kMoments;
  double *moments = (double*)p.moments, *sums = (double*)p.workspace;
  if (p.groups == 1) {
    const int64_t n = p.outer * p.inner;
    parallel_ranges(parts, 1, num_threads, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; part++) {
        Tally<Acc<S>> tally;
        double rest[kMoments] = {};
        const int64_t at = part * kStatsChunk;
        Job<S>::run(job, job.x + at, min_of(kStatsChunk, n - at), tally, rest);
        add_all(rest, tally);
        memcpy(sums + part * kMoments, rest, sizeof rest);
      }
    });
  } else {
    const int64_t rows = tensor_stats_rows(p.groups, p.inner);
    const int64_t of_group = max_of(min_of(rows, p.outer) * p.inner, 1);
    const int64_t block = p.inner == 1 ? kColumnsOfTask : max_of(kStatsChunk / of_group, 1);
    const int64_t blocks = ceil_div(p.groups, block);
    parallel_ranges(parts * blocks, 1, num_threads, [&](int64_t first, int64_t last) {
      for (int64_t task = first; task < last; task++) {
        const int64_t part = task / blocks, g0 = task % blocks * block;
        const int64_t begin = part * rows, end = min_of(p.outer, begin + rows), g1 = min_of(p.groups, g0 + block);
        (p.inner == 1 ? Job<S>::columns : Job<S>::runs)(job, begin, end, g0, g1, sums + part * row);
      }
    });
  }
  memset(moments, 0, row * sizeof(double));
  for (int64_t part = 0; part < parts; part++)
    for (int64_t i = 0; i < row; i++) moments[i] += sums[part * row + i];
}

}  // namespace

void tensor_stats(const TensorStats& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) { stats_of<decltype(storage)>(p, num_threads); });
}

}  // namespace PF_ISA::statistics
