// Depthwise convolution of images whose channels lie along memory (channels_last): a vector is of channels, a tile of
// neighbouring results of one row is summed in registers, and each vector of the source is loaded once for all results
// and taps of its row that meet there. Taps outside the source are skipped.
#pragma once
#include "../simd/masked.h"
#include "finish.h"
#include "problem.h"

namespace PF_ISA::conv {

namespace {

constexpr int64_t kChannelBlock = 128;  // channels of a tile's strip of sums, which stays in the first-level cache
constexpr int64_t kSumPitch = kChannelBlock + 16;  // a power of two would put the strip's rows into few cache sets
constexpr int64_t kTaskProducts = 1 << 16;         // of a task, or handing it out costs more than a few percent

// Which types have depthwise kernels of fixed taps, most of this family's code: those that networks are run in.
// float64, in which gradients are checked, takes what serves any.
template <class S>
constexpr bool kHasFixedTaps = sizeof(S) <= sizeof(float);

// A loaded vector as it is: left to itself the compiler loads it again for every product.
template <class V>
PF_INLINE V in_register(V x) {
#if defined(__AVX512F__)
  asm("" : "+v"(x));
#elif defined(__SSE2__)
  asm("" : "+x"(x));
#endif
  return x;
}

// One row of the source, and where the width's taps read in it.
template <class S>
struct SourceRow {
  const S* at;  // index 0, this channel
  int64_t size, step;
};

// Adds the taps of one row to the tile: result o, tap t reads index w + o kStep + t. weight: of tap 0, taps `pitch`
// apart.
template <int kTaps, int kStep>
struct FixedTaps {
  template <class S, int kTile, class Load>
  PF_INLINE void add(const Axis&, const SourceRow<S>& row, int64_t w, const Acc<S>* weight, int64_t pitch,
                     Vec<Acc<S>> (&sums)[kTile], const Load& load_source) {
    constexpr int kReach = (kTile - 1) * kStep + kTaps;
    if (w >= 0 && w + kReach <= row.size)
      add_where<true>(row, w, weight, pitch, sums, load_source);
    else
      add_where<false>(row, w, weight, pitch, sums, load_source);
  }
  template <bool kInside, class S, int kTile, class Load>
  PF_INLINE void add_where(const SourceRow<S>& row, int64_t w, const Acc<S>* weight, int64_t pitch,
                           Vec<Acc<S>> (&sums)[kTile], const Load& load_source) {
    Vec<Acc<S>> taps[kTaps];
    PF_UNROLL
    for (int t = 0; t < kTaps; t++) taps[t] = load(weight + t * pitch);
    const S* at = row.at + w * row.step;
    PF_UNROLL
    for (int i = 0; i < (kTile - 1) * kStep + kTaps; i++, at += row.step) {
      if (!kInside && !is_inside(w + i, row.size)) continue;
      const Vec<Acc<S>> x = in_register(load_source(at));
      PF_UNROLL
      for (int t = 0; t < kTaps; t++)
        if (i >= t && (i - t) % kStep == 0 && (i - t) / kStep < kTile)
          sums[(i - t) / kStep] = fma(x, taps[t], sums[(i - t) / kStep]);
    }
  }
};
struct AnyTaps {
  template <class S, int kTile, class Load>
  PF_INLINE void add(const Axis& axis, const SourceRow<S>& row, int64_t w, const Acc<S>* weight, int64_t pitch,
                     Vec<Acc<S>> (&sums)[kTile], const Load& load_source) {
    for (int64_t t = 0; t < axis.taps; t++) {
      const Vec<Acc<S>> tap = load(weight + t * pitch);
      PF_UNROLL
      for (int o = 0; o < kTile; o++) {
        const int64_t at = w + o * axis.from_step + t * axis.tap_step;
        if (is_inside(at, row.size)) sums[o] = fma(load_source(row.at + at * row.step), tap, sums[o]);
      }
    }
  }
};

// The taps of depth and height that are inside, for one row of results.
struct TapWindow {
  int64_t first[2];
  Inside d, h;
  TapWindow(const Axis (&axes)[kConvDims], const Place& place)
      : first{place.index(axes, 0), place.index(axes, 1)},
        d(first[0], axes[0].tap_step, axes[0].taps, axes[0].from),
        h(first[1], axes[1].tap_step, axes[1].taps, axes[1].from) {}
};

// Sums of kTile results and `channels` channels from `channel` on, to out[result][kSumPitch].
template <class S>
using SumTile = void (*)(const Correlation<S>& p, const S* image, const TapWindow& window, int64_t w,
                         const Acc<S>* weight, int64_t pitch, int64_t channel, int64_t channels, Acc<S>* out);

// kIsFew: channels fill no vector.
template <class S, int kTile, class Taps, bool kIsFew>
void sum_tile(const Correlation<S>& p, const S* image, const TapWindow& window, int64_t w, const Acc<S>* weight,
              int64_t pitch, int64_t channel, int64_t channels, Acc<S>* out) {
  typedef Acc<S> T;
  const Axis(&axes)[kConvDims] = p.axes;
  const ConvStrides& stride = p.from_stride;
  auto vector = [&](int64_t c, const auto& load_source) __attribute__((always_inline)) {
    Vec<T> sums[kTile];
    PF_UNROLL
    for (int o = 0; o < kTile; o++) sums[o] = Vec<T>{};
    for (int64_t d = window.d.begin; d < window.d.end; d++)
      for (int64_t h = window.h.begin; h < window.h.end; h++) {
        const S* row = image + (window.first[0] + d * axes[0].tap_step) * stride.spatial[0] +
                       (window.first[1] + h * axes[1].tap_step) * stride.spatial[1] + channel + c;
        const T* taps = weight + (d * axes[1].taps + h) * axes[2].taps * pitch + channel + c;
        Taps::template add<S, kTile>(axes[2], {row, axes[2].from, stride.spatial[2]}, w, taps, pitch, sums,
                                     load_source);
      }
    PF_UNROLL
    for (int o = 0; o < kTile; o++) store(out + o * kSumPitch + c, sums[o]);
  };
  if constexpr (kIsFew) {
    const uint32_t there = (1u << channels) - 1;
    vector(0, [=](const S* at) __attribute__((always_inline)) { return load_masked(at, there); });
  } else {
    for (int64_t c = 0; c < channels; c += kLanes<T>)
      vector(min_of(c, channels - kLanes<T>),  // the last ones some once more
             [](const S* at) __attribute__((always_inline)) { return load(at); });
  }
}

template <class S, int kTile, bool kIsFew>
SumTile<S> sum_tile_of(const Axis& axis) {
  if constexpr (kHasFixedTaps<S>) {
    if (axis.tap_step == 1 && axis.from_step == 1) {
      if (axis.taps == 1) return sum_tile<S, kTile, FixedTaps<1, 1>, kIsFew>;  // of phases of a gradient
      if (axis.taps == 2) return sum_tile<S, kTile, FixedTaps<2, 1>, kIsFew>;
      if (axis.taps == 3) return sum_tile<S, kTile, FixedTaps<3, 1>, kIsFew>;
      if (axis.taps == 5) return sum_tile<S, kTile, FixedTaps<5, 1>, kIsFew>;
      if (axis.taps == 7) return sum_tile<S, kTile, FixedTaps<7, 1>, kIsFew>;
    } else if (axis.tap_step == 1 && axis.from_step == 2) {
      if (axis.taps == 3) return sum_tile<S, kTile, FixedTaps<3, 2>, kIsFew>;
      if (axis.taps == 5) return sum_tile<S, kTile, FixedTaps<5, 2>, kIsFew>;
    }
  }
  return sum_tile<S, kTile, AnyTaps, kIsFew>;
}

// Results of a tile: what takes a row in the fewest steps, of which each tile costs two more than it has results. Sides
// of images are often multiples of 7.
PF_INLINE int tile_of_row(int64_t count) {
  constexpr int tiles[] = {4, 7, 8};
  int best = 1;
  for (int tile : tiles)
    if (count >= tile && ceil_div(count, tile) * (tile + 2) <= ceil_div(count, best) * (best + 2)) best = tile;
  return best;
}

template <class S, bool kIsFew>
SumTile<S> sum_tile_of(const Axis& axis, int tile) {
  switch (tile) {
    case 8: return sum_tile_of<S, 8, kIsFew>(axis);
    case 7: return sum_tile_of<S, 7, kIsFew>(axis);
    case 4: return sum_tile_of<S, 4, kIsFew>(axis);
    default: return sum_tile_of<S, 1, kIsFew>(axis);
  }
}

template <class S>
struct DepthwiseRowsPlan {
  typedef Acc<S> T;
  int threads, tile;
  int64_t rows, task_rows, tasks;
  int64_t block;  // channels
  int64_t pitch;  // of the weight
  int64_t weight_bytes, thread_bytes;

