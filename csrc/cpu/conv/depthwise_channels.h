// Depthwise 3x3 convolution, stride 1 or 2, of images whose channels lie along memory (channels_last), of a vector of
// them and more: its nine taps stay in registers along a row or two rows of results, and each vector of the source is
// loaded once for all results of a tile that it meets.
#pragma once
#include "depthwise_squares.h"

namespace PF_ISA::conv {

namespace {

constexpr int kSide = 3;
constexpr int kRowsAtMost = kRegisters == 32 ? 2 : 1;  // of results at once: as many as leave their sums in registers

// Rows of an image from the first that results read on, and which of them there are; and what the next results read of
// them and these do not.
template <class S>
struct ChannelSource {
  const S* at;  // column 0, channel 0
  int64_t pitch, first, rows;
  const S* next;
  int64_t next_size;
};

template <class S, int kStep, int kRows, int kTile, bool kInside>
PF_INLINE void sum_channels_tile(const ChannelSource<S>& from, const S* at, int64_t column_step, int64_t w,
                                 int64_t size, const Vec<Acc<S>> (&taps)[kSide][kSide],
                                 Vec<Acc<S>> (&sums)[kRows][kTile]) {
  typedef Vec<Acc<S>> V;
  PF_UNROLL
  for (int r = 0; r < kRows; r++) PF_UNROLL
  for (int o = 0; o < kTile; o++) sums[r][o] = V{};
  PF_UNROLL
  for (int i = 0; i < (kRows - 1) * kStep + kSide; i++, at += from.pitch) {
    if (!is_inside(from.first + i, from.rows)) continue;
    const S* x_at = at;
    PF_UNROLL
    for (int j = 0; j < (kTile - 1) * kStep + kSide; j++, x_at += column_step) {
      if (!kInside && !is_inside(w + j, size)) continue;
      const V x = in_register(load(x_at));
      PF_UNROLL
      for (int r = 0; r < kRows; r++) PF_UNROLL
      for (int o = 0; o < kTile; o++) {
        const int h = i - r * kStep, t = j - o * kStep;
        if (h >= 0 && h < kSide && t >= 0 && t < kSide) sums[r][o] = fma(x, taps[h][t], sums[r][o]);
      }
    }
  }
}

template <class S>
using SumChannels = void (*)(const Correlation<S>& p, const ChannelSource<S>& from, const Acc<S>* weight, int64_t pitch,
                             int64_t to, const FinishRows<S>& finish);

template <class S, int kStep, int kRows, int kTile>
void sum_channels(const Correlation<S>& p, const ChannelSource<S>& from, const Acc<S>* weight, int64_t pitch,
                  int64_t to, const FinishRows<S>& finish) {
  typedef Acc<S> T;
  constexpr int lanes = kLanes<T>, reach = (kTile - 1) * kStep + kSide;
  const Axis &height = p.axes[1], &width = p.axes[2];
  const int64_t column_step = p.from_stride.spatial[2];
  const int64_t row_step = height.to_step * p.to_stride.spatial[1], step = width.to_step * p.to_stride.spatial[2];
  // Spread over the sums, so that it comes from memory beside them. Zen 4, one thread, 8 x 192 channels of 28x28: 835
  // us without, 465 with it.
  const int64_t share = ceil_div(from.next_size, ceil_div(p.groups, lanes));
  const S* ahead = from.next;
  for (int64_t first = 0; first < p.groups; first += lanes, ahead += share) {
    const int64_t c = min_of(first, p.groups - lanes);  // the last ones some once more
    prefetch_far(ahead, share);
    Vec<T> taps[kSide][kSide];
    PF_UNROLL
    for (int h = 0; h < kSide; h++) PF_UNROLL
    for (int t = 0; t < kSide; t++) taps[h][t] = load(weight + (h * kSide + t) * pitch + c);
    if (kRegisters == 32) {
      PF_UNROLL
      for (int h = 0; h < kSide; h++) PF_UNROLL
      for (int t = 0; t < kSide; t++) taps[h][t] = in_register(taps[h][t]);
    }
    const Affine<Vec<T>> affine = finish.plain.of_channels(c, lanes);
    for (int64_t j = 0; j < width.count; j += kTile) {
      const int64_t tile = min_of(j, width.count - kTile);  // likewise
      const int64_t w = tile * kStep + width.tap_first, at = to + c + tile * step;
      const S* source = from.at + c + w * column_step;
      Vec<T> sums[kRows][kTile];
      if (w >= 0 && w + reach <= width.from)
        sum_channels_tile<S, kStep, kRows, kTile, true>(from, source, column_step, w, width.from, taps, sums);
      else
        sum_channels_tile<S, kStep, kRows, kTile, false>(from, source, column_step, w, width.from, taps, sums);
      if (finish.is_plain) {
        PF_UNROLL
        for (int r = 0; r < kRows; r++) PF_UNROLL
        for (int o = 0; o < kTile; o++) finish.plain(at + r * row_step + o * step, affine(sums[r][o]), lanes);
        continue;
      }
      T strip[kTile * lanes] __attribute__((aligned(64)));
      PF_UNROLL
      for (int r = 0; r < kRows; r++) {
        PF_UNROLL
        for (int o = 0; o < kTile; o++) store(strip + o * lanes, sums[r][o]);
        finish({strip, kTile, lanes, lanes, at + r * row_step, step, 1, c, true});
      }
    }
  }
}

template <class S, int kStep, int kRows>
SumChannels<S> sum_channels_of(int tile) {
  switch (tile) {
    case 7: return sum_channels<S, kStep, kRows, 7>;
    case 4: return sum_channels<S, kStep, kRows, 4>;
    default: return sum_channels<S, kStep, kRows, 1>;
  }
}
template <class S, int kRows>
SumChannels<S> sum_channels_of(int64_t step, int tile) {
  return step == 1 ? sum_channels_of<S, 1, kRows>(tile) : sum_channels_of<S, 2, kRows>(tile);
}

// Is this file for it?
template <class S>
bool is_3x3_of_channels(const Correlation<S>& p) {
  const Axis &depth = p.axes[0], &height = p.axes[1], &width = p.axes[2];
  return kHasFixedTaps<S> && depth.taps == 1 && depth.count == 1 && depth.from == 1 && depth.tap_first == 0 &&
         height.taps == kSide && width.taps == kSide && height.from_step == width.from_step && height.from_step <= 2 &&
         height.tap_step == 1 && width.tap_step == 1 && p.groups >= kLanes<Acc<S>>;
}

template <class S>
struct DepthwiseChannelsPlan {
  typedef Acc<S> T;
  int threads, tile;
  int64_t parts, units, task_units, tasks;  // a unit: kRowsAtMost rows of results, or the last one
  int64_t pitch;                            // of the weight
  int64_t weight_bytes;

