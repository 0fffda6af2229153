// What the operations of a convolution compute, as one sum. The forward reads x and writes y; the gradient of the input
// reads dy and writes dx, and where the stride is s it is s sums a dimension, one for each remainder of the index by s:
// so no product with a zero between two elements of dy is ever computed.
#pragma once
#include "../../common/conv.h"
#include "../core/memory.h"
#include "../core/parallel.h"
#include "../gemm/pack.h"
#include "../simd/masked.h"
#include "../simd/transpose.h"

namespace PF_ISA::conv {

constexpr int64_t kChunk = 128;  // steps of one sum in registers, as in gemm/gemm.h

// Of one dimension. Result j is written to index to_first + j * to_step, and its tap t reads index
// j * from_step + tap_first + t * tap_step, where from has one, of what is multiplied by index
// weight_first + t * weight_step of the weight.
struct Axis {
  int64_t count, to_first, to_step;
  int64_t from, from_step;
  int64_t taps, tap_first, tap_step;
  int64_t weight_first, weight_step;
};

// to[n, row, j] = sum over c, t of from[n, c, (j, t)] weight[row, c, t], `rows` and `channels` of each group.
template <class S>
struct Correlation {
  const S* from;
  ConvStrides from_stride;
  const S* weight;
  int64_t weight_group, weight_row, weight_channel, weight_tap[kConvDims];  // strides
  ConvStrides to_stride;
  int64_t batch, groups, rows, channels;
  Axis axes[kConvDims];
  bool has_style = false;
  const S* style = nullptr;  // [batch][group][channel]: scales `from`

