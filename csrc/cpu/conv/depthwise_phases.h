// The gradient of the input of a depthwise convolution of stride 2, of images whose rows lie along memory (NCHW): two
// phases of the width, whose results lie in turn, are summed as vectors of places, a strip some rows high, and leave as
// whole rows.
#pragma once
#include "depthwise_squares.h"

namespace PF_ISA::conv {

namespace {

constexpr int kPhases = 2;

// Is this file for them?
template <class S>
bool are_plane_phases(const Correlation<S>* phases, int64_t count) {
  if (!kHasFixedTaps<S> || count != kPhases) return false;
  for (int i = 0; i < kPhases; i++) {
    const Correlation<S>& p = phases[i];
    const Axis &depth = p.axes[0], &height = p.axes[1], &width = p.axes[2];
    if (depth.taps != 1 || depth.count != 1 || depth.from != 1 || depth.tap_first != 0 || depth.to_step != 1)
      return false;
    if (height.tap_step != 1 || width.tap_step != 1) return false;
    if (p.from_stride.spatial[2] != 1 || p.to_stride.spatial[2] != 1) return false;
  }
  return phases[0].axes[2].count - phases[1].axes[2].count <= 1;
}

// kRows rows of one channel of the source from `from` on, what they read.
template <class S, int kRows, bool kInside>
PF_INLINE void sum_phase(const Correlation<S>& p, const SquareSource<S>& from, int64_t j, const Acc<S>* weight,
                         Vec<Acc<S>> (&sums)[kRows]) {
  typedef Vec<Acc<S>> V;
  const Axis &height = p.axes[1], &width = p.axes[2];
  PF_UNROLL
  for (int r = 0; r < kRows; r++) sums[r] = V{};
  for (int64_t t = 0; t < width.taps; t++) {
    const int64_t w = j + width.tap_first + t;
    const uint32_t lanes = lanes_inside<Acc<S>>(w, width.from);
    for (int64_t h = 0; h < height.taps; h++) {
      const V tap = splat<V>(weight[h * width.taps + t]);
      const S* at = from.at + h * from.pitch + w;
      PF_UNROLL
      for (int r = 0; r < kRows; r++, at += from.pitch)
        if (is_inside(from.first + h + r, from.rows))
          sums[r] = fma(tap, kInside ? load(at) : load_masked(at, lanes), sums[r]);
    }
  }
}

// kRows rows of results of one channel, from row j of the phases on.
template <class S, int kRows>
void sum_plane_phases(const Correlation<S>* phases, const S* plane, int64_t row, int64_t to, int64_t channel,
                      const Acc<S>* const (&weight)[kPhases], const FinishRows<S>& finish) {
  typedef Acc<S> T;
  constexpr int lanes = kLanes<T>;
  const Axis &height = phases[0].axes[1], &width = phases[0].axes[2], &other = phases[1].axes[2];
  const int64_t h = row + height.tap_first, pitch = phases[0].from_stride.spatial[1];
  const int64_t row_step = height.to_step * phases[0].to_stride.spatial[1], size = width.count + other.count;
  const SquareSource<S> from = {plane + h * pitch, pitch, h, height.from};
  const int64_t first = min_of(width.tap_first, other.tap_first);
  const int64_t last = max_of(width.tap_first + width.taps, other.tap_first + other.taps) - 1;
  const Affine<Vec<T>> affine = finish.plain.of_channel(channel);
  for (int64_t j = 0; j < width.count; j += lanes) {
    Vec<T> sums[kPhases][kRows];
    const bool is_whole = j + first >= 0 && j + lanes + last <= width.from;
    PF_UNROLL
    for (int i = 0; i < kPhases; i++)
      if (is_whole)
        sum_phase<S, kRows, true>(phases[i], from, j, weight[i], sums[i]);
      else
        sum_phase<S, kRows, false>(phases[i], from, j, weight[i], sums[i]);
    const int64_t count = min_of(2 * lanes, size - 2 * j);
    if (FinishRows<S>::kIsSummedType && finish.is_plain) {
      PF_UNROLL
      for (int r = 0; r < kRows; r++) {
        const Vec<T> even = affine(sums[0][r]), odd = affine(sums[1][r]);
        const int64_t at = to + r * row_step + 2 * j;
        finish.plain(at, shuffle<InTurn<lanes, 0>>(even, odd), min_of(lanes, count));
        if (count > lanes) finish.plain(at + lanes, shuffle<InTurn<lanes, lanes / 2>>(even, odd), count - lanes);
      }
      continue;
    }
    T strip[kRows * 2 * lanes] __attribute__((aligned(64)));
    PF_UNROLL
    for (int r = 0; r < kRows; r++) {
      store(strip + 2 * r * lanes, shuffle<InTurn<lanes, 0>>(sums[0][r], sums[1][r]));
      store(strip + (2 * r + 1) * lanes, shuffle<InTurn<lanes, lanes / 2>>(sums[0][r], sums[1][r]));
    }
    finish({strip, kRows, 2 * lanes, count, to + 2 * j, row_step, 1, channel, false});
  }
}

template <class S>
using SumPlanePhases = void (*)(const Correlation<S>* phases, const S* plane, int64_t row, int64_t to, int64_t channel,
                                const Acc<S>* const (&weight)[kPhases], const FinishRows<S>& finish);

template <class S>
SumPlanePhases<S> sum_plane_phases_of(int rows) {
  switch (rows) {
    case 7: return sum_plane_phases<S, 7>;
    case 4: return sum_plane_phases<S, 4>;
    default: return sum_plane_phases<S, 1>;
  }
}

template <class S>
struct PlanePhasesPlan {
  typedef Acc<S> T;
  int threads, rows;                        // of a strip
  int64_t parts, units, task_units, tasks;  // a unit: the strips side by side of one channel
  int64_t weight_bytes[kPhases];