  DepthwiseChannelsPlan(const Correlation<S>& p, int num_threads)
      : threads(p.threads(num_threads)), tile(strip_rows(p.axes[2].count)) {
    parts = ceil_div(p.axes[1].count, kRowsAtMost);
    units = p.batch * parts;
    const int64_t products = max_of(1, kRowsAtMost * p.axes[2].count * p.groups * p.taps());
    task_units = max_of(1, min_of(ceil_div(kTaskProducts, products), units / (4 * threads)));
    tasks = ceil_div(units, task_units);
    pitch = round_up(p.groups, kLanes<T>);
    weight_bytes = round_up(p.taps() * pitch * sizeof(T), 64);
  }
  int64_t bytes() const { return weight_bytes; }
};

template <class S>
void depthwise_channels(const Correlation<S>& p, void* workspace, const FinishRows<S>& finish, int num_threads) {
  typedef Acc<S> T;
  const DepthwiseChannelsPlan<S> plan(p, num_threads);
  char* memory = (char*)workspace;
  const T* weight = (const T*)memory;
  pack_taps(p, plan.pitch, (T*)memory, plan.threads);
  const Axis& height = p.axes[1];
  const int64_t pitch = p.from_stride.spatial[1];
  const SumChannels<S> of_rows = sum_channels_of<S, kRowsAtMost>(height.from_step, plan.tile);
  const SumChannels<S> of_row = sum_channels_of<S, 1>(height.from_step, plan.tile);
  parallel_tasks(plan.tasks, plan.threads, [&](int64_t task, int) {
    int64_t unit = task * plan.task_units;
    for (const int64_t last = min_of(plan.units, unit + plan.task_units); unit < last; unit++) {
      const Place place = {unit / plan.parts, {0, unit % plan.parts * kRowsAtMost, 0}};
      const int64_t h = place.index(p.axes, 1);
      const S* image = p.from + place.n * p.from_stride.outer;
      const int64_t read = min_of(max_of(h + (kRowsAtMost - 1) * height.from_step + kSide, 0), height.from);
      const int64_t next = min_of(read + kRowsAtMost * height.from_step, height.from);
      const ChannelSource<S> from = {image + h * pitch,    pitch, h, height.from, image + read * pitch,
                                     (next - read) * pitch};
      (place.j[1] + kRowsAtMost <= height.count ? of_rows : of_row)(p, from, weight, plan.pitch, place.to(p), finish);
    }
  });
}

}  // namespace

}  // namespace PF_ISA::conv
