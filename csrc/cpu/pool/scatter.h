// The gradient of max pooling, scattered: each output's is added where its index says, one after another, in memory
// that was set to zero. An index that is no place in the plane is not followed.
#pragma once
#include "lanes.h"
#include "window.h"

namespace PF_ISA::pool {

namespace {

// body(output, place) for each output of a plane.
template <class I, class Body>
PF_INLINE void each_place(const I* indices, int64_t outputs, int64_t plane, Body body) {
  for (int64_t o = 0; o < outputs; o++) {
    const uint64_t place = (uint64_t)(int64_t)indices[o];
    if (place < (uint64_t)plane) body(o, (int64_t)place);
  }
}

// Of NCHW. An element that asks its windows, as those of pixels do, takes two to four times as long: a vector compares
// every index of its windows, of which most are another's.
template <class S, class I>
void scatter_planes(const MaxPoolBwd& p, const I* indices, int threads) {
  typedef Acc<S> T;
  const PoolAxis &d = p.shape.depth, &h = p.shape.height, &w = p.shape.width;
  const int64_t plane = d.in * h.in * w.in, outputs = d.out * h.out * w.out;
  const int64_t bytes = max_pool_bwd_workspace(p.shape, p.dtype);
  const int64_t grain = max_of(1, kElementwiseGrain / max_of(1, plane + outputs));
  const bool is_direct = bytes == 0, are_few = outputs * kFewOutputs <= plane;
  const int64_t group = max_of(1, kPlanesElements / max_of(1, plane));
  parallel_ranges(p.shape.outer, grain, threads, [&](int64_t begin, int64_t end) {
    T* const sums = (T*)((char*)p.workspace + omp_get_thread_num() * bytes);
    memset(sums, 0, bytes);
    for (int64_t i = begin; i < end; i += group) {
      const int64_t planes = min_of(group, end - i);
      S* const dx = (S*)p.dx + i * plane;
      const S* const dy = (const S*)p.dy + i * outputs;
      const auto each = [&](auto body) {
        for (int64_t j = 0; j < planes; j++)
          each_place(indices + (i + j) * outputs, outputs, plane,
                     [&](int64_t o, int64_t place) { body(j * outputs + o, j * plane + place); });
      };
      if (is_direct || are_few) memset(dx, 0, planes * plane * sizeof(S));
      if constexpr (sizeof(S) == sizeof(T)) {
        each([&](int64_t o, int64_t at) { dx[at] += dy[o]; });
      } else if (is_direct) {
        each([&](int64_t o, int64_t at) { put(dx + at, get(dx + at) + get(dy + o)); });
      } else if (are_few) {
        each([&](int64_t o, int64_t at) { sums[at] += get(dy + o); });
        each([&](int64_t, int64_t at) { put(dx + at, sums[at]); });
        each([&](int64_t, int64_t at) { sums[at] = 0; });
      } else {
        memset(sums, 0, planes * plane * sizeof(T));
        each([&](int64_t o, int64_t at) { sums[at] += get(dy + o); });
        for_lanes<T>(0, planes * plane,
                     [&](int64_t x, auto lanes) { store_lanes(dx + x, load_lanes(sums + x, lanes), lanes); });
      }
    }
  });
}

// Of channels_last, a part of an image's channels in each thread.
template <class S, class I>
void scatter_images(const MaxPoolBwd& p, const I* indices, int threads) {
  typedef Acc<S> T;
  const PoolAxis &d = p.shape.depth, &h = p.shape.height, &w = p.shape.width;
  const int64_t plane = d.in * h.in * w.in, outputs = d.out * h.out * w.out, channels = p.shape.inner;
  const int64_t bytes = max_pool_bwd_workspace(p.shape, p.dtype);
  const bool is_direct = bytes == 0;
  const int64_t parts = min_of(ceil_div(threads, max_of(1, p.shape.outer)), ceil_div(channels, kScatteredChannels));
  const int64_t width = round_up(ceil_div(channels, parts), kScatteredChannels);
  const int64_t grain = max_of(1, kElementwiseGrain / max_of(1, (plane + outputs) * width));
  parallel_ranges(p.shape.outer * parts, grain, threads, [&](int64_t begin, int64_t end) {
    T* const sums = (T*)((char*)p.workspace + omp_get_thread_num() * bytes);
    memset(sums, 0, bytes);
    for (int64_t i = begin; i < end; i++) {
      const int64_t outer = i / parts, first = i % parts * width, last = min_of(first + width, channels);
      S* const dx = (S*)p.dx + outer * plane * channels;
      const S* const dy = (const S*)p.dy + outer * outputs * channels;
      const I* const places = indices + outer * outputs * channels;
      // body(output, element of the image, sum) for channels [from, to).
      const auto each = [&](int64_t from, int64_t to, auto body) {
        for (int64_t o = 0; o < outputs; o++)
          for (int64_t c = from; c < to; c++) {
            const uint64_t place = (uint64_t)(int64_t)places[o * channels + c];
            if (place < (uint64_t)plane)
              body(o * channels + c, place * channels + c, place * kScatteredChannels + c - from);
          }
      };
      if (first >= last) continue;
      if (last - first == channels)
        memset(dx, 0, plane * channels * sizeof(S));
      else
        for (int64_t x = 0; x < plane; x++) memset(dx + x * channels + first, 0, (last - first) * sizeof(S));
      if constexpr (sizeof(S) == sizeof(T)) {
        each(first, last, [&](int64_t o, int64_t at, int64_t) { dx[at] += dy[o]; });
      } else if (is_direct) {
        each(first, last, [&](int64_t o, int64_t at, int64_t) { put(dx + at, get(dx + at) + get(dy + o)); });
      } else {
        for (int64_t from = first; from < last; from += kScatteredChannels) {
          const int64_t to = min_of(from + kScatteredChannels, last);
          each(from, to, [&](int64_t o, int64_t, int64_t sum) { sums[sum] += get(dy + o); });
          each(from, to, [&](int64_t, int64_t at, int64_t sum) { put(dx + at, sums[sum]); });
          each(from, to, [&](int64_t, int64_t, int64_t sum) { sums[sum] = 0; });
        }
      }
    }
  });
}

}  // namespace

}  // namespace PF_ISA::pool
