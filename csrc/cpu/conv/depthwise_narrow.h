// Depthwise convolution of small images whose rows lie along memory (NCHW) and fill half a vector or less: a vector of
// channels of one image is turned, so that channels lie along memory, computed by the kernel of such images, and turned
// back, all in the first-level cache.
#pragma once
#include "depthwise_channels.h"

namespace PF_ISA::conv {

namespace {

constexpr int64_t kTurnedPlaces = 196;  // of an image: as many as leave it and its results in the first-level cache

// Is this file for it? Rows that fill half a vector are; of 49 taps fuller ones are, too, whose masks then cost more
// than turning. Zen 4, one thread, eight images, us of rows as they lie and turned: 768 channels of 7x7, 7x7 taps, 609
// and 268; 960, 3x3 taps, 287 and 195; 384 of 14x14, 7x7 taps, 663 and 619; 672, 5x5 taps, 709 and 755.
template <class S>
bool is_narrow(const Correlation<S>& p) {
  const Axis &height = p.axes[1], &width = p.axes[2];
  const bool is_dense = p.from_stride.spatial[2] == 1 && p.from_stride.spatial[1] == width.from &&
                        p.to_stride.spatial[2] == 1 && p.to_stride.spatial[1] == width.count && height.to_step == 1 &&
                        width.to_step == 1;
  return FinishRows<S>::kIsSummedType && p.rows == 1 && is_dense && is_square_of_channels(p) &&
         (width.taps == 7 ? 1 : 2) * width.count <= kLanes<Acc<S>> &&
         max_of(height.from * width.from, height.count * width.count) <= kTurnedPlaces;
}

template <class S>
struct DepthwiseNarrowPlan {
  typedef Acc<S> T;
  int threads, tile;
  int64_t vectors, units, task_units, tasks;  // a unit: a vector of channels of one image
  int64_t from_size, to_size;                 // of what is turned
  int64_t weight_bytes, thread_bytes;

