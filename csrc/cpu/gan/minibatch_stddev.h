// The minibatch's deviation and its derivatives. A unit of work is some elements of a share, of all samples of a group;
// what is summed over a share is summed unit by unit, so that the result does not depend on the threads.
#pragma once
#include "../../common/minibatch_stddev.h"
#include "../core/memory.h"
#include "../core/parallel.h"
#include "../core/reductions.h"

namespace PF_ISA::gan {

namespace {

enum class StddevForm { value, gradient, second };

constexpr int64_t kStddevChunk = 512;  // elements of each sample that stay in the first cache; summed in float

// Where the samples of a group have their elements of a unit, at first those of sample 0.
template <class S>
struct StddevPart {
  const S *x, *v, *dy;
  S *y, *dx;
  int64_t x_stride, y_stride;  // from sample to sample
};

// n elements side by side, of `group` samples; kGroup 0: of any number, which are read again from the first cache.
// Returns the sum over them of the deviation, or of v times the normalised x.
//
// With d = x - mean, s = sqrt(mean of d^2 + eps) and factor = (the gradient of the deviation) / (elements of a share
// * group):  gradient  dx = dy + factor * d / s
//            second    dx = factor / s * (v - mean of v - d * (mean of v d) / s^2)
template <class S, StddevForm kForm, int kGroup>
double stddev_columns(const StddevPart<S>& p, int64_t group, int64_t n, Acc<S> factor, Acc<S> eps) {
  typedef Acc<S> T;
  typedef Vec<T> V;
  const int count_of_samples = kGroup ? kGroup : (int)group;
  const V share = splat<V>((T)1 / (T)group);
  V sums[2] = {};
  for_columns<T, 2>(0, n, [&](int64_t j, auto count, int chain) {
    V kept[kGroup ? kGroup : 1];
    V mean{}, square{};
    PF_UNROLL
    for (int g = 0; g < (kGroup ? kGroup : count_of_samples); g++) {
      const V x = load_part(p.x + g * p.x_stride + j, count);
      if constexpr (kGroup) kept[g] = x;
      mean += x;
    }
    mean *= share;
    auto deviation = [&](int g) {
      if constexpr (kGroup) return kept[g] - mean;
      return load_part(p.x + g * p.x_stride + j, count) - mean;
    };
    PF_UNROLL
    for (int g = 0; g < (kGroup ? kGroup : count_of_samples); g++) {
      const V d = deviation(g);
      square = fma(d, d, square);
    }
    const V s = square_root(fma(square, share, splat<V>(eps)));
    if constexpr (kForm == StddevForm::value) sums[chain] += first_lanes(s, count);
    if constexpr (kForm == StddevForm::gradient) {
      const V slope = splat<V>(factor) / s;
      PF_UNROLL
      for (int g = 0; g < (kGroup ? kGroup : count_of_samples); g++) {
        const V dy = load_part(p.dy + g * p.y_stride + j, count);
        store_part(p.dx + g * p.x_stride + j, fma(slope, deviation(g), dy), count);
      }
    }
    if constexpr (kForm == StddevForm::second) {
      V mean_v{}, dot{};
      PF_UNROLL
      for (int g = 0; g < (kGroup ? kGroup : count_of_samples); g++) {
        const V v = load_part(p.v + g * p.x_stride + j, count);
        mean_v += v;
        dot = fma(v, deviation(g), dot);
      }
      sums[chain] += dot / s;
      mean_v *= share;
      const V slope = splat<V>(factor) / s, back = dot * share / (s * s);
      PF_UNROLL
      for (int g = 0; g < (kGroup ? kGroup : count_of_samples); g++) {
        const V v = load_part(p.v + g * p.x_stride + j, count);
        store_part(p.dx + g * p.x_stride + j, slope * ((v - mean_v) - deviation(g) * back), count);
      }
    }
  });
  return (double)reduce_add(sums[0] + sums[1]);
}

template <class S, StddevForm kForm>
struct Stddev {
  typedef Acc<S> T;
  const MinibatchStddev& p;
  int threads;
  int64_t blocks = minibatch_stddev_blocks(p), row_block = minibatch_stddev_row_block(p);
  int64_t x_row = p.shares * p.n, y_row = x_row + p.shares * p.extra;
  double* sums = (double*)p.workspace;                    // [groups, shares, blocks]
  double* factors = sums + p.groups * p.shares * blocks;  // [groups, shares]

