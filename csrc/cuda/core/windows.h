// Sums over the windows of a picture, channel by channel: what depthwise convolution, its gradient in the input and the
// resampling of pictures have in common.
//
// Along an axis, place o of the result is the sum over t of tap[t] * source[(o * down + t * dilation - pad) / up], of
// the taps for which this is a place of the source. A convolution has its stride for `down`; the gradient of its input
// is the same with `up` and `down` exchanged and the taps turned round; resampling has any of both. Of an `up` only the
// taps that meet a place are looked at: no zero is put between places, or multiplied.
#pragma once
#include "values.h"

namespace pf::cuda {

struct WindowAxis {
  int64_t source, result;  // sizes
  int64_t taps, up, down, dilation, pad;
  // Of the taps that a result meets, each is tap_step behind the one before, and meets a place place_step further on.
  int64_t divisor, tap_step, place_step;
  int64_t inverse;  // place_step * inverse is 1 modulo tap_step
};

// From one element to the next.
struct PictureStrides {
  int64_t outer, channel, y, x;
};

struct Windows {
  WindowAxis y, x;
  PictureStrides source, result;
  int64_t outer, channels;  // of the result
  // Channels of the source that are summed into one of the result, and channels of the result that one of the source
  // is summed into: neighbours, and one of both is 1.
  int64_t depth, share;
  bool is_channels_last;  // where they are adjacent in the result; else its columns are
};

// ---- on the host, before a launch

inline int64_t common_divisor(int64_t a, int64_t b) {
  while (b) {
    const int64_t rest = a % b;
    a = b, b = rest;
  }
  return a;
}

// Of a number without a divisor in common with the modulus; Euclid's algorithm.
inline int64_t inverse_modulo(int64_t number, int64_t modulus) {
  int64_t before = modulus, now = number % modulus, of_before = 0, of_now = 1;
  while (now) {
    const int64_t times = before / now, rest = before % now, of_rest = of_before - times * of_now;
    before = now, now = rest, of_before = of_now, of_now = of_rest;
  }
  return of_before < 0 ? of_before + modulus : of_before;
}

inline WindowAxis window_axis(int64_t source, int64_t result, int64_t taps, int64_t up, int64_t down, int64_t dilation,
                              int64_t pad) {
  const int64_t divisor = common_divisor(up, dilation), tap_step = up / divisor, place_step = dilation / divisor;
  return {source,
          result,
          taps,
          up,
          down,
          dilation,
          pad,
          divisor,
          tap_step,
          place_step,
          inverse_modulo(place_step, tap_step)};
}

// Does every place of a picture begin where `count` elements can be taken at once?
inline bool is_in_chunks(const void* at, const PictureStrides& strides, int64_t size, int64_t count) {
  return (uintptr_t)at % (size * count) == 0 && strides.channel == 1 && strides.outer % count == 0 &&
         strides.y % count == 0 && strides.x % count == 0;
}

// ---- any windows

__device__ __forceinline__ int64_t floor_of(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

// What a result sums along an axis: for i below count, tap + i * tap_step times place + i * place_step.
struct Meeting {
  int64_t tap, place, count;
};
__device__ __forceinline__ Meeting meeting(const WindowAxis& a, int64_t o) {
  const int64_t from = o * a.down - a.pad;
  Meeting found = {0, from, 0};
  if (a.up > 1) {
    const int64_t whole = floor_of(from, a.divisor);
    if (whole * a.divisor != from) return found;
    const int64_t above = floor_of(whole, a.tap_step) * a.tap_step;
    found.tap = (above + a.tap_step - whole) * a.inverse % a.tap_step;
    found.place = (from + found.tap * a.dilation) / a.up;
  }
  if (found.place < 0) {
    const int64_t outside = (a.place_step - 1 - found.place) / a.place_step;
    found.tap += outside * a.tap_step, found.place += outside * a.place_step;
  }
  const int64_t taps = (a.taps - found.tap + a.tap_step - 1) / a.tap_step;
  const int64_t places = (a.source - found.place + a.place_step - 1) / a.place_step;
  found.count = taps < places ? taps : places;
  return found;
}

constexpr int kWindowThreads = 128;

// Adjacent channels that a thread takes at once.
template <class T>
constexpr int kChannelsAtOnce = sizeof(T) == 8 ? 2 : 4;

// The first place of the result that a thread computes, of runs of kRun columns, and its first channel; numbered in the
// order of the result's memory.
struct WindowPlace {
  int64_t outer, channel, y, run;
  bool is_there;
};
__device__ __forceinline__ WindowPlace own_window(const Windows& p, int64_t runs, int kCount) {
  const int64_t chunks = (p.channels + kCount - 1) / kCount;
  int64_t rest = (int64_t)blockIdx.x * kWindowThreads + threadIdx.x, chunk = 0;
  if (p.is_channels_last) chunk = rest % chunks, rest /= chunks;
  const int64_t run = rest % runs;
  rest /= runs;
  const int64_t y = rest % p.y.result;
  rest /= p.y.result;
  if (!p.is_channels_last) chunk = rest % chunks, rest /= chunks;
  return {rest, chunk * kCount, y, run, rest < p.outer};
}
inline unsigned window_blocks(const Windows& p, int64_t runs, int64_t count) {
  return blocks_for(p.outer * ((p.channels + count - 1) / count) * p.y.result * runs, kWindowThreads);
}

// taps.read(values, channel, y, x, left, is_aligned): tap (y, x) of kCount channels of the taps, which are those of the
// result, each `depth` times. finish.write<kIsAlongChannels>(sums, at, channel, left, is_aligned): kCount sums, whose
// places in the result are at, at + 1 and so on, of one channel or of as many.

template <class From, class Taps, class Finish, int kCount>
struct AnyWindows : Kernel<kWindowThreads> {
  typedef Acc<From> V;

  __device__ void operator()(Windows p, const From* source, Taps taps, Finish finish, bool is_aligned) const {
    const WindowPlace own = own_window(p, p.x.result, kCount);
    if (!own.is_there) return;
    const int64_t left = p.channels - own.channel;
    const Meeting rows = meeting(p.y, own.y), columns = meeting(p.x, own.run);
    source += own.outer * p.source.outer + own.channel / p.share * p.depth * p.source.channel;
    source += rows.place * p.source.y + columns.place * p.source.x;
    V sums[kCount] = {};
    for (int64_t of_depth = 0; of_depth < p.depth; of_depth++, source += p.source.channel)
      for (int64_t i = 0; i < rows.count; i++)
        for (int64_t j = 0; j < columns.count; j++) {
          V values[kCount], weights[kCount];
          const int64_t at = i * p.y.place_step * p.source.y + j * p.x.place_step * p.source.x;
          load_values(values, source + at, left, is_aligned);
          taps.read(weights, own.channel * p.depth + of_depth, rows.tap + i * p.y.tap_step,
                    columns.tap + j * p.x.tap_step, left, is_aligned);
          PF_UNROLL_ALL
          for (int k = 0; k < kCount; k++) sums[k] += weights[k] * values[k];
        }
    const int64_t at =
        own.outer * p.result.outer + own.channel * p.result.channel + own.y * p.result.y + own.run * p.result.x;
    finish.template write<true>(sums, at, own.channel, left, is_aligned);
  }
};

// ---- kTaps taps a row, kUp and kDown there, dilation 1, channels in chunks that can be taken at once: a thread sums a
// run of columns of a chunk. Of each row that it meets it reads the places once, and a tap once for all columns.

template <class From, class Taps, class Finish, int kTaps, int kUp, int kDown>
struct WindowsOfChannels : Kernel<kWindowThreads, sizeof(From) == 4 && kTaps == 7 ? 3 : 4> {  // sm_100 spilled
  typedef Acc<From> V;
  static constexpr int kCount = kChannelsAtOnce<From>;
  // Four columns, but of 7 taps and stride 2, whose 13 places do not fit into the registers.
  static constexpr int kRun = kTaps - 1 + 3 * kDown < 12 ? 4 : 2;
  static constexpr int kPlaces = (kTaps - 1 + (kRun - 1) * kDown) / kUp + 1;

  // begin: the first run's column, 0 or before it, so that its first tap meets a place.
  __device__ void operator()(Windows p, int64_t begin, const From* source, Taps taps, Finish finish) const {
    const WindowPlace own = own_window(p, (p.x.result - begin + kRun - 1) / kRun, kCount);
    if (!own.is_there) return;
    const int64_t column = begin + own.run * kRun, first = (column * kDown - p.x.pad) / kUp;
    const Meeting rows = meeting(p.y, own.y);
    source += own.outer * p.source.outer + own.channel + rows.place * p.source.y + first * p.source.x;
    V sums[kRun][kCount] = {};
    for (int64_t i = 0; i < rows.count; i++, source += p.y.place_step * p.source.y) {
      V values[kPlaces][kCount];
      const From* from = source;  // from place to place: as products they were kept in registers, 20 of them
      PF_UNROLL_ALL
      for (int j = 0; j < kPlaces; j++, from += p.source.x) {
        const bool is_inside = first + j >= 0 && first + j < p.x.source;
        if (is_inside) load_values(values[j], from, kCount, true);
        PF_UNROLL_ALL
        for (int k = 0; k < kCount; k++) values[j][k] = is_inside ? values[j][k] : V(0);
      }
      PF_UNROLL_ALL
      for (int t = 0; t < kTaps; t++) {
        V weights[kCount];
        taps.read(weights, own.channel, rows.tap + i * p.y.tap_step, t, kCount, true);
        PF_UNROLL_ALL
        for (int c = 0; c < kRun; c++)
          if ((t + c * kDown) % kUp == 0) {
            PF_UNROLL_ALL
            for (int k = 0; k < kCount; k++) sums[c][k] += weights[k] * values[(t + c * kDown) / kUp][k];
          }
      }
    }
    const int64_t at = own.outer * p.result.outer + own.channel + own.y * p.result.y;
    PF_UNROLL_ALL
    for (int c = 0; c < kRun; c++)
      if (column + c >= 0 && column + c < p.x.result)
        finish.template write<true>(sums[c], at + (column + c) * p.result.x, own.channel, kCount, true);
  }
};

}  // namespace pf::cuda