  PlanePhasesPlan(const Correlation<S>* phases, int num_threads)
      : threads(phases[0].threads(num_threads)), rows(strip_rows(phases[0].axes[1].count)) {
    const Correlation<S>& p = phases[0];
    parts = ceil_div(p.axes[1].count, rows);
    units = p.batch * p.groups * p.rows * parts;
    const int64_t products = max_of(1, kPhases * rows * p.axes[2].count * max_of(p.taps(), 1));
    task_units = max_of(1, min_of(ceil_div(kTaskProducts, products), units / (4 * threads)));
    tasks = ceil_div(units, task_units);
    for (int i = 0; i < kPhases; i++)
      weight_bytes[i] = round_up(p.groups * p.rows * phases[i].taps() * (int64_t)sizeof(T), 64);
  }
  int64_t bytes() const { return weight_bytes[0] + weight_bytes[1]; }
};

template <class S>
void depthwise_plane_phases(const Correlation<S>* phases, void* workspace, const FinishRows<S>& finish,
                            int num_threads) {
  typedef Acc<S> T;
  const PlanePhasesPlan<S> plan(phases, num_threads);
  const Correlation<S>& p = phases[0];
  T* const weight[kPhases] = {(T*)workspace, (T*)((char*)workspace + plan.weight_bytes[0])};
  for (int i = 0; i < kPhases; i++)
    if (phases[i].taps()) pack_rows(phases[i], weight[i], plan.threads);
  const int64_t channels = p.groups * p.rows, taps[kPhases] = {phases[0].taps(), phases[1].taps()};
  const SumPlanePhases<S> sum = sum_plane_phases_of<S>(plan.rows);
  parallel_tasks(plan.tasks, plan.threads, [&](int64_t task, int) {
    int64_t unit = task * plan.task_units;
    for (const int64_t last = min_of(plan.units, unit + plan.task_units); unit < last; unit++) {
      const int64_t channel = unit / plan.parts % channels, n = unit / plan.parts / channels;
      // The last ones sum some once more.
      const int64_t row = min_of(unit % plan.parts * plan.rows, p.axes[1].count - plan.rows);
      const S* plane = p.from + n * p.from_stride.outer + channel / p.rows * p.from_stride.channel;
      const T* const of_channel[kPhases] = {weight[0] + channel * taps[0], weight[1] + channel * taps[1]};
      sum(phases, plane, row, Place{n, {0, row, 0}}.to(p) + channel * p.to_stride.channel, channel, of_channel, finish);
    }
  });
}

}  // namespace

}  // namespace PF_ISA::conv