  // body(the first of `extra` numbers) for each row of each sample of a group; y is dy or y.
  template <class Y, class Body>
  void for_extra(Y* y, int64_t of, Body body) const {
    for (int64_t g = 0; g < p.group; g++)
      for (int64_t row = 0; row < p.rows; row++)
        body(y + ((g * p.groups + of / p.shares) * p.rows + row) * y_row + x_row + of % p.shares * p.extra);
  }

  void take_factors() const {
    const double count = (double)(p.rows * p.n * p.group);
    for (int64_t of = 0; of < p.groups * p.shares; of++) {
      double sum = 0;
      for_extra((const S*)p.dy, of, [&](const S* dy) {
        for (int64_t i = 0; i < p.extra; i++) sum += (double)get(dy + i);
      });
      factors[of] = sum / count;
    }
  }

  void work() const {
    const int64_t parts = ceil_div(p.n, kStddevBlock), stride = p.groups * p.rows;
    const int64_t elements = p.group * min_of(p.rows, row_block) * min_of(p.n, kStddevBlock);
    parallel_ranges(p.groups * p.shares * blocks, max_of(1, kElementwiseGrain / max_of(1, elements)), threads,
                    [&](int64_t begin, int64_t end) {
                      for (int64_t unit = begin; unit < end; unit++) {
                        const int64_t of = unit / blocks, group = of / p.shares, block = unit % blocks;
                        const int64_t first = block % parts * kStddevBlock, last = min_of(p.n, first + kStddevBlock);
                        const int64_t row0 = block / parts * row_block, row1 = min_of(p.rows, row0 + row_block);
                        const T factor = kForm == StddevForm::value ? 0 : (T)factors[of];
                        double sum = 0;
                        for (int64_t row = row0; row < row1; row++)
                          for (int64_t j = first; j < last; j += kStddevChunk) {
                            const int64_t n = min_of(kStddevChunk, last - j), here = group * p.rows + row;
                            const int64_t x = here * x_row + of % p.shares * p.n + j, y = x + here * (y_row - x_row);
                            const StddevPart<S> part{(const S*)p.x + x, (const S*)p.v + x, (const S*)p.dy + y,
                                                     (S*)p.y + y,       (S*)p.dx + x,      stride * x_row,
                                                     stride * y_row};
                            if (p.group == 4)
                              sum += stddev_columns<S, kForm, 4>(part, 4, n, factor, (T)p.eps);
                            else
                              sum += stddev_columns<S, kForm, 0>(part, p.group, n, factor, (T)p.eps);
                            copy(part, n);
                          }
                        sums[unit] = sum;
                      }
                    });
  }
  // As bits: a conversion to a half type may lose what is next to 0.
  void copy(const StddevPart<S>& part, int64_t n) const {
    if constexpr (kForm == StddevForm::gradient) return;
    const S* from = kForm == StddevForm::value ? part.x : part.v;
    for (int64_t g = 0; g < p.group; g++)
      memcpy(part.y + g * part.y_stride, from + g * part.x_stride, (size_t)n * sizeof(S));
  }

  void spread() const {
    const double count = (double)(p.rows * p.n * (kForm == StddevForm::value ? 1 : p.group));
    for (int64_t of = 0; of < p.groups * p.shares; of++) {
      double sum = 0;
      for (int64_t i = 0; i < blocks; i++) sum += sums[of * blocks + i];
      const T value = (T)(sum / count);
      for_extra((S*)p.y, of, [&](S* y) {
        for (int64_t i = 0; i < p.extra; i++) put(y + i, value);
      });
    }
  }

  void run() const {
    if (kForm != StddevForm::value) take_factors();
    work();
    if (kForm != StddevForm::gradient) spread();
  }
};

}  // namespace

void minibatch_stddev(const MinibatchStddev& p, int num_threads) {
  for_dtype(p.dtype, [&](auto storage) {
    typedef decltype(storage) S;
    if (!p.dy) return Stddev<S, StddevForm::value>{p, num_threads}.run();
    if (!p.v) return Stddev<S, StddevForm::gradient>{p, num_threads}.run();
    Stddev<S, StddevForm::second>{p, num_threads}.run();
  });
}

}  // namespace PF_ISA::gan