  static DepthwiseRowsPlan plan(const Correlation<S>& p, int num_threads) {
    DepthwiseRowsPlan plan;
    plan.threads = p.threads(num_threads);
    plan.tile = tile_of_row(p.axes[2].count);
    plan.rows = p.batch * p.axes[0].count * p.axes[1].count;
    const int64_t row_products = max_of(1, p.axes[2].count * p.groups * p.taps());
    plan.task_rows = max_of(1, min_of(ceil_div(kTaskProducts, row_products), plan.rows / (4 * plan.threads)));
    plan.tasks = ceil_div(plan.rows, plan.task_rows);
    const int64_t blocks = max_of(1, ceil_div(p.groups, kChannelBlock));
    plan.block = max_of(1, round_up(ceil_div(p.groups, blocks), kLanes<T>));  // even: a call costs as much as a vector
    plan.pitch = round_up(p.groups, kLanes<T>) + kLanes<T>;                   // likewise
    plan.weight_bytes = round_up(p.taps() * plan.pitch * sizeof(T), 64);
    plan.thread_bytes = plan.tile * kSumPitch * sizeof(T);
    return plan;
  }
  int64_t bytes() const { return weight_bytes + threads * thread_bytes; }
};

// The weight as [tap][channel].
template <class S, class T>
void pack_taps(const Correlation<S>& p, int64_t pitch, T* out, int threads) {
  const int64_t height = p.axes[1].taps, width = p.axes[2].taps;
  parallel_ranges(p.taps(), ceil_div(kElementwiseGrain, max_of(1, p.groups)), threads, [&](int64_t tap, int64_t end) {
    for (; tap < end; tap++) {
      const S* from = p.weight + p.weight_at(tap / width / height, tap / width % height, tap % width);
      for (int64_t c = 0; c < p.groups; c++) out[tap * pitch + c] = get(from + c * p.weight_group);
    }
  });
}

template <class S>
void depthwise_rows(const Correlation<S>& p, void* workspace, const FinishRows<S>& finish, int num_threads) {
  typedef Acc<S> T;
  const DepthwiseRowsPlan<S> plan = DepthwiseRowsPlan<S>::plan(p, num_threads);
  char* memory = (char*)workspace;
  const T* weight = (const T*)memory;
  pack_taps(p, plan.pitch, (T*)memory, plan.threads);
  const int64_t width = p.axes[2].count, to_step = p.axes[2].to_step * p.to_stride.spatial[2];
  const SumTile<S> sum =
      p.groups < kLanes<T> ? sum_tile_of<S, true>(p.axes[2], plan.tile) : sum_tile_of<S, false>(p.axes[2], plan.tile);
  parallel_tasks(plan.tasks, plan.threads, [&](int64_t task, int thread) {
    T* sums = (T*)(memory + plan.weight_bytes + thread * plan.thread_bytes);
    const int64_t first = task * plan.task_rows, last = min_of(plan.rows, first + plan.task_rows);
    Place place = Place::at(p, first * width);
    for (int64_t row = first; row < last; row++, place.next_row(p)) {
      const TapWindow window(p.axes, place);
      const S* image = p.from + place.n * p.from_stride.outer;
      const int64_t to = place.to(p);
      for (int64_t j = 0; j < width; j += plan.tile) {
        const int64_t tile = min_of(j, width - plan.tile);  // the last one sums some once more
        for (int64_t c = 0; c < p.groups; c += plan.block) {
          const int64_t channels = min_of(plan.block, p.groups - c), results = min_of(plan.tile, width - j);
          const int64_t more = min_of(c, max_of(kLanes<T> - channels, 0));  // of the block before, to fill a vector
          sum(p, image, window, tile * p.axes[2].from_step + p.axes[2].tap_first, weight, plan.pitch, c - more,
              channels + more, sums);
          finish({sums + (j - tile) * kSumPitch + more, results, kSumPitch, channels, to + j * to_step + c, to_step, 1,
                  c, true});
        }
      }
    }
  });
}

}  // namespace

}  // namespace PF_ISA::conv