  int64_t positions() const { return batch * axes[0].count * axes[1].count * axes[2].count; }
  int64_t taps() const { return axes[0].taps * axes[1].taps * axes[2].taps; }
  int64_t depth() const { return channels * taps(); }
  const S* style_of(int64_t sample, int64_t group) const { return style + (sample * groups + group) * channels; }
  int64_t weight_at(int64_t d, int64_t h, int64_t w) const {
    return (axes[0].weight_first + d * axes[0].weight_step) * weight_tap[0] +
           (axes[1].weight_first + h * axes[1].weight_step) * weight_tap[1] +
           (axes[2].weight_first + w * axes[2].weight_step) * weight_tap[2];
  }
  int threads(int num_threads) const {
    return (int)max_of(1, min_of(num_threads, 2 * positions() * groups * rows * depth() / kThreadFlops));
  }
};

// The weight as a method reads it, and whether it lies there already.
struct PackedWeight {
  void* memory;
  bool is_done;
};

template <class S>
Correlation<S> forward_of(const Conv& p) {
  const ConvShape& s = p.shape;
  Correlation<S> c = {(const S*)p.x,
                      p.x_stride,
                      (const S*)p.weight,
                      s.out_channels * p.weight_stride.outer,
                      p.weight_stride.outer,
                      p.weight_stride.channel,
                      {p.weight_stride.spatial[0], p.weight_stride.spatial[1], p.weight_stride.spatial[2]},
                      p.y_stride,
                      s.batch,
                      s.groups,
                      s.out_channels,
                      s.in_channels,
                      {}};
  for (int i = 0; i < kConvDims; i++) {
    const ConvAxis& a = s.axes[i];
    c.axes[i] = {a.y, 0, 1, a.x, a.stride, a.kernel, -a.padding, a.dilation, 0, 1};
  }
  c.has_style = p.has_style;
  c.style = (const S*)p.style.style;
  return c;
}

PF_INLINE int64_t greatest_common_divisor(int64_t a, int64_t b) {
  while (b) {
    const int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

// Of the indices phase + j * stride of x: the taps that reach an element of y from there are every (stride / g)-th, g
// the common divisor of stride and dilation, and each reads dilation / g before the one before it; hence backwards.
PF_INLINE Axis phase_of(const ConvAxis& a, int64_t phase) {
  Axis axis = {phase < a.x ? ceil_div(a.x - phase, a.stride) : 0, phase, a.stride, a.y, 1, 0, 0, 1, 0, 1};
  const int64_t g = greatest_common_divisor(a.stride, a.dilation), step = a.stride / g;
  for (int64_t t = a.kernel - 1; t >= 0 && t >= a.kernel - step; t--) {
    const int64_t reach = phase + a.padding - t * a.dilation;
    if (reach % a.stride) continue;
    axis.taps = t / step + 1;
    axis.tap_first = reach / a.stride;
    axis.tap_step = a.dilation / g;
    axis.weight_first = t;
    axis.weight_step = -step;
    break;
  }
  return axis;
}

// f(phases, count) for all phases of the input's gradient: two at a time where their columns lie in turn, else one.
template <class S, class F>
void for_phases(const Conv& p, F f) {
  const ConvShape& s = p.shape;
  Correlation<S> c = {(const S*)p.y,
                      p.y_stride,
                      (const S*)p.weight,
                      s.out_channels * p.weight_stride.outer,
                      p.weight_stride.channel,
                      p.weight_stride.outer,
                      {p.weight_stride.spatial[0], p.weight_stride.spatial[1], p.weight_stride.spatial[2]},
                      p.x_stride,
                      s.batch,
                      s.groups,
                      s.in_channels,
                      s.out_channels,
                      {}};
  for (int64_t d = 0; d < min_of(s.axes[0].stride, s.axes[0].x); d++) {
    c.axes[0] = phase_of(s.axes[0], d);
    for (int64_t h = 0; h < min_of(s.axes[1].stride, s.axes[1].x); h++) {
      c.axes[1] = phase_of(s.axes[1], h);
      const ConvAxis& width = s.axes[2];
      const int64_t count = width.stride == 2 && width.x >= 2 ? 2 : 1;
      for (int64_t w = 0; w < min_of(width.stride, width.x); w += count) {
        Correlation<S> phases[2] = {c, c};
        for (int64_t i = 0; i < count; i++) phases[i].axes[2] = phase_of(width, w + i);
        f(phases, count);
      }
    }
  }
}

// A number as a place in three dimensions of the sizes that `size` names; what is left of it is returned.
PF_INLINE int64_t split(int64_t number, int64_t (&place)[kConvDims], const Axis (&axes)[kConvDims],
                        int64_t Axis::* size) {
  for (int i = kConvDims - 1; i >= 0; i--) {
    place[i] = number % (axes[i].*size);
    number /= axes[i].*size;
  }
  return number;
}

// Where a result is, and where its first tap reads, which may be outside.
struct Place {
  int64_t n, j[kConvDims];

  template <class S>
  static Place at(const Correlation<S>& p, int64_t position) {
    Place place;
    place.n = split(position, place.j, p.axes, &Axis::count);
    return place;
  }
  template <class S>
  void next_row(const Correlation<S>& p) {
    j[2] = 0;
    if (++j[1] < p.axes[1].count) return;
    j[1] = 0;
    if (++j[0] < p.axes[0].count) return;
    j[0] = 0;
    n++;
  }
  // Its number among those of a sample.
  template <class S>
  int64_t number(const Correlation<S>& p) const {
    return (j[0] * p.axes[1].count + j[1]) * p.axes[2].count + j[2];
  }
  int64_t index(const Axis (&axes)[kConvDims], int i) const { return j[i] * axes[i].from_step + axes[i].tap_first; }
  template <class S>
  int64_t to(const Correlation<S>& p) const {
    int64_t at = n * p.to_stride.outer;
    for (int i = 0; i < kConvDims; i++) at += (p.axes[i].to_first + j[i] * p.axes[i].to_step) * p.to_stride.spatial[i];
    return at;
  }
};

// A number that is a type.
template <int kCount>
struct Count {
  static constexpr int value = kCount;
};

// Is index i of `size` there? One comparison for both ends.
PF_INLINE bool is_inside(int64_t i, int64_t size) { return (uint64_t)i < (uint64_t)size; }

// The part [begin, end) of count steps from `first` on that lies in [0, size).
struct Inside {
  int64_t begin, end;
  Inside(int64_t first, int64_t step, int64_t count, int64_t size) {
    begin = first >= 0 ? 0 : steps(-first, step);
    const int64_t left = size - first;
    end = left <= 0 ? 0 : steps(left, step);
    begin = min_of(begin, count);
    end = max_of(begin, min_of(end, count));
  }
  // Divisions are slow.
  PF_INLINE int64_t steps(int64_t distance, int64_t step) {
    return step == 1 ? distance : step == 2 ? (distance + 1) / 2 : ceil_div(distance, step);
  }
};

// Zeros at [begin, end), and perhaps up to a vector more.
template <class T>
PF_INLINE void clear(T* out, int64_t begin, int64_t end) {
  for (; begin < end; begin += kLanes<T>) store(out + begin, Vec<T>{});
}

// Every other lane of two vectors one after the other.
struct EvenLanes {
  static constexpr int lane(int i) { return 2 * i; }
};
struct OddLanes {
  static constexpr int lane(int i) { return 2 * i + 1; }
};

// Lanes of two vectors in turn, from lane kFirst of each on.
template <int kCount, int kFirst>
struct InTurn {
  static constexpr int lane(int i) { return kFirst + i / 2 + (i & 1) * kCount; }
};

// `count` elements, `stride` apart, and perhaps up to a vector more is written.
template <class S, class T>
PF_INLINE void copy(const S* from, int64_t stride, int64_t count, T* out) {
  constexpr int lanes = kLanes<T>;
  if (stride == 1) {
    for (int64_t i = 0; i < count; i += lanes) store(out + i, load_n(from + i, count - i));
  } else if (stride == 2) {
    for (int64_t i = 0, left = 2 * count - 1; left > 0; i += lanes, left -= 2 * lanes) {
      const Vec<T> low = load_n(from + 2 * i, left), high = load_n(from + 2 * i + lanes, max_of(left - lanes, 0));
      store(out + i, shuffle<EvenLanes>(low, high));
    }
  } else {
    for (int64_t i = 0; i < count; i++) out[i] = get(from + i * stride);
  }
}

}  // namespace PF_ISA::conv
