// The gradient of a depthwise convolution's weight: for each channel and tap a sum over all places of dy times what the
// tap reads there. Images are cut into parts, as many whatever the number of threads; their sums are added in order.
#pragma once
#include "depthwise_planes.h"
#include "depthwise_rows.h"

namespace PF_ISA::conv {

namespace {

constexpr int64_t kManyTasks = 16;  // enough for the threads of a processor to share

// dy of one depthwise convolution, of any strides.
template <class S>
struct DepthwiseGradient {
  const S* at;
  ConvStrides stride;
};

// Adds up sums[part][channel, tap] and writes the gradient.
template <class S, class T>
void write_weight_grad(const Correlation<S>& p, const T* sums, int64_t parts, int64_t part_stride,
                       int64_t channel_stride, int64_t tap_stride, S* dweight, int threads) {
  const int64_t height = p.axes[1].taps, width = p.axes[2].taps, taps = p.taps();
  parallel_ranges(p.groups * p.rows, ceil_div(kElementwiseGrain, max_of(1, taps * parts)), threads,
                  [&](int64_t first, int64_t end) {
                    for (int64_t tap = 0; tap < taps; tap++) {
                      S* to = dweight + p.weight_at(tap / width / height, tap / width % height, tap % width);
                      const T* from = sums + tap * tap_stride;
                      for (int64_t channel = first; channel < end; channel++) {
                        T sum = 0;
                        for (int64_t part = 0; part < parts; part++)
                          sum += from[part * part_stride + channel * channel_stride];
                        put(p.rows == 1 ? to + channel * p.weight_group
                                        : to + channel / p.rows * p.weight_group + channel % p.rows * p.weight_row,
                            sum);
                      }
                    }
                  });
}

// ---- planes
// ---------------------------------------------------------------------------------------------------------- sums[t] +=
// sum of dy[row, column] from[offset[t] + row pitch + column]. What is beyond a row is not even multiplied with zero:
// it may be infinite.
template <class T, int kTaps>
void sum_places(const T* dy, int64_t dy_pitch, const T* from, int64_t pitch, const int64_t* offset, int64_t rows,
                int64_t columns, T* sums) {
  constexpr int lanes = kLanes<T>;
  typename VecOf<T>::mask lane;
  for (int i = 0; i < lanes; i++) lane[i] = i;
  const int64_t whole = columns / lanes * lanes;
  typename VecOf<T>::mask left{};
  const auto is_there = lane < (left + (int)(columns - whole));
  Vec<T> parts[kTaps];
  PF_UNROLL
  for (int t = 0; t < kTaps; t++) parts[t] = Vec<T>{};
  for (int64_t r = 0; r < rows; r++, dy += dy_pitch, from += pitch) {
    for (int64_t c = 0; c < whole; c += lanes) {
      const Vec<T> d = load(dy + c);
      PF_UNROLL
      for (int t = 0; t < kTaps; t++) parts[t] = fma(d, load(from + offset[t] + c), parts[t]);
    }
    if (whole == columns) continue;
    const Vec<T> d = load(dy + whole);
    PF_UNROLL
    for (int t = 0; t < kTaps; t++) {
      const Vec<T> x = load(from + offset[t] + whole);
      parts[t] = fma(d, select(is_there, x, Vec<T>{}), parts[t]);
    }
  }
  PF_UNROLL
  for (int t = 0; t < kTaps; t++) sums[t] += reduce_add(parts[t]);
}

template <class T>
using SumPlaces = void (*)(const T* dy, int64_t dy_pitch, const T* from, int64_t pitch, const int64_t* offset,
                           int64_t rows, int64_t columns, T* sums);
constexpr int64_t kMaxTapsAtOnce = 9;
template <class T>
constexpr SumPlaces<T> kSumPlaces[kMaxTapsAtOnce + 1] = {
    nullptr,          sum_places<T, 1>, sum_places<T, 2>, sum_places<T, 3>, sum_places<T, 4>,
    sum_places<T, 5>, sum_places<T, 6>, sum_places<T, 7>, sum_places<T, 8>, sum_places<T, 9>};

template <class S>
struct PlanesGradPlan {
  typedef Acc<S> T;
  int threads;
  BlockPlan<S> block;
  int64_t parts, part_images;
  int64_t dy_pitch;
  int64_t offset_bytes, sums_bytes, buffer_bytes, thread_bytes;

