// Max unpooling: each element of an input goes to the place in its plane that its index says, and zeros everywhere
// else; and its gradient, which is taken from there. Elements are moved, whatever they mean.
#pragma once
#include "window.h"

namespace PF_ISA::pool {

namespace {

constexpr int64_t kUnpoolRun = 512;  // indices that are looked at together

template <class F>
PF_INLINE void for_element_size(Dtype dtype, F f) {
  if (dtype == Dtype::f64)
    f(uint64_t{});
  else if (dtype == Dtype::f32)
    f(uint32_t{});
  else
    f(uint16_t{});
}

// Channels [begin, end) of a plane of pixels `inner` apart; of NCHW, kPlanes, a pixel has one.
template <bool kPlanes>
struct Channels {
  int64_t begin, end, inner;
  int64_t width() const { return kPlanes ? 1 : end - begin; }
  // body(place in memory, channel) for the pixels [first, last)
  template <class Body>
  PF_MEMBER void each(int64_t first, int64_t last, Body body) const {
    for (int64_t pixel = first; pixel < last; pixel++) {
      if constexpr (kPlanes)
        body(pixel, 0);
      else
        for (int64_t c = begin; c < end; c++) body(pixel * inner + c, c);
    }
  }
  // The largest index of these pixels, or -1 and the place of a wrong one.
  int64_t largest(const int64_t* indices, int64_t first, int64_t last, int64_t outputs, int64_t plane,
                  int64_t* wrong) const {
    uint64_t most = 0;  // a negative one is larger than any other
    each(first, last, [&](int64_t at, int64_t) { most = most > (uint64_t)indices[at] ? most : (uint64_t)indices[at]; });
    if (most < (uint64_t)outputs) return (int64_t)most;
    each(first, last, [&](int64_t at, int64_t) {
      if ((uint64_t)indices[at] == most) __atomic_store_n(wrong, plane + at, __ATOMIC_RELAXED);
    });
    return -1;
  }
};

// The zeros run just ahead of the elements, so that a line of memory is written while it is in a cache; the indices of
// a pooling rise along the plane, but for a few rows, and others are right as well. Of equal indices the last one
// stays.
template <class U, bool kPlanes>
void unpool_plane(const MaxUnpool& p, int64_t outer, Channels<kPlanes> channels) {
  const int64_t plane = outer * p.inputs * p.inner, run = max_of(1, kUnpoolRun / channels.width());
  const U* x = (const U*)p.from + plane;
  const int64_t* indices = p.indices + plane;
  U* y = (U*)p.to + outer * p.outputs * p.inner;
  int64_t zeroed = 0;
  const auto zero_to = [&](int64_t end) {
    if (channels.width() == p.inner) {
      if (end > zeroed) memset(y + zeroed * p.inner, 0, (end - zeroed) * p.inner * sizeof(U));
    } else {
      for (int64_t i = zeroed; i < end; i++) memset(y + i * p.inner + channels.begin, 0, channels.width() * sizeof(U));
    }
    zeroed = max_of(zeroed, end);
  };
  for (int64_t first = 0; first < p.inputs; first += run) {
    const int64_t last = min_of(first + run, p.inputs);
    const int64_t most = channels.largest(indices, first, last, p.outputs, plane, p.wrong);
    if (most < 0) return;
    zero_to(most + 1);
    channels.each(first, last, [&](int64_t at, int64_t c) { y[indices[at] * p.inner + c] = x[at]; });
  }
  zero_to(p.outputs);
}

template <class U, bool kPlanes>
void gather_pixels_of(const MaxUnpool& p, int64_t outer, Channels<kPlanes> channels, int64_t begin, int64_t end) {
  const int64_t plane = outer * p.inputs * p.inner, run = max_of(1, kUnpoolRun / channels.width());
  const U* dy = (const U*)p.from + outer * p.outputs * p.inner;
  const int64_t* indices = p.indices + plane;
  U* dx = (U*)p.to + plane;
  for (int64_t first = begin; first < end; first += run) {
    const int64_t last = min_of(first + run, end);
    if (channels.largest(indices, first, last, p.outputs, plane, p.wrong) < 0) return;
    channels.each(first, last, [&](int64_t at, int64_t c) { dx[at] = dy[indices[at] * p.inner + c]; });
  }
}

}  // namespace

void max_unpool_fwd(const MaxUnpool& p, int num_threads) {
  for_element_size(p.dtype, [&](auto element) {
    typedef decltype(element) U;
    const int64_t elements = (p.inputs + p.outputs) * p.inner;
    // Images that are fewer than the threads are shared by channel, in whole lines of memory.
    const int64_t lines = max_of(1, p.inner * (int64_t)sizeof(U) / 64);
    const int64_t parts = min_of(lines, ceil_div(num_threads, max_of(1, p.outer)));
    const int64_t width = round_up(ceil_div(p.inner, parts), 64 / (int64_t)sizeof(U));
    const int64_t grain = max_of(1, kElementwiseGrain * parts / max_of(1, elements));
    parallel_ranges(p.outer * parts, grain, num_threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        if (p.inner == 1) {
          unpool_plane<U>(p, i, Channels<true>{0, 1, 1});
        } else {
          const int64_t first = i % parts * width, last = min_of(first + width, p.inner);
          if (first < last) unpool_plane<U>(p, i / parts, Channels<false>{first, last, p.inner});
        }
      }
    });
  });
}

void max_unpool_bwd(const MaxUnpool& p, int num_threads) {
  for_element_size(p.dtype, [&](auto element) {
    typedef decltype(element) U;
    const int64_t grain = max_of(1, kElementwiseGrain / max_of(1, p.inner));
    parallel_ranges(p.outer * p.inputs, grain, num_threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end;) {
        const int64_t outer = i / p.inputs, first = i % p.inputs, last = min_of(p.inputs, first + end - i);
        if (p.inner == 1)
          gather_pixels_of<U>(p, outer, Channels<true>{0, 1, 1}, first, last);
        else
          gather_pixels_of<U>(p, outer, Channels<false>{0, p.inner, p.inner}, first, last);
        i += last - first;
      }
    });
  });
}

}  // namespace PF_ISA::pool
