// Depthwise convolution of images whose rows lie along memory (NCHW), with a square kernel of 3, 5 or 7 taps a side and
// stride 1 or 2, read where it lies: a strip of results, a vector wide and some rows high, is summed in registers, and
// what is loaded of a row serves all rows of the strip. Outside an image are lanes that are not loaded, and rows left
// out.
#pragma once
#include "../simd/masked.h"
#include "columns.h"
#include "depthwise_rows.h"

namespace PF_ISA::conv {

namespace {

// Rows of the source from the first that a strip reads on, and which of them there are.
template <class S>
struct SquareSource {
  const S* at;  // column 0
  int64_t pitch, first, rows;
};

// The lanes of a vector at index w of a row that are inside it.
template <class T>
PF_INLINE uint32_t lanes_inside(int64_t w, int64_t size) {
  const int64_t begin = min_of(max_of(-w, 0), kLanes<T>), end = max_of(min_of(size - w, kLanes<T>), begin);
  return (uint32_t)(((1ull << end) - 1) & ~((1ull << begin) - 1));
}

// What kTaps neighbouring taps read of a row for a vector of results: x[t] is elements w + t + i kStep.
template <class T, int kStep, int kTaps>
struct RowTaps {
  // A vector a tap or, of stride 2, two for each two: the even elements of both and the odd ones.
  static constexpr int kLoads = kStep == 1 ? kTaps : (kTaps + 1) / 2 * 2;
  static constexpr int shift(int i) { return kStep == 1 ? i : i / 2 * 2 + (i & 1) * kLanes<T>; }
  static constexpr int64_t kReach = shift(kLoads - 1) + kLanes<T>;
  uint32_t lanes[kLoads];

  RowTaps(int64_t w, int64_t size) {
    for (int i = 0; i < kLoads; i++) lanes[i] = lanes_inside<T>(w + shift(i), size);
  }
  template <bool kInside, class S>
  PF_MEMBER void load_from(const S* at, Vec<T> (&x)[kTaps]) const {
    Vec<T> loads[kLoads];
    PF_UNROLL
    for (int i = 0; i < kLoads; i++) loads[i] = kInside ? load(at + shift(i)) : load_masked(at + shift(i), lanes[i]);
    PF_UNROLL
    for (int t = 0; t < kTaps; t++) {
      if constexpr (kStep == 1)
        x[t] = in_register(loads[t]);
      else if (t & 1)
        x[t] = in_register(shuffle<OddLanes>(loads[t - 1], loads[t]));
      else
        x[t] = in_register(shuffle<EvenLanes>(loads[t], loads[t + 1]));
    }
  }
};

// As many columns of the kernel at once as leave its taps in registers. Zen 4, one thread, 3x3: three at once are 5%
// (stride 1) and 20% (stride 2) faster than one.
template <int kSize>
constexpr int kColumnsAtOnce = kSize == 3 && kRegisters == 32 ? 3 : 1;

template <class S, int kSize, int kStep, int kRows, bool kInside>
PF_INLINE void sum_strip(const SquareSource<S>& from, int64_t w, int64_t size, const Acc<S>* weight,
                         Vec<Acc<S>> (&sums)[kRows]) {
  typedef Vec<Acc<S>> V;
  constexpr int columns = kColumnsAtOnce<kSize>;
  PF_UNROLL
  for (int r = 0; r < kRows; r++) sums[r] = V{};
  for (int64_t t = 0; t < kSize; t += columns) {
    const RowTaps<Acc<S>, kStep, columns> row(w + t, size);
    V taps[kSize][columns], x[columns];
    PF_UNROLL
    for (int h = 0; h < kSize; h++) PF_UNROLL
    for (int c = 0; c < columns; c++) taps[h][c] = in_register(splat<V>(weight[h * kSize + t + c]));
    const S* at = from.at + w + t;
    PF_UNROLL
    for (int i = 0; i < (kRows - 1) * kStep + kSize; i++, at += from.pitch) {
      if (!is_inside(from.first + i, from.rows)) continue;
      row.template load_from<kInside>(at, x);
      PF_UNROLL
      for (int r = 0; r < kRows; r++) {
        const int h = i - r * kStep;
        if (h < 0 || h >= kSize) continue;
        PF_UNROLL
        for (int c = 0; c < columns; c++) sums[r] = fma(taps[h][c], x[c], sums[r]);
      }
    }
  }
}

// kRows rows of results of one channel.
template <class S>
using SumSquares = void (*)(const Correlation<S>& p, const SquareSource<S>& from, const Acc<S>* weight, int64_t to,
                            int64_t channel, const FinishRows<S>& finish);

template <class S, int kSize, int kStep, int kRows>
void sum_squares(const Correlation<S>& p, const SquareSource<S>& from, const Acc<S>* weight, int64_t to,
                 int64_t channel, const FinishRows<S>& finish) {
  typedef Acc<S> T;
  constexpr int lanes = kLanes<T>, columns = kColumnsAtOnce<kSize>;
  constexpr int64_t reach = kSize - columns + RowTaps<T, kStep, columns>::kReach;
  const Axis &height = p.axes[1], &width = p.axes[2];
  const int64_t row_step = height.to_step * p.to_stride.spatial[1], step = width.to_step * p.to_stride.spatial[2];
  const bool is_plain = FinishRows<S>::kIsSummedType && finish.is_plain && step == 1;
  const Affine<Vec<T>> affine = finish.plain.of_channel(channel);
  for (int64_t j = 0; j < width.count; j += lanes) {
    const int64_t w = j * kStep + width.tap_first, count = min_of(lanes, width.count - j);
    Vec<T> sums[kRows];
    if (w >= 0 && w + reach <= width.from)
      sum_strip<S, kSize, kStep, kRows, true>(from, w, width.from, weight, sums);
    else
      sum_strip<S, kSize, kStep, kRows, false>(from, w, width.from, weight, sums);
    if (is_plain) {
      PF_UNROLL
      for (int r = 0; r < kRows; r++) finish.plain(to + j + r * row_step, affine(sums[r]), count);
      continue;
    }
    T strip[kRows * lanes] __attribute__((aligned(64)));
    PF_UNROLL
    for (int r = 0; r < kRows; r++) store(strip + r * lanes, sums[r]);
    finish({strip, kRows, lanes, count, to + j * step, row_step, step, channel, false});
  }
}

template <class S, int kRows>
SumSquares<S> sum_squares_of(const Axis& axis) {
  if constexpr (kHasFixedTaps<S>) {
    if (axis.from_step == 1) {
      if (axis.taps == 3) return sum_squares<S, 3, 1, kRows>;
      if (axis.taps == 5) return sum_squares<S, 5, 1, kRows>;
      if (axis.taps == 7) return sum_squares<S, 7, 1, kRows>;
    } else if (axis.from_step == 2) {
      if (axis.taps == 3) return sum_squares<S, 3, 2, kRows>;
      if (axis.taps == 5) return sum_squares<S, 5, 2, kRows>;
    }
  }
  return nullptr;
}

// What takes them in the fewest steps; sides of images are often multiples of 7.
PF_INLINE int strip_rows(int64_t count) {
  return count < 4 ? 1 : count >= 7 && ceil_div(count, 7) * 7 <= ceil_div(count, 4) * 4 ? 7 : 4;
}

template <class S>
SumSquares<S> sum_squares_of(const Axis& axis, int rows) {
  switch (rows) {
    case 7: return sum_squares_of<S, 7>(axis);
    case 4: return sum_squares_of<S, 4>(axis);
    default: return sum_squares_of<S, 1>(axis);
  }
}

// Is this file for it?
template <class S>
bool is_square(const Correlation<S>& p) {
  const Axis &depth = p.axes[0], &height = p.axes[1], &width = p.axes[2];
  return depth.taps == 1 && depth.count == 1 && depth.from == 1 && depth.tap_first == 0 && height.taps == width.taps &&
         height.from_step == width.from_step && height.tap_step == 1 && width.tap_step == 1 &&
         p.from_stride.spatial[2] == 1 && sum_squares_of<S>(width, 1);
}

template <class S>
struct DepthwiseSquaresPlan {
  typedef Acc<S> T;
  int threads, rows;                        // of a strip
  int64_t parts, units, task_units, tasks;  // a unit: the strips side by side of one channel
  int64_t weight_bytes;

