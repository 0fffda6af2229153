// One pass over windows, for any fold of a window's elements into one value. A fold F has
//   Lanes, One                  what is kept of a window, of a vector of windows, of one; start(place of the first
//   element) fold(kept, x, place)        the next element, in the order in which they lie in memory end_of_run(kept)
//   after at most a row of a window, or kLongRun elements together(lanes)             one window of which each lane had
//   a part store(at, kept, ...)        to the outputs from `at` on kAbsent                     a value that changes
//   nothing
//
// Vectors hold windows beside each other along the width (NCHW), the elements of one long window, or channels
// (channels_last). What sticks out over the edges of the input is done window by window.
#pragma once
#include "lanes.h"
#include "window.h"

namespace PF_ISA::pool {

namespace {

constexpr int64_t kLongRun = 1024;

// The part of the windows of a row of outputs that all of them share.
struct Rows {
  const PoolShape& shape;
  Taps d, h;
  // body(place of the row's first element), in memory order
  template <class Body>
  PF_MEMBER void each(Body body) const {
    for (int64_t i = 0, z = d.first; i < d.count; i++, z += shape.depth.dilation)
      for (int64_t j = 0, y = h.first; j < h.count; j++, y += shape.height.dilation)
        body((z * shape.height.in + y) * shape.width.in);
  }
  int64_t first() const { return (d.first * shape.height.in + h.first) * shape.width.in; }
};

// The output `o` of a row.
template <class F>
PF_INLINE void fold_window(const F& f, const typename F::Storage* plane, const Rows& rows, int64_t o, int64_t at) {
  const PoolAxis& axis = rows.shape.width;
  const Taps w = taps_of(axis, o, f.counts_padding);
  typename F::One kept = f.start(rows.first() + w.first);
  rows.each([&](int64_t row) {
    for (int64_t t = 0, x = row + w.first; t < w.count; t++, x += axis.dilation) f.fold(kept, get(plane + x), x);
    f.end_of_run(kept);
  });
  f.store(at + o, kept, rows.d.counted * rows.h.counted * w.counted);
}

// fold(x, t) for the elements t of windows that lie kStride apart; 0: any stride.
template <int kStride, class S, class Lanes, class Fold>
PF_INLINE void each_tap(const S* p, const PoolAxis& axis, Lanes lanes, Fold fold) {
  const int64_t n = axis.kernel;
  if constexpr (kStride == 1) {
    for (int64_t t = 0; t < n; t++) fold(load_lanes(p + t * axis.dilation, lanes), t * axis.dilation);
  } else if constexpr (kStride == 2) {  // two elements at least, beside each other
    Vec<Acc<S>> even, odd;
    for (int64_t t = 0; t + 2 <= n; t += 2) {
      load_pairs(p + t, lanes, even, odd);
      fold(even, t);
      fold(odd, t + 1);
    }
    if (n % 2) {  // as the second of a pair: what lies behind the last element may be nobody's
      load_pairs(p + n - 2, lanes, even, odd);
      fold(odd, n - 1);
    }
  } else {
    for (int64_t t = 0; t < n; t++) fold(load_apart(p + t * axis.dilation, axis.stride, lanes), t * axis.dilation);
  }
}

// The windows [begin, end) of a row, all of whose elements along the width are there.
template <int kStride, class F>
void fold_row(const F& f, const typename F::Storage* plane, const Rows& rows, Range range, int64_t at) {
  typedef typename F::Value T;
  const PoolAxis& axis = rows.shape.width;
  const int64_t counted = rows.d.counted * rows.h.counted * axis.kernel;
  for_lanes<T>(range.begin, range.end, [&](int64_t o, auto lanes) {
    const int64_t start = o * axis.stride - axis.padding;
    typename F::Lanes kept = f.start(splat_place<T>(rows.first()));
    rows.each([&](int64_t row) {
      // Rows of a window take turns, which the processor's own prefetch gives up on; all together they are one stream.
      for (int64_t line = 0; line < kStride; line++)
        __builtin_prefetch((const char*)(plane + row + start) + kAhead + line * 64);
      each_tap<kStride>(plane + row + start, axis, lanes,
                        [&](Vec<T> x, int64_t t) { f.fold(kept, x, splat_place<T>(row + t)); });
      f.end_of_run(kept);
    });
    f.store(at + o, kept, start, axis.stride, counted, lanes);
  });
}

// The same for windows that are long and without gaps: a vector holds elements of one.
template <class F>
void fold_long_windows(const F& f, const typename F::Storage* plane, const Rows& rows, Range range, int64_t at) {
  typedef typename F::Value T;
  const PoolAxis& axis = rows.shape.width;
  for (int64_t o = range.begin; o < range.end; o++) {
    const int64_t start = o * axis.stride - axis.padding;
    typename F::Lanes kept = f.start(splat_place<T>(rows.first() + start));
    rows.each([&](int64_t row) {
      for (int64_t x = row + start, end = x + axis.kernel; x < end; x += kLongRun) {
        for_lanes<T>(x, min_of(x + kLongRun, end), [&](int64_t x, auto lanes) {
          f.fold(kept, load_lanes(plane + x, lanes, F::kAbsent), places_from<T>(x, 1));
        });
        f.end_of_run(kept);
      }
    });
    f.store(at + o, f.together(kept), rows.d.counted * rows.h.counted * axis.kernel);
  }
}

// The same for a window that is its plane: one run of memory, whose sizes are known before.
template <class F>
PF_INLINE void fold_plane(const F& f, const typename F::Storage* plane, int64_t at, int64_t size) {
  typedef typename F::Value T;
  typename F::Lanes kept = f.start(splat_place<T>(0));
  for (int64_t run = 0; run < size; run += kLongRun) {
    for_lanes<T>(run, min_of(run + kLongRun, size), [&](int64_t x, auto lanes) {
      f.fold(kept, load_lanes(plane + x, lanes, F::kAbsent), places_from<T>(x, 1));
    });
    f.end_of_run(kept);
  }
  f.store(at, f.together(kept), size);
}

// One row of windows of channels_last memory.
template <class F>
void fold_pixels(const F& f, const typename F::Storage* image, const Rows& rows, int64_t at) {
  typedef typename F::Value T;
  const PoolAxis& axis = rows.shape.width;
  const int64_t channels = rows.shape.inner;
  for (int64_t o = 0; o < axis.out; o++) {
    const Taps w = taps_of(axis, o, f.counts_padding);
    const int64_t counted = rows.d.counted * rows.h.counted * w.counted, to = (at + o) * channels;
    const auto fold_block = [&](int64_t c, auto vectors, auto lanes) {
      constexpr int kVectors = decltype(vectors)::value;
      typename F::Lanes kept[kVectors];
      PF_UNROLL
      for (int v = 0; v < kVectors; v++) kept[v] = f.start(splat_place<T>(rows.first() + w.first));
      rows.each([&](int64_t row) {
        for (int64_t t = 0, x = row + w.first; t < w.count; t++, x += axis.dilation) {
          PF_UNROLL
          for (int v = 0; v < kVectors; v++)
            f.fold(kept[v], load_lanes(image + x * channels + c + v * kLanes<T>, lanes), splat_place<T>(x));
        }
        PF_UNROLL
        for (int v = 0; v < kVectors; v++) f.end_of_run(kept[v]);
      });
      PF_UNROLL
      for (int v = 0; v < kVectors; v++) f.store(to + c + v * kLanes<T>, kept[v], 0, 0, counted, lanes);
    };
    int64_t c = 0;
    for (; c + kChannelVectors * kLanes<T> <= channels; c += kChannelVectors * kLanes<T>)
      fold_block(c, Vectors<kChannelVectors>{}, AllLanes{});
    for_lanes<T>(c, channels, [&](int64_t c, auto lanes) { fold_block(c, Vectors<1>{}, lanes); });
  }
}

// Does a vector hold elements of one window, rather than one element of each window of a row? A row of one window is a
// load, and in the end the lanes are put together, which costs as much as 20 rows; elements that lie apart are loaded
// one by one, which costs 5 for each of a window. Zen 4, one thread: 32 planes of 12x12x12 in windows of 6x6x6, 251 us
// before this was asked, 51 now.
PF_INLINE bool takes_long(const PoolAxis& d, const PoolAxis& h, const PoolAxis& w, int64_t lanes) {
  const int64_t rows = d.kernel * h.kernel, vectors = ceil_div(w.out, lanes);
  return w.kernel >= lanes / 2 || w.out * (rows + 20) < vectors * rows * w.kernel * 5;
}

// of_long: the fold for long windows, which must know where an element was to say which came first.
template <class F, class Long>
void fold_windows(const PoolShape& given, const typename F::Storage* x, const F& f, const Long& of_long, int threads) {
  typedef typename F::Value T;
  const PoolShape shape = collapsed(given);
  const PoolAxis &d = shape.depth, &h = shape.height, &w = shape.width;
  const int64_t plane = d.in * h.in * w.in;
  const Range whole = whole_windows(w);
  const bool is_dense = w.dilation == 1, is_long = is_dense && w.stride > 2 && takes_long(d, h, w, kLanes<T>);
  const bool is_plane = is_long && d.in * h.in == 1 && w.out == 1 && w.kernel == w.in && !w.padding;
  const int64_t elements = shape.outer * shape.inner * (plane + d.out * h.out * w.out);
  for_rows(shape.outer, d.out, h.out, elements, threads, [&](int64_t outer, int64_t od, int64_t oh) {
    const typename F::Storage* from = x + outer * plane * shape.inner;
    if (is_plane) return fold_plane(of_long, from, outer, plane);
    const Rows rows{shape, taps_of(d, od, f.counts_padding), taps_of(h, oh, f.counts_padding)};
    const int64_t at = ((outer * d.out + od) * h.out + oh) * w.out;
    if (shape.inner != 1) return fold_pixels(f, from, rows, at);
    for (int64_t o = 0; o < whole.begin; o++) fold_window(f, from, rows, o, at);
    if (is_long)
      fold_long_windows(of_long, from, rows, whole, at);
    else if (w.stride == 1)
      fold_row<1>(f, from, rows, whole, at);
    else if (w.stride == 2 && is_dense && w.kernel >= 2)
      fold_row<2>(f, from, rows, whole, at);
    else
      fold_row<0>(f, from, rows, whole, at);
    for (int64_t o = whole.end; o < w.out; o++) fold_window(f, from, rows, o, at);
  });
}

}  // namespace

}  // namespace PF_ISA::pool