  DepthwiseNarrowPlan(const Correlation<S>& p, int num_threads)
      : threads(p.threads(num_threads)), tile(strip_rows(p.axes[2].count)) {
    constexpr int64_t lanes = kLanes<T>;
    vectors = ceil_div(p.groups, lanes);
    units = p.batch * vectors;
    const int64_t products = max_of(1, lanes * p.axes[1].count * p.axes[2].count * p.taps());
    task_units = max_of(1, min_of(ceil_div(kTaskProducts, products), units / (4 * threads)));
    tasks = ceil_div(units, task_units);
    from_size = round_up(p.axes[1].from * p.axes[2].from, lanes) * lanes;
    to_size = round_up(p.axes[1].count * p.axes[2].count, lanes) * lanes;
    weight_bytes = p.taps() * vectors * lanes * sizeof(T);
    thread_bytes = (from_size + to_size) * sizeof(T);
  }
  int64_t bytes() const { return weight_bytes + threads * thread_bytes; }
};

// Up to how many places behind the last square of them go one by one: 7 x 7 is three squares and one.
constexpr int64_t kFewPlaces = 2;

// [channel][place] to [place][channel].
template <class T>
void turn(const T* from, int64_t channel_step, int64_t places, T* to) {
  constexpr int64_t lanes = kLanes<T>;
  int64_t place = 0;
  for (; place + kFewPlaces < places; place += lanes) {
    Vec<T> rows[lanes];
    PF_UNROLL
    for (int c = 0; c < lanes; c++) rows[c] = load_n(from + c * channel_step + place, places - place);
    transpose(rows);
    PF_UNROLL
    for (int i = 0; i < lanes; i++) store(to + (place + i) * lanes, rows[i]);
  }
  for (; place < places; place++)
    for (int64_t c = 0; c < lanes; c++) to[place * lanes + c] = from[c * channel_step + place];
}

// And back, to where results go.
template <class S>
void turn_back(const Acc<S>* from, int64_t places, int64_t to, int64_t channel_step, int64_t channel,
               const FinishRows<S>& finish) {
  typedef Acc<S> T;
  constexpr int64_t lanes = kLanes<T>;
  const Affine<Vec<T>> affine = finish.plain.of_channels(channel, lanes);
  int64_t place = 0;
  for (; place + kFewPlaces < places; place += lanes) {
    const int64_t count = min_of(lanes, places - place);
    Vec<T> rows[lanes];
    PF_UNROLL
    for (int i = 0; i < lanes; i++) rows[i] = load(from + (place + i) * lanes);
    if (finish.is_plain) {
      PF_UNROLL
      for (int i = 0; i < lanes; i++) rows[i] = affine(rows[i]);
    }
    transpose(rows);
    if (finish.is_plain) {
      PF_UNROLL
      for (int c = 0; c < lanes; c++) finish.plain(to + place + c * channel_step, rows[c], count);
      continue;
    }
    T sums[lanes * lanes] __attribute__((aligned(64)));
    PF_UNROLL
    for (int c = 0; c < lanes; c++) store(sums + c * lanes, rows[c]);
    finish({sums, lanes, lanes, count, to + place, channel_step, 1, channel, false, 1});
  }
  if (place < places)
    finish({from + place * lanes, places - place, lanes, lanes, to + place, 1, channel_step, channel, true});
}

template <class S>
void depthwise_narrow(const Correlation<S>& p, void* workspace, const FinishRows<S>& finish, int num_threads) {
  typedef Acc<S> T;
  constexpr int64_t lanes = kLanes<T>;
  const DepthwiseNarrowPlan<S> plan(p, num_threads);
  char* memory = (char*)workspace;
  const T* weight = (const T*)memory;
  pack_channels(p, (T*)memory, plan.threads);
  const Axis &height = p.axes[1], &width = p.axes[2];
  Correlation<S> turned = p;
  turned.groups = lanes;
  turned.from_stride = {0, 1, {0, width.from * lanes, lanes}};
  turned.to_stride = {0, 1, {0, width.count * lanes, lanes}};
  turned.axes[1].to_first = turned.axes[2].to_first = 0;
  const int64_t from_pitch = turned.from_stride.spatial[1];
  const SumChannels<S> of_rows = sum_channels_of<S, kRowsAtMost>(width, plan.tile);
  const SumChannels<S> of_row = sum_channels_of<S, 1>(width, plan.tile);
  parallel_tasks(plan.tasks, plan.threads, [&](int64_t task, int thread) {
    T* from = (T*)(memory + plan.weight_bytes + thread * plan.thread_bytes);
    T* to = from + plan.from_size;
    const Finish<S, NoActivation> as_it_is = {nullptr, nullptr, nullptr, (S*)to, nullptr, {}};
    const FinishRows<S> to_buffer(as_it_is);
    int64_t unit = task * plan.task_units;
    for (const int64_t last = min_of(plan.units, unit + plan.task_units); unit < last; unit++) {
      const int64_t n = unit / plan.vectors, v = unit % plan.vectors, channel = first_channel(p, v);
      const Place place = {n, {0, 0, 0}};
      const int64_t at = place.to(p) + channel * p.to_stride.channel;
      const T* planes = (const T*)p.from + n * p.from_stride.outer + channel * p.from_stride.channel;
      turn(planes, p.from_stride.channel, height.from * width.from, from);
      const T* taps = weight + v * p.taps() * lanes;
      for (int64_t j = 0; j < height.count; j += kRowsAtMost) {
        const int64_t h = j * height.from_step + height.tap_first, rows = min_of(kRowsAtMost, height.count - j);
        // Beside the sums: what the next channels read, and where these results go.
        const int64_t there = j * turned.to_stride.spatial[1], size = rows * turned.to_stride.spatial[1];
        const S* next = (const S*)planes + lanes * p.from_stride.channel + there;
        finish.prefetch(at + there, 0, 1, size);
        (rows == kRowsAtMost ? of_rows : of_row)(
            turned, {(const S*)from + h * from_pitch, from_pitch, h, height.from, next, size}, taps, there, to_buffer);
      }
      turn_back(to, height.count * width.count, at, p.to_stride.channel, channel, finish);
    }
  });
}

}  // namespace

}  // namespace PF_ISA::conv
