// The gradient of a depthwise kernel's weight, of 3x3 taps and stride 1 or 2, from tensors as they lie: the nine sums
// of a channel, or of a vector of channels, stay in registers, and what is loaded of the source serves all of them that
// it meets. Nothing beyond a row is multiplied, not even with zero: it may be infinite.
#pragma once
#include "depthwise_channels.h"
#include "depthwise_squares.h"
#include "depthwise_weight_grad.h"

namespace PF_ISA::conv {

namespace {

constexpr int kSide = 3;

template <class S>
using KernelSums = Vec<Acc<S>>[kSide][kSide];

// ---- rows along memory: lanes are places
// ----------------------------------------------------------------------------- kRows rows of dy from `dy` on, `count`
// columns of them.
template <class S, int kStep, int kRows, bool kInside>
PF_INLINE void add_strip_products(const S* dy, int64_t dy_pitch, int64_t count, const SquareSource<S>& from, int64_t w,
                                  int64_t size, KernelSums<S>& sums) {
  typedef Acc<S> T;
  const RowTaps<T, kStep, kSide> row(w, size);
  typename VecOf<T>::mask lane, none{};
  for (int i = 0; i < kLanes<T>; i++) lane[i] = i;
  const auto is_there = lane < (none + (int)min_of(count, kLanes<T>));
  Vec<T> d[kRows], x[kSide];
  PF_UNROLL
  for (int r = 0; r < kRows; r++) d[r] = in_register(load_n(dy + r * dy_pitch, kInside ? kLanes<T> : count));
  const S* at = from.at + w;
  PF_UNROLL
  for (int i = 0; i < (kRows - 1) * kStep + kSide; i++, at += from.pitch) {
    if (!is_inside(from.first + i, from.rows)) continue;
    row.template load_from<kInside>(at, x);
    PF_UNROLL
    for (int t = 0; t < kSide; t++)
      if (!kInside) x[t] = select(is_there, x[t], Vec<T>{});
    PF_UNROLL
    for (int r = 0; r < kRows; r++) {
      const int h = i - r * kStep;
      if (h < 0 || h >= kSide) continue;
      PF_UNROLL
      for (int t = 0; t < kSide; t++) sums[h][t] = fma(d[r], x[t], sums[h][t]);
    }
  }
}

template <class S, int kStep, int kRows>
PF_INLINE void add_row_products(const Correlation<S>& p, const S* dy, const ConvStrides& dy_stride,
                                const SquareSource<S>& from, KernelSums<S>& sums) {
  constexpr int lanes = kLanes<Acc<S>>;
  const Axis& width = p.axes[2];
  for (int64_t j = 0; j < width.count; j += lanes) {
    const int64_t w = j * kStep + width.tap_first, count = width.count - j;
    if (count >= lanes && w >= 0 && w + RowTaps<Acc<S>, kStep, kSide>::kReach <= width.from)
      add_strip_products<S, kStep, kRows, true>(dy + j, dy_stride.spatial[1], count, from, w, width.from, sums);
    else
      add_strip_products<S, kStep, kRows, false>(dy + j, dy_stride.spatial[1], count, from, w, width.from, sums);
  }
}

// One plane of dy and of the source.
template <class S>
using AddPlane = void (*)(const Correlation<S>& p, const S* dy, const ConvStrides& dy_stride, const S* plane,
                          KernelSums<S>& sums);

template <class S, int kStep>
void add_plane(const Correlation<S>& p, const S* dy, const ConvStrides& dy_stride, const S* plane,
               KernelSums<S>& in_memory) {
  const Axis& height = p.axes[1];
  const int64_t pitch = p.from_stride.spatial[1];
  KernelSums<S> sums;
  PF_UNROLL
  for (int h = 0; h < kSide; h++) PF_UNROLL
  for (int t = 0; t < kSide; t++) sums[h][t] = in_memory[h][t];
  auto add = [&](int64_t j, auto rows) __attribute__((always_inline)) {
    const int64_t h = j * kStep + height.tap_first;
    add_row_products<S, kStep, decltype(rows)::value>(p, dy + j * dy_stride.spatial[1], dy_stride,
                                                      {plane + h * pitch, pitch, h, height.from}, sums);
  };
  int64_t j = 0;
  for (; j + 7 <= height.count; j += 7) add(j, Count<7>{});  // sides of images are often multiples of it
  for (; j < height.count; j++) add(j, Count<1>{});
  PF_UNROLL
  for (int h = 0; h < kSide; h++) PF_UNROLL
  for (int t = 0; t < kSide; t++) in_memory[h][t] = sums[h][t];
}

template <class S>
bool is_3x3(const Correlation<S>& p) {
  return is_square(p) && p.axes[2].taps == kSide;
}

struct SquaresGradPlan {
  int threads;
  int64_t parts, part_images;  // as many whatever the number of threads
  int64_t task_channels, blocks;