  PlanesGradPlan(const Correlation<S>& p, int num_threads) : threads(p.threads(num_threads)), block(p) {
    part_images = max_of(1, ceil_div(p.batch * p.groups, kManyTasks));
    parts = p.groups >= kManyTasks ? 1 : max_of(1, ceil_div(p.batch, part_images));
    part_images = ceil_div(p.batch, parts);
    dy_pitch = round_up(block.columns, kLanes<T>);
    offset_bytes = round_up(p.taps() * sizeof(int64_t), 64);
    sums_bytes = round_up(parts * p.groups * p.rows * p.taps() * sizeof(T), 64);
    buffer_bytes = block.buffer_size(p) * sizeof(T);
    thread_bytes = buffer_bytes + round_up((block.rows * dy_pitch + kLanes<T>)*sizeof(T), 64);
  }
  int64_t bytes() const { return offset_bytes + sums_bytes + threads * thread_bytes; }
};

template <class S>
void depthwise_planes_weight_grad(const Correlation<S>& p, const DepthwiseGradient<S>& dy, S* dweight, void* workspace,
                                  int num_threads) {
  typedef Acc<S> T;
  const PlanesGradPlan<S> plan(p, num_threads);
  char* memory = (char*)workspace;
  const int64_t* offset = (const int64_t*)memory;
  T* sums = (T*)(memory + plan.offset_bytes);
  fill_offsets(p, plan.block, (int64_t*)memory);
  const int64_t taps = p.taps(), depth_taps = p.axes[1].taps * p.axes[2].taps, channels = p.groups * p.rows;
  parallel_tasks(plan.parts * p.groups, plan.threads, [&](int64_t task, int thread) {
    const int64_t group = task % p.groups, part = task / p.groups;
    T* buffer = (T*)(memory + plan.offset_bytes + plan.sums_bytes + thread * plan.thread_bytes);
    T* dy_rows = (T*)((char*)buffer + plan.buffer_bytes);
    T* out = sums + (part * channels + group * p.rows) * taps;
    for (int64_t i = 0; i < p.rows * taps; i++) out[i] = 0;
    for (int64_t n = part * plan.part_images; n < min_of(p.batch, (part + 1) * plan.part_images); n++)
      for (int64_t b = 0; b < plan.block.blocks(p); b++) {
        const Block block(p, plan.block, b);
        fill_buffer(p, plan.block, block, p.from + n * p.from_stride.outer + group * p.from_stride.channel, buffer);
        for (int64_t r = 0; r < p.rows; r++) {
          const S* from = dy.at + n * dy.stride.outer + (group * p.rows + r) * dy.stride.channel +
                          block.j[0] * dy.stride.spatial[0] + block.j[1] * dy.stride.spatial[1] +
                          block.j[2] * dy.stride.spatial[2];
          for (int64_t row = 0; row < block.rows; row++) {
            T* to = dy_rows + row * plan.dy_pitch;
            clear(to, plan.dy_pitch - kLanes<T>, plan.dy_pitch);
            copy(from + row * dy.stride.spatial[1], dy.stride.spatial[2], block.columns, to);
          }
          const int64_t end = block.depth.end * depth_taps;
          for (int64_t t = block.depth.begin * depth_taps, count; t < end; t += count) {
            count = ceil_div(end - t, ceil_div(end - t, kMaxTapsAtOnce));
            kSumPlaces<T>[count](dy_rows, plan.dy_pitch, buffer, plan.block.pitch, offset + t, block.rows,
                                 block.columns, out + r* taps + t);
          }
        }
      }
  });
  write_weight_grad(p, sums, plan.parts, channels * taps, taps, 1, dweight, plan.threads);
}

// ---- rows
// ------------------------------------------------------------------------------------------------------------
constexpr int kGradTile = 7;

// sums[t] += sum over kTile results of dy[o] x[w + o kStep + t], of a vector of channels.
template <class S, int kTaps, int kStep, int kTile, class Load>
PF_INLINE void sum_grad_tile(const SourceRow<S>& dy, const SourceRow<S>& row, int64_t w, Vec<Acc<S>> (&sums)[kTaps],
                             const Load& load_source) {
  Vec<Acc<S>> d[kTile];
  PF_UNROLL
  for (int o = 0; o < kTile; o++) d[o] = load_source(dy.at + o * dy.step);
  PF_UNROLL
  for (int i = 0; i < (kTile - 1) * kStep + kTaps; i++) {
    if (!is_inside(w + i, row.size)) continue;
    const Vec<Acc<S>> x = load_source(row.at + (w + i) * row.step);
    PF_UNROLL
    for (int t = 0; t < kTaps; t++)
      if (i >= t && (i - t) % kStep == 0 && (i - t) / kStep < kTile) sums[t] = fma(x, d[(i - t) / kStep], sums[t]);
  }
}

// To where the first `kept` lanes stay as they are: those that another vector has summed.
template <class T>
PF_INLINE void store_behind(T* to, Vec<T> x, int64_t kept) {
  if (kept) {
    typename VecOf<T>::mask lane, none{};
    for (int i = 0; i < kLanes<T>; i++) lane[i] = i;
    x = select(lane < (none + (int)kept), load(to), x);
  }
  store(to, x);
}

// One row of dy and one of the source: sums[t] of the width's taps, `pitch` apart.
template <class S>
using SumGradRow = void (*)(const Axis& axis, const SourceRow<S>& dy, const SourceRow<S>& row, int64_t pitch,
                            int64_t channels, Acc<S>* sums);

template <class S, int kTaps, int kStep, bool kIsFew>
void sum_grad_row(const Axis& axis, const SourceRow<S>& dy, const SourceRow<S>& row, int64_t pitch, int64_t channels,
                  Acc<S>* sums) {
  typedef Acc<S> T;
  const uint32_t there = (1u << min_of(channels, kLanes<T>)) - 1;
  auto load_source = [=](const S* at)
                         __attribute__((always_inline)) { return kIsFew ? load_masked(at, there) : load(at); };
  for (int64_t first = 0; first < channels; first += kLanes<T>) {
    const int64_t c = kIsFew ? 0 : min_of(first, channels - kLanes<T>);
    Vec<T> parts[kTaps];
    PF_UNROLL
    for (int t = 0; t < kTaps; t++) parts[t] = load(sums + t * pitch + c);
    const SourceRow<S> x = {row.at + c, row.size, row.step};
    int64_t j = 0;
    for (; j + kGradTile <= dy.size; j += kGradTile)
      sum_grad_tile<S, kTaps, kStep, kGradTile>({dy.at + c + j * dy.step, dy.size, dy.step}, x,
                                                j * kStep + axis.tap_first, parts, load_source);
    for (; j < dy.size; j++)
      sum_grad_tile<S, kTaps, kStep, 1>({dy.at + c + j * dy.step, dy.size, dy.step}, x, j * kStep + axis.tap_first,
                                        parts, load_source);
    PF_UNROLL
    for (int t = 0; t < kTaps; t++) store_behind(sums + t * pitch + c, parts[t], first - c);
  }
}

template <class S>
void sum_grad_row_of_any(const Axis& axis, const SourceRow<S>& dy, const SourceRow<S>& row, int64_t pitch,
                         int64_t channels, Acc<S>* sums) {
  typedef Acc<S> T;
  for (int64_t t = 0; t < axis.taps; t++) {
    const int64_t w = axis.tap_first + t * axis.tap_step;
    const Inside results(w, axis.from_step, dy.size, row.size);
    for (int64_t c = 0; c < channels; c += kLanes<T>) {
      Vec<T> sum = load(sums + t * pitch + c);
      for (int64_t j = results.begin; j < results.end; j++)
        sum = fma(load_n(dy.at + j * dy.step + c, channels - c),
                  load_n(row.at + (w + j * axis.from_step) * row.step + c, channels - c), sum);
      store(sums + t * pitch + c, sum);
    }
  }
}

template <class S, bool kIsFew>
SumGradRow<S> sum_grad_row_of(const Axis& axis) {
  if constexpr (kHasFixedTaps<S>) {
    if (axis.tap_step == 1 && axis.from_step == 1) {
      if (axis.taps == 3) return sum_grad_row<S, 3, 1, kIsFew>;
      if (axis.taps == 5) return sum_grad_row<S, 5, 1, kIsFew>;
      if (axis.taps == 7) return sum_grad_row<S, 7, 1, kIsFew>;
    } else if (axis.tap_step == 1 && axis.from_step == 2) {
      if (axis.taps == 3) return sum_grad_row<S, 3, 2, kIsFew>;
      if (axis.taps == 5) return sum_grad_row<S, 5, 2, kIsFew>;
    }
  }
  return sum_grad_row_of_any<S>;
}

template <class S>
struct RowsGradPlan {
  typedef Acc<S> T;
  static constexpr int64_t kBlock = 4 * kLanes<float>;  // channels of a task
  int threads;
  int64_t rows, part_rows, parts, blocks, pitch;

