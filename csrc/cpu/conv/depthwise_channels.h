// Depthwise convolution of images whose channels lie along memory (channels_last), of a vector of them and more, with a
// square kernel of 3, 5 or 7 taps a side: stride 1, or 2 of 3x3. Two rows of results are summed at once, a tile of
// neighbouring ones in registers, and each vector of the source is loaded once for all results of the tile that it
// meets.
#pragma once
#include "depthwise_squares.h"

namespace PF_ISA::conv {

namespace {

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

// The first channel of a vector of them: of the last one, some belong to the vector before it, too.
template <class S>
int64_t first_channel(const Correlation<S>& p, int64_t vector) {
  return min_of(vector * kLanes<Acc<S>>, p.groups - kLanes<Acc<S>>);
}

// The weight as [vector][tap][channel].
template <class S, class T>
void pack_channels(const Correlation<S>& p, T* out, int threads) {
  constexpr int64_t lanes = kLanes<T>;
  const int64_t taps = p.taps(), width = p.axes[2].taps;
  // Whether taps follow one another, forwards or, in a gradient of the input, backwards.
  const int64_t step = p.axes[2].weight_step * p.weight_tap[2];
  const bool is_dense = step * step == 1 && p.axes[1].weight_step * p.weight_tap[1] == step * width;
  const S* weight = p.weight + p.weight_at(0, 0, 0) - (step < 0 ? taps - 1 : 0);
  parallel_ranges(ceil_div(p.groups, lanes), ceil_div(kElementwiseGrain, lanes * taps), threads,
                  [&](int64_t vector, int64_t end) {
                    for (; vector < end; vector++) {
                      const int64_t channel = first_channel(p, vector);
                      T* to = out + vector * taps * lanes;
                      int64_t t = 0;
                      for (; is_dense && t + lanes / 2 <= taps; t += lanes) {
                        const S* from = weight + channel * p.weight_group + t;
                        Vec<T> rows[lanes];
                        for (int64_t c = 0; c < lanes; c++) rows[c] = load_n(from + c * p.weight_group, taps - t);
                        transpose(rows);
                        for (int64_t i = 0; i < min_of(lanes, taps - t); i++)
                          store(to + (step < 0 ? taps - 1 - t - i : t + i) * lanes, rows[i]);
                      }
                      for (; t < taps; t++) {
                        const int64_t tap = step < 0 && is_dense ? taps - 1 - t : t;
                        const S* from = p.weight + p.weight_at(0, tap / width, tap % width) + channel * p.weight_group;
                        for (int64_t c = 0; c < lanes; c++) to[tap * lanes + c] = get(from + c * p.weight_group);
                      }
                    }
                  });
}

// The taps of a vector of channels. Nine stay in registers along a row of results.
template <class T, int kSide>
struct ChannelTaps {
  static constexpr bool kAreKept = kSide == 3 && kRegisters == 32;
  const T* at;
  Vec<T> kept[kAreKept ? kSide : 1][kSide];