  DepthwiseSquaresPlan(const Correlation<S>& p, int num_threads)
      : threads(p.threads(num_threads)), rows(strip_rows(p.axes[1].count)) {
    parts = ceil_div(p.axes[1].count, rows);
    units = p.batch * p.groups * p.rows * parts;
    const int64_t products = max_of(1, rows * p.axes[2].count * p.taps());
    task_units = max_of(1, min_of(ceil_div(kTaskProducts, products), units / (4 * threads)));
    tasks = ceil_div(units, task_units);
    weight_bytes = round_up(p.groups * p.rows * p.taps() * sizeof(T), 64);
  }
  int64_t bytes() const { return weight_bytes; }
};

template <class S>
void depthwise_squares(const Correlation<S>& p, void* workspace, const FinishRows<S>& finish, int num_threads) {
  typedef Acc<S> T;
  const DepthwiseSquaresPlan<S> plan(p, num_threads);
  char* memory = (char*)workspace;
  const T* weight = (const T*)memory;
  const int64_t channels = p.groups * p.rows, taps = p.taps();
  pack_rows(p, (T*)memory, channels * taps < kElementwiseGrain ? 1 : plan.threads);
  const SumSquares<S> sum = sum_squares_of<S>(p.axes[2], plan.rows);
  parallel_tasks(plan.tasks, plan.threads, [&](int64_t task, int) {
    int64_t unit = task * plan.task_units;
    const int64_t last = min_of(plan.units, unit + plan.task_units);
    int64_t part = unit % plan.parts, channel = unit / plan.parts % channels, n = unit / plan.parts / channels;
    int64_t group = channel / p.rows;
    for (; unit < last; unit++) {
      // The last ones sum some once more.
      const Place place = {n, {0, min_of(part * plan.rows, p.axes[1].count - plan.rows), 0}};
      const int64_t h = place.index(p.axes, 1), pitch = p.from_stride.spatial[1];
      const S* plane = p.from + n * p.from_stride.outer + group * p.from_stride.channel;
      sum(p, {plane + h * pitch, pitch, h, p.axes[1].from}, weight + channel * taps,
          place.to(p) + channel * p.to_stride.channel, channel, finish);
      if (++part < plan.parts) continue;
      part = 0;
      if (++channel == channels) channel = 0, n++;
      group = p.rows == 1 ? channel : channel / p.rows;
    }
  });
}

}  // namespace

}  // namespace PF_ISA::conv