  RowsGradPlan(const Correlation<S>& p, int num_threads) : threads(p.threads(num_threads)) {
    rows = p.batch * p.axes[0].count * p.axes[1].count;
    blocks = max_of(1, ceil_div(p.groups - (kLanes<T> - 1), kBlock));
    part_rows = max_of(1, ceil_div(rows, max_of(1, kManyTasks / max_of(1, blocks))));
    parts = max_of(1, ceil_div(rows, part_rows));
    pitch = round_up(p.groups, kLanes<T>);
  }
  // Of the task that begins with this one; of the last one up to a vector more, so that none has less.
  int64_t channels(const Correlation<S>& p, int64_t first) const {
    const int64_t left = p.groups - first;
    return left < kBlock + kLanes<T> ? left : kBlock;
  }
  int64_t bytes(const Correlation<S>& p) const { return parts * p.taps() * pitch * (int64_t)sizeof(T); }
};

template <class S>
void depthwise_rows_weight_grad(const Correlation<S>& p, const DepthwiseGradient<S>& dy, S* dweight, void* workspace,
                                int num_threads) {
  typedef Acc<S> T;
  const RowsGradPlan<S> plan(p, num_threads);
  T* sums = (T*)workspace;
  const int64_t taps = p.taps(), width = p.axes[2].count;
  const Axis(&axes)[kConvDims] = p.axes;
  const ConvStrides& stride = p.from_stride;
  const SumGradRow<S> sum =
      p.groups < kLanes<T> ? sum_grad_row_of<S, true>(axes[2]) : sum_grad_row_of<S, false>(axes[2]);
  parallel_tasks(plan.parts * plan.blocks, plan.threads, [&](int64_t task, int) {
    const int64_t channel = task % plan.blocks * plan.kBlock, part = task / plan.blocks;
    const int64_t channels = plan.channels(p, channel);
    T* out = sums + part * taps * plan.pitch + channel;
    for (int64_t t = 0; t < taps; t++) clear(out + t * plan.pitch, 0, channels);
    const int64_t first = part * plan.part_rows, last = min_of(plan.rows, first + plan.part_rows);
    if (first >= last) return;
    Place place = Place::at(p, first * width);
    for (int64_t i = first; i < last; i++, place.next_row(p)) {
      const TapWindow window(axes, place);
      const SourceRow<S> dy_row = {dy.at + place.n * dy.stride.outer + place.j[0] * dy.stride.spatial[0] +
                                       place.j[1] * dy.stride.spatial[1] + channel,
                                   width, dy.stride.spatial[2]};
      const S* image = p.from + place.n * stride.outer + channel;
      for (int64_t d = window.d.begin; d < window.d.end; d++)
        for (int64_t h = window.h.begin; h < window.h.end; h++) {
          const S* row = image + (window.first[0] + d * axes[0].tap_step) * stride.spatial[0] +
                         (window.first[1] + h * axes[1].tap_step) * stride.spatial[1];
          sum(axes[2], dy_row, {row, axes[2].from, stride.spatial[2]}, plan.pitch, channels,
              out + (d * axes[1].taps + h) * axes[2].taps * plan.pitch);
        }
    }
  });
  write_weight_grad(p, sums, plan.parts, taps * plan.pitch, 1, plan.pitch, dweight, plan.threads);
}

}  // namespace

}  // namespace PF_ISA::conv