  PF_MEMBER explicit ChannelTaps(const T* at) : at(at) {
    if constexpr (kAreKept) {
      PF_UNROLL
      for (int h = 0; h < kSide; h++) PF_UNROLL
      for (int t = 0; t < kSide; t++) kept[h][t] = in_register(load(at + (h * kSide + t) * kLanes<T>));
    }
  }
  PF_MEMBER void row(int h, Vec<T> (&taps)[kSide]) const {
    PF_UNROLL
    for (int t = 0; t < kSide; t++)
      taps[t] = kAreKept ? kept[kAreKept ? h : 0][t] : load(at + (h * kSide + t) * kLanes<T>);
  }
};

template <class S, int kSide, int kStep, int kRows, int kTile, bool kInside>
PF_INLINE void sum_channels_tile(const ChannelSource<S>& from, const S* at, int64_t column_step, int64_t w,
                                 int64_t size, const ChannelTaps<Acc<S>, kSide>& weight,
                                 Vec<Acc<S>> (&sums)[kRows][kTile]) {
  typedef Vec<Acc<S>> V;
  PF_UNROLL
  for (int r = 0; r < kRows; r++) PF_UNROLL
  for (int o = 0; o < kTile; o++) sums[r][o] = V{};
  PF_UNROLL
  for (int i = 0; i < (kRows - 1) * kStep + kSide; i++, at += from.pitch) {
    if (!is_inside(from.first + i, from.rows)) continue;
    V taps[kRows][kSide];
    PF_UNROLL
    for (int r = 0; r < kRows; r++)
      if (i >= r * kStep && i - r * kStep < kSide) weight.row(i - r * kStep, taps[r]);
    const S* x_at = at;
    PF_UNROLL
    for (int j = 0; j < (kTile - 1) * kStep + kSide; j++, x_at += column_step) {
      if (!kInside && !is_inside(w + j, size)) continue;
      const V x = in_register(load(x_at));
      PF_UNROLL
      for (int r = 0; r < kRows; r++) PF_UNROLL
      for (int o = 0; o < kTile; o++) {
        const int h = i - r * kStep, t = j - o * kStep;
        if (h >= 0 && h < kSide && t >= 0 && t < kSide) sums[r][o] = fma(x, taps[r][t], sums[r][o]);
      }
    }
  }
}

template <class S>
using SumChannels = void (*)(const Correlation<S>& p, const ChannelSource<S>& from, const Acc<S>* weight, int64_t to,
                             const FinishRows<S>& finish);

template <class S, int kSide, int kStep, int kRows, int kTile>
void sum_channels(const Correlation<S>& p, const ChannelSource<S>& from, const Acc<S>* weight, int64_t to,
                  const FinishRows<S>& finish) {
  typedef Acc<S> T;
  constexpr int lanes = kLanes<T>, reach = (kTile - 1) * kStep + kSide;
  const Axis &height = p.axes[1], &width = p.axes[2];
  const int64_t column_step = p.from_stride.spatial[2];
  const int64_t row_step = height.to_step * p.to_stride.spatial[1], step = width.to_step * p.to_stride.spatial[2];
  // Spread over the sums, so that it comes from memory beside them. Zen 4, one thread, 8 x 192 channels of 28x28: 835
  // us without, 465 with it.
  const int64_t vectors = ceil_div(p.groups, lanes);
  const int64_t share = ceil_div(from.next_size, vectors * ceil_div(width.count, kTile));
  const S* ahead = from.next;
  for (int64_t v = 0; v < vectors; v++) {
    const int64_t c = first_channel(p, v);
    const ChannelTaps<T, kSide> taps(weight + v * kSide * kSide * lanes);
    const Affine<Vec<T>> affine = finish.plain.of_channels(c, lanes);
    for (int64_t j = 0; j < width.count; j += kTile, ahead += share) {
      const int64_t tile = min_of(j, width.count - kTile);  // the last one sums some once more
      const int64_t w = tile * kStep + width.tap_first, at = to + c + tile * step;
      const S* source = from.at + c + w * column_step;
      prefetch_far(ahead, share);
      Vec<T> sums[kRows][kTile];
      if (w >= 0 && w + reach <= width.from)
        sum_channels_tile<S, kSide, kStep, kRows, kTile, true>(from, source, column_step, w, width.from, taps, sums);
      else
        sum_channels_tile<S, kSide, kStep, kRows, kTile, false>(from, source, column_step, w, width.from, taps, sums);
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

template <class S, int kSide, int kStep, int kRows>
SumChannels<S> sum_channels_of(int tile) {
  switch (tile) {
    case 7: return sum_channels<S, kSide, kStep, kRows, 7>;
    case 4: return sum_channels<S, kSide, kStep, kRows, 4>;
    default: return sum_channels<S, kSide, kStep, kRows, 1>;
  }
}
template <class S, int kRows>
SumChannels<S> sum_channels_of(const Axis& axis, int tile) {
  switch (axis.taps) {
    case 7: return sum_channels_of<S, 7, 1, kRows>(tile);
    case 5: return sum_channels_of<S, 5, 1, kRows>(tile);
    default: return axis.from_step == 1 ? sum_channels_of<S, 3, 1, kRows>(tile) : sum_channels_of<S, 3, 2, kRows>(tile);
  }
}

// Has this file sums for it? (The gradient of the weight is asked of 3x3 alone.)
template <class S>
bool is_square_of_channels(const Correlation<S>& p) {
  const Axis &depth = p.axes[0], &height = p.axes[1], &width = p.axes[2];
  return kHasFixedTaps<S> && depth.taps == 1 && depth.count == 1 && depth.from == 1 && depth.tap_first == 0 &&
         height.taps == width.taps && height.from_step == width.from_step && height.tap_step == 1 &&
         width.tap_step == 1 && p.groups >= kLanes<Acc<S>> &&
         (width.taps == 3 ? width.from_step <= 2 : (width.taps == 5 || width.taps == 7) && width.from_step == 1);
}
template <class S>
bool is_3x3_of_channels(const Correlation<S>& p) {
  return p.axes[2].taps == 3 && is_square_of_channels(p);
}

template <class S>
struct DepthwiseChannelsPlan {
  typedef Acc<S> T;
  int threads, tile;
  int64_t parts, units, task_units, tasks;  // a unit: kRowsAtMost rows of results, or the last one
  int64_t weight_bytes;

  DepthwiseChannelsPlan(const Correlation<S>& p, int num_threads)
      : threads(p.threads(num_threads)), tile(strip_rows(p.axes[2].count)) {
    parts = ceil_div(p.axes[1].count, kRowsAtMost);
    units = p.batch * parts;
    const int64_t products = max_of(1, kRowsAtMost * p.axes[2].count * p.groups * p.taps());
    task_units = max_of(1, min_of(ceil_div(kTaskProducts, products), units / (4 * threads)));
    tasks = ceil_div(units, task_units);
    weight_bytes = p.taps() * round_up(p.groups, kLanes<T>) * sizeof(T);
  }
  int64_t bytes() const { return weight_bytes; }
};

template <class S>
void depthwise_channels(const Correlation<S>& p, void* workspace, const FinishRows<S>& finish, int num_threads) {
  typedef Acc<S> T;
  const DepthwiseChannelsPlan<S> plan(p, num_threads);
  char* memory = (char*)workspace;
  const T* weight = (const T*)memory;
  pack_channels(p, (T*)memory, plan.threads);
  const Axis& height = p.axes[1];
  const int64_t pitch = p.from_stride.spatial[1];
  const SumChannels<S> of_rows = sum_channels_of<S, kRowsAtMost>(p.axes[2], plan.tile);
  const SumChannels<S> of_row = sum_channels_of<S, 1>(p.axes[2], plan.tile);
  parallel_tasks(plan.tasks, plan.threads, [&](int64_t task, int) {
    int64_t unit = task * plan.task_units;
    for (const int64_t last = min_of(plan.units, unit + plan.task_units); unit < last; unit++) {
      const Place place = {unit / plan.parts, {0, unit % plan.parts * kRowsAtMost, 0}};
      const int64_t h = place.index(p.axes, 1);
      const S* image = p.from + place.n * p.from_stride.outer;
      const int64_t read = min_of(max_of(h + (kRowsAtMost - 1) * height.from_step + height.taps, 0), height.from);
      const int64_t next = min_of(read + kRowsAtMost * height.from_step, height.from);
      const ChannelSource<S> from = {image + h * pitch,    pitch, h, height.from, image + read * pitch,
                                     (next - read) * pitch};
      (place.j[1] + kRowsAtMost <= height.count ? of_rows : of_row)(p, from, weight, place.to(p), finish);
    }
  });
}

}  // namespace

}  // namespace PF_ISA::conv