  template <class S>
  SquaresGradPlan(const Correlation<S>& p, int num_threads) : threads(p.threads(num_threads)) {
    const int64_t channels = p.groups * p.rows, products = max_of(1, p.batch * p.axes[1].count * p.axes[2].count * 9);
    parts = channels >= kManyTasks ? 1 : max_of(1, min_of(p.batch, ceil_div(kManyTasks, max_of(1, channels))));
    part_images = max_of(1, ceil_div(p.batch, parts));
    parts = max_of(1, ceil_div(p.batch, part_images));
    task_channels = max_of(1, min_of(ceil_div(kTaskProducts * parts, products), channels / kManyTasks));
    blocks = ceil_div(channels, task_channels);
  }
  template <class S>
  int64_t bytes(const Correlation<S>& p) const {
    return parts * p.groups * p.rows * p.taps() * (int64_t)sizeof(Acc<S>);
  }
};

template <class S>
void depthwise_squares_weight_grad(const Correlation<S>& p, const DepthwiseGradient<S>& dy, S* dweight, void* workspace,
                                   int num_threads) {
  typedef Acc<S> T;
  const SquaresGradPlan plan(p, num_threads);
  T* sums = (T*)workspace;
  const int64_t channels = p.groups * p.rows;
  const AddPlane<S> add = p.axes[2].from_step == 1 ? add_plane<S, 1> : add_plane<S, 2>;
  parallel_tasks(plan.parts * plan.blocks, plan.threads, [&](int64_t task, int) {
    const int64_t part = task / plan.blocks, first = task % plan.blocks * plan.task_channels;
    const int64_t image = part * plan.part_images, end = min_of(p.batch, image + plan.part_images);
    for (int64_t c = first; c < min_of(channels, first + plan.task_channels); c++) {
      KernelSums<S> of_lanes = {};
      for (int64_t n = image; n < end; n++)
        add(p, dy.at + n * dy.stride.outer + c * dy.stride.channel, dy.stride,
            p.from + n * p.from_stride.outer + (p.rows == 1 ? c : c / p.rows) * p.from_stride.channel, of_lanes);
      T* out = sums + (part * channels + c) * kSide * kSide;
      PF_UNROLL
      for (int h = 0; h < kSide; h++) PF_UNROLL
      for (int t = 0; t < kSide; t++) out[h * kSide + t] = reduce_add(of_lanes[h][t]);
    }
  });
  write_weight_grad(p, sums, plan.parts, channels * kSide * kSide, kSide * kSide, 1, dweight, plan.threads);
}

// ---- channels along memory: lanes are channels
// ----------------------------------------------------------------------- kTile results of one row of dy.
template <class S, int kStep, int kTile>
PF_INLINE void add_tile_products(const S* dy, int64_t dy_step, const ChannelSource<S>& from, const S* at,
                                 int64_t column_step, int64_t w, int64_t size, KernelSums<S>& sums) {
  typedef Vec<Acc<S>> V;
  V d[kTile];
  PF_UNROLL
  for (int o = 0; o < kTile; o++) d[o] = in_register(load(dy + o * dy_step));
  constexpr int reach = (kTile - 1) * kStep + kSide;
  auto rows = [&](auto is_inside_of_row) __attribute__((always_inline)) {
    const S* row = at;
    PF_UNROLL
    for (int h = 0; h < kSide; h++, row += from.pitch) {
      if (!is_inside(from.first + h, from.rows)) continue;
      PF_UNROLL
      for (int j = 0; j < reach; j++) {
        if (!is_inside_of_row(w + j)) continue;
        const V x = in_register(load(row + j * column_step));
        PF_UNROLL
        for (int o = 0; o < kTile; o++) {
          const int t = j - o * kStep;
          if (t >= 0 && t < kSide) sums[h][t] = fma(x, d[o], sums[h][t]);
        }
      }
    }
  };
  if (w >= 0 && w + reach <= size)
    rows([](int64_t) __attribute__((always_inline)) { return true; });
  else
    rows([&](int64_t i) __attribute__((always_inline)) { return is_inside(i, size); });
}

// `rows` rows of dy, all of one image, of `channels` channels from `c` on; sums: of tap 0, taps `pitch` apart.
template <class S>
using AddChannelRows = void (*)(const Correlation<S>& p, const S* dy, const ConvStrides& dy_stride, const S* image,
                                int64_t j, int64_t rows, int64_t channels, Acc<S>* sums, int64_t pitch);

template <class S, int kStep>
void add_channel_rows(const Correlation<S>& p, const S* dy, const ConvStrides& dy_stride, const S* image, int64_t j,
                      int64_t rows, int64_t channels, Acc<S>* in_memory, int64_t pitch) {
  typedef Acc<S> T;
  const Axis &height = p.axes[1], &width = p.axes[2];
  const int64_t dy_step = dy_stride.spatial[2], column_step = p.from_stride.spatial[2];
  for (int64_t first = 0; first < channels; first += kLanes<T>) {
    const int64_t c = min_of(first, channels - kLanes<T>);
    KernelSums<S> sums;
    PF_UNROLL
    for (int h = 0; h < kSide; h++) PF_UNROLL
    for (int t = 0; t < kSide; t++) sums[h][t] = load(in_memory + (h * kSide + t) * pitch + c);
    for (int64_t r = j; r < j + rows; r++) {
      const int64_t h = r * kStep + height.tap_first, row = p.from_stride.spatial[1];
      const ChannelSource<S> from = {nullptr, row, h, height.from, nullptr, 0};
      const S *dy_row = dy + r * dy_stride.spatial[1] + c, *source = image + h * row + c;
      int64_t o = 0;
      auto add = [&](auto tile) __attribute__((always_inline)) {
        const int64_t w = o * kStep + width.tap_first;
        add_tile_products<S, kStep, decltype(tile)::value>(dy_row + o * dy_step, dy_step, from,
                                                           source + w * column_step, column_step, w, width.from, sums);
      };
      for (; o + kGradTile <= width.count; o += kGradTile) add(Count<kGradTile>{});
      for (; o < width.count; o++) add(Count<1>{});
    }
    PF_UNROLL
    for (int h = 0; h < kSide; h++) PF_UNROLL
    for (int t = 0; t < kSide; t++) store_behind(in_memory + (h * kSide + t) * pitch + c, sums[h][t], first - c);
  }
}

constexpr int64_t kGradRows = 4;  // at once, of a vector of channels: what they read fits the first-level cache

template <class S>
void depthwise_channels_weight_grad(const Correlation<S>& p, const DepthwiseGradient<S>& dy, S* dweight,
                                    void* workspace, int num_threads) {
  typedef Acc<S> T;
  const RowsGradPlan<S> plan(p, num_threads);
  T* sums = (T*)workspace;
  const AddChannelRows<S> add = p.axes[2].from_step == 1 ? add_channel_rows<S, 1> : add_channel_rows<S, 2>;
  parallel_tasks(plan.parts * plan.blocks, plan.threads, [&](int64_t task, int) {
    const int64_t channel = task % plan.blocks * plan.kBlock, part = task / plan.blocks, height = p.axes[1].count;
    const int64_t channels = plan.channels(p, channel);
    T* out = sums + part * kSide * kSide * plan.pitch + channel;
    for (int64_t t = 0; t < kSide * kSide; t++) clear(out + t * plan.pitch, 0, channels);
    const int64_t last = min_of(plan.rows, (part + 1) * plan.part_rows);
    for (int64_t row = part * plan.part_rows, count; row < last; row += count) {
      const int64_t n = row / height, j = row % height;
      count = min_of(min_of(kGradRows, height - j), last - row);
      add(p, dy.at + n * dy.stride.outer + channel, dy.stride, p.from + n * p.from_stride.outer + channel, j, count,
          channels, out, plan.pitch);
    }
  });
  write_weight_grad(p, sums, plan.parts, kSide * kSide * plan.pitch, 1, plan.pitch, dweight, plan.threads);
}

}  // namespace

}  // namespace PF_ISA::conv
